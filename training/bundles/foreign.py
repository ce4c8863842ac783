"""Inputs and outputs of networks from outside, by nnU-Net's `dataset.json` and `plans.json`, in a bundle's order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from inference.bundle.tables import FloatArray
from inference.errors import BundleError, UsageError
from inference.labels import REGIONS, SEQUENCES, TUMOUR_LABELS
from inference.predict.networks import architecture_name
from inference.predict.preprocess import plan_section
from inference.schema import read_json
from training.bundles.pickles import LARGEST, read_pickle, shown
from training.fit.planning import CONFIGURATION

# Names of channels in small letters without signs, and the sequence that each means: those of BraTS, nnU-Net's own
# conversions and the Medical Segmentation Decathlon.
_CHANNELS: Final[Mapping[str, str]] = {
    "t1n": "t1n", "t1": "t1n", "t1w": "t1n", "t1native": "t1n",
    "t1c": "t1c", "t1ce": "t1c", "t1gd": "t1c", "t1post": "t1c", "t1contrast": "t1c",
    "t2w": "t2w", "t2": "t2w",
    "t2f": "t2f", "flair": "t2f", "t2flair": "t2f",
}  # fmt: skip
# The same for labels. BraTS called NCR "NCR/NET" in its first years, and "NETC" in 2024.
_LABELS: Final[Mapping[str, str]] = {
    "ncr": "NCR", "netc": "NCR", "ncrnet": "NCR", "necrosis": "NCR", "necrotic": "NCR", "necroticcore": "NCR",
    "necrotictumorcore": "NCR", "necrotictumourcore": "NCR", "nonenhancingtumorcore": "NCR",
    "ed": "ED", "edema": "ED", "oedema": "ED", "snfh": "ED", "peritumoraledema": "ED", "peritumouraloedema": "ED",
    "et": "ET", "enhancing": "ET", "enhancingtumor": "ET", "enhancingtumour": "ET", "gdenhancingtumor": "ET",
}  # fmt: skip

_PACKAGE: Final = "dynamic_network_architectures.architectures.unet"
# An older spelling, which nnU-Net's own conversion of old plans writes too.
_OLD_RESIDUAL: Final = "dynamic_network_architectures.architectures.residual_unet.ResidualEncoderUNet"
# Features double from stage to stage: a long list would make numbers without end. A patch of 128 allows five or six.
_MOST_STAGES: Final = 16
# Larger than any patch or voxel size, and small enough to be an index.
_LARGEST: Final = 1e6
_BACKGROUND: Final = "background"


@dataclass(frozen=True)
class Conventions:
    """Meaning of a network's channels."""

    channel_names: tuple[str, ...]
    """As its data set calls its input channels, in the network's order."""
    channels: tuple[int, ...]
    """For each of `labels.SEQUENCES`, which input channel it is."""
    heads: str
    """`regions` or `labels`."""
    output_names: tuple[str, ...]
    """As its data set calls its outputs, in the network's order."""
    outputs: tuple[int, ...]
    """For each of WT, TC, ET, or of background, NCR, ED, ET, which output it is."""


@dataclass(frozen=True)
class OldPlans:
    """The plans of nnU-Net v1 as far as prediction needs them, axes (Z, Y, X)."""

    channel_names: tuple[str, ...]
    """As the data set calls its input channels."""
    patch: tuple[int, ...]
    """Size of the patch that the network was trained on."""
    spacing: tuple[float, ...]
    """Voxel size in mm."""
    masks: tuple[bool, ...]
    """Per channel: whether it is standardised over the brain alone."""


def read_conventions(path: Path) -> Conventions:
    """A network's channels and heads by the `dataset.json` of nnU-Net v2.

    Region heads are told apart by what they contain (three labels, two of them, one of these), since collections number
    labels differently; their order is that of the keys. Label heads go by name. Raises UsageError naming key, found and
    expected; a copy of the file with the names that are expected is a way out.
    """
    value = read_json(path, dict[str, object], UsageError)
    # nnU-Net v1 called it modality.
    numbered = value.get("channel_names", value.get("modality"))
    keys = [str(number) for number in range(len(SEQUENCES))]
    if not isinstance(numbered, dict) or set(numbered) != set(keys):
        raise _wrong_channels(numbered, path)
    names = tuple(str(numbered[key]) for key in keys)
    channels = channel_order(names, path)
    labels = value.get("labels")
    if not isinstance(labels, dict) or labels.get(_BACKGROUND) not in (0, [0]):
        raise UsageError(
            f'{path}: labels: found {shown(labels)}, expected nnU-Net v2\'s form, "background": 0 and each label or '
            "region by name in the order of the network's outputs"
        )
    # Nothing is predicted of voxels to ignore.
    rest = {name: entry for name, entry in labels.items() if name not in (_BACKGROUND, "ignore")}
    if any(isinstance(entry, list) and len(entry) > 1 for entry in rest.values()):
        return Conventions(names, channels, "regions", tuple(rest), _region_order(rest, path))
    return Conventions(names, channels, "labels", *_label_order(rest, path))


