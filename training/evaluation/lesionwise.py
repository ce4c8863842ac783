"""The official lesion-wise scores of BraTS-Africa, editions 2023 and 2024 (and adult glioma of 2023).

Both editions score one region of one case by its lesions: Dice and the 95th percentile Hausdorff distance of every
reference lesion of more than 50 mm³ against the predicted lesions that it meets, averaged over these lesions and the
false positives, which count as 0 and 374 mm. They differ in what a lesion is:

- 2023: fragments of the *reference* that meet when dilated are one lesion; predicted lesions are plain components, and
  a false positive counts whatever its size.
- 2024 (also the program of the 2025 queue): predicted fragments are merged in the same way and predicted lesions of up
  to 50 voxels are ignored; enhancing lesions that touch the same necrotic lesion are one (see :mod:`.lesions`).

Adult glioma of 2024 is another definition, which is not here: thresholds of 10 and 20 mm³, dilation by 3 and 5, a
penalty of 337 mm and six regions.

Oddities of the 2024 program are reproduced under the official names: its whole-volume sensitivity, specificity and
Hausdorff distance are computed on maps of lesion *numbers*. `voxel_sensitivity` and `voxel_specificity` are those of
the masks as they are, before anything is removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from math import isfinite, isnan, nan, prod
from sys import float_info
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from inference.boxes import Box, bounding_box
from inference.labels import REGIONS, Label, region_mask
from training.evaluation.lesions import (
    DILATION,
    Lesions,
    Mask,
    Numbers,
    merge_enhancing,
    merged_lesions,
    plain_lesions,
    without_small,
)
from training.evaluation.overlap import dice_of_sizes
from training.evaluation.surfaces import Spacing, hausdorff95, surface_dice

Version = Literal[2023, 2024]
Labels = NDArray[np.uint8]

SMALLEST_LESION_MM3: Final = 50.0
"""Reference lesions of up to this volume are not scored."""

WORST_DISTANCE_MM: Final = 374.0
"""What stands for an infinite Hausdorff distance: the diagonal of a BraTS volume, rounded."""

TOLERANCES_MM: Final = (0.5, 1.0)
"""Tolerances of the surface Dice."""


@dataclass(frozen=True)
class LesionScore:
    """One lesion of a region."""

    side: str
    """`reference`, or `prediction` for a false positive."""
    volume: float
    """mm³."""
    counted: bool
    """Whether it takes part in the lesion-wise means, or, in 2026, in their counts."""
    matched: bool
    """Whether the other side has a lesion for it."""
    dice: float
    hd95: float
    """mm; NaN where no distances were asked for."""
    nsd: float
    """Surface Dice: at 1 mm in 2024 and 2025; NaN in 2023."""
    centre: tuple[float, float, float]
    """Mean voxel index along X, Y, Z as stored in the file."""


@dataclass(frozen=True)
class RegionScore:
    """Scores of one region of one case. What was not asked for, or the edition does not define, is NaN."""

    lesionwise_dice: float
    """Mean Dice over reference lesions and false positives; 1 where there are neither."""
    lesionwise_hd95: float
    """Mean HD95 over the same, mm; 0 where there are neither."""
    dice: float
    """Dice of the whole volume (2024: without the ignored lesions); 1 where both sides are empty."""
    hd95: float
    """HD95 of the whole volume, mm; 0 where both sides are empty, 374 where one is; 2024: of lesion numbers."""
    sensitivity: float
    """As the official program gives it: 1 where both sides are empty, else 0 without a reference; 2024: of lesion
    numbers."""
    specificity: float
    """As the official program gives it; 2024: of lesion numbers."""
    voxel_sensitivity: float
    """TP / (TP + FN) over the voxels of the masks, with the same rules where the reference is empty."""
    voxel_specificity: float
    """TN / (TN + FP) over the voxels of the masks."""
    tp: int
    """Reference lesions of more than 50 mm³ that meet a predicted lesion."""
    fp: int
    """Predicted lesions that meet no reference lesion of any size."""
    fn: int
    """Reference lesions of more than 50 mm³ that meet no predicted lesion."""
    nsd_05: float = nan
    """2024: surface Dice of the whole volume at 0.5 mm."""
    nsd_10: float = nan
    """2024: surface Dice of the whole volume at 1 mm."""
    lesionwise_nsd_05: float = nan
    """2024: mean surface Dice at 0.5 mm over reference lesions and false positives."""
    lesionwise_nsd_10: float = nan
    """2024: the same at 1 mm."""
    reference_volume: float = nan
    """Volume of the region in the reference, mm³."""
    lesions: tuple[LesionScore, ...] = field(default=(), compare=False)
    """The lesions behind the means; none where no distances were asked for."""

    def named(self) -> dict[str, float]:
        """The scores by the names used in files, without those that are NaN."""
        names = [entry.name for entry in fields(self) if entry.name not in {"reference_volume", "lesions"}]
        values = {_FILE_NAMES.get(name, name): float(getattr(self, name)) for name in names}
        return {name: value for name, value in values.items() if not isnan(value)}


_FILE_NAMES: Final[Mapping[str, str]] = {
    "nsd_05": "nsd_0.5",
    "nsd_10": "nsd_1.0",
    "lesionwise_nsd_05": "lesionwise_nsd_0.5",
    "lesionwise_nsd_10": "lesionwise_nsd_1.0",
}


def score_case(
    reference: Labels,
    prediction: Labels,
    spacing: Spacing,
    version: Version,
    *,
    regions: Iterable[str] = tuple(REGIONS),
    metrics: Literal["all", "dice"] = "all",
) -> dict[str, RegionScore]:
    """Scores of one case by region.

    Args:
        reference: label map (X, Y, Z) of 0, 1 (NCR), 2 (ED), 3 (ET).
        prediction: the same, of the same shape.
        spacing: voxel size along X, Y, Z in mm.
        version: the official edition, 2023 or 2024.
        regions: which of :data:`inference.labels.REGIONS`.
        metrics: "dice" leaves out everything that needs distances (HD95 and surface Dice are NaN) and is several times
            faster; all other numbers are the same.

    The 2024 scores depend on the numbering of lesions and so on the orientation of the arrays: give them as stored in
    the files to get what the official program prints.

    Raises:
        ValueError: shapes differ, are not three-dimensional, or values other than 0 to 3 occur.

    """
    _check(reference, prediction)
    frame = _frame((reference > 0) | (prediction > 0))
    sides = (np.ascontiguousarray(reference[frame]), np.ascontiguousarray(prediction[frame]))
    spacing = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
    return {
        region: _score_region(_match(*sides, region, version, frame), reference.size, spacing, version, metrics)
        for region in regions
    }


def score_missing(reference: Labels, spacing: Spacing, version: Version) -> dict[str, RegionScore]:
    """Scores by region of a case without a prediction: 0 for every overlap and 374 mm for every distance.

    That holds even where the region is empty, and every reference lesion of more than 50 mm³ is a false negative.
    """
    empty = score_case(reference, np.zeros_like(reference), spacing, version, metrics="dice")
    nothing = 0.0 if version == 2024 else nan
    return {
        region: RegionScore(
            lesionwise_dice=0.0,
            lesionwise_hd95=WORST_DISTANCE_MM,
            dice=0.0,
            hd95=WORST_DISTANCE_MM,
            sensitivity=0.0,
            specificity=0.0,
            voxel_sensitivity=0.0,
            voxel_specificity=0.0,
            tp=0,
            fp=0,
            fn=score.tp + score.fn,
            nsd_05=nothing,
            nsd_10=nothing,
            lesionwise_nsd_05=nothing,
            lesionwise_nsd_10=nothing,
            reference_volume=score.reference_volume,
        )
        for region, score in empty.items()
    }


@dataclass(frozen=True)
class _Matched:
    """One region of a case: its masks, its lesions, and which of them meet."""

    masks: tuple[Mask, Mask]
    """Reference and prediction as they are, (X, Y, Z) of the region's frame."""
    lesions: tuple[Lesions, Lesions]
    """Their lesions, after merging and after small predicted lesions are removed."""
    meets: csr_array
    """(reference lesions + 1, predicted + 1): voxels of the predicted lesion in the dilated reference lesion."""
    shared: csr_array
    """The same shape: voxels that two lesions share."""
    origin: tuple[int, int, int]
    """Where the region's frame begins in the volume."""

    def pairs(self) -> list[tuple[int, Numbers]]:
        """Each reference lesion's number with the numbers of the predicted lesions that it meets."""
        return [(int(lesion), self.meets[[lesion]].indices) for lesion in np.flatnonzero(self.lesions[0].sizes)]


