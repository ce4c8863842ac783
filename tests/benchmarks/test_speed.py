"""Random bundles are bundles, and what is measured is what happened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.__main__ import main
from inference.bundle.store import load_bundle
from inference.cli import main as inference
from training.data.phantoms import make_phantom, write_phantom


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    assert main(["bundle", "--size", "tiny", "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    write_phantom(folder, "phantom-00000-000", make_phantom(0, (72, 80, 64)))
    return folder


@pytest.fixture(scope="module")
def measured(bundle: Path, scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict]:
    def measure(*options: str) -> dict:
        file = tmp_path_factory.mktemp("measures") / "speed.json"
        words = ["speed", "--bundle", str(bundle), "--input", str(scans), "--device", "cpu", "--json", str(file)]
        assert main([*words, *options]) == 0
        return json.loads(file.read_text())

    return measure


def test_a_random_bundle_passes_the_check(bundle: Path) -> None:
    assert inference(["check", "--bundle", str(bundle)]) == 0
    loaded = load_bundle(bundle)
    assert [len(model.folds) for model in loaded.models] == [5, 5]
    first, second = (loaded.models[0].tensors(fold) for fold in (0, 1))
    assert any(np.abs(first[name] - second[name]).max() > 0 for name in first), "folds must differ"


def test_the_same_seed_gives_the_same_weights(bundle: Path, tmp_path: Path) -> None:
    assert main(["bundle", "--size", "tiny", "--output", str(tmp_path / "again")]) == 0
    assert main(["bundle", "--size", "tiny", "--output", str(tmp_path / "other"), "--seed", "7"]) == 0
    hashes = [load_bundle(folder).manifest.files for folder in (bundle, tmp_path / "again", tmp_path / "other")]
    assert hashes[0] == hashes[1]
    assert hashes[0]["nnunet/fold_0.safetensors"] != hashes[2]["nnunet/fold_0.safetensors"]


def test_speed_counts_every_case_and_step(measured: Callable[..., dict]) -> None:
    found = measured("--cases", "3", "--networks", "1")
    assert found["networks"] == 2
    assert [case["id"][:3] for case in found["cases"]] == ["000", "001", "002"]
    assert set(found["steps"]) == {"read", "predict", "refine", "write", "draw"}
    ends = [case["over_at"] for case in found["cases"]]
    assert ends == sorted(ends)
    assert found["seconds_per_case"] == pytest.approx(ends[-1] / 3, abs=0.01)
    assert found["first_file_seconds"] == pytest.approx(found["start_seconds"] + ends[0], abs=0.02)
    # The kernel counts pages per thread, and adds them up now and then.
    assert found["peak_rss_gb"] + 0.02 > max(case["rss_gb"] for case in found["cases"]) > 0.05
    later = [case["seconds"]["predict"] for case in found["cases"][1:]]
    assert found["later_predict_seconds"] == pytest.approx(sum(later) / 2, abs=0.001)
    assert found["peak_gpu_gb"] is found["reserved_gpu_gb"] is None
    assert all(len(halves) == 2 for halves in found["growth"].values())


def test_both_predictors_agree_on_the_same_weights(measured: Callable[..., dict]) -> None:
    found = measured("--against", "nnunet", "--tiles", "2", "--engine", "torch")
    assert [one["model"] for one in found["models"]] == ["nnunet", "mednext"]
    for one in found["models"]:
        assert (one["tiles"], one["forwards"]) == (2, 16)
        assert min(one["dice"].values()) > 0.99
        # nnU-Net's sums are in half precision: on random weights, where logits have no scale, that costs up to 0.12.
        assert 0 < one["largest_difference"] < 0.12
        forwards = one["tiles_of_case"] * 8 * 5
        # Seconds are told in hundredths, and what is extrapolated from them in tenths.
        rounding = 0.005 / 16 * forwards + 0.05
        assert one["nnunet_case_extrapolated"] == pytest.approx(one["nnunet_seconds"] / 16 * forwards, abs=rounding)


def test_one_forward_of_both_agrees(measured: Callable[..., dict]) -> None:
    found = measured("--against", "nnunet", "--one-forward", "--engine", "torch", "--model", "mednext")
    (one,) = found["models"]
    assert (one["tiles"], one["forwards"]) == (1, 1)
    assert min(one["dice"].values()) > 0.99
    assert one["nnunet_processor_seconds"] > 0


def test_the_time_of_prediction_is_told_by_model_and_operator(measured: Callable[..., dict]) -> None:
    found = measured("--operators", "3", "--engine", "torch", "--networks", "1")
    assert list(found["steps"]) == ["nnunet", "mednext", "the rest"]
    assert sum(found["steps"].values()) == pytest.approx(found["predict_seconds"])
    assert min(found["steps"].values()) > 0
    seconds = [one["seconds"] for one in found["operators"]]
    assert seconds == sorted(seconds, reverse=True)
    assert any("convolution" in one["name"] for one in found["operators"][:3])


def test_nnunets_predictor_leaves_cudnn_as_it_was(
    measured: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import against

    def predictor(*arguments: object, **keywords: object) -> object:
        torch.backends.cudnn.benchmark = True
        return make(*arguments, **keywords)

    make = against._predictor
    monkeypatch.setattr(against, "_predictor", predictor)
    measured("--against", "nnunet", "--one-forward", "--engine", "torch", "--model", "nnunet")
    assert not torch.backends.cudnn.benchmark


def test_the_meter_counts_what_comes_on_top_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.against import _Meter

    told: list[str] = []
    held = {"memory_allocated": 3 * 10**9, "max_memory_allocated": 5 * 10**9}
    for name in ("synchronize", "reset_peak_memory_stats", *held):
        monkeypatch.setattr(torch.cuda, name, lambda _, name=name: told.append(name) or held.get(name))
    with _Meter(torch.device("cuda", 0)) as meter:
        told.append("work")
    assert meter.gpu == 2
    assert told == [
        "synchronize",
        "reset_peak_memory_stats",
        "memory_allocated",
        "work",
        "synchronize",
        "max_memory_allocated",
    ]
    with _Meter(torch.device("cpu")) as meter:
        pass
    assert meter.gpu is None


def test_what_cannot_be_measured_is_a_line(bundle: Path, scans: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = ["speed", "--bundle", str(bundle), "--input", str(scans)]
    assert main([*words, "--cases", "0"]) == 2
    assert "--cases" in caplog.text
    assert main([*words, "--against", "nnunet", "--model", "third"]) == 2
    assert "nnunet, mednext" in caplog.text
    assert main([*words, "--device", "cpu", "--cudnn-search"]) == 2
    assert "needs a GPU" in caplog.text
    assert main([*words, "--engine", "openvino", "--operators", "3"]) == 2
    assert "--engine torch" in caplog.text
