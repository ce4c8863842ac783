"""Connected components of masks and label maps, one way for the whole project."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inference.boxes import bounding_box


def connected_components(labels: NDArray[np.bool_] | NDArray[np.uint8] | NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Number the 26-connected components of equal values in a mask or label map (X, Y, Z); 0 is background.

    Numbers go from 1 in the order in which a scan over X, then Y, then Z (fastest) meets the components, whatever the
    order in memory.
    """
    import cc3d

    numbers = np.zeros(labels.shape, np.uint32)
    if labels.any():
        box = bounding_box(labels != 0)
        # On a single row of voxels with gaps cc3d counts a label too few and raises (its issue 43): a margin cures it.
        part = np.pad(np.ascontiguousarray(labels[box]), 1)
        numbers[box] = cc3d.connected_components(part, connectivity=26, out_dtype=np.uint32)[1:-1, 1:-1, 1:-1]
    return numbers


def largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Largest 26-connected component of a mask (X, Y, Z), the first by number among equals; none if it is empty."""
    largest = np.zeros_like(mask)
    if mask.any():
        box = bounding_box(mask)
        numbers = connected_components(mask[box])
        largest[box] = numbers == 1 + np.argmax(np.bincount(numbers.ravel())[1:])
    return largest
