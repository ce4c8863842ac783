"""What scanners do to a picture: thick slices, shading, noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SHADING_KNOTS = 4
"""Knots per axis of the bias field: it varies over a third of the field of view."""


def thick_slices(
    volume: NDArray[np.float32], brain: NDArray[np.bool_], thickness: float, phase: float = 0.0
) -> NDArray[np.float32]:
    """A volume (X, Y, Z) as if acquired in slices of `thickness` voxels along Z, then interpolated back.

    Each slice is the mean of the brain voxels that it covers, so the background does not darken the edge. `phase` in
    [0, 1) moves the first slice. Interpolation is linear.
    """
    if thickness <= 1:
        return volume.copy()
    matrix = _slice_matrix(volume.shape[2], thickness, phase)
    weight = brain.astype(np.float32) @ matrix
    blurred = np.where(brain, volume, 0).astype(np.float32) @ matrix
    return np.asarray(np.divide(blurred, weight, out=volume.astype(np.float32), where=weight > 1e-3), np.float32)


def _slice_matrix(depth: int, thickness: float, phase: float) -> NDArray[np.float32]:
    """(Z, Z): from voxels to box means at the slice centres, and from those linearly back to voxels."""
    centres = np.arange((phase - 0.5) * thickness, depth - 0.5 + thickness, thickness)
    voxels = np.arange(depth)
    overlap = np.minimum(voxels[:, None] + 0.5, centres + thickness / 2) - np.maximum(
        voxels[:, None] - 0.5, centres - thickness / 2
    )
    acquire = np.clip(overlap, 0, 1)
    acquire /= np.maximum(acquire.sum(axis=0), 1e-6)
    restore = np.clip(1 - np.abs(voxels[None, :] - centres[:, None]) / thickness, 0, None)
    return np.asarray(acquire @ restore, np.float32)


def smooth_field(shape: tuple[int, ...], strength: float, generator: np.random.Generator) -> NDArray[np.float32]:
    """A multiplicative bias field (X, Y, Z) that departs from 1 by at most `strength`."""
    field = generator.standard_normal((_SHADING_KNOTS,) * 3).astype(np.float32)
    for axis, length in enumerate(shape):
        field = np.moveaxis(np.tensordot(field, _hat_weights(length, _SHADING_KNOTS), axes=(axis, 0)), -1, axis)
    field -= field.mean()
    return np.asarray(1 + strength * field / max(float(np.abs(field).max()), 1e-6), np.float32)


def _hat_weights(length: int, knots: int) -> NDArray[np.float32]:
    """(knots, length): Gaussian interpolation weights, which sum to 1 for each of `length` positions."""
    positions = np.linspace(0, knots - 1, length)
    weights = np.exp(-((positions[None, :] - np.arange(knots)[:, None]) ** 2) / (2 * 0.6**2))
    return np.asarray(weights / weights.sum(axis=0), np.float32)


def correlated_noise(shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.float32]:
    """Noise (X, Y, Z) with unit standard deviation, correlated between neighbours in plane as after registration."""
    noise = generator.standard_normal(shape, dtype=np.float32)
    noise[1:] += noise[:-1].copy()
    noise[:, 1:] += noise[:, :-1].copy()
    return noise * np.float32(0.5)
