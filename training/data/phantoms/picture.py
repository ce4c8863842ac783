"""The picture that four sequences give of a head: tissue contrasts, texture, thick slices, shading, noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from inference.labels import SEQUENCES
from training.data.phantoms.lattice import Canvas, Volume, above

# Per tissue: mean z-score in t1n, t1c, t2w, t2f, and standard deviation between cases. Tuned so that tumours come out
# near the 44 real cases that the package's docstring names.
_TISSUES: Final[Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    "csf": ((-1.7, -1.7, 3.4, -2.3), (0.4, 0.5, 0.5, 0.4)),
    "grey": ((-0.1, -0.1, 0.0, 0.2), (0.12, 0.12, 0.12, 0.2)),
    "white": ((0.65, 0.3, -0.5, -0.05), (0.1, 0.12, 0.1, 0.15)),
    "deep": ((0.25, 0.1, -0.3, 0.1), (0.15, 0.2, 0.15, 0.15)),
    "rim": ((-1.6, -1.2, -0.7, -1.7), (0.4, 0.6, 0.6, 0.5)),
    "vessel": ((-0.6, 2.6, -0.9, -0.9), (0.5, 0.7, 0.5, 0.4)),
    "oedema": ((0.1, -0.1, 0.95, 1.3), (0.25, 0.2, 0.4, 0.4)),
    "necrosis": ((-0.25, -0.6, 1.8, 0.85), (0.4, 0.4, 0.6, 0.8)),
    "enhancing": ((0.1, 2.1, 0.95, 0.7), (0.3, 0.35, 0.5, 0.45)),
}
# Standard deviation within a tissue, z-score; 0.1 where not named.
_TEXTURE: Final = {"oedema": 0.2, "necrosis": 0.3, "enhancing": 0.4, "vessel": 0.5, "rim": 1.1, "csf": 0.3}
# Mean brain intensity of a sequence: scanners have no common unit, and differ by orders of magnitude. Log-uniform.
_CASE_MEAN: Final = (100.0, 4000.0)
# Standard deviation over the brain in parts of the mean.
_CASE_VARIATION: Final = (0.18, 0.42)
# Share of cases whose t1n, t1c, t2w, t2f were acquired in thick slices: t1c is the one that is often a volume scan.
_THICK_CHANCE: Final = (0.8, 0.45, 0.9, 0.75)
# Knots per axis of the bias field: it varies over a third of the field of view.
_SHADING_KNOTS: Final = 4


def image_of(
    parts: Mapping[str, Volume], fields: Mapping[str, Volume], canvas: Canvas, rng: np.random.Generator
) -> Volume:
    """Intensities (4, x, y, z) of healthy tissue and tumour parts as four acquisitions show them."""
    brain = fields["depth"] > 0
    shares = _mixture(parts, fields, canvas, rng)
    means = np.array([_draw_means(name, rng) for name in shares], np.float32)
    stack = np.stack(list(shares.values()))
    texture = np.tensordot(np.array([_TEXTURE.get(name, 0.1) for name in shares], np.float32), stack, axes=1)
    regional = canvas.noise(rng, 20.0) * np.float32(0.12)
    shading = smooth_field(canvas.shape, rng.uniform(0.02, 0.08), rng)
    result = np.empty((len(SEQUENCES), *canvas.shape), np.float32)
    # The two of each kind differ by contrast medium or by fluid alone: what else varies, they share.
    for pair in ((0, 1), (2, 3)):
        shared = 0.6 * canvas.noise(rng, 2.8) + 0.8 * canvas.noise(rng, 6.0)
        slow = rng.uniform(0.03, 0.15) * canvas.noise(rng, 45.0)
        for index, generator in zip(pair, rng.spawn(2), strict=True):
            z = np.tensordot(means[:, index], stack, axes=1) + regional + slow
            z += texture * (0.9 * shared + 0.45 * canvas.noise(generator, 6.0))
            z += generator.uniform(0.02, 0.08) * canvas.noise(generator, 45.0)
            # All sequences share a coil, and so most of the shading.
            result[index] = shading * _acquire(z, brain, canvas.voxel[2], _THICK_CHANCE[index], generator)
    return np.rint(result)


def _draw_means(tissue: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """Mean z-scores (4,) of a tissue in one case, no further from the usual than 1.5 standard deviations."""
    mean, deviation = (np.array(values) for values in _TISSUES[tissue])
    return np.asarray(mean + deviation * np.clip(rng.standard_normal(len(SEQUENCES)), -1.5, 1.5), np.float64)


def _mixture(
    parts: Mapping[str, Volume], fields: Mapping[str, Volume], canvas: Canvas, rng: np.random.Generator
) -> dict[str, Volume]:
    """How much of each voxel is each of `_TISSUES`: healthy tissue makes room for tumour, then vessels are added."""
    lesion = {name: parts[name] for name in ("oedema", "necrosis", "enhancing")}
    room = np.clip(1 - sum(lesion.values()), 0, 1)
    shares = {name: parts[name] * room for name in ("csf", "grey", "white", "deep", "rim")}
    vessel = _vessels(parts, fields, canvas, rng) * room
    shares = {name: share * (1 - vessel) for name, share in shares.items()}
    return shares | {"vessel": vessel} | lesion


def _vessels(
    parts: Mapping[str, Volume], fields: Mapping[str, Volume], canvas: Canvas, rng: np.random.Generator
) -> Volume:
    """Shares of what takes up contrast without being tumour: sinuses, veins on the surface, choroid plexus."""
    # In the midline at the surface: the sagittal sinus above, the confluence behind.
    sinus = np.hypot(fields["midline"], fields["depth"] - 1.5)
    sinus = np.where((fields["height"] > 0) | (fields["posterior"] > 60), sinus, 99)
    amount = above(rng.uniform(1.2, 3.0) - sinus, 0, 1.5)
    patchy = canvas.noise(rng, 3.0) + 0.8 * canvas.noise(rng, 12.0)
    veins = above(patchy, rng.uniform(1.4, 2.6), 0.6) * np.maximum(parts["rim"], parts["csf"])
    veins *= above(4 - fields["depth"], 0, 2)
    choroid = above(canvas.noise(rng, 3.0), rng.uniform(1.3, 2.2), 0.6) * above(-fields["ventricles"], 0.5, 1)
    choroid *= above(fields["posterior"], 0, 10)
    return np.asarray(np.maximum.reduce([amount, veins * np.float32(rng.uniform(0.2, 1)), choroid * 0.7]), np.float32)


def _acquire(
    z: Volume, brain: NDArray[np.bool_], slice_mm: float, thick_chance: float, rng: np.random.Generator
) -> Volume:
    """One sequence in a scanner's units: noise, slice thickness, blur, shading, scale; background 0."""
    thickness = rng.uniform(2.5, 5.5) / slice_mm
    phase, thick = rng.random(), rng.random() < thick_chance
    z = thick_slices(z, brain, thickness, phase) if thick else gaussian_filter(z, (0, 0, 0.5))
    z = gaussian_filter(z, (*([rng.uniform(0.3, 0.7)] * 2), 0), truncate=3)
    z += np.float32(rng.uniform(0.03, 0.12)) * correlated_noise(z.shape, rng)
    mean = float(np.exp(rng.uniform(*np.log(_CASE_MEAN))))
    values = mean * (1 + rng.uniform(*_CASE_VARIATION) * z) * smooth_field(z.shape, rng.uniform(0.01, 0.05), rng)
    # 0 is the background, so the darkest brain has to be more: all sequences then have the same mask.
    return np.where(brain, np.maximum(np.rint(values), 2), 0).astype(np.float32)


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
    # The sum of four independent neighbours has twice the deviation of one.
    noise = generator.standard_normal(shape, dtype=np.float32)
    noise[1:] += noise[:-1].copy()
    noise[:, 1:] += noise[:, :-1].copy()
    return noise * np.float32(0.5)
