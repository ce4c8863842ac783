"""Small plans, networks, scans and bundles for the tests of prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inference.bundle.manifest import ModelEntry
from inference.bundle.store import Model

LINEAR = {
    "resampling_fn_data": "resample_torch_fornnunet",
    "resampling_fn_data_kwargs": {"is_seg": False, "force_separate_z": False, "memefficient_seg_resampling": False},
    "resampling_fn_seg": "resample_torch_fornnunet",
    "resampling_fn_seg_kwargs": {"is_seg": True, "force_separate_z": False, "memefficient_seg_resampling": False},
    "resampling_fn_probabilities": "resample_torch_fornnunet",
    "resampling_fn_probabilities_kwargs": {
        "is_seg": False,
        "force_separate_z": False,
        "memefficient_seg_resampling": False,
    },
}
SPLINES = {
    "resampling_fn_data": "resample_data_or_seg_to_shape",
    "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
    "resampling_fn_seg": "resample_data_or_seg_to_shape",
    "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
    "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
    "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
}


def unet_architecture(features: tuple[int, ...] = (4, 8, 8)) -> dict[str, object]:
    stages = len(features)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(features),
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * stages,
            "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def mednext_architecture(channels: int = 4) -> dict[str, object]:
    sizes = {"channels": channels, "blocks": [1] * 9, "expansion": [2] * 9}
    return {"network_class_name": "MedNeXt", "arch_kwargs": sizes, "_kw_requires_import": []}


def make_plans(
    architecture: Mapping[str, object],
    *,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    patch: tuple[int, int, int] = (32, 32, 32),
    resampling: Mapping[str, object] = LINEAR,
    masked: bool = True,
    transpose: tuple[int, int, int] = (0, 1, 2),
) -> dict[str, object]:
    configuration = {
        "data_identifier": "test_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "batch_dice": False,
        "spacing": list(spacing),
        "patch_size": list(patch),
        "normalization_schemes": ["ZScoreNormalization"] * 4,
        "use_mask_for_norm": [masked] * 4,
        "architecture": dict(architecture),
        **resampling,
    }
    return {
        "dataset_name": "Dataset001_Test",
        "plans_name": "test",
        "transpose_forward": list(transpose),
        "transpose_backward": [int(axis) for axis in np.argsort(transpose)],
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(channel): {} for channel in range(4)},
        "configurations": {"3d_fullres": configuration},
    }


def make_scan(shape: tuple[int, int, int], margin: int = 4, seed: int = 0) -> np.ndarray:
    """Smooth positive noise in an ellipsoid that has a hole, zero outside: (4, X, Y, Z) float32."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).normal(size=(4, *shape))
    smooth = gaussian_filter(noise, (0, 2, 2, 2))
    axes = np.meshgrid(*(np.linspace(-1, 1, size) * size / (size - 2 * margin) for size in shape), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    data = np.where(radius < 1, 500 + 1000 * smooth, 0).astype(np.float32)
    centre = tuple(slice(size // 2 - 2, size // 2 + 2) for size in shape)
    data[:, *centre] = 0
    return data


def fake_model(
    name: str,
    plans: Mapping[str, object],
    networks: Mapping[int, Mapping[str, np.ndarray]],
    *,
    heads: str = "regions",
    weight: float = 1.0,
    averaging: str = "logits",
) -> Model:
    """A model of no bundle."""
    family = plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"].rpartition(".")[2]
    entry = ModelEntry(name, family, heads, "safetensors", tuple(networks), weight, averaging)
    return Model(entry, plans, networks)


def changed(
    model: Model, networks: Mapping[int, Mapping[str, np.ndarray] | Path] | None = None, **entry: object
) -> Model:
    """A model with other networks, or with another entry in the manifest."""
    return replace(model, entry=replace(model.entry, **entry), networks=networks or model.networks)


def random_weights(architecture: Mapping[str, object], heads: int, seed: int) -> dict[str, np.ndarray]:
    """Weights whose logits spread over a few units, so that probabilities are neither 0, 1 nor all alike."""
    import torch

    from inference.predict.networks import build_network, deployed_weights

    torch.manual_seed(seed)
    network = build_network(architecture, 4, heads)
    for name, parameter in network.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.data += 0.2 * torch.randn_like(parameter)
    return deployed_weights(network, network.state_dict())


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Model]:
    def make(
        plans: Mapping[str, object],
        *,
        name: str = "nnunet",
        heads: str = "regions",
        folds: int = 2,
        weight: float = 1.0,
        averaging: str = "logits",
    ) -> Model:
        architecture = plans["configurations"]["3d_fullres"]["architecture"]
        outputs = 3 if heads == "regions" else 4
        arrays = {fold: random_weights(architecture, outputs, fold) for fold in range(folds)}
        return fake_model(name, plans, arrays, heads=heads, weight=weight, averaging=averaging)

    return make
