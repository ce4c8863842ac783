"""Scores of one region of one case by the definitions of 2023 and 2024, and of each of its lesions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import isnan, nan
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Version = Literal[2023, 2024]
Labels = NDArray[np.uint8]

WORST_DISTANCE_MM: Final = 374.0
"""Value for an infinite Hausdorff distance, mm: the diagonal of a BraTS volume, rounded."""


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
    # Not compared: with `metrics="dice"` all numbers are the same, but there are no lesions.
    lesions: tuple[LesionScore, ...] = field(default=(), compare=False)
    """The lesions behind the means; none where no distances were asked for."""

    def named(self) -> dict[str, float]:
        """The scores by the names used in files, without those that are NaN."""
        names = [entry.name for entry in fields(self) if entry.name not in {"reference_volume", "lesions"}]
        values = {_FILE_NAMES.get(name, name): float(getattr(self, name)) for name in names}
        return {name: value for name, value in values.items() if not isnan(value)}


# As tables of the challenges have them; a field's name holds no point.
_FILE_NAMES: Final[Mapping[str, str]] = {
    "nsd_05": "nsd_0.5",
    "nsd_10": "nsd_1.0",
    "lesionwise_nsd_05": "lesionwise_nsd_0.5",
    "lesionwise_nsd_10": "lesionwise_nsd_1.0",
}