def sequence_of(name: str) -> str | None:
    """The sequence that a channel's name means, in any of the usual spellings."""
    return _CHANNELS.get(re.sub(r"[^a-z0-9]", "", name.lower()))


def channel_order(names: Sequence[str], path: Path) -> tuple[int, ...]:
    """For each of `labels.SEQUENCES`, which of a network's channels it is. Raises UsageError for other channels."""
    meant = [sequence_of(name) for name in names]
    if sorted(map(str, meant)) != sorted(SEQUENCES):
        raise _wrong_channels(list(names), path)
    return tuple(meant.index(sequence) for sequence in SEQUENCES)


def _wrong_channels(found: object, path: Path) -> UsageError:
    expected = "t1n, t1c, t2w and t2f (in any order) as 0 to 3"
    return UsageError(f"{path}: channel names: found {shown(found)}, expected {expected}")


def _region_order(regions: Mapping[str, object], path: Path) -> tuple[int, ...]:
    sets = [frozenset(map(str, entry if isinstance(entry, list) else [entry])) for entry in regions.values()]
    order = sorted(range(len(sets)), key=lambda index: -len(sets[index]))
    nested = [sets[index] for index in order]
    if [len(one) for one in nested] != [3, 2, 1] or not nested[0] > nested[1] > nested[2]:
        raise UsageError(
            f"{path}: labels: found the regions {shown(dict(regions))}, expected {', '.join(REGIONS)}: three labels, "
            "two of them, and one of these"
        )
    return tuple(order)


