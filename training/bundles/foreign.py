"""What networks from outside take and give, by nnU-Net's `dataset.json` and `plans.json`, in a bundle's order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from inference.bundle.fields import read_json
from inference.bundle.tables import FloatArray
from inference.errors import BundleError, UsageError
from inference.labels import REGIONS, SEQUENCES, TUMOUR_LABELS
from inference.predict.networks import architecture_name
from inference.predict.preprocess import plan_section
from training.fit.planning import CONFIGURATION

_CHANNELS: Final[Mapping[str, str]] = {
    "t1n": "t1n", "t1": "t1n", "t1w": "t1n", "t1native": "t1n",
    "t1c": "t1c", "t1ce": "t1c", "t1gd": "t1c", "t1post": "t1c", "t1contrast": "t1c",
    "t2w": "t2w", "t2": "t2w",
    "t2f": "t2f", "flair": "t2f", "t2flair": "t2f",
}  # fmt: skip
"""Names of channels in small letters without signs, and the sequence that each means."""
_LABELS: Final[Mapping[str, str]] = {
    "ncr": "NCR", "netc": "NCR", "ncrnet": "NCR", "necrosis": "NCR", "necrotic": "NCR", "necroticcore": "NCR",
    "necrotictumorcore": "NCR", "necrotictumourcore": "NCR", "nonenhancingtumorcore": "NCR",
    "ed": "ED", "edema": "ED", "oedema": "ED", "snfh": "ED", "peritumoraledema": "ED", "peritumouraloedema": "ED",
    "et": "ET", "enhancing": "ET", "enhancingtumor": "ET", "enhancingtumour": "ET", "gdenhancingtumor": "ET",
}  # fmt: skip
"""Names of labels in small letters without signs, and the label that each means."""
_FILE: Final = "dataset.json"
_BACKGROUND: Final = "background"


@dataclass(frozen=True)
class Conventions:
    """What a network's channels are."""

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


def read_conventions(path: Path) -> Conventions:
    """What the `dataset.json` of nnU-Net v2 says of a network's channels and heads.

    Region heads are told apart by what they contain (three labels, two of them, one of these), since collections number
    labels differently; their order is that of the keys. Label heads go by name. Raises UsageError naming key, found and
    expected; a copy of the file with the names that are expected is a way out.
    """
    try:
        value = read_json(path, str(path))
    except BundleError as error:
        raise UsageError(str(error)) from error
    if not isinstance(value, dict):
        raise UsageError(f"{path}: found no object, expected nnU-Net's {_FILE}")
    names, channels = _read_channels(value.get("channel_names", value.get("modality")), path)
    labels = value.get("labels")
    if not isinstance(labels, dict) or labels.get(_BACKGROUND) not in (0, [0]):
        raise UsageError(
            f'{path}: labels: found {_shown(labels)}, expected nnU-Net v2\'s form, "background": 0 and each label or '
            "region by name in the order of the network's outputs"
        )
    rest = {name: entry for name, entry in labels.items() if name not in (_BACKGROUND, "ignore")}
    if any(isinstance(entry, list) and len(entry) > 1 for entry in rest.values()):
        return Conventions(names, channels, "regions", tuple(rest), _region_order(rest, path))
    return Conventions(names, channels, "labels", *_label_order(rest, path))


