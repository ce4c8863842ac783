"""The lesion-wise scores of BraTS 2026: plain components, matched one to one.

Written from the published definition, not from the official package (`brats-evaluation`), whose numbers it gives:

- Lesions are 26-connected components, without dilation and whatever their size.
- A reference lesion is matched with at most one predicted lesion, so that the sum of Dice is largest (optimal
  assignment); pairs of which no voxel is shared are none.
- Lesion-wise Dice, HD95 and surface Dice are means over *matched* lesions. False positives and negatives are counted
  beside them, not inside. Nothing matched: 0, infinity and 0. Both sides empty: NaN.
- HD95 is the 95th percentile of the border distances of both directions, pooled.
- The tolerance of the surface Dice is the smallest spacing for a lesion, and half of that for the whole region.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import inf, nan, prod
from typing import Final

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from inference.boxes import Box, bounding_box
from inference.labels import REGIONS, region_mask
from training.evaluation import overlap
from training.evaluation.lesions import Lesions, Mask, plain_lesions
from training.evaluation.scores import Labels, LesionScore
from training.evaluation.surfaces import Spacing, border_distances

NOTHING: Final = (0.0, inf, 0.0)
"""Dice, HD95 and surface Dice where nothing is matched."""

# Dice from which a pair may be matched: the assignment also pairs lesions that share nothing, where some are left over.
_SMALLEST_DICE: Final = 1e-6


@dataclass(frozen=True)
class MatchedScore:
    """Scores of one region of one case by the definition of 2026."""

    lesionwise_dice: float
    lesionwise_hd95: float
    """mm."""
    lesionwise_nsd: float
    dice: float
    """Of the whole region: 0 without overlap, NaN where both sides are empty."""
    hd95: float
    """mm; infinite without overlap."""
    nsd: float
    tp: int
    """Matched reference lesions."""
    fp: int
    """Predicted lesions that are not matched."""
    fn: int
    """Reference lesions that are not matched."""
    lesions: tuple[LesionScore, ...] = ()

    def named(self) -> dict[str, float]:
        """The scores by the names used in files; those that are not defined are NaN."""
        return {entry.name: float(getattr(self, entry.name)) for entry in fields(self) if entry.name != "lesions"}


def score_matched(
    reference: Labels, prediction: Labels, spacing: Spacing, *, package_faults: bool = False
) -> dict[str, MatchedScore]:
    """Scores of one case by region.

    Label maps are (X, Y, Z) of 0 to 3, spacing is along X, Y, Z in mm. `package_faults` brings two faults of the
    official package in, which show where voxels are not cubes of 1 mm: it applies the spacing of a lesion to reversed
    axes, and none to the whole region.
    """
    lesion_spacing = (spacing[2], spacing[1], spacing[0]) if package_faults else spacing
    whole_spacing = (1.0, 1.0, 1.0) if package_faults else spacing
    tumour = (reference > 0) | (prediction > 0)
    frame = bounding_box(tumour) if tumour.any() else (slice(0, 1),) * 3
    sides = [np.ascontiguousarray(side[frame]) for side in (reference, prediction)]
    return {
        region: _score_region(
            region_mask(sides[0], region), region_mask(sides[1], region), lesion_spacing, whole_spacing, frame
        )
        for region in REGIONS
    }


def score_matched_missing(reference: Labels, spacing: Spacing) -> dict[str, MatchedScore]:
    """Scores by region of a case without a prediction: 0 and infinity even where the region is empty."""
    # Not NaN as for two empty sides: a system that gives nothing has not shown that there is nothing.
    found = score_matched(reference, np.zeros_like(reference), spacing)
    return {region: MatchedScore(*NOTHING, *NOTHING, 0, 0, score.fn, score.lesions) for region, score in found.items()}


def _score_region(
    reference: Mask, prediction: Mask, spacing: Spacing, whole_spacing: Spacing, frame: Box
) -> MatchedScore:
    if not (reference.any() or prediction.any()):
        return MatchedScore(nan, nan, nan, nan, nan, nan, 0, 0, 0)
    sides = (plain_lesions(reference), plain_lesions(prediction))
    sizes, predicted_sizes = (side.sizes for side in sides)
    boxes = [ndimage.find_objects(side.zones) for side in sides]
    centres = [side.centres(tuple(begin.start for begin in frame)) for side in sides]
    pairs = _match(*sides)
    voxel, lesions = prod(spacing), []
    for lesion, size in enumerate(sizes[1:], 1):
        found, scores = pairs.get(lesion), NOTHING
        if found is not None:
            # In a box that holds both: distances take time by the box, and most lesions are small.
            both = zip(boxes[0][lesion - 1], boxes[1][found - 1], strict=True)
            box = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in both)
            scores = _scores(sides[0].zones[box] == lesion, sides[1].zones[box] == found, spacing, min(spacing))
        volume = float(size * voxel)
        lesions.append(LesionScore("reference", volume, True, found is not None, *scores, centres[0][lesion]))
    matched = np.array([(row.dice, row.hd95, row.nsd) for row in lesions if row.matched])
    # What is matched with no one counts beside the means of 2026, not inside.
    alone = sorted(set(range(1, predicted_sizes.size)) - set(pairs.values()))
    for lesion in alone:
        volume = float(predicted_sizes[lesion] * voxel)
        lesions.append(LesionScore("prediction", volume, True, False, *NOTHING, centres[1][lesion]))
    dice, hd95, nsd = NOTHING
    if (reference & prediction).any():
        dice, hd95, nsd = _scores(reference, prediction, whole_spacing, min(whole_spacing) / 2)
    means = matched.mean(axis=0).tolist() if len(matched) else NOTHING
    missed = sizes.size - 1 - len(pairs)
    return MatchedScore(means[0], means[1], means[2], dice, hd95, nsd, len(pairs), len(alone), missed, tuple(lesions))


def _match(reference: Lesions, prediction: Lesions) -> dict[int, int]:
    """Predicted lesion of each matched reference lesion, by number: the assignment with the largest sum of Dice."""
    # Only lesions that meet another one take part: a table of all would be large where noise makes thousands.
    shared = (reference.zones > 0) & (prediction.zones > 0)
    meeting = np.stack([reference.zones[shared], prediction.zones[shared]])
    pairs, counts = np.unique(meeting, axis=1, return_counts=True)
    rows, row_of = np.unique(pairs[0], return_inverse=True)
    columns, column_of = np.unique(pairs[1], return_inverse=True)
    overlaps = np.zeros((rows.size, columns.size))
    overlaps[row_of, column_of] = 2 * counts / (reference.sizes[pairs[0]] + prediction.sizes[pairs[1]])
    chosen = zip(*linear_sum_assignment(overlaps, maximize=True), strict=True)
    return {int(rows[a]): int(columns[b]) for a, b in chosen if overlaps[a, b] >= _SMALLEST_DICE}


def _scores(reference: Mask, prediction: Mask, spacing: Spacing, tolerance: float) -> tuple[float, float, float]:
    """Dice, HD95 (mm) and surface Dice at `tolerance` (mm) of two masks, neither of them empty."""
    distances = border_distances(reference, prediction, spacing)
    if distances is None:
        return NOTHING
    nsd = float(np.mean([np.mean(side <= tolerance) for side in distances]))
    return overlap.dice(reference, prediction), float(np.percentile(np.concatenate(distances), 95)), nsd
