"""Distances between the surfaces of two segmentations: the robust Hausdorff distance and the surface Dice.

Both work on one zero-padded grid that holds the two segmentations, addressed by flat index: a shift is then an
addition, and every pass over the volume runs over contiguous memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from surface_distance import lookup_tables

from inference.boxes import Box, bounding_box

Spacing = tuple[float, float, float]

# Voxels up to which a nearest neighbour is looked for by stepping over the grid: most surfaces are as near as that.
_REACH: Final = 3

# Share of the grid's points above which one distance transform costs less than searching a tree for each point.
_QUERIES_PER_GRID: Final = 1 / 40


def hausdorff95(reference: NDArray[np.uint8], prediction: NDArray[np.uint8], spacing: Spacing) -> float:
    """The larger of the two directed 95th percentiles of surface distances, mm; infinite if a side has no surface.

    Both sides are (X, Y, Z), zero outside and, where they are masks, one inside; spacing is along X, Y, Z in mm.
    Surface elements sit on the corners between voxels, with the area that marching cubes gives them for their eight
    voxels, and the percentile is weighted by area (Nikolov et al., arXiv:1809.04430; the package `surface-distance`).

    Other values than one are taken as that package takes them: a value v weighs the eight-voxel code of a corner by v,
    modulo 256. So a solid object of ones has a surface, whereas in one of twos every inner corner counts as well (code
    254), with a small area. BraTS 2024 passes maps of lesion numbers: its whole-volume distance is therefore this and
    not the distance of the masks.
    """
    grid = _Grid.around(reference, prediction, padding=_REACH + 1)
    if grid is None:
        return float("inf")
    codes = [grid.corner_codes(side) for side in (reference, prediction)]
    # 0 is outside and 255 inside: adding one, modulo 256, brings both to 0 and 1.
    borders = [code + np.uint8(1) > 1 for code in codes]
    points = [np.flatnonzero(border) for border in borders]
    if not (points[0].size and points[1].size):
        return float("inf")
    areas = _area_of_code(spacing)
    return max(
        _weighted_percentile(grid.nearest(points[a], borders[b], points[b], spacing), areas[codes[a][points[a]]], 0.95)
        for a, b in ((0, 1), (1, 0))
    )


def surface_dice(
    reference: NDArray[np.bool_], prediction: NDArray[np.bool_], spacing: Spacing, tolerances: tuple[float, ...]
) -> tuple[float, ...]:
    """Share of the surface voxels of two masks (X, Y, Z) that lie within each tolerance (mm) of the other's surface.

    A surface voxel has a 6-neighbour outside the mask or the volume. Both shares weigh the same, however many voxels
    each side has (`normalized_surface_dice` of nnU-Net, whose 1e-8 in the denominator keeps a perfect match just below
    1). Both empty: 1. One empty: 0.
    """
    grid = _Grid.around(reference, prediction, padding=1 + int(max(tolerances) / min(spacing)))
    if grid is None:
        return tuple(1.0 for _ in tolerances)
    borders = [grid.surface_voxels(side) for side in (reference, prediction)]
    points = [np.flatnonzero(border) for border in borders]
    if not (points[0].size and points[1].size):
        return tuple(0.0 for _ in tolerances)
    distances = [grid.near(points[a], borders[b], spacing, max(tolerances))[0] for a, b in ((0, 1), (1, 0))]
    shares = [sum(float(np.mean(side <= tolerance)) for side in distances) for tolerance in tolerances]
    return tuple(share / (2.0 + 1e-8) for share in shares)


def border_distances(
    reference: NDArray[np.bool_], prediction: NDArray[np.bool_], spacing: Spacing
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Distances (mm) of each mask's border voxels to the other's border, both ways; nothing where a mask is empty.

    Masks are (X, Y, Z). Border voxels have a 6-neighbour outside the mask or the volume: a 6-connected erosion removes
    them. First the reference's, then the prediction's.
    """
    grid = _Grid.around(reference, prediction, padding=_REACH + 1)
    if grid is None:
        return None
    borders = [grid.surface_voxels(side) for side in (reference, prediction)]
    points = [np.flatnonzero(border) for border in borders]
    if not (points[0].size and points[1].size):
        return None
    first, second = (grid.nearest(points[a], borders[b], points[b], spacing) for a, b in ((0, 1), (1, 0)))
    return first, second


