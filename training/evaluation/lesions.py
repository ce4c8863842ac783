"""Lesions of a region: connected components of its mask, and what BraTS 2023 and 2024 merge into one lesion.

Numbers matter: BraTS 2024 merges enhancing lesions, and computes some whole-volume scores, by the number of a lesion.
Components are numbered in the order in which a scan over X, then Y, then Z (fastest) meets them, as `cc3d` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Final

import cc3d
import numpy as np
from numpy.typing import NDArray

DILATION: Final = 3
"""Iterations of the 18-neighbour element by which fragments are joined and matches are found."""

SMALLEST_VOXELS: Final = 50
"""Predicted lesions of up to this many voxels do not count in 2024."""


@dataclass(frozen=True)
class Lesions:
    """Numbered lesions of one region on one side."""

    ids: NDArray[np.integer]
    """(X, Y, Z): number of the lesion that a voxel belongs to, 0 outside."""
    zones: NDArray[np.integer]
    """(X, Y, Z): the same for the lesions dilated. As every voxel's dilation is connected, the components of a dilated mask
    are the dilated lesions, and no two of them overlap."""

    def renumbered(self, numbers: NDArray[np.integer]) -> Lesions:
        """These lesions with number i replaced by numbers[i]; 0 removes a lesion."""
        return Lesions(numbers[self.ids], numbers[self.zones])


def dilate(mask: NDArray[np.bool_], iterations: int = DILATION) -> NDArray[np.bool_]:
    """A mask (X, Y, Z) dilated by the 18-neighbour element (`generate_binary_structure(3, 2)`).

    The element is the union of a 3 × 3 square in each of the three planes.
    """
    padding = iterations
    padded = np.pad(mask, padding)
    steps = (padded.shape[1] * padded.shape[2], padded.shape[2], 1)
    grown = padded.ravel()
    for _ in range(iterations):
        x, y = _widened(grown, steps[0]), _widened(grown, steps[1])
        # Stepping over flat indices runs off the end of a row only into the padding of the next.
        grown = _widened(x, steps[1])
        grown |= _widened(np.bitwise_or(x, y, out=x), steps[2])
    inner = slice(padding, -padding)
    return np.ascontiguousarray(grown.reshape(padded.shape)[inner, inner, inner])


def _widened(flat: NDArray[np.bool_], step: int) -> NDArray[np.bool_]:
    wide = flat.copy()
    wide[step:] |= flat[:-step]
    wide[:-step] |= flat[step:]
    return wide


def components(mask: NDArray[np.bool_]) -> NDArray[np.integer]:
    """The 26-connected components of a mask (X, Y, Z), numbered from 1."""
    numbered: NDArray[np.integer] = cc3d.connected_components(np.ascontiguousarray(mask), connectivity=26)
    return numbered


def merged_lesions(mask: NDArray[np.bool_]) -> Lesions:
    """Lesions of a mask (X, Y, Z), fragments that meet when dilated being one; the voxels do not change."""
    zones = components(dilate(mask))
    return Lesions(zones * mask, zones)


def without_small(lesions: Lesions) -> Lesions:
    """Without the lesions of up to 50 voxels; the others keep their numbers."""
    sizes = np.bincount(lesions.ids[lesions.ids > 0])
    small = sizes <= SMALLEST_VOXELS
    if not small[1:].any():
        return lesions
    return lesions.renumbered(np.where(small, 0, np.arange(sizes.size)))


def merge_enhancing(enhancing: Lesions, necrotic: Lesions) -> Lesions:
    """Enhancing lesions merged where they touch the same necrotic lesion, after BraTS 2024, and numbered from 1.

    An enhancing lesion joins the lowest-numbered necrotic lesion that it touches, and only that one; lesions that join the
    same one become one lesion. Nothing is merged where only one pair of lesions touches at all. New lesions are numbered
    after those that are left alone, in the order of the lowest enhancing lesion that touches their necrotic one.
    """
    pairs = _touching(enhancing.ids, necrotic.ids)
    numbers = np.arange(int(enhancing.ids.max(initial=0)) + 1)
    if len(pairs) > 1:
        joined: dict[int, int] = {}
        for _, core in pairs:
            joined.setdefault(core, numbers.size + len(joined))
        # Backwards, so that the lowest necrotic lesion of each enhancing one is what remains.
        for lesion, core in reversed(pairs):
            numbers[lesion] = joined[core]
    present = np.unique(enhancing.ids)
    used = np.unique(numbers[present[present > 0]])
    compact = np.zeros(max(int(numbers.max()), 0) + 1, np.int32)
    compact[used] = np.arange(1, used.size + 1)
    kept = np.zeros(numbers.size, np.bool_)
    kept[present] = True
    kept[0] = False
    return enhancing.renumbered(np.where(kept, compact[numbers], 0))


def _touching(first: NDArray[np.integer], second: NDArray[np.integer]) -> list[tuple[int, int]]:
    """Pairs of lesion numbers, sorted, of which one lesion dilated once meets the other."""
    padded = np.pad(second, 1)
    row, plane = padded.shape[2], padded.shape[1] * padded.shape[2]
    here = np.nonzero(first)
    numbers = first[here]
    at = (here[0] + 1) * plane + (here[1] + 1) * row + here[2] + 1
    flat = padded.ravel()
    pairs: set[tuple[int, int]] = set()
    for x, y, z in product((-1, 0, 1), repeat=3):
        if abs(x) + abs(y) + abs(z) < 3:
            there = flat[at + x * plane + y * row + z]
            met = there > 0
            pairs.update(zip(*(side.tolist() for side in _unique_pairs(numbers[met], there[met])), strict=True))
    return sorted(pairs)


def _unique_pairs(
    first: NDArray[np.integer], second: NDArray[np.integer]
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    width = int(second.max(initial=0)) + 1
    keys = np.unique(first.astype(np.int64) * width + second)
    return keys // width, keys % width
