"""A healthy head: folded cortex, fissures, ventricles, deep grey nuclei, cerebellum and brainstem."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from training.data.phantoms.lattice import STEP, Volume, above, blend, capsule, ellipsoid, lattice_noise, lattice_points


@dataclass(frozen=True)
class Head:
    """A head on the anatomy's lattice, before or after a tumour has pushed it."""

    points: Volume
    """(3, x, y, z): where in the unwarped anatomy each lattice point lies."""
    folds: Volume
    """(x, y, z): signed distance to the sheets of the sulci."""
    roughness: Volume
    """(x, y, z): ripple of the brain's surface, mm."""
    sulcus_depth: float
    """How deep sulci reach, mm."""
    sulcus_width: float
    """Half their width, mm: wider with age."""
    rim: float
    """Thickness of what skull stripping left of fluid and meninges, mm."""
    cortex: float
    """Thickness of the grey ribbon, mm."""
    ventricles: float
    """Growth of the ventricles, mm."""
    fields: Mapping[str, Volume]
    """Signed distances and coordinates at the lattice points."""

    def pushed(self, centre: NDArray[np.float64], radius: float, push: float) -> Head:
        """The same head after a ball of `radius` mm around `centre` has pushed tissue at its border by `push` mm."""
        if push <= 0:
            return self
        offset = lattice_points() - np.asarray(centre, np.float32)[:, None, None, None]
        # Not 0 at the centre, by which the offset is divided.
        distance = np.sqrt((offset**2).sum(axis=0)) + 1e-3
        # The skull holds: nothing moves at the surface.
        hold = np.clip(self.fields["depth"] / 15, 0, 1)
        # Largest at the tumour's border: inside it there is nothing to push, and far away tissue is compressed.
        move = push * np.exp(-((distance / (2.2 * radius)) ** 2)) * np.minimum(distance / radius, 1) * hold
        points = self.points - offset / distance * move
        # Where tissue went, what lay nearer is seen.
        return replace(self, points=points, fields=_fields(points, self.folds, self.roughness, self.ventricles))


def draw_head(rng: np.random.Generator) -> Head:
    """A head with its own size, pose, asymmetry and folding."""
    points = lattice_points()
    angles = rng.normal(0, 0.03, 3)
    # Of angles of some hundredths, a rotation is this to first order.
    turn = np.eye(3) + np.array([[0, -angles[2], angles[1]], [angles[2], 0, -angles[0]], [-angles[1], angles[0], 0]])
    scale = np.clip(rng.normal(0.97, 0.025), 0.92, 1.02) * np.clip(rng.normal(1.0, 0.015, 3), 0.97, 1.03)
    points = np.einsum("ij,jxyz->ixyz", (turn / scale).astype(np.float32), points)
    points += np.stack([lattice_noise(rng, 36.0) for _ in range(3)]) * np.float32(rng.uniform(0.8, 2.0))
    wrinkles = lattice_noise(rng, rng.uniform(7.0, 9.0)) + 0.2 * lattice_noise(rng, 6.0)
    # Noise over its slope is about the distance to where it is zero; .04 keeps flat places from being far away.
    slope = np.sqrt(sum(np.square(part) for part in np.gradient(wrinkles, STEP)))
    folds = np.clip(wrinkles / (slope + 0.04), -14, 14).astype(np.float32)
    roughness = lattice_noise(rng, 4.0) * np.float32(rng.uniform(0.2, 0.55))
    ventricles = float(rng.normal(0.5, 1.4))
    return Head(
        points=points,
        folds=folds,
        roughness=roughness,
        sulcus_depth=float(rng.uniform(10, 16)),
        sulcus_width=float(rng.uniform(0.25, 1.1)),
        rim=float(rng.uniform(0.7, 2.2)),
        cortex=float(rng.uniform(1.8, 2.7)),
        ventricles=ventricles,
        fields=_fields(points, folds, roughness, ventricles),
    )


def _fields(points: Volume, folds: Volume, roughness: Volume, ventricles: float) -> dict[str, Volume]:
    """Signed distances to the parts of the brain, each (x, y, z), at points (3, x, y, z)."""
    # Both halves alike: the warp of `draw_head` makes them differ.
    x, y, z = points
    mirrored = np.stack([np.abs(x), y, z])
    cerebellum = _cerebellum(mirrored)
    stem = capsule(points, (0, -6, -14), (0, -24, -84), (13, 8))
    surface = blend(blend(_cerebrum(mirrored), cerebellum, 3), stem, 5) + roughness
    return {
        "depth": -surface,
        "folds": folds,
        "midline": x,
        "posterior": -y,
        "height": z,
        "centre": ellipsoid(points, (0, 2, -6), (36, 54, 26)),
        "callosum": ellipsoid(points, (0, 2, -2), (26, 44, 23)),
        "cerebellum": cerebellum,
        "stem": stem,
        "ventricles": _ventricles(mirrored, ventricles),
        "nuclei": _nuclei(mirrored),
        "sylvian": _sylvian(mirrored),
    }


def _cerebrum(mirrored: Volume) -> Volume:
    """Hemispheres: broader behind, flat below, with temporal lobes and the base of the brain; points have |x|."""
    _, y, z = mirrored
    front = ellipsoid(mirrored, (0, 26, 2), (55, 62, 62))
    back = ellipsoid(mirrored, (0, -20, 4), (68, 63, 64))
    base = -20 - z + 0.0012 * (y - 10) ** 2 - 4
    flat = -blend(-blend(front, back, 30), -base, 8)
    temporal = blend(
        ellipsoid(mirrored, (44, 12, -28), (22, 38, 23)), ellipsoid(mirrored, (24, 2, -22), (22, 26, 16)), 6
    )
    middle = ellipsoid(mirrored, (0, -4, -18), (24, 32, 18))
    return blend(blend(flat, temporal, 4), middle, 5)


