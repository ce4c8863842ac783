"""Slices of a scan as pictures show them: which ones, which way round, and how bright.

Everything is in canonical RAS. Pictures follow the radiological convention: a reader looks at the patient from the feet
and from the front, so the patient's right is at the left of axial and coronal pictures; sagittal pictures face left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from inference.boxes import Box, bounding_box
from inference.labels import REGIONS, Label, region_mask

Plane = Literal["axial", "coronal", "sagittal"]

NORMAL_AXIS: Final[Mapping[Plane, int]] = {"sagittal": 0, "coronal": 1, "axial": 2}
"""The array axis that a plane is perpendicular to."""

EDGE_MARKS: Final[Mapping[Plane, tuple[str, str]]] = {
    "axial": ("R", "L"),
    "coronal": ("R", "L"),
    "sagittal": ("A", "P"),
}
"""Letters at the left and right edge of a picture: the patient's right and left, or front and back."""

LABEL_COLOURS: Final[Mapping[Label, str]] = {Label.ED: "#56B4E9", Label.NCR: "#D55E00", Label.ET: "#F0E442"}
"""Sky blue, vermilion and yellow of Okabe and Ito's palette, told apart in every common form of colour blindness."""

LABEL_NAMES: Final = {Label.ET: "enhancing tumour", Label.NCR: "necrotic core", Label.ED: "oedema"}
SEQUENCE_NAMES: Final = {"t1n": "T1", "t1c": "T1 with contrast", "t2w": "T2", "t2f": "T2-FLAIR"}
"""Full names of labels and sequences, where there is room."""

# Slices nearer than this show the same: about the thickness of a clinical slice.
_SAME_SLICE_MM: Final = 6.0


@dataclass(frozen=True)
class View:
    """One slice worth showing."""

    plane: Plane
    """Which way it cuts."""
    index: int
    """Position along the plane's normal axis, in voxels from 0."""
    reason: str
    """Why this one."""


def slice_of(volume: NDArray[np.uint8], plane: Plane, index: int) -> NDArray[np.uint8]:
    """A slice of (X, Y, Z) in canonical RAS as a picture (rows, columns): row 0 on top, column 0 at the left.

    Axial: front on top, patient's right at the left. Coronal: head on top, patient's right at the left. Sagittal: head
    on top, front at the left.
    """
    # A view: `take` would copy a volume that is not contiguous.
    return np.moveaxis(volume, NORMAL_AXIS[plane], 0)[index, ::-1, ::-1].T


def extent_mm(shape: tuple[int, ...], spacing: tuple[float, float, float], plane: Plane) -> tuple[float, float]:
    """Height and width in mm of a plane's slices of a volume of `shape` (X, Y, Z)."""
    edges = [length * size for length, size in zip(shape, spacing, strict=True)]
    across, up = (edge for axis, edge in enumerate(edges) if axis != NORMAL_AXIS[plane])
    return up, across


def choose_views(
    labels: NDArray[np.uint8], brain: NDArray[np.bool_], spacing: tuple[float, float, float]
) -> tuple[View, ...]:
    """Axial slices with most of each region, then one coronal and one sagittal through the tumour's core.

    `labels` and `brain` are (X, Y, Z). Axial slices that lie within a few millimetres of one another are shown once.
    Without a tumour: one slice per plane through the middle of the brain.
    """
    present = [region for region in REGIONS if region_mask(labels, region).any()]
    if not present:
        return tuple(View(plane, _middle(brain, plane), "middle of the brain") for plane in NORMAL_AXIS)[::-1]
    reasons: dict[int, list[str]] = {}
    # From ET outwards, so that a slice shared by several regions is the one chosen for the smallest.
    for region in reversed(present):
        index = _fullest(region_mask(labels, region), "axial")
        near = next((other for other in reasons if abs(other - index) * spacing[2] < _SAME_SLICE_MM), index)
        reasons.setdefault(near, []).append(region)
    views = [View("axial", index, f"most {', '.join(reasons[index])}") for index in sorted(reasons, reverse=True)]
    # The core where there is one: the whole tumour's widest slice may pass through oedema alone.
    shown = present[min(1, len(present) - 1)]
    mask = region_mask(labels, shown)
    others: tuple[Plane, ...] = ("coronal", "sagittal")
    return (*views, *(View(plane, _fullest(mask, plane), f"most {shown}") for plane in others))


def with_errors(
    views: tuple[View, ...], labels: NDArray[np.uint8], reference: NDArray[np.uint8], depth: float
) -> tuple[View, ...]:
    """Views of labels (X, Y, Z), and ahead of them the axial slice in which most voxels of all regions are wrong.

    `depth` is the voxel's edge along Z in mm. Where nothing is wrong, the views are as they were.
    """
    wrong = np.zeros(labels.shape[2], np.int64)
    for region in REGIONS:
        wrong += (region_mask(labels, region) ^ region_mask(reference, region)).sum(axis=(0, 1))
    if not wrong.any():
        return views
    worst = int(wrong.argmax())
    others = [v for v in views if v.plane != "axial" or abs(v.index - worst) * depth >= _SAME_SLICE_MM]
    return (View("axial", worst, "most errors"), *others)


def _fullest(mask: NDArray[np.bool_], plane: Plane) -> int:
    axes = tuple(axis for axis in range(3) if axis != NORMAL_AXIS[plane])
    return int(mask.sum(axis=axes).argmax())


def _middle(brain: NDArray[np.bool_], plane: Plane) -> int:
    if not brain.any():
        return int(brain.shape[NORMAL_AXIS[plane]]) // 2
    return int(np.median(np.nonzero(brain)[NORMAL_AXIS[plane]]))


def brain_box(brain: NDArray[np.bool_], margin: int = 4) -> Box:
    """The box of a mask (X, Y, Z) with a margin of voxels; the whole array where the mask is empty."""
    if not brain.any():
        return tuple(slice(0, length) for length in brain.shape)
    sides = zip(bounding_box(brain), brain.shape, strict=True)
    return tuple(slice(max(side.start - margin, 0), min(side.stop + margin, length)) for side, length in sides)


def brightness(volume: NDArray[np.float32], brain: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Grey levels 1 to 255 between the 1st and the 99.7th percentile of the brain (X, Y, Z), background 0."""
    if not brain.any():
        return np.zeros(volume.shape, np.uint8)
    # Percentiles at both ends: voxels of the brain can be negative, and vessels and single bad voxels far too bright.
    low, high = np.percentile(volume[brain], (1.0, 99.7))
    grey = np.clip((volume - low) / max(high - low, 1e-6), 0, 1) * 254 + 1
    return np.where(brain, grey, 0).astype(np.uint8)