def _match(reference: Labels, prediction: Labels, region: str, version: Version, outer: Box) -> _Matched:
    # Necrosis decides which enhancing lesions are one, so that ET needs the frame of both.
    frame = _frame(
        np.logical_or(*(region_mask(side, "TC" if region == "ET" else region) for side in (reference, prediction)))
    )
    reference, prediction = reference[frame], prediction[frame]
    masks = (region_mask(reference, region), region_mask(prediction, region))
    if version == 2023:
        lesions = (merged_lesions(masks[0]), plain_lesions(masks[1]))
    else:
        lesions = (
            _lesions_2024(reference, masks[0], region, predicted=False),
            _lesions_2024(prediction, masks[1], region, predicted=True),
        )
    predicted = lesions[1]
    near = lesions[0].near(predicted.voxels)
    inside = near * masks[0].ravel()[predicted.voxels]
    shape = (lesions[0].sizes.size, predicted.sizes.size)
    tables = (_table(near, predicted.at_voxels, shape), _table(inside, predicted.at_voxels, shape))
    x, y, z = (inner.start + side.start for inner, side in zip(frame, outer, strict=True))
    return _Matched(masks, lesions, *tables, (x, y, z))


def _lesions_2024(labels: Labels, mask: Mask, region: str, *, predicted: bool) -> Lesions:
    lesions = without_small(merged_lesions(mask)) if predicted else merged_lesions(mask)
    if region != "ET":
        return lesions
    necrotic = merged_lesions(labels == Label.NCR)
    return merge_enhancing(lesions, without_small(necrotic) if predicted else necrotic)


