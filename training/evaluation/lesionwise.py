"""The official lesion-wise scores of BraTS-Africa (and BraTS adult glioma), editions 2023 and 2024.

Both editions score one region of one case by its lesions: Dice and the 95th percentile Hausdorff distance of every
reference lesion of more than 50 mm³ against the predicted lesions that it meets, averaged over these lesions and the false
positives, which count as 0 and 374 mm. They differ in what a lesion is:

- 2023: fragments of the *reference* that meet when dilated are one lesion; predicted lesions are plain components, and a
  false positive counts whatever its size.
- 2024 (also behind the 2025 queue): predicted fragments are merged in the same way and predicted lesions of up to 50
  voxels are ignored; enhancing lesions that touch the same necrotic lesion are one (see :mod:`.lesions`).

Oddities of the 2024 program are reproduced under the official names: its whole-volume sensitivity, specificity and
Hausdorff distance are computed on maps of lesion *numbers*. `voxel_sensitivity` and `voxel_specificity` are those of the
masks as they are, before anything is removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from math import isnan, nan, prod
from sys import float_info
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from inference.labels import REGIONS, Label, region_mask
from training.evaluation.lesions import (
    DILATION,
    Lesions,
    components,
    dilate,
    merge_enhancing,
    merged_lesions,
    without_small,
)
from training.evaluation.surfaces import Spacing, bounding_box, hausdorff95, surface_dice

Version = Literal[2023, 2024]
Labels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

SMALLEST_LESION_MM3: Final = 50.0
"""Reference lesions of up to this volume are not scored."""

WORST_DISTANCE_MM: Final = 374.0
"""What stands for an infinite Hausdorff distance: the diagonal of a BraTS volume, rounded."""

TOLERANCES_MM: Final = (0.5, 1.0)
"""Tolerances of the surface Dice."""


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
    """HD95 of the whole volume, mm; 0 where both sides are empty, 374 where one is (2024: of maps of lesion numbers)."""
    sensitivity: float
    """As the official program gives it: 1 where both sides are empty, else 0 without a reference; 2024: of lesion numbers."""
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

    def named(self) -> dict[str, float]:
        """The scores by the names used in files, without those that are NaN."""
        values = {_FILE_NAMES.get(field.name, field.name): float(getattr(self, field.name)) for field in fields(self)}
        return {name: value for name, value in values.items() if name != "reference_volume" and not isnan(value)}


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

    The 2024 scores depend on the numbering of lesions and so on the orientation of the arrays: give them as stored in the
    files to get what the official program prints.

    Raises:
        ValueError: shapes differ, are not three-dimensional, or values other than 0 to 3 occur.
    """
    _check(reference, prediction)
    frame = _frame((reference > 0) | (prediction > 0))
    sides = (np.ascontiguousarray(reference[frame]), np.ascontiguousarray(prediction[frame]))
    spacing = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
    return {
        region: _score_region(_matched(*sides, region, version), reference.size, spacing, version, metrics)
        for region in regions
    }


def score_missing(reference: Labels, spacing: Spacing, version: Version) -> dict[str, RegionScore]:
    """Scores by region of a case without a prediction: 0 for every overlap and 374 mm for every distance.

    That holds even where the region is empty, and every reference lesion of more than 50 mm³ is a false negative.
    """
    empty = score_case(reference, np.zeros_like(reference), spacing, version, metrics="dice")
    surface = {"nsd_05", "nsd_10", "lesionwise_nsd_05", "lesionwise_nsd_10"} if version == 2024 else set()
    overlaps = {"lesionwise_dice", "dice", "sensitivity", "specificity", "voxel_sensitivity", "voxel_specificity"}
    scores = {name: 0.0 for name in overlaps | surface}
    distances = {"lesionwise_hd95": WORST_DISTANCE_MM, "hd95": WORST_DISTANCE_MM}
    return {
        region: RegionScore(
            **scores, **distances, tp=0, fp=0, fn=score.tp + score.fn, reference_volume=score.reference_volume
        )
        for region, score in empty.items()
    }


@dataclass(frozen=True)
class _Matched:
    """One region of a case: its masks, its lesions, and which of them meet. Arrays are (X, Y, Z) of the region's frame."""

    masks: tuple[Mask, Mask]
    """Reference and prediction as they are."""
    ids: tuple[NDArray[np.integer], NDArray[np.integer]]
    """Lesion numbers of reference and prediction, after merging and after small predicted lesions are removed."""
    sizes: tuple[NDArray[np.intp], NDArray[np.intp]]
    """Voxels of each lesion by number; entry 0 is zero."""
    meets: csr_array
    """(reference lesions + 1, predicted lesions + 1): voxels of the predicted lesion in the dilated reference lesion."""
    shared: csr_array
    """The same shape: voxels that two lesions share."""

    def lesions(self) -> list[tuple[int, NDArray[np.integer]]]:
        """Each reference lesion's number with the numbers of the predicted lesions that it meets."""
        return [(int(lesion), self.meets[[lesion]].indices) for lesion in np.flatnonzero(self.sizes[0])]

    def met(self) -> NDArray[np.integer]:
        """Numbers of the predicted lesions that meet a reference lesion."""
        return np.unique(self.meets.indices)


