"""Random bundles are bundles."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.__main__ import main
from inference.bundle.store import load_bundle
from inference.cli import main as inference


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