def _frame(mask: Mask) -> Box:
    """A box around a mask, with room for the dilation as far as the volume goes."""
    box = bounding_box(mask) if mask.any() else (slice(0, 1),) * mask.ndim
    return tuple(
        slice(max(side.start - DILATION, 0), min(side.stop + DILATION, length))
        for side, length in zip(box, mask.shape, strict=True)
    )


def _table(rows: Numbers, columns: Numbers, shape: tuple[int, int]) -> csr_array:
    """How often each pair of numbers above zero occurs."""
    used = (rows > 0) & (columns > 0)
    return csr_array((np.ones(np.count_nonzero(used), np.int64), (rows[used], columns[used])), shape=shape)


def _score_region(
    matched: _Matched, volume: int, spacing: Spacing, version: Version, metrics: Literal["all", "dice"]
) -> RegionScore:
    sizes, predicted_sizes = (side.sizes for side in matched.lesions)
    voxel = prod(spacing)
    scored = [(lesion, met) for lesion, met in matched.pairs() if sizes[lesion] * voxel > SMALLEST_LESION_MM3]
    found = sum(met.size > 0 for _, met in scored)
    false = int(np.count_nonzero(predicted_sizes)) - np.unique(matched.meets.indices).size
    dices = [
        dice_of_sizes(matched.shared[[lesion]][:, met].sum(), sizes[lesion], predicted_sizes[met].sum())
        for lesion, met in scored
    ]
    voxels = _voxel_rates(matched.masks, volume)
    official = _number_rates(matched, volume) if version == 2024 else voxels
    surfaces = _surfaces(matched, scored, false, spacing, version) if metrics == "all" else _Surfaces()
    return RegionScore(
        lesionwise_dice=_mean(dices, false, 0.0, nothing=1.0),
        lesionwise_hd95=surfaces.lesionwise_hd95,
        dice=dice_of_sizes(matched.shared.sum(), sizes.sum(), predicted_sizes.sum()),
        hd95=surfaces.hd95,
        sensitivity=official[0],
        specificity=official[1],
        voxel_sensitivity=voxels[0],
        voxel_specificity=voxels[1],
        tp=found,
        fp=false,
        fn=len(scored) - found,
        nsd_05=surfaces.nsd[0],
        nsd_10=surfaces.nsd[1],
        lesionwise_nsd_05=surfaces.lesionwise_nsd[0],
        lesionwise_nsd_10=surfaces.lesionwise_nsd[1],
        reference_volume=float(sizes.sum()) * voxel,
        lesions=tuple(_lesion_scores(matched, surfaces, voxel)) if metrics == "all" else (),
    )


def _lesion_scores(matched: _Matched, surfaces: _Surfaces, voxel: float) -> Iterator[LesionScore]:
    """Every reference lesion, those that are too small to count too, then the false positives."""
    for name, side, table in zip(("reference", "prediction"), matched.lesions, (0, 1), strict=True):
        sizes, predicted_sizes = side.sizes, matched.lesions[1].sizes
        places = np.stack(np.unravel_index(side.voxels, side.zones.shape))
        sums = [np.bincount(side.at_voxels, weights=axis, minlength=sizes.size) for axis in places]
        met_at_all = set(matched.meets.indices.tolist())
        for lesion in np.flatnonzero(sizes).tolist():
            if table and lesion in met_at_all:
                continue
            x, y, z = (float(a[lesion] / sizes[lesion]) + o for a, o in zip(sums, matched.origin, strict=True))
            met = matched.meets[[lesion]].indices if not table else np.array([], int)
            shared = int(matched.shared[[lesion]][:, met].sum()) if met.size else 0
            dice = dice_of_sizes(shared, int(sizes[lesion]), int(predicted_sizes[met].sum()))
            hd95, nsd = surfaces.by_lesion.get(lesion, (nan, nan)) if not table else (WORST_DISTANCE_MM, 0.0)
            volume = float(sizes[lesion] * voxel)
            counted = bool(table) or volume > SMALLEST_LESION_MM3
            yield LesionScore(name, volume, counted, met.size > 0, dice, hd95, nsd, (x, y, z))


