"""Lesions of a region: connected components of its mask, and what BraTS 2023 and 2024 merge into one lesion.

Numbers matter: BraTS 2024 merges enhancing lesions, and computes some whole-volume scores, by the number of a lesion.
Components are numbered in the order in which a scan over X, then Y, then Z (fastest) meets them, as `cc3d` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from inference.refine.components import connected_components

Mask = NDArray[np.bool_]
Numbers = NDArray[np.intp]

DILATION: Final = 3
"""Iterations of the 18-neighbour element by which fragments are joined and matches are found."""

# Predicted lesions of up to this many voxels do not count in 2024: voxels, where the reference's 50 are mm³.
SMALLEST_VOXELS: Final = 50


@dataclass(frozen=True)
class Lesions:
    """Numbered lesions of one region on one side."""

    voxels: NDArray[np.intp]
    """Flat indices (n,) of the region's voxels in C order."""
    at_voxels: Numbers
    """Number of the lesion that each of these voxels belongs to; 0 where the lesion was removed."""
    zones: NDArray[np.uint32]
    """(X, Y, Z): components by which the lesions were told apart."""
    of_zone: Numbers
    """Number of the lesion of each component; entry 0 is 0."""

    @classmethod
    def of(cls, mask: Mask, zones: NDArray[np.uint32]) -> Lesions:
        """The parts of a mask (X, Y, Z) in each component of `zones`, which covers it."""
        voxels = np.flatnonzero(mask)
        at_voxels = zones.ravel()[voxels].astype(np.intp)
        return cls(voxels, at_voxels, zones, np.arange(int(at_voxels.max(initial=0)) + 1))

    @property
    def sizes(self) -> NDArray[np.intp]:
        """Voxels of each lesion by number; entry 0 is 0."""
        sizes = np.bincount(self.at_voxels, minlength=1)
        sizes[0] = 0
        return sizes

    def renumbered(self, numbers: Numbers) -> Lesions:
        """These lesions with number i replaced by numbers[i]; 0 removes a lesion."""
        return Lesions(self.voxels, numbers[self.at_voxels], self.zones, numbers[self.of_zone])

    def near(self, voxels: NDArray[np.intp]) -> Numbers:
        """Number of the lesion whose zone holds each of some voxels (flat indices); 0 for none."""
        return self.of_zone[self.zones.ravel()[voxels]]

    def centres(self, origin: tuple[int, ...]) -> dict[int, tuple[float, float, float]]:
        """Mean voxel index of each lesion by its number, in the volume where the array begins at `origin`."""
        sizes = self.sizes
        places = np.unravel_index(self.voxels, self.zones.shape)
        sums = [np.bincount(self.at_voxels, weights=axis, minlength=sizes.size) for axis in places]
        found = {}
        for lesion in np.flatnonzero(sizes).tolist():
            x, y, z = (float(axis[lesion] / sizes[lesion]) + begin for axis, begin in zip(sums, origin, strict=True))
            found[lesion] = (x, y, z)
        return found

    def ids(self) -> NDArray[np.uint32]:
        """(X, Y, Z): number of the lesion that a voxel belongs to, 0 outside."""
        ids = np.zeros(self.zones.shape, np.uint32)
        ids.ravel()[self.voxels] = self.at_voxels
        return ids


def plain_lesions(mask: Mask) -> Lesions:
    """Lesions of a mask (X, Y, Z): its 26-connected components."""
    return Lesions.of(mask, connected_components(mask))


def merged_lesions(mask: Mask) -> Lesions:
    """Lesions of a mask (X, Y, Z), fragments that meet when dilated being one; the voxels do not change.

    Their zones are the dilated lesions: every voxel's dilation is connected, so that the components of a dilated mask
    are its dilated lesions, and no two of them overlap.
    """
    return Lesions.of(mask, connected_components(dilate(mask)))


def without_small(lesions: Lesions) -> Lesions:
    """Without the lesions of up to 50 voxels; the others keep their numbers."""
    sizes = lesions.sizes
    return lesions.renumbered(np.where(sizes <= SMALLEST_VOXELS, 0, np.arange(sizes.size)))


def merge_enhancing(enhancing: Lesions, necrotic: Lesions) -> Lesions:
    """Enhancing lesions merged where they touch the same necrotic lesion, after BraTS 2024, and numbered from 1.

    An enhancing lesion joins the lowest-numbered necrotic lesion that it touches, and only that one; lesions that join
    the same one become one lesion. Nothing is merged where only one pair of lesions touches at all. New lesions are
    numbered after those that are left alone, in the order of the lowest enhancing lesion that touches their necrosis.
    """
    present = np.flatnonzero(enhancing.sizes)
    pairs = _touching(enhancing, necrotic) if present.size > 1 else []
    numbers = np.arange(enhancing.sizes.size)
    if len(pairs) > 1:
        joined: dict[int, int] = {}
        for _, core in pairs:
            joined.setdefault(core, numbers.size + len(joined))
        # Backwards, so that the lowest necrotic lesion of each enhancing one is what remains.
        for lesion, core in reversed(pairs):
            numbers[lesion] = joined[core]
    compact = np.zeros(numbers.size, np.intp)
    compact[present] = np.unique(numbers[present], return_inverse=True)[1] + 1
    return enhancing.renumbered(compact)


def dilate(mask: Mask, iterations: int = DILATION) -> Mask:
    """A mask (X, Y, Z) dilated by the 18-neighbour element (`generate_binary_structure(3, 2)`).

    The element is the union of a 3 × 3 square in each of the three planes.
    """
    # Much faster than `scipy.ndimage.binary_dilation`, which visits all 19 neighbours of every voxel.
    padded = np.pad(mask, iterations)
    along_x, along_y, along_z = padded.shape[1] * padded.shape[2], padded.shape[2], 1
    # Stepping over flat indices runs off the end of a row only into the padding of the next.
    grown = padded.ravel()
    for _ in range(iterations):
        x, y = _widened(grown, along_x), _widened(grown, along_y)
        grown = _widened(x, along_y)
        grown |= _widened(np.bitwise_or(x, y, out=x), along_z)
    inner = slice(iterations, -iterations)
    return grown.reshape(padded.shape)[inner, inner, inner]


def _widened(flat: Mask, step: int) -> Mask:
    """A flat mask, or it shifted by `step` either way."""
    wide = np.empty_like(flat)
    wide[-step:] = flat[-step:]
    np.bitwise_or(flat[:-step], flat[step:], out=wide[:-step])
    wide[step:] |= flat[:-step]
    return wide


def _touching(first: Lesions, second: Lesions) -> list[tuple[int, int]]:
    """Pairs of lesion numbers, sorted, of which one lesion dilated once meets the other."""
    padded = np.pad(second.ids(), 1)
    along_x, along_y = padded.shape[1] * padded.shape[2], padded.shape[2]
    x, y, z = np.unravel_index(first.voxels, first.zones.shape)
    at = (x + 1) * along_x + (y + 1) * along_y + z + 1
    # A pair of numbers as one integer, which `np.unique` sorts many times faster than rows of two.
    width = int(padded.max()) + 1
    keys = set()
    for step in product((-1, 0, 1), repeat=3):
        if np.count_nonzero(step) < 3:
            there = padded.ravel()[at + step[0] * along_x + step[1] * along_y + step[2]]
            keys.update(np.unique((first.at_voxels * width + there)[(first.at_voxels > 0) & (there > 0)]).tolist())
    return sorted(divmod(key, width) for key in keys)
