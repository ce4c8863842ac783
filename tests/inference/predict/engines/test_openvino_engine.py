"""OpenVINO behind the engine's interface."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from inference.bundle.store import Model
from inference.errors import BundleError
from inference.predict.engines import openvino_engine
from inference.predict.engines.base import heads_of, pass_bytes, region_probabilities
from inference.predict.engines.openvino_engine import OpenVinoEngine, export_network
from inference.predict.engines.torch_engine import TorchEngine
from inference.predict.preprocess import Preprocessed, preprocess, read_plan
from inference.settings import Profile
from tests.inference.predict.conftest import changed, make_plans, make_scan, mednext_architecture, unet_architecture
from tests.inference.predict.networks.test_networks import RESIDUAL

ROOT = Path(__file__).resolve().parents[4]
MILLIMETRE = (1.0, 1.0, 1.0)
BOTH = pytest.mark.parametrize("architecture", [unet_architecture(), mednext_architecture()], ids=["U-Net", "MedNeXt"])
COARSER = pytest.mark.parametrize(
    "architecture",
    [unet_architecture() | {"shuffle": 2}, mednext_architecture() | {"shuffle": 2}],
    ids=["U-Net", "MedNeXt"],
)


def nothing() -> None:
    """Progress that nobody looks at."""


def prepared_for(model: Model) -> Preprocessed:
    return preprocess(make_scan((44, 52, 36)), MILLIMETRE, read_plan(model.plans))


@BOTH
@pytest.mark.parametrize("heads", ["regions", "labels"])
@pytest.mark.parametrize("profile", list(Profile))
def test_float32_equals_torch(
    architecture: dict[str, object], heads: str, profile: Profile, make_model: Callable
) -> None:
    plans = make_plans(architecture, spacing=(1.4, 1.4, 1.4), patch=(32, 32, 16))
    model = make_model(plans, heads=heads)
    prepared = prepared_for(model)
    seen: dict[str, list[np.ndarray]] = {"torch": [], "openvino": []}

    def keep(engine: str) -> Callable[[np.ndarray], None]:
        return lambda found: seen[engine].append(found.copy())

    expected = TorchEngine("cpu").mean_over_folds(model, prepared, profile, nothing, keep("torch"))
    engine = OpenVinoEngine(precision="f32")
    found = engine.mean_over_folds(model, prepared, profile, nothing, keep("openvino"))
    assert expected.std() > 0.05
    # OpenVINO's norm sums less exactly than torch's, which shows where most of a pass is padding.
    difference = np.abs(found - expected)
    assert difference.max() < 1e-3
    assert difference.mean() < 1e-4
    assert np.abs(np.mean(seen["openvino"], axis=0) - found).max() < 1e-5
    for one, other in zip(seen["openvino"], seen["torch"], strict=True):
        assert np.abs(one - other).max() < 2e-3


@COARSER
@pytest.mark.parametrize("profile", list(Profile))
def test_a_body_on_a_coarser_grid_gives_the_same(
    architecture: dict[str, object], profile: Profile, make_model: Callable
) -> None:
    model = make_model(make_plans(architecture, patch=(32, 64, 32)), folds=1)
    prepared = prepared_for(model)
    expected = TorchEngine("cpu").mean_over_folds(model, prepared, profile, nothing)
    found = OpenVinoEngine(precision="f32").mean_over_folds(model, prepared, profile, nothing)
    assert expected.std() > 0.02
    assert np.abs(found - expected).max() < 1e-4


@BOTH
def test_the_precision_of_this_processor_is_close(architecture: dict[str, object], make_model: Callable) -> None:
    model = make_model(make_plans(architecture))
    prepared = prepared_for(model)
    exact = OpenVinoEngine(precision="f32").mean_over_folds(model, prepared, Profile.FAST, nothing)
    found = OpenVinoEngine().mean_over_folds(model, prepared, Profile.FAST, nothing)
    assert np.abs(found - exact).mean() < 0.01


@pytest.mark.parametrize("shuffle", [1, 2])
@BOTH
def test_exported_networks_give_the_same(
    architecture: dict[str, object], shuffle: int, make_model: Callable, tmp_path: Path
) -> None:
    model = make_model(make_plans(architecture | {"shuffle": shuffle}))
    for fold in model.folds:
        export_network(model.architecture, heads_of(model), model.tensors(fold), tmp_path / f"fold_{fold}.xml")
    stored = changed(model, {fold: tmp_path / f"fold_{fold}.xml" for fold in model.folds}, format="openvino")
    prepared = prepared_for(model)
    engine = OpenVinoEngine(precision="f32")
    engine.load(stored)
    found = engine.mean_over_folds(stored, prepared, Profile.FAST, nothing)
    expected = OpenVinoEngine(precision="f32").mean_over_folds(model, prepared, Profile.FAST, nothing)
    assert np.abs(found - expected).max() < 1e-6


def test_a_stored_network_of_another_shape_is_refused(make_model: Callable, tmp_path: Path) -> None:
    model = make_model(make_plans(unet_architecture()), heads="labels", folds=1)
    export_network(model.architecture, 4, model.tensors(0), tmp_path / "fold_0.xml")
    with pytest.raises(BundleError, match=r"fold_0\.xml: found"):
        OpenVinoEngine().load(changed(model, {0: tmp_path / "fold_0.xml"}, heads="regions", format="openvino"))


def test_a_stored_network_that_is_damaged_is_refused(make_model: Callable, tmp_path: Path) -> None:
    model = changed(
        make_model(make_plans(unet_architecture()), folds=1), {0: tmp_path / "fold_0.xml"}, format="openvino"
    )
    (tmp_path / "fold_0.xml").write_text("<net", encoding="utf-8")
    with pytest.raises(BundleError, match="cannot be read"):
        OpenVinoEngine().load(model)


def test_wrong_weights_are_refused_at_load(make_model: Callable) -> None:
    model = make_model(make_plans(mednext_architecture()))
    del model.networks[1]["stem.bias"]
    with pytest.raises(BundleError, match=r"nnunet, fold 1.*stem\.bias"):
        OpenVinoEngine().load(model)


def test_what_openvino_cannot_build_is_left_to_torch(make_model: Callable, caplog: pytest.LogCaptureFixture) -> None:
    model = make_model(make_plans(RESIDUAL))
    prepared = prepared_for(model)
    engine = OpenVinoEngine()
    with caplog.at_level(logging.WARNING):
        engine.load(model)
        found = engine.mean_over_folds(model, prepared, Profile.FAST, nothing)
    assert "torch does instead" in caplog.text
    assert caplog.text.count("torch does instead") == 1
    assert "nnunet: torch" in engine.description
    expected = TorchEngine("cpu").mean_over_folds(model, prepared, Profile.FAST, nothing)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("answer", [7.0, np.nan])
def test_a_network_that_disagrees_is_left_to_torch(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    make_model: Callable,
    answer: float,
) -> None:
    model = make_model(make_plans(unet_architecture()), folds=1)
    honest = openvino_engine._infer
    calls: list[object] = []

    def wrong_at_first(*arguments: object) -> np.ndarray:
        calls.append(arguments)
        logits = honest(*arguments)
        return np.full_like(logits, answer) if len(calls) == 1 else logits

    monkeypatch.setattr(openvino_engine, "_infer", wrong_at_first)
    engine = OpenVinoEngine(precision="bf16")
    with caplog.at_level(logging.WARNING):
        found = engine.mean_over_folds(model, prepared_for(model), Profile.FAST, nothing)
    assert "differ" in caplog.text
    expected = TorchEngine("cpu").mean_over_folds(model, prepared_for(model), Profile.FAST, nothing)
    assert np.array_equal(found, expected)


def test_a_graph_that_does_not_compile_is_left_to_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, make_model: Callable
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such primitive\nand a stack of lines")

    monkeypatch.setattr(OpenVinoEngine, "_compile", broken)
    model = make_model(make_plans(unet_architecture()), folds=1)
    with caplog.at_level(logging.WARNING):
        found = OpenVinoEngine().mean_over_folds(model, prepared_for(model), Profile.FAST, nothing)
    assert "no such primitive" in caplog.text
    assert "stack of lines" not in caplog.text
    assert found.shape[0] == 3


def test_networks_are_compiled_once(make_model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(make_plans(unet_architecture()))
    engine = OpenVinoEngine(precision="f32")
    count = 0
    honest = OpenVinoEngine._compile

    def counted(*arguments: object) -> object:
        nonlocal count
        count += 1
        return honest(*arguments)

    monkeypatch.setattr(OpenVinoEngine, "_compile", counted)
    for _ in range(2):
        engine.mean_over_folds(model, prepared_for(model), Profile.FAST, nothing)
    assert count == len(model.folds)


def test_a_network_whose_answer_is_not_finite_is_compiled_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, make_model: Callable
) -> None:
    model = make_model(make_plans(unet_architecture()), folds=1)
    engine = OpenVinoEngine()
    expected = engine.mean_over_folds(model, prepared_for(model), Profile.FAST, nothing)
    honest, (before,) = openvino_engine._infer, engine._compiled.values()
    answers = iter([np.nan, 1.0])
    monkeypatch.setattr(openvino_engine, "_infer", lambda *arguments: honest(*arguments) * np.float32(next(answers)))
    found = engine.mean_over_folds(model, prepared_for(model), Profile.FAST, nothing)
    assert np.array_equal(found, expected)
    assert "compiled anew" in caplog.text
    assert [network is not before for network in engine._compiled.values()] == [True]


def test_a_network_whose_pass_broke_off_is_compiled_anew(monkeypatch: pytest.MonkeyPatch, make_model: Callable) -> None:
    model = make_model(make_plans(unet_architecture()), folds=1)
    engine = OpenVinoEngine()
    expected = engine.mean_over_folds(model, prepared_for(model), Profile.FAST, nothing)
    (before,) = engine._compiled.values()

    def broken(*_: object) -> np.ndarray:
        raise RuntimeError("Failed to allocate 4096 bytes of memory")

    with monkeypatch.context() as patch:
        patch.setattr(openvino_engine, "_infer", broken)
        with pytest.raises(RuntimeError, match="Failed to allocate"):
            engine.mean_over_folds(model, prepared_for(model), Profile.FAST, nothing)
    assert np.array_equal(engine.mean_over_folds(model, prepared_for(model), Profile.FAST, nothing), expected)
    assert [network is not before for network in engine._compiled.values()] == [True]


def test_a_pass_without_room_is_not_begun(monkeypatch: pytest.MonkeyPatch, make_model: Callable) -> None:
    model = make_model(make_plans(unet_architecture()), folds=1)
    engine = OpenVinoEngine()
    expected = engine.mean_over_folds(model, prepared_for(model), Profile.FAST, nothing)
    (before,) = engine._compiled.values()
    with monkeypatch.context() as patch:
        patch.setattr(openvino_engine, "free_memory", lambda: 2**20)
        with pytest.raises(MemoryError):
            engine.mean_over_folds(model, prepared_for(model), Profile.FAST, nothing)
    assert np.array_equal(engine.mean_over_folds(model, prepared_for(model), Profile.FAST, nothing), expected)
    # Its memory was given back, and it was compiled anew.
    assert [network is not before for network in engine._compiled.values()] == [True]


def test_room_is_asked_for_once_a_size(monkeypatch: pytest.MonkeyPatch, make_model: Callable) -> None:
    """From its first pass on, a network holds what the seven other mirrorings of a tile need."""
    model = make_model(make_plans(unet_architecture(), patch=(32, 32, 48)), folds=1)
    engine = OpenVinoEngine()
    engine.load(model)
    asked = []

    def free_memory() -> int:
        asked.append(1)
        return 2**40 if len(asked) == 1 else 0

    monkeypatch.setattr(openvino_engine, "free_memory", free_memory)
    engine.mean_over_folds(model, prepared_for(model), Profile.PAPER, nothing)
    assert len(asked) == 1


@pytest.mark.parametrize("arguments", [{"variant": "M"}, {"channels": 32, "blocks": [3] * 9, "expansion": [2] * 9}])
def test_room_is_foreseen_for_every_form_of_a_mednext(arguments: dict[str, object]) -> None:
    """Both have 32 channels; variant M expands them by 2 at full resolution, as the second does."""
    architecture = {"network_class_name": "MedNeXt", "arch_kwargs": arguments}
    activations = 1000 * 64 * 2 * 0.75
    assert pass_bytes(1000, architecture, 2) == activations + 1000 * 4 * 4 * 3


def test_progress_counts_every_forward(make_model: Callable) -> None:
    model = make_model(make_plans(unet_architecture(), patch=(32, 32, 48)), folds=1)
    seen: list[int] = []
    engine = OpenVinoEngine()
    engine.mean_over_folds(model, prepared_for(model), Profile.FAST, lambda: seen.append(1))
    assert len(seen) == 1
    engine.mean_over_folds(model, prepared_for(model), Profile.PAPER, lambda: seen.append(1))
    assert (len(seen) - 1) % 8 == 0
    assert len(seen) > 8


def test_region_probabilities_of_large_logits() -> None:
    logits = np.array([-200.0, -1.0, 0.0, 3.0, 200.0], np.float32).reshape(1, 5)
    with np.errstate(all="raise", under="ignore"):
        found = region_probabilities(np.repeat(logits, 3, axis=0), "regions")
        labels = region_probabilities(np.repeat(logits, 4, axis=0), "labels")
    assert found[0] == pytest.approx([0, 0.268941, 0.5, 0.952574, 1], abs=1e-6)
    assert found.dtype == np.float32
    assert labels[:, 0] == pytest.approx([0.75, 0.5, 0.25])


def test_neither_torch_nor_nnunet_is_loaded(make_model: Callable, tmp_path: Path) -> None:
    """A CPU without torch predicts from plain tensors; shown in a process where importing torch fails."""
    model = make_model(make_plans(mednext_architecture()), folds=1)
    np.savez(tmp_path / "tensors.npz", **model.networks[0])
    script = f"""
import sys
sys.modules["torch"] = sys.modules["monai"] = sys.modules["nnunetv2"] = None
import json, numpy as np
from tests.inference.predict.conftest import fake_model, make_plans, make_scan, mednext_architecture
from inference.predict.engines import choose_profile, open_engine
from inference.predict.ensemble import predict
arrays = dict(np.load({str(tmp_path / "tensors.npz")!r}))
model = fake_model("mednext", make_plans(mednext_architecture()), {{0: arrays}})
engine = open_engine()
found = predict(make_scan((44, 52, 36)), (1, 1, 1), [model], engine, choose_profile("auto", engine))
assert found.array.shape == (3, 44, 52, 36)
sys.exit(0 if found.array.std() > 0 and engine.name == "openvino" else 9)
"""
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_openvino_reports_to_nobody() -> None:
    words = "import sys, inference.predict.engines.openvino_engine; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], cwd=ROOT, env={}, capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    assert "openvino" in modules
    assert not [name for name in modules if "telemetry" in name]