def _label_order(labels: Mapping[str, object], path: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    meant = {_LABELS.get(re.sub(r"[^a-z0-9]", "", name.lower())): value for name, value in labels.items()}
    values = [meant.get(label.name) for label in TUMOUR_LABELS]
    if len(labels) != 3 or sorted(str(value) for value in values) != ["1", "2", "3"]:
        raise UsageError(f"{path}: labels: found {shown(dict(labels))}, expected NCR, ED and ET as 1 to 3 in any order")
    numbers = [int(str(value)) for value in values]
    by_number = {int(str(value)): name for name, value in labels.items()}
    return (_BACKGROUND, *(by_number[number] for number in (1, 2, 3))), (0, *numbers)


def read_foreign_plans(
    path: Path, configuration: str, conventions: Conventions, orientation: str, *, batch_norm: bool = False
) -> dict[str, object]:
    """nnU-Net's `plans.json` as a bundle has it: one configuration, in full, channels in a bundle's order.

    Plans of before nnU-Net 2.4 do not name the layers: `batch_norm` says whether the network's norms, which a trainer
    may have chosen, are those of batches. Raises UsageError for what cannot be predicted from a bundle.
    """
    try:
        plans = read_json(path, dict[str, object], BundleError)
        section = dict(plan_section(plans, configuration))
    except BundleError as error:
        raise UsageError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
    section.pop("inherits_from", None)
    # This reader turns scans to RAS. All others give arrays as they are stored.
    reader = str(plans.get("image_reader_writer"))
    if reader.endswith("WithReorient") and orientation != "RAS":
        raise UsageError(
            f"{path}: image_reader_writer: {reader} gave the training RAS arrays, expected --orientation RAS"
        )
    if section.get("preprocessor_name", "DefaultPreprocessor") != "DefaultPreprocessor":
        raise UsageError(
            f"{path}: preprocessor_name: found {section['preprocessor_name']}, expected DefaultPreprocessor"
        )
    if section.get("previous_stage"):
        raise UsageError(f"{path}: {configuration}: found a stage of a cascade, expected a network that needs no other")
    if not isinstance(section.get("architecture"), dict):
        section["architecture"] = _old_architecture(section, f"{path}: {configuration}", batch_norm)
    architecture = section["architecture"]
    if isinstance(architecture, dict) and architecture.get("network_class_name") == _OLD_RESIDUAL:
        section["architecture"] = {**architecture, "network_class_name": f"{_PACKAGE}.ResidualEncoderUNet"}
    for key in ("normalization_schemes", "use_mask_for_norm"):
        # Of another length they are refused later, when the plans are read.
        values = section.get(key)
        if isinstance(values, list) and len(values) == len(SEQUENCES):
            section[key] = [values[channel] for channel in conventions.channels]
    intensities = plans.get("foreground_intensity_properties_per_channel")
    if isinstance(intensities, dict) and len(intensities) == len(SEQUENCES):
        intensities = {str(new): intensities.get(str(old)) for new, old in enumerate(conventions.channels)}
    known = {"foreground_intensity_properties_per_channel": intensities, "configurations": {CONFIGURATION: section}}
    return {**plans, **known}


def _old_architecture(section: Mapping[str, object], name: str, batch_norm: bool) -> dict[str, object]:
    """The architecture in plans of before nnU-Net 2.4, as nnU-Net's own `ConfigurationManager` completes them."""
    family = section.get("UNet_class_name")
    counts = section.get("n_conv_per_stage_encoder")
    base, most = section.get("UNet_base_num_features"), section.get("unet_max_num_features")
    if family not in ("PlainConvUNet", "ResidualEncoderUNet") or not isinstance(counts, list):
        raise UsageError(f"{name}: found no architecture, expected that of a PlainConvUNet or ResidualEncoderUNet")
    if not isinstance(base, int) or not isinstance(most, int):
        raise UsageError(f"{name}: found {shown(base)} to {shown(most)} features, expected whole numbers")
    norm = "batchnorm.BatchNorm3d" if batch_norm else "instancenorm.InstanceNorm3d"
    return {
        "network_class_name": f"{_PACKAGE}.{family}",
        "arch_kwargs": {
            "n_stages": len(counts),
            "features_per_stage": [min(base * 2**stage, most) for stage in range(min(len(counts), _MOST_STAGES))],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": section.get("conv_kernel_sizes"),
            "strides": section.get("pool_op_kernel_sizes"),
            "n_conv_per_stage" if family == "PlainConvUNet" else "n_blocks_per_stage": counts,
            "n_conv_per_stage_decoder": section.get("n_conv_per_stage_decoder"),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.{norm}",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def read_old_plans(path: Path) -> OldPlans:
    """Read the `plans.pkl` of nnU-Net v1, without running what it holds.

    Raises UsageError for what cannot be predicted from a bundle: a cascade, another order of axes, CT.
    """
    with path.open("rb") as file:
        plans = read_pickle(file.read(LARGEST + 1), str(path))
    if not isinstance(plans, dict):
        raise UsageError(f"{path}: found {type(plans).__name__}, expected the plans of nnU-Net v1")
    for key in ("transpose_forward", "transpose_backward"):
        if _numbers(plans.get(key)) != [0, 1, 2]:
            raise UsageError(f"{path}: {key}: found {shown(plans.get(key))}, expected 0, 1, 2: axes as they lie")
    channels = range(len(SEQUENCES))
    for key, expected in (("normalization_schemes", ["nonCT"]), ("use_mask_for_norm", [True, False])):
        found = plans.get(key)
        if not isinstance(found, dict) or any(found.get(channel) not in expected for channel in channels):
            raise UsageError(f"{path}: {key}: found {shown(found)}, expected {' or '.join(map(str, expected))} each")
    # Two stages are a cascade: its first network sees a coarser grid, its second the first one's answer.
    stages = plans.get("plans_per_stage")
    stage = stages.get(0) if isinstance(stages, dict) and len(stages) == 1 else None
    if not isinstance(stage, dict):
        raise UsageError(f"{path}: plans_per_stage: found {shown(stages)}, expected one stage, 3d_fullres alone")
    patch, spacing = _numbers(stage.get("patch_size")), _numbers(stage.get("current_spacing"))
    names = plans.get("modalities")
    if len(patch) != 3 or len(spacing) != 3:
        raise UsageError(f"{path}: found patch {patch} and spacing {spacing}, expected three numbers each")
    if not isinstance(names, dict) or set(names) != set(channels):
        raise UsageError(f"{path}: modalities: found {shown(names)}, expected a name of each of four channels")
    return OldPlans(
        channel_names=tuple(str(names[channel]) for channel in channels),
        patch=tuple(int(size) for size in patch),
        spacing=tuple(spacing),
        masks=tuple(bool(plans["use_mask_for_norm"][channel]) for channel in channels),
    )


def _numbers(value: object) -> list[float]:
    """The numbers of a list or array; empty for anything else."""
    values = value.tolist() if isinstance(value, np.ndarray) and value.ndim == 1 else value
    plain = isinstance(values, (list, tuple)) and all(
        type(number) in (int, float) and abs(number) < _LARGEST for number in values
    )
    return [float(number) for number in values] if plain and isinstance(values, (list, tuple)) else []


def in_our_order(
    tensors: Mapping[str, FloatArray], architecture: Mapping[str, object], conventions: Conventions
) -> dict[str, FloatArray]:
    """A deployed network's tensors with input channels and outputs in a bundle's order."""
    family = architecture_name(architecture)
    stem = {
        "PlainConvUNet": "encoder.stages.0.0.convs.0.conv.weight",
        "ResidualEncoderUNet": "encoder.stem.convs.0.conv.weight",
        "MedNeXt": "stem.weight",
    }[family]
    # A convolution adds up its channels: in another order the sum is the same, but for rounding.
    taken = {stem: (conventions.channels, 1)}
    for name in tensors:
        if re.fullmatch(r"decoder\.seg_layers\.\d+\.(weight|bias)|out_0\.conv_out\.bias", name):
            taken[name] = conventions.outputs, 0
        elif name == "out_0.conv_out.weight":
            # A transposed convolution: inputs first.
            taken[name] = conventions.outputs, 1
    moved = {name: np.ascontiguousarray(np.take(tensors[name], *order)) for name, order in taken.items()}
    return {**tensors, **moved}
