"""The same networks on a finer grid: the same answers for blocks of equal voxels, and nothing else accepted."""

from pathlib import Path

import pytest
import torch

from inference.bundle.store import load_bundle
from inference.errors import UsageError
from inference.predict.networks import build_network, load_weights
from training.bundles.finer_grid import to_finer_grid

EMBEDDED = Path(__file__).resolve().parents[3] / "weights" / "embedded"


def network(model, fold=0):
    made = build_network(model.architecture, 4, 3).eval()
    load_weights(made, model.tensors(fold))
    return made


def test_networks_say_of_blocks_what_they_said_of_voxels(tmp_path):
    coarse = load_bundle(EMBEDDED)
    if any("shuffle" in model.architecture for model in coarse.models):
        pytest.skip("the bundle that ships is on a fine grid already")
    finer = to_finer_grid(EMBEDDED, tmp_path / "finer", 2)
    assert "2 times finer" in finer.manifest.provenance.ancestry[-1]
    voxels = torch.randn(1, 4, 16, 32, 16)
    blocks = torch.nn.functional.interpolate(voxels, scale_factor=2)
    for before, after in zip(coarse.models, finer.models, strict=True):
        with torch.no_grad():
            expected = torch.nn.functional.interpolate(network(before)(voxels), scale_factor=2)
            assert torch.allclose(network(after)(blocks), expected, atol=1e-3)
    with pytest.raises(UsageError, match="nnunet: expected safetensors"):
        to_finer_grid(tmp_path / "finer", tmp_path / "again", 2)