def _read_channels(value: object, path: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    expected = f"{path}: channel_names: found {_shown(value)}, expected t1n, t1c, t2w and t2f (in any order) as 0 to 3"
    if not isinstance(value, dict) or set(value) != {str(number) for number in range(len(SEQUENCES))}:
        raise UsageError(expected)
    names = tuple(str(value[str(number)]) for number in range(len(SEQUENCES)))
    meant = [_CHANNELS.get(_plain(name)) for name in names]
    if set(meant) != set(SEQUENCES):
        raise UsageError(expected)
    return names, tuple(meant.index(sequence) for sequence in SEQUENCES)


def _region_order(regions: Mapping[str, object], path: Path) -> tuple[int, ...]:
    sets = [frozenset(map(str, entry if isinstance(entry, list) else [entry])) for entry in regions.values()]
    order = sorted(range(len(sets)), key=lambda index: -len(sets[index]))
    nested = [sets[index] for index in order]
    if [len(one) for one in nested] != [3, 2, 1] or not nested[0] > nested[1] > nested[2]:
        raise UsageError(
            f"{path}: labels: found the regions {_shown(dict(regions))}, expected {', '.join(REGIONS)}: three labels, "
            "two of them, and one of these"
        )
    return tuple(order)


def _label_order(labels: Mapping[str, object], path: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    meant = {_LABELS.get(_plain(name)): value for name, value in labels.items()}
    values = [meant.get(label.name) for label in TUMOUR_LABELS]
    if len(labels) != 3 or sorted(str(value) for value in values) != ["1", "2", "3"]:
        raise UsageError(
            f"{path}: labels: found {_shown(dict(labels))}, expected NCR, ED and ET as 1 to 3 in any order"
        )
    numbers = [int(str(value)) for value in values]
    by_number = {int(str(value)): name for name, value in labels.items()}
    return (_BACKGROUND, *(by_number[number] for number in (1, 2, 3))), (0, *numbers)


def read_foreign_plans(path: Path, configuration: str, conventions: Conventions, orientation: str) -> dict[str, object]:
    """nnU-Net's `plans.json` as a bundle has it: one configuration, in full, channels in a bundle's order.

    Raises UsageError for what cannot be predicted from a bundle.
    """
    try:
        plans = read_json(path, str(path))
        section = dict(plan_section(plans if isinstance(plans, dict) else {}, configuration))
    except BundleError as error:
        raise UsageError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
    assert isinstance(plans, dict)
    section.pop("inherits_from", None)
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
        raise UsageError(
            f"{path}: {configuration}: found no architecture, expected plans of nnU-Net 2.4 or later "
            "(nnUNetv2_plan_experiment of a newer version writes them)"
        )
    for key in ("normalization_schemes", "use_mask_for_norm"):
        values = section.get(key)
        if isinstance(values, list) and len(values) == len(SEQUENCES):
            section[key] = [values[channel] for channel in conventions.channels]
    intensities = plans.get("foreground_intensity_properties_per_channel")
    if isinstance(intensities, dict) and len(intensities) == len(SEQUENCES):
        intensities = {str(new): intensities.get(str(old)) for new, old in enumerate(conventions.channels)}
    known = {"foreground_intensity_properties_per_channel": intensities, "configurations": {CONFIGURATION: section}}
    return {**plans, **known}


def in_our_order(
    tensors: Mapping[str, FloatArray], architecture: Mapping[str, object], conventions: Conventions
) -> dict[str, FloatArray]:
    """A deployed network's tensors with input channels and outputs in a bundle's order, which is exact."""
    family = architecture_name(architecture)
    stem = {
        "PlainConvUNet": "encoder.stages.0.0.convs.0.conv.weight",
        "ResidualEncoderUNet": "encoder.stem.convs.0.conv.weight",
        "MedNeXt": "stem.weight",
    }[family]
    result = dict(tensors)
    result[stem] = _taken(tensors[stem], conventions.channels, 1)
    for name in tensors:
        if re.fullmatch(r"decoder\.seg_layers\.\d+\.(weight|bias)|out_0\.conv_out\.bias", name):
            result[name] = _taken(tensors[name], conventions.outputs, 0)
        elif name == "out_0.conv_out.weight":
            # A transposed convolution: inputs first.
            result[name] = _taken(tensors[name], conventions.outputs, 1)
    return result


def _taken(array: FloatArray, order: Sequence[int], axis: int) -> FloatArray:
    return np.ascontiguousarray(np.take(array, order, axis))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _shown(value: object, most: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"
