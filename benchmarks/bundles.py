"""Bundles of random weights, whose networks cost what trained ones of their size cost: `python -m benchmarks bundle`.

The folds of a model differ a little, as trained ones do, and the heads are set so that small parts of a scan become
tumour: probabilities are neither 0, 1 nor all alike, and refinement has something to do.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from inference.bundle.manifest import ModelEntry, Provenance
from inference.bundle.store import NewBundle, NewModel, load_bundle, write_bundle
from inference.bundle.tables import FloatArray, Thresholds, ThresholdTables
from inference.errors import ExitStatus
from inference.labels import REGIONS, SEQUENCES
from inference.predict.networks import architecture_name, build_network, deployed_weights
from inference.predict.preprocess import plan_section
from inference.settings import EMBEDDED

if TYPE_CHECKING:
    from torch import nn

_LOG = logging.getLogger(__name__)

SIZES: Final = ("paper", "embedded", "tiny")
"""`paper`: nnU-Net 3d_fullres and MedNeXt-M with kernels of 3; `embedded`: as in the bundle of the repository."""
FOLDS: Final = 5
_WEIGHTS: Final[Mapping[str, float]] = {"nnunet": 0.6, "mednext": 0.4}
_SHARES: Final = (0.08, 0.05, 0.03)
"""Of the voxels of a probe, how many become WT, TC and ET."""
_SPREAD: Final = 4.0
"""Standard deviation of the logits."""
_BETWEEN_FOLDS: Final = 0.02
"""Standard deviation of a weight between folds, as a share of its layer's."""
_PROBE: Final = 64


def random_bundle(folder: Path, size: str, seed: int = 0) -> None:
    """Write a bundle of one of :data:`SIZES`: two models, five folds each, half precision, the embedded subtypes."""
    models = []
    for number, (name, plans) in enumerate(_plans(size).items()):
        architecture = plan_section(plans)["architecture"]
        assert isinstance(architecture, dict)
        networks = _random_networks(architecture, seed + number)
        entry = ModelEntry(
            name, architecture_name(architecture), "regions", "safetensors", tuple(range(FOLDS)), _WEIGHTS[name]
        )
        models.append(NewModel(entry, plans, networks))
        millions = sum(array.size for array in networks[0].values()) / 1e6
        _LOG.info("%s: %s, %.2f million parameters × %d folds", name, entry.architecture, millions, FOLDS)
    write_bundle(folder, _describe(models, size, seed))


def _describe(models: list[NewModel], size: str, seed: int) -> NewBundle:
    nothing = Thresholds({"NCR": 0.0, "ED": 0.0, "ET": 0.0}, 0.0)
    return NewBundle(
        name=f"random-{size}",
        version="0",
        intended_use="measuring speed and memory",
        limits="its weights are random: what it paints has no meaning",
        licence="CC0-1.0",
        provenance=Provenance((), {"size": size, "seed": seed}, "unknown", {"torch": version("torch")}, ()),
        models=models,
        thresholds=ThresholdTables((0.5, 0.5, 0.5), nothing, {}, "global"),
        scores={"half_precision": {"note": "drawn in half precision: there are no float32 weights to agree with"}},
        subtypes=load_bundle(EMBEDDED).subtypes,
    )


def _random_networks(architecture: Mapping[str, object], seed: int) -> dict[int, Mapping[str, FloatArray]]:
    """Weights of all folds of a model."""
    import torch

    torch.manual_seed(seed)
    network = build_network(architecture, len(SEQUENCES), len(REGIONS)).eval()
    _set_head(network, _head_name(architecture), _probe(seed))
    base = deployed_weights(network, network.state_dict())
    generator = np.random.default_rng(seed)

    def fold() -> dict[str, FloatArray]:
        return {
            name: (array + _BETWEEN_FOLDS * array.std() * generator.standard_normal(array.shape, np.float32)).astype(
                np.float16
            )
            for name, array in base.items()
        }

    return {number: fold() for number in range(FOLDS)}


