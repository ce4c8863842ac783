"""A glioma in a head: lobes, a necrotic core, an enhancing rim, and oedema that follows white matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter

from inference.labels import Label
from inference.refine.components import connected_components
from training.data.phantoms.head import Head, tissues_of
from training.data.phantoms.lattice import STEP, Canvas, Volume, above, blend, ellipsoid, lattice_noise, lattice_points

# Smaller parts of a tumour are not drawn; 300 mm³ are a ball 8 mm across.
_SPECK_MM3: Final = 300.0


@dataclass(frozen=True)
class Tumour:
    """Shape and kind of a tumour, in anatomical mm."""

    kind: str
    """ring, solid, patchy, or low_grade (nothing enhances)."""
    side: Literal["left", "right"]
    """Hemisphere."""
    radius: float
    """Of a sphere of the core's volume, about."""
    lobes: int
    """Balls that the core is made of."""
    roughness: float
    """Amplitude of the core's border in parts of the radius."""
    rim: float
    """Thickness of the enhancing rim."""
    gaps: float
    """How much of the rim is missing: 0 for a closed one."""
    spread: float
    """How far oedema reaches through white matter."""
    push: float
    """How far the core has pushed the tissue at its border."""
    satellite: float
    """Radius of a second focus in parts of the first, or 0."""


def draw_tumour(rng: np.random.Generator) -> Tumour:
    """A tumour of any kind and size that gliomas have."""
    side: Literal["left", "right"] = "left" if rng.random() < 0.5 else "right"
    kind = str(rng.choice(["ring", "solid", "patchy", "low_grade"], p=[0.6, 0.1, 0.15, 0.15]))
    radius = float(np.clip(np.exp(rng.normal(np.log(17.0), 0.38)), 5.0, 28.0))
    wide = rng.random() < (0.3 if kind == "low_grade" else 0.8)
    return Tumour(
        kind=kind,
        side=side,
        radius=radius,
        lobes=int(rng.integers(1, 6)),
        roughness=float(rng.uniform(0.06, 0.2)),
        rim=float(np.clip(rng.normal(3.8, 1.6), 2.0, 8.0)),
        gaps=float(max(0.0, rng.normal(0.1, 0.5))),
        spread=float(rng.uniform(8, 32) if wide else rng.uniform(1.5, 8)),
        push=float(rng.uniform(0, 0.5) * radius),
        satellite=float(rng.uniform(0.25, 0.6) if rng.random() < 0.14 else 0.0),
    )


