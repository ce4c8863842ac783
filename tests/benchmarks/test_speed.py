"""Random bundles are bundles, and what is measured is what happened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main
from inference.bundle.store import load_bundle
from inference.cli import main as inference
from training.phantoms import make_phantom, write_phantom


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
    assert found["peak_gpu_gb"] is None
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


def test_what_cannot_be_measured_is_a_line(bundle: Path, scans: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = ["speed", "--bundle", str(bundle), "--input", str(scans)]
    assert main([*words, "--cases", "0"]) == 2
    assert "--cases" in caplog.text
    assert main([*words, "--against", "nnunet", "--model", "third"]) == 2
    assert "nnunet, mednext" in caplog.text
