"""The same networks on a finer grid: the same answers for blocks of equal voxels, and nothing else accepted."""

from __future__ import annotations

import pytest
import torch

from inference.bundle.store import load_bundle
from inference.errors import UsageError
from inference.predict.networks import build_network, load_weights
from tests.inference.conftest import tiny_bundle  # noqa: F401 (a fixture)
from training.bundles.finer_grid import to_finer_grid


def network(model):
    made = build_network(model.architecture, 4, 3).eval()
    load_weights(made, model.tensors(0))
    return made


def test_networks_say_of_blocks_what_they_said_of_voxels(tiny_bundle, tmp_path):  # noqa: F811
    coarse, finer = load_bundle(tiny_bundle), to_finer_grid(tiny_bundle, tmp_path / "finer", 2)
    assert "2 times finer" in finer.manifest.provenance.ancestry[-1]
    voxels = torch.randn(1, 4, 32, 32, 16)
    blocks = torch.nn.functional.interpolate(voxels, scale_factor=2)
    for before, after in zip(coarse.models, finer.models, strict=True):
        with torch.no_grad():
            expected = torch.nn.functional.interpolate(network(before)(voxels), scale_factor=2)
            assert torch.allclose(network(after)(blocks), expected, atol=1e-3)


def test_networks_are_put_on_a_finer_grid_once(tiny_bundle, tmp_path):  # noqa: F811
    to_finer_grid(tiny_bundle, tmp_path / "finer", 2)
    with pytest.raises(UsageError, match="expected safetensors with heads for regions"):
        to_finer_grid(tmp_path / "finer", tmp_path / "again", 2)