def _mean(values: list[float], false: int, penalty: float, nothing: float) -> float:
    """Mean over lesions and false positives."""
    count = len(values) + false
    return (sum(values) + penalty * false) / count if count else nothing


def _voxel_rates(masks: tuple[Mask, Mask], volume: int) -> tuple[float, float]:
    """Sensitivity and specificity of the masks."""
    reference, prediction = (int(np.count_nonzero(mask)) for mask in masks)
    both = int(np.count_nonzero(masks[0] & masks[1]))
    return _rates(both, reference, prediction, volume - (reference + prediction - both))


def _number_rates(matched: _Matched, volume: int) -> tuple[float, float]:
    """Sensitivity and specificity as BraTS 2024 computes them, on maps of lesion numbers.

    Written for masks, the formula takes "equal to one" for "inside" and the sum of values for the number of voxels. On
    lesion numbers only what both sides call lesion 1 is a true positive, and a voxel of lesion 5 counts as five.
    """
    sizes = [side.sizes for side in matched.lesions]
    reference, prediction = (int((side * np.arange(side.size)).sum()) for side in sizes)
    first = [int(side[1]) if side.size > 1 else 0 for side in sizes]
    both = int(matched.shared[1, 1]) if all(first) else 0
    return _rates(both, reference, prediction, volume - (sum(first) - both))


def _rates(true: int, reference: int, prediction: int, negative: int) -> tuple[float, float]:
    """Sensitivity and specificity; the smallest float keeps their denominators from zero, as officially."""
    sensitivity = true / (reference + float_info.min) if reference or prediction else 1.0
    return sensitivity, negative / (negative + prediction - true + float_info.min)


@dataclass(frozen=True)
class _Surfaces:
    """Scores that need distances, as in :class:`RegionScore`; NaN where it is not computed."""

    lesionwise_hd95: float = nan
    hd95: float = nan
    nsd: tuple[float, ...] = (nan, nan)
    lesionwise_nsd: tuple[float, ...] = (nan, nan)
    by_lesion: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    """HD95, and surface Dice at 1 mm, of each scored reference lesion by number."""


def _surfaces(
    matched: _Matched, scored: list[tuple[int, Numbers]], false: int, spacing: Spacing, version: Version
) -> _Surfaces:
    ids = (matched.lesions[0].ids(), matched.lesions[1].ids())
    # The official program of 2024 hands over lesion numbers, in eight bits, where masks are meant.
    whole = [side.astype(np.uint8) if version == 2024 else (side > 0).view(np.uint8) for side in ids]
    nothing = not any(side.any() for side in ids)
    whole_distance = 0.0 if nothing else _distance(whole[0], whole[1], spacing)
    pairs = [(ids[0] == lesion, _any_of(ids[1], met)) for lesion, met in scored]
    distances = [_distance(mask.view(np.uint8), other.view(np.uint8), spacing) for mask, other in pairs]
    lesionwise = _mean(distances, false, WORST_DISTANCE_MM, nothing=0.0)
    numbers = [lesion for lesion, _ in scored]
    if version == 2023:
        by_lesion = {lesion: (distance, nan) for lesion, distance in zip(numbers, distances, strict=True)}
        return _Surfaces(lesionwise, whole_distance, by_lesion=by_lesion)
    dices = [surface_dice(mask, other, spacing, TOLERANCES_MM) for mask, other in pairs]
    return _Surfaces(
        lesionwise,
        whole_distance,
        surface_dice(ids[0] > 0, ids[1] > 0, spacing, TOLERANCES_MM),
        tuple(_mean([dice[at] for dice in dices], false, 0.0, nothing=1.0) for at in range(len(TOLERANCES_MM))),
        {number: (far, dice[1]) for number, far, dice in zip(numbers, distances, dices, strict=True)},
    )


def _any_of(ids: NDArray[np.uint32], numbers: Numbers) -> Mask:
    """Where one of some lesions is."""
    chosen = np.zeros(int(ids.max(initial=0)) + 1, np.bool_)
    chosen[numbers] = True
    return chosen[ids]


def _distance(reference: NDArray[np.uint8], prediction: NDArray[np.uint8], spacing: Spacing) -> float:
    """HD95, or the official penalty where it is infinite."""
    distance = hausdorff95(reference, prediction, spacing)
    return distance if isfinite(distance) else WORST_DISTANCE_MM


def _check(reference: Labels, prediction: Labels) -> None:
    if reference.ndim != 3 or reference.shape != prediction.shape:
        raise ValueError(f"label maps need one three-dimensional shape, not {reference.shape} and {prediction.shape}")
    for name, labels in (("reference", reference), ("prediction", prediction)):
        if labels.size and (labels.min() < 0 or labels.max() > Label.ET):
            raise ValueError(f"values of the {name} must be 0 to {int(Label.ET)}, not {np.unique(labels).tolist()}")
