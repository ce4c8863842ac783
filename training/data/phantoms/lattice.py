"""The frame that phantoms are drawn in: a coarse lattice, its interpolation, and signed distances on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Volume = NDArray[np.float32]

# Field of view of the SRI24 atlas (Rohlfing et al. 2010), which BraTS registers to; every phantom shows this frame.
FRAME_MM: Final = (240.0, 240.0, 155.0)
ORIGIN: Final = (120.0, 106.0, 76.0)
"""Centre of the brain in the frame: zero of the anatomical coordinates."""
BOX: Final = ((-78.0, 78.0), (-92.0, 100.0), (-76.0, 78.0))
"""The box that is drawn, mm, in anatomical coordinates: no brain reaches beyond it."""
STEP: Final = 2.5
"""Lattice of the anatomy, mm."""


def lattice_axis(axis: int, step: float) -> NDArray[np.float64]:
    """Lattice positions along an axis of the box."""
    low, high = BOX[axis]
    return np.arange(low, high + step, step)


def lattice_points() -> Volume:
    """(3, x, y, z): anatomical coordinates of the lattice."""
    return np.stack(np.meshgrid(*[lattice_axis(axis, STEP) for axis in range(3)], indexing="ij")).astype(np.float32)


def _cubic(positions: NDArray[np.float64], knots: NDArray[np.float64]) -> NDArray[np.float32]:
    """(positions, knots): Catmull-Rom weights, zero outside, edges repeated."""
    # Unlike B-splines it goes through the values at the knots, so that distances stay distances.
    step = knots[1] - knots[0]
    where = np.clip((positions - knots[0]) / step, 0, len(knots) - 1)
    base = np.floor(where).astype(int)
    t = where - base
    weights = np.zeros((len(positions), len(knots)), np.float32)
    taps = (
        -0.5 * t + t**2 - 0.5 * t**3,
        1 - 2.5 * t**2 + 1.5 * t**3,
        0.5 * t + 2 * t**2 - 1.5 * t**3,
        -0.5 * t**2 + 0.5 * t**3,
    )
    rows = np.arange(len(positions))
    for offset, tap in enumerate(taps):
        np.add.at(weights, (rows, np.clip(base + offset - 1, 0, len(knots) - 1)), tap.astype(np.float32))
    return weights


def _resample(field: Volume, matrices: tuple[NDArray[np.float32], ...]) -> Volume:
    """Separable interpolation of (x, y, z) by one matrix per axis."""
    # Matrix products are many times as fast as interpolating point by point.
    along_x, along_y, along_z = matrices
    result = (along_x @ field.reshape(len(field), -1)).reshape(len(along_x), *field.shape[1:])
    return np.asarray(np.matmul(along_y, result) @ along_z.T, np.float32)


@dataclass(frozen=True)
class Canvas:
    """The voxels within the box of the brain."""

    box: tuple[slice[int, int, None], slice[int, int, None], slice[int, int, None]]
    """Where they lie in the whole array."""
    positions: tuple[NDArray[np.float64], ...]
    """Anatomical coordinates of voxel centres, per axis."""

    @classmethod
    def of_shape(cls, shape: tuple[int, int, int]) -> Canvas:
        """The canvas of an array that shows the whole frame."""
        # Only voxels that may show brain are drawn: about half of the frame.
        boxes, positions = [], []
        for axis, length in enumerate(shape):
            along = (np.arange(length) + 0.5) * FRAME_MM[axis] / length - ORIGIN[axis]
            inside = np.flatnonzero((along >= BOX[axis][0]) & (along <= BOX[axis][1]))
            boxes.append(slice(int(inside[0]), int(inside[-1]) + 1))
            positions.append(along[inside])
        return cls((boxes[0], boxes[1], boxes[2]), tuple(positions))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the canvas, not of the whole array."""
        return tuple(len(along) for along in self.positions)

    @property
    def voxel(self) -> tuple[float, ...]:
        """Voxel size per axis, mm of the frame."""
        return tuple(float(along[1] - along[0]) for along in self.positions)

    def interpolate(self, fields: Mapping[str, Volume]) -> dict[str, Volume]:
        """Fields of the anatomy's lattice at the voxels."""
        matrices = tuple(_cubic(along, lattice_axis(axis, STEP)) for axis, along in enumerate(self.positions))
        return {name: _resample(field, matrices) for name, field in fields.items()}

    def noise(self, rng: np.random.Generator, step: float) -> Volume:
        """Smooth noise at the voxels; `step` is about a third of its wavelength in mm."""
        return _noise(rng, step, self.positions)


def _noise(rng: np.random.Generator, step: float, positions: tuple[NDArray[np.float64], ...]) -> Volume:
    """Smooth noise of about unit standard deviation at given positions per axis."""
    knots = [lattice_axis(axis, step) for axis in range(3)]
    values = rng.standard_normal([len(along) for along in knots]).astype(np.float32)
    # Between the knots interpolation averages, which leaves a deviation of .72: 1.4 makes it about 1 again.
    return _resample(values, tuple(_cubic(at, along) for at, along in zip(positions, knots, strict=True))) * 1.4


def lattice_noise(rng: np.random.Generator, step: float) -> Volume:
    """The same on the lattice of the anatomy."""
    return _noise(rng, step, tuple(lattice_axis(axis, STEP) for axis in range(3)))


def ellipsoid(points: Volume, centre: tuple[float, ...], axes: tuple[float, ...]) -> Volume:
    """Signed distance (x, y, z), about, of points (3, x, y, z) to an ellipsoid; negative inside."""
    # Exact at the surface only, to first order: iquilezles.org/articles/ellipsoids. The exact one needs iterations.
    offset = points - np.asarray(centre, np.float32)[:, None, None, None]
    size = np.asarray(axes, np.float32)[:, None, None, None]
    near = np.sqrt(((offset / size) ** 2).sum(axis=0)) + 1e-6
    far = np.sqrt(((offset / size**2) ** 2).sum(axis=0)) + 1e-6
    return np.asarray(near * (near - 1) / far, np.float32)


def capsule(points: Volume, start: tuple[float, ...], end: tuple[float, ...], radii: tuple[float, float]) -> Volume:
    """Signed distance of points (3, x, y, z) to a segment whose thickness goes from one radius to the other."""
    first = np.asarray(start, np.float32)[:, None, None, None]
    axis = np.asarray(end, np.float32)[:, None, None, None] - first
    offset = points - first
    along = np.clip((offset * axis).sum(axis=0) / (axis**2).sum(), 0, 1)
    distance = np.sqrt(((offset - along * axis) ** 2).sum(axis=0))
    return np.asarray(distance - (radii[0] + along * (radii[1] - radii[0])), np.float32)


def blend(first: Volume, second: Volume, width: float) -> Volume:
    """Union of two signed distances, rounded over `width` mm where they meet."""
    # The quadratic polynomial smooth minimum: iquilezles.org/articles/smin.
    mix = np.clip(0.5 + 0.5 * (second - first) / width, 0, 1)
    return np.asarray(second + (first - second) * mix - width * mix * (1 - mix), np.float32)


def above(field: Volume | NDArray[np.float64], level: float | Volume, width: float) -> Volume:
    """0 below `level`, 1 above, with a ramp of `width`: how much of a voxel is on the far side."""
    # At the level itself it is a half.
    return np.clip((field - level) / np.float32(width) + np.float32(0.5), 0, 1).astype(np.float32)
