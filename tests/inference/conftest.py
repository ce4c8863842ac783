"""A bundle of two tiny random networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inference.bundle.manifest import ModelEntry
from inference.bundle.store import Model
from inference.bundle.writing import write_bundle
from tests.inference.tiny import FOLDS, MEDNEXT, UNET, describe, plans


@pytest.fixture
def plain_models() -> tuple[Model, ...]:
    """Two models whose tensors are no network's, for tests that build none."""
    generator = np.random.default_rng(0)

    def model(name: str, family: str, architecture: dict[str, object], weight: float) -> Model:
        entry = ModelEntry(name, family, "regions", "safetensors", FOLDS, weight)
        networks = {fold: {"weight": generator.normal(size=(2, 3)).astype(np.float32)} for fold in FOLDS}
        return Model(entry, plans(architecture), networks)

    return (
        model("nnunet", "PlainConvUNet", UNET, 0.4722),
        model("mednext", "MedNeXt", MEDNEXT, 0.5278),
    )


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole bundle of two tiny random networks with two folds each; read-only by convention."""
    import torch

    from inference.predict.networks import build_network, deployed_weights

    torch.manual_seed(0)
    models = []
    for name, architecture, weight in (("nnunet", UNET, 0.4722), ("mednext", MEDNEXT, 0.5278)):
        networks = {}
        for fold in FOLDS:
            network = build_network(architecture, 4, 3)
            networks[fold] = deployed_weights(network, network.state_dict())
        family = str(architecture["network_class_name"]).rpartition(".")[2]
        entry = ModelEntry(name, family, "regions", "safetensors", FOLDS, weight)
        models.append(Model(entry, plans(architecture), networks))
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny", describe(tuple(models))).path


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small phantoms, P-00001-000 to P-00003-000, stored in three orientations; read-only by convention."""
    from training.data.phantoms import make_phantom, write_phantom

    folder = tmp_path_factory.mktemp("phantoms")
    # Not seed 3: at this size it has a voxel that the intake mends.
    for number, (seed, orientation) in enumerate(((1, "RAS"), (2, "LPS"), (4, "PIR")), 1):
        write_phantom(folder, f"P-{number:05d}-000", make_phantom(seed, (32, 40, 32)), orientation)
    return folder