def _cerebellum(mirrored: Volume) -> Volume:
    """Two joined hemispheres below the tentorium; points have |x|."""
    return blend(ellipsoid(mirrored, (24, -47, -40), (28, 32, 24)), ellipsoid(mirrored, (0, -46, -36), (18, 29, 24)), 6)


def _ventricles(mirrored: Volume, growth: float) -> Volume:
    """Lateral, third and fourth ventricle and the basal cisterns; points have |x|, `growth` in mm."""
    # Frontal horn, body, trigone and temporal horn, then the occipital horn from the trigone.
    course = ((9, 34, 4), (8, 12, 14), (14, -16, 13), (25, -34, 0), (34, -8, -24))
    radii = [max(radius + growth, 0.8) for radius in (5.0, 5.5, 6.0, 7.0, 2.5)]
    parts = [capsule(mirrored, course[i], course[i + 1], (radii[i], radii[i + 1])) for i in range(len(course) - 1)]
    parts.append(capsule(mirrored, course[3], (22, -54, -2), (radii[3], max(2.0 + growth, 0.8))))
    # Third and fourth ventricle, then the cisterns before and behind the midbrain.
    parts.append(ellipsoid(mirrored, (0, 4, -8), (2.2 + max(growth, 0) * 0.4, 14, 9)))
    parts.append(ellipsoid(mirrored, (0, -33, -38), (7, 5, 9)))
    parts.append(ellipsoid(mirrored, (0, 16, -22), (12, 9, 5)))
    parts.append(ellipsoid(mirrored, (0, -30, -10), (13, 6, 6)))
    return np.asarray(np.minimum.reduce(parts), np.float32)


def _nuclei(mirrored: Volume) -> Volume:
    """Thalamus, caudate and lentiform nucleus; points have |x|."""
    thalamus = ellipsoid(mirrored, (11, -10, -2), (8, 14, 8))
    caudate = capsule(mirrored, (14, 30, 2), (17, 0, 14), (5.5, 2.5))
    lentiform = ellipsoid(mirrored, (25, 8, -6), (7, 17, 9))
    return np.asarray(np.minimum.reduce([thalamus, caudate, lentiform]), np.float32)


def _sylvian(mirrored: Volume) -> Volume:
    """Distance to the lateral fissure and insula, a bent sheet that opens outwards; points have |x|."""
    across, y, z = mirrored
    sheet = z + 13 - 0.35 * (12 - y) * (y < 12)
    outside = np.maximum(np.abs(y - 6) - 32, 0) + np.maximum(36 - across, 0)
    return np.asarray(np.sqrt(sheet**2 + outside**2), np.float32)


def tissues_of(fields: Mapping[str, Volume], head: Head) -> dict[str, Volume]:
    """How much of each place (x, y, z) is rim, CSF, grey matter, deep nuclei and white matter; they sum to 1."""
    distance = _distance_to_fluid(fields, head)
    fluid = np.maximum(1 - above(distance, head.sulcus_width, 1.2), above(-fields["ventricles"], 0, 1.2))
    fluid *= above(fields["depth"], -1, 1)
    stem = above(-fields["stem"], -2, 4)
    grey = (1 - above(distance, head.sulcus_width + head.cortex, 1.4)) * (1 - stem)
    deep = above(-fields["nuclei"], 0, 1.5)
    rim = 1 - above(fields["depth"], head.rim, 1.6)
    # Each takes its share of what those before it left: what is fluid is no cortex, and white matter is the rest.
    left = 1 - rim
    parts = {"rim": rim}
    for name, share in (("csf", fluid), ("grey", grey), ("deep", deep)):
        parts[name] = left * share
        left = left - parts[name]
    parts["white"] = left
    return parts


def _distance_to_fluid(fields: Mapping[str, Volume], head: Head) -> Volume:
    """Distance (x, y, z), about, to the nearest surface that the cortex lines."""
    depth = fields["depth"]
    in_cerebellum = fields["cerebellum"] < 0
    # Sulci end at their depth, and before the insula and the nuclei; they narrow inwards.
    beyond = np.maximum(depth - head.sulcus_depth - 0.3 * fields["sylvian"].clip(0, 30), 3 - fields["centre"])
    sulci = np.hypot(fields["folds"], np.maximum(beyond, 0)) + 0.03 * np.clip(depth, 0, 25)
    # Folia are thin sheets, 5.5 mm apart, bent as the sulci are.
    folia = np.abs(np.sin((fields["height"] + 0.35 * fields["folds"]) * (np.pi / 5.5))) * 1.6 + np.maximum(depth - 9, 0)
    cortex = np.where(in_cerebellum, folia + 0.7, sulci)
    fissure = np.hypot(fields["midline"], np.maximum(2 - fields["callosum"], 0)) + 0.4
    # Below it the halves are one: 99 is further than any surface.
    fissure = np.where(fields["height"] > -18, fissure, 99)
    distance = np.minimum.reduce([depth, cortex, fissure, np.abs(fields["cerebellum"]) + 0.3, fields["sylvian"]])
    # No cortex lines the stem.
    return np.asarray(np.where(fields["stem"] < 0, np.maximum(distance, np.minimum(depth, 9.0)), distance), np.float32)
