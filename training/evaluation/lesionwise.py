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
from dataclasses import dataclass, field, replace
from math import isfinite, nan, prod
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
from training.evaluation.scores import WORST_DISTANCE_MM, Labels, LesionScore, RegionScore, Version
from training.evaluation.surfaces import Spacing, hausdorff95, surface_dice

SMALLEST_LESION_MM3: Final = 50.0
"""Reference lesions of up to this volume are not scored."""

TOLERANCES_MM: Final = (0.5, 1.0)
"""Tolerances of the surface Dice."""


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
    # Everything below looks at the tumour alone, a hundredth of the volume.
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
        region: replace(
            score,
            lesionwise_dice=0.0,
            lesionwise_hd95=WORST_DISTANCE_MM,
            dice=0.0,
            hd95=WORST_DISTANCE_MM,
            sensitivity=0.0,
            specificity=0.0,
            voxel_sensitivity=0.0,
            voxel_specificity=0.0,
            nsd_05=nothing,
            nsd_10=nothing,
            lesionwise_nsd_05=nothing,
            lesionwise_nsd_10=nothing,
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

    def false_positives(self) -> Numbers:
        """Numbers of the predicted lesions that meet no reference lesion."""
        return np.setdiff1d(np.flatnonzero(self.lesions[1].sizes), self.meets.indices)


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
    # A dilated reference lesion finds its predictions; the overlap is counted in the lesion as it is.
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
    # A ring of enhancement around one necrosis may be in pieces: BraTS 2024 takes them for one lesion.
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
    false = matched.false_positives().size
    dices = [
        dice_of_sizes(matched.shared[[lesion]][:, met].sum(), sizes[lesion], predicted_sizes[met].sum())
        for lesion, met in scored
    ]
    # Rates need the voxels outside of the frame too, all of which are true negatives.
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
    sizes, predicted_sizes = (side.sizes for side in matched.lesions)
    centres = [side.centres(matched.origin) for side in matched.lesions]
    for lesion, met in matched.pairs():
        volume = float(sizes[lesion] * voxel)
        dice = dice_of_sizes(matched.shared[[lesion]][:, met].sum(), sizes[lesion], predicted_sizes[met].sum())
        far, near = surfaces.by_lesion.get(lesion, (nan, nan))
        counted = volume > SMALLEST_LESION_MM3
        yield LesionScore("reference", volume, counted, met.size > 0, dice, far, near, centres[0][lesion])
    for lesion in matched.false_positives().tolist():
        volume = float(predicted_sizes[lesion] * voxel)
        yield LesionScore("prediction", volume, True, False, 0.0, WORST_DISTANCE_MM, 0.0, centres[1][lesion])


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
    # The program of 2023 knows no surface Dice.
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
    """Whether a voxel belongs to one of some lesions, from the numbers of its lesions (any shape)."""
    # A table of answers by number takes one pass over the voxels, `np.isin` several.
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
