"""What tiny bundles are made of."""

from __future__ import annotations

import numpy as np

from inference.bundle.manifest import DataSet, Provenance
from inference.bundle.store import Model
from inference.bundle.tables import SubtypeTables, Thresholds, ThresholdTables
from inference.bundle.writing import NewBundle

FOLDS = (0, 1)
PATCH = (32, 32, 32)
_CONVOLUTION = {
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "nonlin": "torch.nn.LeakyReLU",
}
UNET = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 3,
        "features_per_stage": [4, 8, 8],
        "kernel_sizes": [[3, 3, 3]] * 3,
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "n_conv_per_stage": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin_kwargs": {"inplace": True},
        **_CONVOLUTION,
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}
MEDNEXT = {
    "network_class_name": "MedNeXt",
    "arch_kwargs": {"channels": 2, "blocks": [1] * 9, "expansion": [2] * 9, "kernel_size": 3},
    "_kw_requires_import": [],
}


def plans(architecture: dict[str, object]) -> dict[str, object]:
    """Plans as nnU-Net writes them, as far as prediction reads them."""
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    return {
        "dataset_name": "Dataset001_Tiny",
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            "3d_fullres": {
                "data_identifier": "nnUNetPlans_3d_fullres",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": list(PATCH),
                "spacing": [1.0, 1.0, 1.0],
                "normalization_schemes": ["ZScoreNormalization"] * 4,
                "use_mask_for_norm": [True] * 4,
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": resampling,
                "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
                "batch_dice": True,
                "architecture": architecture,
            }
        },
        "foreground_intensity_properties_per_channel": {},
    }


def describe(models: tuple[Model, ...], **changes: object) -> NewBundle:
    """A bundle of these models that removes nothing, but for `changes`."""
    contents: dict[str, object] = {
        "name": "tiny",
        "version": "0.0.1",
        "intended_use": "tests",
        "limits": "knows nothing",
        "licence": "CC0-1.0",
        "provenance": Provenance((DataSet("none", 0, "nothing"),), {"seed": 0}, "unknown", {"torch": "2"}, ()),
        "models": models,
        "thresholds": ThresholdTables(
            (0.5, 0.5, 0.5), Thresholds({"NCR": 0.0, "ED": 0.0, "ET": 0.0}, 0.0), {}, "global"
        ),
        "scores": {"out_of_fold": {"WT": None}},
        "folds": {"folds": {"case": 0}},
    }
    return NewBundle(**(contents | changes))  # type: ignore[arg-type]


def random_subtypes() -> SubtypeTables:
    """A subtype model of three features, two components and two clusters."""
    generator = np.random.default_rng(1)
    arrays = {
        "mean": generator.normal(size=3),
        "scale": generator.uniform(1, 2, 3),
        "pca_mean": generator.normal(size=3),
        "pca_components": generator.normal(size=(2, 3)),
        "centroids": generator.normal(size=(2, 2)),
    }
    return SubtypeTables(("a", "b", "c"), {"normalize": True}, "standard", 2, arrays)