def _matched(reference: Labels, prediction: Labels, region: str, version: Version) -> _Matched:
    frame = _frame(np.logical_or(*_masks(reference, prediction, "TC" if region == "ET" else region)))
    reference, prediction = reference[frame], prediction[frame]
    masks = _masks(reference, prediction, region)
    if version == 2023:
        lesions = merged_lesions(masks[0])
        predicted = components(masks[1])
    else:
        lesions = _lesions_2024(reference, masks[0], region, predicted=False)
        predicted = _lesions_2024(prediction, masks[1], region, predicted=True).ids
    where = np.flatnonzero(predicted)
    at = predicted.ravel()[where]
    sizes = tuple(np.bincount(ids[ids > 0], minlength=1) for ids in (lesions.ids, predicted))
    shape = (sizes[0].size, sizes[1].size)
    return _Matched(
        masks,
        (lesions.ids, predicted),
        (sizes[0], sizes[1]),
        _table(lesions.zones.ravel()[where], at, shape),
        _table(lesions.ids.ravel()[where], at, shape),
    )


def _masks(reference: Labels, prediction: Labels, region: str) -> tuple[Mask, Mask]:
    return region_mask(reference, region), region_mask(prediction, region)


def _frame(mask: Mask) -> tuple[slice, ...]:
    """A box around a mask, with room for the dilation as far as the volume goes."""
    box = bounding_box(mask) or (slice(0, 1),) * mask.ndim
    return tuple(
        slice(max(side.start - DILATION, 0), min(side.stop + DILATION, length))
        for side, length in zip(box, mask.shape, strict=True)
    )


def _lesions_2024(labels: Labels, mask: Mask, region: str, *, predicted: bool) -> Lesions:
    lesions = merged_lesions(mask)
    if predicted:
        lesions = without_small(lesions)
    if region != "ET":
        return lesions
    necrotic = merged_lesions(labels == Label.NCR)
    return merge_enhancing(lesions, without_small(necrotic) if predicted else necrotic)


def _table(rows: NDArray[np.integer], columns: NDArray[np.integer], shape: tuple[int, int]) -> csr_array:
    """How often each pair of numbers above zero occurs."""
    used = rows > 0
    pairs = (rows[used].astype(np.int64), columns[used].astype(np.int64))
    return csr_array((np.ones(pairs[0].size, np.int64), pairs), shape=shape)


def _score_region(
    matched: _Matched, volume: int, spacing: Spacing, version: Version, metrics: Literal["all", "dice"]
) -> RegionScore:
    sizes, shared = matched.sizes, matched.shared
    voxel = prod(spacing)
    lesions = matched.lesions()
    scored = [(lesion, met) for lesion, met in lesions if sizes[0][lesion] * voxel > SMALLEST_LESION_MM3]
    false = np.count_nonzero(sizes[1]) - matched.met().size
    dices = [
        2 * float(shared[[lesion]][:, met].sum()) / float(sizes[0][lesion] + sizes[1][met].sum())
        for lesion, met in scored
    ]
    found = sum(met.size > 0 for _, met in scored)
    sensitivity, specificity = _by_number(matched, volume) if version == 2024 else _by_voxel(matched, volume)
    voxel_sensitivity, voxel_specificity = _by_voxel(matched, volume)
    total = int(sizes[0].sum() + sizes[1].sum())
    surfaces = _Surfaces.of(matched, scored, false, spacing, version) if metrics == "all" else _Surfaces()
    return RegionScore(
        lesionwise_dice=_mean(dices, false, 0.0, nothing=1.0),
        dice=2 * float(shared.sum()) / total if total else 1.0,
        sensitivity=sensitivity,
        specificity=specificity,
        voxel_sensitivity=voxel_sensitivity,
        voxel_specificity=voxel_specificity,
        tp=found,
        fp=false,
        fn=len(scored) - found,
        reference_volume=float(sizes[0].sum()) * voxel,
        lesionwise_hd95=surfaces.lesionwise_hd95,
        hd95=surfaces.hd95,
        nsd_05=surfaces.nsd[0],
        nsd_10=surfaces.nsd[1],
        lesionwise_nsd_05=surfaces.lesionwise_nsd[0],
        lesionwise_nsd_10=surfaces.lesionwise_nsd[1],
    )