@dataclass(frozen=True)
class _Grid:
    """A zero-padded box that holds two segmentations; its points are addressed by flat index in C order."""

    box: Box
    """Where the box lies in the segmentations, without padding."""
    shape: tuple[int, int, int]
    """Its extent with padding."""
    padding: int
    """Voxels of padding on each side."""

    @classmethod
    def around(
        cls, first: NDArray[np.uint8] | NDArray[np.bool_], second: NDArray[np.uint8] | NDArray[np.bool_], padding: int
    ) -> _Grid | None:
        """The smallest grid that holds both; nothing where both are empty."""
        either = (first != 0) | (second != 0)
        if not either.any():
            return None
        box = bounding_box(either)
        x, y, z = (side.stop - side.start + 2 * padding for side in box)
        return cls(box, (x, y, z), padding)

    @property
    def steps(self) -> tuple[int, int, int]:
        """Flat distance of the next voxel along each axis."""
        return self.shape[1] * self.shape[2], self.shape[2], 1

    def _padded(self, volume: NDArray[np.uint8] | NDArray[np.bool_]) -> NDArray[np.uint8]:
        # Padded, so that a step off one side ends in zeros and not on the other side of the box.
        padded = np.zeros(self.shape, np.uint8)
        inner = slice(self.padding, -self.padding)
        padded[inner, inner, inner] = volume[self.box]
        return padded.ravel()

    def corner_codes(self, volume: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Code of each corner's eight voxels, flat; index i is the corner between voxel i and its successors.

        The kernel [[[128, 64], [32, 16]], [[8, 4], [2, 1]]] is the product of [16, 1], [4, 1] and [2, 1].
        """
        codes = self._padded(volume)
        for step, weight in zip(self.steps, (16, 4, 2), strict=True):
            following = np.zeros_like(codes)
            following[:-step] = codes[step:]
            codes = codes * np.uint8(weight)
            codes += following
        return codes

    def surface_voxels(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Voxels of a mask with a 6-neighbour outside it, flat."""
        inside = self._padded(mask).view(np.bool_)
        eroded = inside.copy()
        for step in self.steps:
            eroded[:-step] &= inside[step:]
            eroded[step:] &= inside[:-step]
        return inside & ~eroded

    def near(
        self, points: NDArray[np.intp], targets: NDArray[np.bool_], spacing: Spacing, limit: float
    ) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        """Distances (mm) to the nearest target where that is within `limit`, else infinity, and which those are.

        The padding must not be smaller than the limit.
        """
        distances = np.full(points.size, np.inf)
        left = np.arange(points.size)
        for distance, offsets in _shells(spacing, limit):
            here = points[left]
            found = np.zeros(left.size, np.bool_)
            for offset in offsets @ np.array(self.steps):
                found |= targets[here + offset]
            distances[left[found]] = distance
            left = left[~found]
        return distances, left

    def nearest(
        self, points: NDArray[np.intp], targets: NDArray[np.bool_], target_points: NDArray[np.intp], spacing: Spacing
    ) -> NDArray[np.float64]:
        """Distance (mm) of each point to the nearest target."""
        distances, left = self.near(points, targets, spacing, _REACH * min(spacing))
        if not left.size:
            return distances
        here = self._coordinates(points[left])
        if left.size > targets.size * _QUERIES_PER_GRID:
            there = ndimage.distance_transform_edt(
                ~targets.reshape(self.shape), sampling=spacing, return_distances=False, return_indices=True
            )[:, *here.T].T
        else:
            candidates = self._coordinates(target_points)
            # Unbalanced, since points on a grid are spread evenly, and building takes longer than asking.
            tree = cKDTree(candidates * spacing, balanced_tree=False, compact_nodes=False)
            there = candidates[tree.query(here * spacing)[1]]
        # From the coordinates in both ways, so that ties are rounded alike.
        distances[left] = np.sqrt(np.square((here - there) * spacing).sum(axis=1))
        return distances

    def _coordinates(self, points: NDArray[np.intp]) -> NDArray[np.intp]:
        return np.stack(np.unravel_index(points, self.shape), axis=1)


def _weighted_percentile(distances: NDArray[np.float64], areas: NDArray[np.float64], fraction: float) -> float:
    """The distance within which lies `fraction` of the area.

    Sorted by distance, then area: the sum of areas is then rounded as in the reference, which decides exact ties.
    """
    order = np.lexsort((areas, distances))
    ordered = areas[order]
    cumulated = np.cumsum(ordered) / np.sum(ordered)
    index = int(np.searchsorted(cumulated, fraction))
    return float(distances[order[min(index, order.size - 1)]])


@lru_cache(maxsize=16)
def _area_of_code(spacing: Spacing) -> NDArray[np.float64]:
    """Surface area (mm²) of each of the 256 corner codes."""
    table: NDArray[np.float64] = lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
    return table


@lru_cache(maxsize=64)
def _shells(spacing: Spacing, limit: float) -> tuple[tuple[float, NDArray[np.intp]], ...]:
    """Steps (n, 3) in voxels of equal length, with that length in mm, from the shortest up to `limit`."""
    # The small excess keeps 3 · 0.7 / 0.7 from being cut to 2; what is too long is left out below.
    counts = [int(limit / side + 1e-9) for side in spacing]
    reach = [np.arange(-count, count + 1) for count in counts]
    steps = np.stack(np.meshgrid(*reach, indexing="ij"), axis=-1).reshape(-1, 3)
    lengths = np.sqrt(np.square(steps * spacing).sum(axis=1))
    return tuple((float(length), steps[lengths == length]) for length in np.unique(lengths[lengths <= limit]))
