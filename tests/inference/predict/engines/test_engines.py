"""Which engine, which profile, how many threads."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from inference.errors import DeviceError, UsageError
from inference.predict.engines import choose_profile, open_engine
from inference.predict.engines.base import forward_count, pass_shape
from inference.predict.preprocess import preprocess, read_plan
from inference.settings import Profile
from tests.inference.predict.conftest import make_plans, make_scan, mednext_architecture, unet_architecture


class OnDevice:
    """An engine that is nothing but its device."""

    def __init__(self, device: str) -> None:
        self.device = device


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    honest = builtins.__import__

    def refusing(name: str, *arguments: object, **keywords: object) -> object:
        if any(name.endswith(package) for package in packages):
            raise ModuleNotFoundError(name)
        return honest(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refusing)


def test_a_cpu_gets_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.predict.engines.open._gpu_works", lambda: False)
    assert open_engine().name == "openvino"
    assert open_engine("torch").name == "torch"
    assert open_engine("auto", "cpu").name == "openvino"
    assert open_engine("torch", "cpu").device == "cpu"


def test_a_cpu_without_openvino_gets_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "openvino_engine")
    assert open_engine("auto", "cpu").name == "torch"
    with pytest.raises(DeviceError, match="openvino is not installed"):
        open_engine("openvino")


def test_no_engine_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "openvino_engine", "torch_engine")
    with pytest.raises(DeviceError, match="torch is not installed"):
        open_engine("auto", "cpu")


def test_no_gpu_is_looked_for_where_there_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.predict.engines.open._GPU_FILES", ("/dev/no_such_device",))
    without(monkeypatch, "torch_engine")
    assert open_engine().name == "openvino"


@pytest.mark.parametrize(
    ("name", "device", "complaint"),
    [("tensorrt", "auto", "engine"), ("openvino", "cuda", "CPU only"), ("torch", "tpu", "device")],
)
def test_what_means_nothing_is_a_usage_error(name: str, device: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        open_engine(name, device)


def test_profiles() -> None:
    assert choose_profile("auto", OnDevice("cpu")) is Profile.FAST
    assert choose_profile("auto", OnDevice("cuda:0")) is Profile.PAPER
    assert choose_profile("paper", OnDevice("cpu")) is Profile.PAPER
    with pytest.raises(UsageError, match="thorough"):
        choose_profile("thorough", OnDevice("cpu"))


def test_forward_counts() -> None:
    assert forward_count((140, 175, 140), (128, 128, 128), Profile.PAPER) == 64
    assert forward_count((100, 100, 100), (128, 128, 128), Profile.PAPER) == 8
    assert forward_count((140, 175, 140), (128, 128, 128), Profile.FAST) == 1


@pytest.mark.parametrize(
    ("architecture", "shape", "expected"),
    [
        (unet_architecture(), (17, 24, 25), (24, 24, 32)),
        (unet_architecture((4, 4, 4, 4, 4, 4)), (65, 100, 1), (96, 128, 64)),
        (mednext_architecture(), (33, 1, 48), (48, 32, 48)),
    ],
)
def test_sizes_of_one_pass(
    architecture: dict[str, object], shape: tuple[int, int, int], expected: tuple[int, int, int]
) -> None:
    assert pass_shape(shape, architecture) == expected


@pytest.mark.parametrize("name", ["torch", "openvino"])
@pytest.mark.parametrize("architecture", [unet_architecture(), mednext_architecture()], ids=["U-Net", "MedNeXt"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 20, 3), (16, 16, 16)])
def test_the_smallest_brains_are_predicted_by_both_engines(
    name: str, architecture: dict[str, object], sizes: tuple[int, int, int], make_model: Callable
) -> None:
    model = make_model(make_plans(architecture, spacing=(2.0, 2.0, 2.0)), folds=1)
    data = np.zeros((4, 40, 40, 40), np.float32)
    brain = tuple(slice(5, 5 + size) for size in sizes)
    data[:, *brain] = 100 + np.random.default_rng(0).normal(size=(4, *sizes))
    prepared = preprocess(data, (1.0, 1.0, 1.0), read_plan(model.plans))
    found = open_engine(name, "cpu").mean_over_folds(model, prepared, Profile.FAST, lambda: None)
    assert found.shape == (3, *sizes[::-1])
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_an_engine_serves_several_threads(name: str, make_model: Callable) -> None:
    model = make_model(make_plans(unet_architecture()))
    prepared = preprocess(make_scan((40, 44, 36)), (1.0, 1.0, 1.0), read_plan(model.plans))
    engine = open_engine(name, "cpu", threads=1)

    def predicted(_: int) -> np.ndarray:
        return engine.mean_over_folds(model, prepared, Profile.FAST, lambda: None)

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(predicted, range(12)))
    for answer in answers:
        np.testing.assert_array_equal(answer, answers[0])
