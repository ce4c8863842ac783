"""Writes a bundle of random weights, whose networks cost what trained ones of their size cost.

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
from inference.bundle.store import Model, load_bundle
from inference.bundle.tables import FloatArray, Thresholds, ThresholdTables
from inference.bundle.writing import NewBundle, write_bundle
from inference.errors import ExitStatus
from inference.labels import REGIONS, SEQUENCES
from inference.predict.networks import architecture_name, build_network, deployed_weights
from inference.predict.preprocess import plan_section
from inference.settings import EMBEDDED

if TYPE_CHECKING:
    from torch import nn


_LOG = logging.getLogger(__name__)

# Side of the patch, features by stage and convolutions a stage of nnU-Net, and `arch_kwargs` of MedNeXt. `paper` is
# nnU-Net's 3d_fullres (31.2 million parameters) and MedNeXt-M with kernels of 3.
_SIZES: Final[Mapping[str, tuple[int, list[int], int, Mapping[str, object]]]] = {
    "paper": (128, [32, 64, 128, 256, 320, 320], 2, {"variant": "M", "kernel_size": 3}),
    "tiny": (32, [4, 8, 8], 1, {"channels": 2, "blocks": [1] * 9, "expansion": [2] * 9, "kernel_size": 3}),
}
# The paper's ensemble: five folds of each model, nnU-Net first.
_FOLDS: Final = 5
_WEIGHTS: Final[Mapping[str, float]] = {"nnunet": 0.6, "mednext": 0.4}
# Of the voxels of a probe, how many become WT, TC and ET: a large tumour's.
_SHARES: Final = (0.08, 0.05, 0.03)
# Standard deviations: of the logits, and of a weight between folds, as a share of its layer's.
_SPREAD: Final = 4.0
_BETWEEN_FOLDS: Final = 0.02
# Side of the probe in voxels: small, and a multiple of every stride.
_PROBE: Final = 64


def random_bundle(folder: Path, size: str, seed: int = 0) -> None:
    """Write a bundle: two models of a size, five folds each, half precision, the embedded subtypes."""
    models = []
    for number, (name, weight) in enumerate(_WEIGHTS.items()):
        plans = _plans(name, size)
        architecture = plan_section(plans)["architecture"]
        assert isinstance(architecture, dict)
        # Another seed, so that the ensemble is of models that differ.
        networks = _random_networks(architecture, seed + number)
        family = architecture_name(architecture)
        entry = ModelEntry(name, family, "regions", "safetensors", tuple(range(_FOLDS)), weight)
        models.append(Model(entry, plans, networks))
        millions = sum(array.size for array in networks[0].values()) / 1e6
        _LOG.info("%s: %s, %.2f million parameters × %d folds", name, family, millions, _FOLDS)
    nothing = Thresholds({"NCR": 0.0, "ED": 0.0, "ET": 0.0}, 0.0)
    new = NewBundle(
        name=f"random-{size}",
        version="0",
        intended_use="measuring speed and memory",
        limits="its weights are random: what it segments has no meaning",
        licence="CC0-1.0",
        provenance=Provenance((), {"size": size, "seed": seed}, "unknown", {"torch": version("torch")}, ()),
        models=models,
        thresholds=ThresholdTables((0.5, 0.5, 0.5), nothing, {}, "global"),
        scores={"half_precision": {"note": "drawn in half precision: there are no float32 weights to agree with"}},
        subtypes=load_bundle(EMBEDDED).subtypes,
    )
    write_bundle(folder, new)


def _plans(model: str, size: str) -> dict[str, object]:
    """The embedded bundle's plans of a model, changed to a size on a grid of 1 mm; `embedded` as they are."""
    text = (EMBEDDED / model / "plans.json").read_text(encoding="utf-8")
    plans: dict[str, object] = json.loads(text)
    if size == "embedded":
        return plans
    patch, features, convolutions, mednext = _SIZES[size]
    stages = len(features)
    unet = {
        "n_stages": stages,
        "features_per_stage": features,
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        "n_conv_per_stage": [convolutions] * stages,
        "n_conv_per_stage_decoder": [convolutions] * (stages - 1),
    }
    configuration = json.loads(text)["configurations"]["3d_fullres"]
    configuration |= {"patch_size": [patch] * 3, "spacing": [1.0, 1.0, 1.0]}
    architecture = configuration["architecture"]
    architecture["shuffle"] = 1  # the body is on the grid of 1 mm, as the published networks' are
    architecture["arch_kwargs"] = mednext if model == "mednext" else architecture["arch_kwargs"] | unet
    return plans | {"configurations": {"3d_fullres": configuration}}


def _random_networks(architecture: Mapping[str, object], seed: int) -> Mapping[int, Mapping[str, FloatArray]]:
    """Weights of all folds of a model."""
    import torch

    torch.manual_seed(seed)
    network = build_network(architecture, len(SEQUENCES), len(REGIONS)).eval()
    _set_head(network, architecture, _probe(seed))
    base = deployed_weights(network, network.state_dict())
    generator = np.random.default_rng(seed)
    folds: dict[int, dict[str, FloatArray]] = {fold: {} for fold in range(_FOLDS)}
    for weights in folds.values():
        for name, array in base.items():
            noise = generator.standard_normal(array.shape, np.float32)
            weights[name] = (array + _BETWEEN_FOLDS * array.std() * noise).astype(np.float16)
    return folds


def _probe(seed: int) -> NDArray[np.float32]:
    """A scan (4, Z, Y, X) of smooth noise with mean 0 and deviation 1."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).standard_normal((len(SEQUENCES), *[_PROBE] * 3), np.float32)
    smooth: NDArray[np.float32] = gaussian_filter(noise, (0, 4, 4, 4))
    smooth -= smooth.mean()
    smooth /= smooth.std()
    return smooth


def _set_head(network: nn.Module, architecture: Mapping[str, object], probe: NDArray[np.float32]) -> None:
    """Scale and shift the last layer so that :data:`_SHARES` of the probe's voxels come out above one half."""
    import torch
    from torch import nn

    name = "out_0.conv_out"
    if architecture_name(architecture) != "MedNeXt":
        arguments = architecture["arch_kwargs"]
        assert isinstance(arguments, Mapping)
        name = f"decoder.seg_layers.{arguments['n_stages'] - 2}"
    head = network.get_submodule(name)
    # A transposed convolution, as MedNeXt's, has its outputs second.
    outputs = (1, -1, 1, 1, 1) if isinstance(head, nn.ConvTranspose3d) else (-1, 1, 1, 1, 1)
    weight, bias = head.get_parameter("weight"), head.get_parameter("bias")
    with torch.no_grad():
        logits = network(torch.from_numpy(probe)[None])[0].flatten(1)
        scale = _SPREAD / logits.std(dim=1)
        # Every seventh voxel: a quantile takes at most 16 million values, and seconds.
        sampled = zip(logits[:, ::7], _SHARES, strict=True)
        limits = torch.stack([channel.quantile(1 - share) for channel, share in sampled])
        # A region has several channels where voxels are shuffled.
        parts = bias.numel() // len(scale)
        scale, limits = scale.repeat_interleave(parts), limits.repeat_interleave(parts)
        weight.mul_(scale.reshape(outputs))
        bias.copy_((bias - limits) * scale)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `bundle`."""
    parser.add_argument(
        "--size",
        choices=("paper", "embedded", "tiny"),
        default="paper",
        help="what the networks are like (default: paper)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the bundle")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the weights (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    """Write a bundle of random weights."""
    random_bundle(arguments.output, arguments.size, arguments.seed)
    return ExitStatus.OK
