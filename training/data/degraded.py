"""The Africa-like form of any scan: what older scanners, thick slices and conversions between formats do to a case.

Scans of BraTS-Africa differ from those of BraTS adult glioma by low through-plane resolution, banding along the slice
axis, shading, noise, other contrasts, and float values that interpolation or an offset took below zero in the brain.
Geometry and labels stay as they are; only intensities change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.labels import SEQUENCES

_SHADING_KNOTS = 4
"""Knots per axis of the bias field: it varies over a third of the field of view."""


@dataclass(frozen=True)
class Degradation:
    """How strongly each effect acts; every range is sampled once per sequence."""

    slice_mm: tuple[float, float] = (3.0, 6.0)
    """Slice thickness."""
    thick_chance: float = 0.85
    """Share of sequences that were acquired in thick slices."""
    noise: tuple[float, float] = (0.01, 0.06)
    """Standard deviation of the noise, in parts of the mean brain intensity."""
    banding: tuple[float, float] = (0.0, 0.06)
    """Standard deviation of the gain of slices."""
    shading: tuple[float, float] = (0.05, 0.25)
    """Largest departure of the bias field from 1."""
    exponent: tuple[float, float] = (0.75, 1.35)
    """Contrast: power of the intensities between their 1st and 99th percentile."""
    offset: tuple[float, float] = (-0.12, 0.25)
    """What is added to every brain voxel, in parts of the mean brain intensity."""
    ringing: tuple[float, float] = (0.0, 0.04)
    """Amplitude of in-plane stripes, in parts of the mean brain intensity."""


def degrade(
    data: NDArray[np.float32],
    seed: int,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    degradation: Degradation | None = None,
) -> NDArray[np.float32]:
    """The Africa-like form of a scan (4, X, Y, Z) in canonical RAS, same shape, background exactly 0.

    The brain is where any sequence is not 0; `spacing` (X, Y, Z) is in mm. Deterministic: the same scan and seed give
    the same values. At least one sequence has values below zero inside the brain, provided that the scan has one.
    """
    degradation = degradation or Degradation()
    if data.ndim != 4 or len(data) != len(SEQUENCES):
        raise ValueError(f"a scan has shape ({len(SEQUENCES)}, X, Y, Z), not {data.shape}")
    brain = (data != 0).any(axis=0)
    result = np.zeros(data.shape, np.float32)
    if not brain.any():
        return result
    box = tuple(slice(int(i.min()), int(i.max()) + 1) for i in np.nonzero(brain))
    generators = np.random.default_rng([seed, 0xAF]).spawn(len(SEQUENCES) + 1)
    below = int(generators[-1].integers(len(SEQUENCES)))
    for index, generator in enumerate(generators[:-1]):
        values = _degrade_sequence(data[index][box], brain[box], spacing, degradation, generator)
        if index == below and values[brain[box]].min() >= 0:
            values -= np.percentile(values[brain[box]], 1.0)
        result[index][box] = _exact_background(values, brain[box])
    return result


def _degrade_sequence(
    volume: NDArray[np.float32],
    brain: NDArray[np.bool_],
    spacing: tuple[float, float, float],
    degradation: Degradation,
    generator: np.random.Generator,
) -> NDArray[np.float32]:
    """One sequence (X, Y, Z) within the brain's box, background not yet 0."""
    draw = generator.uniform
    level = float(np.abs(volume[brain]).mean()) or 1.0
    values = change_contrast(volume, brain, draw(*degradation.exponent))
    thickness = draw(*degradation.slice_mm)
    if draw() < degradation.thick_chance:
        values = thick_slices(values, brain, thickness / spacing[2], phase=draw())
    values *= smooth_field(volume.shape, draw(*degradation.shading), generator)
    slices = max(1, round(volume.shape[2] * spacing[2] / thickness))
    gains = 1 + draw(*degradation.banding) * generator.standard_normal(slices)
    values *= np.interp(np.linspace(0, slices - 1, volume.shape[2]), np.arange(slices), gains).astype(np.float32)
    values += level * draw(*degradation.ringing) * _stripes(volume.shape, generator)
    values += level * draw(*degradation.noise) * correlated_noise(volume.shape, generator)
    values += level * draw(*degradation.offset)
    return values


def _exact_background(values: NDArray[np.float32], brain: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Background 0, and no brain voxel 0 by chance, so that the mask of `!= 0` stays what it was."""
    tiny = np.float32(1e-3) * max(float(np.abs(values[brain]).mean()), 1.0)
    return np.where(brain, np.where(values == 0, tiny, values), 0).astype(np.float32)


def change_contrast(volume: NDArray[np.float32], brain: NDArray[np.bool_], exponent: float) -> NDArray[np.float32]:
    """Intensities (X, Y, Z) between their 1st and 99th percentile in `brain` raised to a power, others shifted."""
    low, high = np.percentile(volume[brain], (1.0, 99.0))
    if high <= low:
        return volume.astype(np.float32)
    scaled = (volume - np.float32(low)) / np.float32(high - low)
    inside = np.clip(scaled, 0, 1)
    return np.asarray(
        (inside ** np.float32(exponent) + (scaled - inside)) * np.float32(high - low) + np.float32(low), np.float32
    )


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


def _stripes(shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.float32]:
    """Stripes across the slices (X, Y, 1), as from ringing and motion, with unit amplitude in places."""
    period = generator.uniform(4, 9)
    angle = generator.uniform(-0.4, 0.4) + generator.choice([0.0, np.pi / 2])
    x, y = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    along = x * np.sin(angle) + y * np.cos(angle)
    envelope = smooth_field((shape[0], shape[1], 1), 1.0, generator) - 1
    return np.asarray(np.sin(2 * np.pi * along / period)[..., None] * envelope, np.float32)


def correlated_noise(shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.float32]:
    """Noise (X, Y, Z) with unit standard deviation, correlated between neighbours in plane as after registration."""
    noise = generator.standard_normal(shape, dtype=np.float32)
    noise[1:] += noise[:-1].copy()
    noise[:, 1:] += noise[:, :-1].copy()
    return noise * np.float32(0.5)