def _head_name(architecture: Mapping[str, object]) -> str:
    if architecture_name(architecture) == "MedNeXt":
        return "out_0.conv_out"
    arguments = architecture["arch_kwargs"]
    assert isinstance(arguments, Mapping)
    return f"decoder.seg_layers.{arguments['n_stages'] - 2}"


def _probe(seed: int) -> NDArray[np.float32]:
    """A scan (4, Z, Y, X) of smooth noise with mean 0 and deviation 1."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).standard_normal((len(SEQUENCES), *[_PROBE] * 3), np.float32)
    smooth: NDArray[np.float32] = gaussian_filter(noise, (0, 4, 4, 4))
    smooth -= smooth.mean()
    smooth /= smooth.std()
    return smooth


def _set_head(network: nn.Module, name: str, probe: NDArray[np.float32]) -> None:
    """Scale and shift the last layer so that :data:`_SHARES` of the probe's voxels come out above one half."""
    import torch
    from torch import nn

    head = network.get_submodule(name)
    # A transposed convolution, as MedNeXt's, has its outputs second.
    outputs = (1, -1, 1, 1, 1) if isinstance(head, nn.ConvTranspose3d) else (-1, 1, 1, 1, 1)
    weight, bias = head.get_parameter("weight"), head.get_parameter("bias")
    with torch.no_grad():
        logits = network(torch.from_numpy(probe)[None])[0].flatten(1)
        scale = _SPREAD / logits.std(dim=1)
        limits = torch.stack(
            [channel.quantile(1 - share) for channel, share in zip(logits[:, ::7], _SHARES, strict=True)]
        )
        weight.mul_(scale.reshape(outputs))
        bias.copy_((bias - limits) * scale)


def _plans(size: str) -> dict[str, dict[str, object]]:
    """Plans of both models."""
    if size == "embedded":
        return {name: json.loads((EMBEDDED / name / "plans.json").read_text(encoding="utf-8")) for name in _WEIGHTS}
    if size == "paper":
        unet, mednext, patch = _unet([32, 64, 128, 256, 320, 320], 2), {"variant": "M", "kernel_size": 3}, 128
    else:
        unet, patch = _unet([4, 8, 8], 1), 32
        mednext = {"channels": 2, "blocks": [1] * 9, "expansion": [2] * 9, "kernel_size": 3}
    section = {"network_class_name": "MedNeXt", "arch_kwargs": mednext, "_kw_requires_import": []}
    return {"nnunet": _planned(unet, patch), "mednext": _planned(section, patch)}


def _unet(features: list[int], convolutions: int) -> dict[str, object]:
    """The architecture section that nnU-Net's planner writes for stages of these widths."""
    stages = len(features)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": features,
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * stages,
            "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
            "n_conv_per_stage": [convolutions] * stages,
            "n_conv_per_stage_decoder": [convolutions] * (stages - 1),
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


def _planned(architecture: Mapping[str, object], patch: int) -> dict[str, object]:
    """nnU-Net's plans for scans of 1 mm, with its default resampling."""
    common = {"order_z": 0, "force_separate_z": None}
    resampling: dict[str, object] = {}
    for kind, segmentation, order in (("data", False, 3), ("seg", True, 1), ("probabilities", False, 1)):
        resampling[f"resampling_fn_{kind}"] = "resample_data_or_seg_to_shape"
        resampling[f"resampling_fn_{kind}_kwargs"] = {"is_seg": segmentation, "order": order, **common}
    configuration = {
        "data_identifier": "benchmark_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "batch_dice": False,
        "patch_size": [patch] * 3,
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"] * len(SEQUENCES),
        "use_mask_for_norm": [True] * len(SEQUENCES),
        "architecture": dict(architecture),
        **resampling,
    }
    return {
        "dataset_name": "Dataset000_Benchmark",
        "plans_name": "benchmark",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(channel): {} for channel in range(len(SEQUENCES))},
        "configurations": {"3d_fullres": configuration},
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `bundle`."""
    parser.add_argument("--size", choices=SIZES, default="paper", help="what the networks are like (default: paper)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the bundle")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the weights (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    """Write a bundle of random weights."""
    random_bundle(arguments.output, arguments.size, arguments.seed)
    return ExitStatus.OK
