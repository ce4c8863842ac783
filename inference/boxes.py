"""Boxes of voxels, one way for the whole project."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Box = tuple["slice[int, int, None]", ...]
"""Voxel ranges along each axis of an array."""


def bounding_box(mask: NDArray[np.bool_]) -> Box:
    """Smallest box around what is True in a mask of any number of axes, which must not be empty."""
    axes = range(mask.ndim)
    extents = [np.flatnonzero(mask.any(axis=tuple(other for other in axes if other != axis))) for axis in axes]
    return tuple(slice(int(extent[0]), int(extent[-1]) + 1) for extent in extents)