def place(tumour: Tumour, head: Head, rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """Centres of the foci (anatomical mm), in white matter of the tumour's hemisphere."""
    # Gliomas begin in white matter; away from midline and surface, so that most of the core has room.
    white = tissues_of(head.fields, head)["white"]
    fields = head.fields
    sign = 1.0 if tumour.side == "right" else -1.0
    lateral = sign * fields["midline"]
    deep_enough = fields["depth"] > min(0.6 * tumour.radius + 4, 18)
    possible = (white > 0.6) & deep_enough & (lateral > min(5 + 0.7 * tumour.radius, 22)) & (fields["cerebellum"] > 4)
    possible &= (fields["stem"] > 4) & (fields["height"] > -36)
    candidates = lattice_points()[:, possible].T
    first = candidates[rng.integers(len(candidates))].astype(np.float64)
    if not tumour.satellite:
        return [first]
    apart = np.linalg.norm(candidates - first, axis=1)
    near = candidates[(apart > tumour.radius * (1 + tumour.satellite) + 5) & (apart < tumour.radius * 2 + 40)]
    return [first, near[rng.integers(len(near))].astype(np.float64)] if len(near) else [first]


def tumour_fields(
    tumour: Tumour, centres: list[NDArray[np.float64]], head: Head, rng: np.random.Generator
) -> tuple[Volume, Volume]:
    """On the lattice: signed distance to the core (negative inside), and how far oedema travels to each point."""
    points = lattice_points()
    balls = []
    for number, centre in enumerate(centres):
        radius = tumour.radius * (1.0 if number == 0 else tumour.satellite)
        for lobe in range(tumour.lobes if number == 0 else 1):
            direction = rng.standard_normal(3)
            direction *= (0.75 * radius if lobe else 0.0) / np.linalg.norm(direction)
            # Several balls reach further than one of the same size.
            axes = radius * (0.72 if tumour.lobes > 1 and number == 0 else 0.9) * rng.uniform(0.75, 1.25, 3)
            balls.append(ellipsoid(points, tuple(centre + direction), tuple(axes)))
    core = balls[0]
    for ball in balls[1:]:
        core = blend(core, ball, 0.3 * tumour.radius)
    ripple = lattice_noise(rng, 6.5) + 0.35 * lattice_noise(rng, 3.5)
    core = np.asarray(core + tumour.roughness * min(tumour.radius, 16.0) * ripple, np.float32)
    # The falx holds tumours back, except below it.
    sign = 1.0 if tumour.side == "right" else -1.0
    core += np.maximum(2 - sign * head.fields["midline"], 0) * 2
    return core, _travel(core, head)


def _travel(core: Volume, head: Head) -> Volume:
    """Least cost from the core to each lattice point: 1 per mm in white matter, more elsewhere."""
    from skimage.graph import MCP_Geometric

    tissues = tissues_of(head.fields, head)
    # Oedema spreads along white matter, slowly into nuclei and cortex, and hardly across fluid.
    cost = tissues["white"] + 1.8 * tissues["deep"] + 3.5 * tissues["grey"] + 12 * (tissues["csf"] + tissues["rim"])
    cost += 1.5 * above(-head.fields["cerebellum"], 0, 4) + 1.5 * above(-head.fields["stem"], 0, 4)
    # Of a core between the lattice points its innermost one.
    starts = np.argwhere(core <= max(float(core.min()) + 0.1, 0.0))
    costs, _ = MCP_Geometric(cost.astype(np.float64)).find_costs(starts.tolist())
    # Further than any oedema spreads.
    return np.asarray(np.minimum(costs * STEP, 90.0), np.float32)


def tumour_parts(
    tumour: Tumour,
    canvas: Canvas,
    fields: Mapping[str, Volume],
    tissues: Mapping[str, Volume],
    rng: np.random.Generator,
) -> dict[str, Volume]:
    """How much of each voxel is necrosis, enhancing tumour and oedema."""
    solid = above(-fields["core"], 0, 1.4) * above(fields["depth"], 1.2, 1.4)
    enhancing = above(_enhancement(tumour, canvas, fields["core"], rng), 0, 1.6)
    reach = fields["reach"] * (1 + 0.18 * canvas.noise(rng, 7.0)) + 0.8 * canvas.noise(rng, 3.0)
    soaked = tissues["white"] + tissues["deep"] + tissues["grey"] * above(tumour.spread * 0.25 - reach, 0, 2)
    # Without the cortex's folds the border would follow every sulcus.
    soaked = gaussian_filter(soaked, [0.9 / size for size in canvas.voxel], truncate=2)
    oedema = above(tumour.spread - reach, 0, 2.5) * soaked * (1 - solid)
    whole = _kept(solid + oedema, canvas)
    return {
        "necrosis": solid * (1 - enhancing) * whole,
        "enhancing": solid * enhancing * whole,
        "oedema": oedema * whole,
    }


def _enhancement(tumour: Tumour, canvas: Canvas, core: Volume, rng: np.random.Generator) -> Volume:
    """Positive where the core enhances, in mm."""
    # Drawn before the kinds part, so that tumours of all kinds use the same numbers up to here.
    coarse, fine = canvas.noise(rng, 6.5), canvas.noise(rng, 3.2)
    if tumour.kind == "low_grade":
        return np.full(core.shape, -9, np.float32)
    if tumour.kind == "solid":
        return np.asarray(4 + 2.5 * fine + 0.15 * core, np.float32)
    if tumour.kind == "patchy":
        return np.asarray(2.5 * (coarse + 0.5 * fine - 0.3), np.float32)
    gaps = tumour.gaps * np.maximum(canvas.noise(rng, 11.0), 0)
    rim = tumour.rim * (1 + 0.35 * coarse + 0.15 * fine - gaps) + core
    # Thin sheets where noise crosses zero, as between the chambers of a necrotic core.
    septa = 0.9 - 4 * np.abs(coarse + 0.3 * fine) - 0.06 * np.maximum(-core - tumour.rim, 0)
    return np.asarray(np.maximum(rim, septa), np.float32)


def _kept(share: Volume, canvas: Canvas) -> Volume:
    """1 at the tumour's large parts, 0 at specks that no reader would outline."""
    # At least two voxels where these are large.
    smallest = max(2, round(_SPECK_MM3 / float(np.prod(canvas.voxel))))
    components = connected_components(share > 0.5)
    large = np.bincount(components.ravel()) >= smallest
    large[0] = False
    parts = large[components] if large.any() else share > 0.5
    # One voxel of margin keeps the soft edge.
    return np.asarray(binary_dilation(parts, np.ones((3, 3, 3)), iterations=1), np.float32)


def labels_of(parts: Mapping[str, Volume], brain: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The label of what fills most of a voxel that is more than half tumour."""
    whole = parts["necrosis"] + parts["enhancing"] + parts["oedema"]
    order = np.stack([parts["necrosis"], parts["oedema"], parts["enhancing"]])
    labels = np.array([Label.NCR, Label.ED, Label.ET], np.uint8)[order.argmax(axis=0)]
    return np.where((whole > 0.5) & brain, labels, 0).astype(np.uint8)