def _mean(values: list[float], false: int, penalty: float, nothing: float) -> float:
    """Mean over lesions and false positives."""
    count = len(values) + false
    return (sum(values) + penalty * false) / count if count else nothing


def _by_voxel(matched: _Matched, volume: int) -> tuple[float, float]:
    """Sensitivity and specificity of the masks."""
    reference, prediction = matched.masks
    both = int(np.count_nonzero(reference & prediction))
    return _rates(both, int(np.count_nonzero(prediction)), int(np.count_nonzero(reference)), volume, both)


def _by_number(matched: _Matched, volume: int) -> tuple[float, float]:
    """Sensitivity and specificity as BraTS 2024 computes them, on maps of lesion numbers.

    Written for masks, the formula takes "equal to one" for "inside" and the sum of values for the number of voxels. On
    lesion numbers only what both sides call lesion 1 is a true positive, and a voxel of lesion 5 counts as five.
    """
    sizes = matched.sizes
    first = (np.arange(side.size) == 1 for side in sizes)
    ones = [int(side[one].sum()) for side, one in zip(sizes, first, strict=True)]
    both = int(matched.shared[[1]][:, [1]].sum()) if min(side.size for side in sizes) > 1 else 0
    weights = [int((side * np.arange(side.size)).sum()) for side in sizes]
    return _rates(both, weights[1], weights[0], volume, both, outside=volume - (ones[0] + ones[1] - both))


def _rates(
    both: int, predicted: int, present: int, volume: int, shared: int, outside: int | None = None
) -> tuple[float, float]:
    """Sensitivity and specificity from counts; the smallest float keeps the denominators from zero, as officially."""
    negative = volume - (present + predicted - shared) if outside is None else outside
    sensitivity = both / (present + float_info.min) if present or predicted else 1.0
    return sensitivity, negative / (negative + predicted - both + float_info.min)


@dataclass(frozen=True)
class _Surfaces:
    """What needs distances; NaN where it is not computed."""

    lesionwise_hd95: float = nan
    hd95: float = nan
    nsd: tuple[float, ...] = (nan, nan)
    lesionwise_nsd: tuple[float, ...] = (nan, nan)

    @classmethod
    def of(
        cls,
        matched: _Matched,
        scored: list[tuple[int, NDArray[np.integer]]],
        false: int,
        spacing: Spacing,
        version: Version,
    ) -> _Surfaces:
        whole = _whole_distance(matched, spacing, version)
        pairs = [_lesion_masks(matched, lesion, met) for lesion, met in scored]
        distances = [_finite(hausdorff95(*(side.view(np.uint8) for side in pair), spacing)) for pair in pairs]
        lesionwise = _mean(distances, false, WORST_DISTANCE_MM, nothing=0.0)
        if version == 2023:
            return cls(lesionwise, whole)
        dices = [surface_dice(*pair, spacing, TOLERANCES_MM) for pair in pairs]
        return cls(
            lesionwise,
            whole,
            surface_dice(matched.ids[0] > 0, matched.ids[1] > 0, spacing, TOLERANCES_MM),
            tuple(_mean([dice[at] for dice in dices], false, 0.0, nothing=1.0) for at in range(len(TOLERANCES_MM))),
        )


def _lesion_masks(matched: _Matched, lesion: int, met: NDArray[np.integer]) -> tuple[Mask, Mask]:
    """A reference lesion and the whole of the predicted lesions that it meets."""
    chosen = np.zeros(matched.sizes[1].size, np.bool_)
    chosen[met] = True
    return matched.ids[0] == lesion, chosen[matched.ids[1]]


def _whole_distance(matched: _Matched, spacing: Spacing, version: Version) -> float:
    if not any(side.any() for side in matched.sizes):
        return 0.0
    if version == 2023:
        sides = [side.view(np.uint8) for side in matched.masks]
    else:
        # The official program stores lesion numbers in eight bits before it looks for surfaces.
        sides = [ids.astype(np.uint8) for ids in matched.ids]
    return _finite(hausdorff95(sides[0], sides[1], spacing))


def _finite(distance: float) -> float:
    return min(distance, WORST_DISTANCE_MM) if np.isinf(distance) else distance


def _check(reference: Labels, prediction: Labels) -> None:
    if reference.ndim != 3 or reference.shape != prediction.shape:
        raise ValueError(f"label maps need one three-dimensional shape, not {reference.shape} and {prediction.shape}")
    for name, labels in (("reference", reference), ("prediction", prediction)):
        if labels.size and (labels.min() < 0 or labels.max() > Label.ET):
            raise ValueError(f"values of the {name} must be 0 to {int(Label.ET)}, not {np.unique(labels).tolist()}")
