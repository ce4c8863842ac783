"""Tiles, their weights, mirrorings and padding: nnU-Net's sliding window, as arrays and numbers.

nnU-Net accumulates in half precision; here sums are in single precision, which is what it would give without rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations, product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from inference.boxes import Box

Triple = tuple[int, int, int]
"""One whole number per spatial axis."""
MIRRORINGS: Final = tuple(axes for count in range(4) for axes in combinations((1, 2, 3), count))
"""Spatial axes of (channel, Z, Y, X) to flip: none, each one, each two, all three."""
# nnU-Net's defaults, as shares of the patch: most distance between tiles, and deviation of their Gaussian weights.
_STEP: Final = 0.5
_SIGMA: Final = 1 / 8


def windows(shape: Sequence[int], patch: Sequence[int]) -> list[Box]:
    """Boxes of `patch` that cover an array of `shape` (Z, Y, X), evenly spaced by at most half a patch.

    The array must be at least as large as the patch.
    """
    starts = []
    for size, length in zip(shape, patch, strict=True):
        steps = math.ceil((size - length) / (length * _STEP))
        # Halves to the even number, like nnU-Net's np.round.
        starts.append([round((size - length) / max(steps, 1) * index) for index in range(steps + 1)])
    return [
        tuple(slice(first, first + length) for first, length in zip(corner, patch, strict=True))
        for corner in product(*starts)
    ]


# Few entries: a bundle has one or two patches, and a weight map of full size takes 8 MB.
@lru_cache(maxsize=4)
def gaussian(patch: Triple) -> NDArray[np.float32]:
    """Weights (Z, Y, X) of a tile's voxels: largest, 1, at its centre and above 0 everywhere. Not to be written to."""
    from scipy.ndimage import gaussian_filter1d

    profiles = []
    for length in patch:
        peak = np.zeros(length)
        peak[length // 2] = 1
        profiles.append(gaussian_filter1d(peak, length * _SIGMA, mode="constant"))
    product_of_axes = np.einsum("i,j,k->ijk", *profiles)
    weights: NDArray[np.float32] = (product_of_axes / product_of_axes.max()).astype(np.float32)
    # As in nnU-Net: the sum of weights is divided by, and a corner may lie in one tile alone.
    weights[weights == 0] = weights[weights > 0].min()
    weights.setflags(write=False)
    return weights


@lru_cache(maxsize=4)
def sum_of_weights(shape: Triple, patch: Triple) -> NDArray[np.float32]:
    """Weight of each voxel of an array of `shape` (Z, Y, X) in all its tiles and mirrorings together."""
    total = np.zeros(shape, np.float32)
    for tile in windows(shape, patch):
        total[tile] += gaussian(patch)
    total *= len(MIRRORINGS)
    total.setflags(write=False)
    return total


def pad(array: NDArray[np.float32], shape: Sequence[int]) -> tuple[NDArray[np.float32], Box]:
    """An array (C, Z, Y, X) with zeros around it where it is smaller than `shape`, and where it lies in that."""
    sizes = array.shape[1:]
    missing = [max(0, wanted - size) for size, wanted in zip(sizes, shape, strict=True)]
    # The odd voxel comes after the array, as in nnU-Net.
    box = tuple(slice(count // 2, count // 2 + size) for count, size in zip(missing, sizes, strict=True))
    if not any(missing):
        return array, box
    return np.pad(array, [(0, 0), *((count // 2, count - count // 2) for count in missing)]), box


def next_multiple(shape: Sequence[int], stride: Sequence[int]) -> Triple:
    """The smallest shape that holds `shape` and whose sizes are multiples of `stride`."""
    z, y, x = (math.ceil(size / factor) * factor for size, factor in zip(shape, stride, strict=True))
    return z, y, x
