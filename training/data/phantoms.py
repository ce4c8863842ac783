"""Synthetic four-sequence brains with gliomas whose truth is known.

For the demo, the tests, and as further training data. Everything is drawn in the frame of the SRI24 atlas,
240 × 240 × 155 mm, from signed distances and smooth noise: a folded cortex, fissures, ventricles, deep grey nuclei,
cerebellum and brainstem; then a tumour of several lobes with a necrotic core, an enhancing rim and oedema that follows
white matter. Low-frequency fields are made on a lattice of a few millimetres and interpolated, so that a full-size case
takes seconds. Positions are in mm of that frame, in canonical RAS.

Tissue intensities are such that tumours and healthy brain come out near the means over 44 real cases (20 adult gliomas
and 24 of BraTS-Africa), each sequence z-scored over its brain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter
from skimage.graph import MCP_Geometric

from inference.files import whole_file
from inference.labels import SEQUENCES, Label
from inference.refine.components import connected_components
from training.data.acquisition import correlated_noise, smooth_field, thick_slices

Volume = NDArray[np.float32]
Side = Literal["left", "right"]

FRAME_MM: Final = (240.0, 240.0, 155.0)
"""Field of view of SRI24; a phantom of any shape shows this frame."""
_ORIGIN: Final = (120.0, 106.0, 76.0)
"""Centre of the brain in the frame: zero of the anatomical coordinates."""
_BOX: Final = ((-78.0, 78.0), (-92.0, 100.0), (-76.0, 78.0))
"""What is drawn, in anatomical coordinates: no brain reaches beyond it."""
_STEP: Final = 2.5
"""Lattice of the anatomy, mm."""

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
"""Per tissue: mean z-score in t1n, t1c, t2w, t2f, and standard deviation between cases."""

_SPECK_MM3: Final = 300.0
"""Tumour parts smaller than this are not drawn."""
_TEXTURE: Final = {"oedema": 0.2, "necrosis": 0.3, "enhancing": 0.4, "vessel": 0.5, "rim": 1.1, "csf": 0.3}
"""Standard deviation within a tissue, z-score; 0.1 where not named."""
_CASE_MEAN: Final = (100.0, 4000.0)
"""Mean brain intensity of a sequence, log-uniform, as scanners have it."""
_CASE_VARIATION: Final = (0.18, 0.42)
"""Standard deviation over the brain in parts of the mean."""
_THICK_CHANCE: Final = (0.8, 0.45, 0.9, 0.75)
"""Share of cases whose t1n, t1c, t2w, t2f were acquired in thick slices."""


@dataclass(frozen=True)
class Phantom:
    """A synthetic case."""

    data: Volume
    """(4, X, Y, Z), sequences in the order of `SEQUENCES`, canonical RAS, background exactly 0."""
    labels: NDArray[np.uint8]
    """(X, Y, Z), the truth."""
    seed: int
    """What it was made from."""
    spacing: tuple[float, float, float]
    """Voxel size along X, Y, Z in mm."""


@dataclass(frozen=True)
class _Tumour:
    """What a tumour is like, in anatomical mm."""

    kind: str
    """ring, solid, patchy, or low_grade (nothing enhances)."""
    side: Side
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


def make_phantom(
    seed: int,
    shape: tuple[int, int, int] = (240, 240, 155),
    spacing: float | tuple[float, float, float] = 1.0,
    side: Side | None = None,
) -> Phantom:
    """A brain with a glioma, deterministic by `seed`.

    The frame of `shape` voxels always shows one whole brain where SRI24 has it, whatever the voxel size; `spacing` (mm)
    is recorded and written. `side` is the hemisphere that the tumour is in, drawn when not given.
    """
    sizes = (spacing, spacing, spacing) if isinstance(spacing, (int, float)) else spacing
    anatomy_rng, tumour_rng, border_rng, image_rng = np.random.default_rng([seed, 0x9B]).spawn(4)
    tumour = _draw_tumour(tumour_rng, side)
    canvas = _Canvas.of_shape(shape)
    head = _draw_head(anatomy_rng)
    centres = _place(tumour, head, tumour_rng)
    pushed = head.pushed(centres[0], tumour)
    fine = canvas.interpolate(pushed.fields)
    tissues = _tissues(fine, pushed)
    core, reach = _tumour_fields(tumour, centres, pushed, border_rng)
    fine |= canvas.interpolate({"core": core, "reach": reach})
    parts = _paint_tumour(tumour, canvas, fine, tissues, border_rng)
    data = np.zeros((len(SEQUENCES), *shape), np.float32)
    data[:, *canvas.box] = _image(tissues | parts, fine, canvas, image_rng)
    truth = np.zeros(shape, np.uint8)
    truth[canvas.box] = _labels(parts, fine["depth"] > 0)
    return Phantom(data=data, labels=truth, seed=seed, spacing=sizes)


def write_phantom(
    folder: Path,
    case_id: str,
    phantom: Phantom,
    orientation: str = "RAS",
    with_labels: bool = False,
) -> Path:
    """Write `<folder>/<case_id>/<case_id>-t1n.nii.gz` and so on; returns the case's folder.

    Files are stored in `orientation` (three axis codes). `with_labels` also writes the truth as `<case_id>-seg.nii.gz`.
    World coordinates are the same in every orientation.
    """
    case = Path(folder) / case_id
    case.mkdir(parents=True, exist_ok=True)
    names = [*SEQUENCES, "seg"] if with_labels else SEQUENCES
    affine = np.diag((*phantom.spacing, 1.0))
    affine[:3, 3] = [
        -size * (length - 1) / 2 for size, length in zip(phantom.spacing, phantom.labels.shape, strict=True)
    ]
    wanted = nib.orientations.axcodes2ornt(tuple(orientation.upper()))
    canonical = nib.orientations.axcodes2ornt("RAS")
    for name, volume in zip(names, [*phantom.data, phantom.labels], strict=False):
        image = nib.Nifti1Image(volume, affine)
        stored = image.as_reoriented(nib.orientations.ornt_transform(canonical, wanted))
        stored.header.set_xyzt_units("mm")
        with whole_file(case / f"{case_id}-{name}.nii.gz") as unfinished:
            nib.save(stored, unfinished)
    return case


# --- lattices -------------------------------------------------------------------------------------------------------


def _axis(axis: int, step: float) -> NDArray[np.float64]:
    """Lattice positions along an axis of the box."""
    low, high = _BOX[axis]
    return np.arange(low, high + step, step)


def _cubic(positions: NDArray[np.float64], knots: NDArray[np.float64]) -> NDArray[np.float32]:
    """(positions, knots): Catmull-Rom weights, zero outside, edges repeated."""
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
    along_x, along_y, along_z = matrices
    result = (along_x @ field.reshape(len(field), -1)).reshape(len(along_x), *field.shape[1:])
    return np.asarray(np.matmul(along_y, result) @ along_z.T, np.float32)


@dataclass(frozen=True)
class _Canvas:
    """The voxels within the box of the brain."""

    box: tuple[slice[int, int, None], slice[int, int, None], slice[int, int, None]]
    """Where they lie in the whole array."""
    positions: tuple[NDArray[np.float64], ...]
    """Anatomical coordinates of voxel centres, per axis."""

    @classmethod
    def of_shape(cls, shape: tuple[int, int, int]) -> _Canvas:
        """The canvas of an array that shows the whole frame."""
        boxes, positions = [], []
        for axis, length in enumerate(shape):
            along = (np.arange(length) + 0.5) * FRAME_MM[axis] / length - _ORIGIN[axis]
            inside = np.flatnonzero((along >= _BOX[axis][0]) & (along <= _BOX[axis][1]))
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
        matrices = tuple(_cubic(along, _axis(axis, _STEP)) for axis, along in enumerate(self.positions))
        return {name: _resample(field, matrices) for name, field in fields.items()}

    def noise(self, rng: np.random.Generator, step: float) -> Volume:
        """Smooth noise at the voxels; `step` is about a third of its wavelength in mm."""
        return _noise(rng, step, self.positions)


def _noise(rng: np.random.Generator, step: float, positions: tuple[NDArray[np.float64], ...]) -> Volume:
    """Smooth noise of about unit standard deviation at given positions per axis."""
    knots = [_axis(axis, step) for axis in range(3)]
    values = rng.standard_normal([len(along) for along in knots]).astype(np.float32)
    return _resample(values, tuple(_cubic(at, along) for at, along in zip(positions, knots, strict=True))) * 1.4


def _lattice_noise(rng: np.random.Generator, step: float) -> Volume:
    """The same on the lattice of the anatomy."""
    return _noise(rng, step, tuple(_axis(axis, _STEP) for axis in range(3)))


# --- anatomy --------------------------------------------------------------------------------------------------------


def _ellipsoid(points: Volume, centre: tuple[float, ...], axes: tuple[float, ...]) -> Volume:
    """Signed distance (x, y, z), about, of points (3, x, y, z) to an ellipsoid; negative inside."""
    offset = points - np.asarray(centre, np.float32)[:, None, None, None]
    size = np.asarray(axes, np.float32)[:, None, None, None]
    near = np.sqrt(((offset / size) ** 2).sum(axis=0)) + 1e-6
    far = np.sqrt(((offset / size**2) ** 2).sum(axis=0)) + 1e-6
    return np.asarray(near * (near - 1) / far, np.float32)


def _capsule(points: Volume, start: tuple[float, ...], end: tuple[float, ...], radii: tuple[float, float]) -> Volume:
    """Signed distance of points (3, x, y, z) to a segment whose thickness goes from one radius to the other."""
    first = np.asarray(start, np.float32)[:, None, None, None]
    axis = np.asarray(end, np.float32)[:, None, None, None] - first
    offset = points - first
    along = np.clip((offset * axis).sum(axis=0) / (axis**2).sum(), 0, 1)
    distance = np.sqrt(((offset - along * axis) ** 2).sum(axis=0))
    return np.asarray(distance - (radii[0] + along * (radii[1] - radii[0])), np.float32)


def _blend(first: Volume, second: Volume, width: float) -> Volume:
    """Union of two signed distances, rounded over `width` mm where they meet."""
    mix = np.clip(0.5 + 0.5 * (second - first) / width, 0, 1)
    return np.asarray(second + (first - second) * mix - width * mix * (1 - mix), np.float32)


def _above(field: Volume | NDArray[np.float64], level: float | Volume, width: float) -> Volume:
    """0 below `level`, 1 above, with a ramp of `width`: how much of a voxel is on the far side."""
    return np.clip((field - level) / np.float32(width) + np.float32(0.5), 0, 1).astype(np.float32)


@dataclass(frozen=True)
class _Head:
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

    def pushed(self, centre: NDArray[np.float64], tumour: _Tumour) -> _Head:
        """The same head after the tumour has pushed tissue away from `centre`."""
        if tumour.push <= 0:
            return self
        lattice = _lattice_points()
        offset = lattice - np.asarray(centre, np.float32)[:, None, None, None]
        distance = np.sqrt((offset**2).sum(axis=0)) + 1e-3
        # The skull holds: nothing moves at the surface.
        hold = np.clip(self.fields["depth"] / 15, 0, 1)
        move = (
            tumour.push
            * np.exp(-((distance / (2.2 * tumour.radius)) ** 2))
            * np.minimum(distance / tumour.radius, 1)
            * hold
        )
        points = self.points - offset / distance * move
        return replace(self, points=points, fields=_fields(points, self.folds, self.roughness, self.ventricles))


def _lattice_points() -> Volume:
    """(3, x, y, z): anatomical coordinates of the lattice."""
    return np.stack(np.meshgrid(*[_axis(axis, _STEP) for axis in range(3)], indexing="ij")).astype(np.float32)


def _draw_head(rng: np.random.Generator) -> _Head:
    """A head with its own size, pose, asymmetry and folding."""
    points = _lattice_points()
    angles = rng.normal(0, 0.03, 3)
    turn = np.eye(3) + np.array([[0, -angles[2], angles[1]], [angles[2], 0, -angles[0]], [-angles[1], angles[0], 0]])
    scale = np.clip(rng.normal(0.97, 0.025), 0.92, 1.02) * np.clip(rng.normal(1.0, 0.015, 3), 0.97, 1.03)
    points = np.einsum("ij,jxyz->ixyz", (turn / scale).astype(np.float32), points)
    points += np.stack([_lattice_noise(rng, 36.0) for _ in range(3)]) * np.float32(rng.uniform(0.8, 2.0))
    wrinkles = _lattice_noise(rng, rng.uniform(7.0, 9.0)) + 0.2 * _lattice_noise(rng, 6.0)
    slope = np.sqrt(sum(np.square(part) for part in np.gradient(wrinkles, _STEP)))
    folds = np.clip(wrinkles / (slope + 0.04), -14, 14).astype(np.float32)
    roughness = _lattice_noise(rng, 4.0) * np.float32(rng.uniform(0.2, 0.55))
    ventricles = float(rng.normal(0.5, 1.4))
    return _Head(
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
    x, y, z = points
    mirrored = np.stack([np.abs(x), y, z])
    cerebellum = _cerebellum(mirrored)
    stem = _capsule(points, (0, -6, -14), (0, -24, -84), (13, 8))
    surface = _blend(_blend(_cerebrum(mirrored), cerebellum, 3), stem, 5) + roughness
    return {
        "depth": -surface,
        "folds": folds,
        "midline": x,
        "posterior": -y,
        "height": z,
        "centre": _ellipsoid(points, (0, 2, -6), (36, 54, 26)),
        "callosum": _ellipsoid(points, (0, 2, -2), (26, 44, 23)),
        "cerebellum": cerebellum,
        "stem": stem,
        "ventricles": _ventricles(mirrored, ventricles),
        "nuclei": _nuclei(mirrored),
        "sylvian": _sylvian(mirrored),
    }


def _cerebrum(mirrored: Volume) -> Volume:
    """Hemispheres: broader behind, flat below, with temporal lobes and the base of the brain; points have |x|."""
    _, y, z = mirrored
    front = _ellipsoid(mirrored, (0, 26, 2), (55, 62, 62))
    back = _ellipsoid(mirrored, (0, -20, 4), (68, 63, 64))
    base = -20 - z + 0.0012 * (y - 10) ** 2 - 4
    flat = -_blend(-_blend(front, back, 30), -base, 8)
    temporal = _blend(
        _ellipsoid(mirrored, (44, 12, -28), (22, 38, 23)), _ellipsoid(mirrored, (24, 2, -22), (22, 26, 16)), 6
    )
    middle = _ellipsoid(mirrored, (0, -4, -18), (24, 32, 18))
    return _blend(_blend(flat, temporal, 4), middle, 5)


def _cerebellum(mirrored: Volume) -> Volume:
    """Two joined hemispheres below the tentorium; points have |x|."""
    return _blend(
        _ellipsoid(mirrored, (24, -47, -40), (28, 32, 24)), _ellipsoid(mirrored, (0, -46, -36), (18, 29, 24)), 6
    )


def _ventricles(mirrored: Volume, growth: float) -> Volume:
    """Lateral, third and fourth ventricle and the basal cisterns; points have |x|, `growth` in mm."""
    course = ((9, 34, 4), (8, 12, 14), (14, -16, 13), (25, -34, 0), (34, -8, -24))
    radii = [max(radius + growth, 0.8) for radius in (5.0, 5.5, 6.0, 7.0, 2.5)]
    parts = [_capsule(mirrored, course[i], course[i + 1], (radii[i], radii[i + 1])) for i in range(len(course) - 1)]
    parts.append(_capsule(mirrored, course[3], (22, -54, -2), (radii[3], max(2.0 + growth, 0.8))))
    parts.append(_ellipsoid(mirrored, (0, 4, -8), (2.2 + max(growth, 0) * 0.4, 14, 9)))
    parts.append(_ellipsoid(mirrored, (0, -33, -38), (7, 5, 9)))
    parts.append(_ellipsoid(mirrored, (0, 16, -22), (12, 9, 5)))
    parts.append(_ellipsoid(mirrored, (0, -30, -10), (13, 6, 6)))
    return np.asarray(np.minimum.reduce(parts), np.float32)


def _nuclei(mirrored: Volume) -> Volume:
    """Thalamus, caudate and lentiform nucleus; points have |x|."""
    return np.asarray(
        np.minimum.reduce(
            [
                _ellipsoid(mirrored, (11, -10, -2), (8, 14, 8)),
                _capsule(mirrored, (14, 30, 2), (17, 0, 14), (5.5, 2.5)),
                _ellipsoid(mirrored, (25, 8, -6), (7, 17, 9)),
            ]
        ),
        np.float32,
    )


def _sylvian(mirrored: Volume) -> Volume:
    """Distance to the lateral fissure and insula, a bent sheet that opens outwards; points have |x|."""
    across, y, z = mirrored
    sheet = z + 13 - 0.35 * (12 - y) * (y < 12)
    outside = np.maximum(np.abs(y - 6) - 32, 0) + np.maximum(36 - across, 0)
    return np.asarray(np.sqrt(sheet**2 + outside**2), np.float32)


def _tissues(fields: Mapping[str, Volume], head: _Head) -> dict[str, Volume]:
    """How much of each place (x, y, z) is CSF, grey, white matter, deep nuclei, rim and vessel; they sum to 1."""
    distance = _distance_to_fluid(fields, head)
    fluid = np.maximum(1 - _above(distance, head.sulcus_width, 1.2), _above(-fields["ventricles"], 0, 1.2))
    fluid *= _above(fields["depth"], -1, 1)
    stem = _above(-fields["stem"], -2, 4)
    grey = (1 - _above(distance, head.sulcus_width + head.cortex, 1.4)) * (1 - stem)
    deep = _above(-fields["nuclei"], 0, 1.5)
    rim = 1 - _above(fields["depth"], head.rim, 1.6)
    left = 1 - rim
    parts = {"rim": rim}
    for name, share in (("csf", fluid), ("grey", grey), ("deep", deep)):
        parts[name] = left * share
        left = left - parts[name]
    parts["white"] = left
    return parts


def _distance_to_fluid(fields: Mapping[str, Volume], head: _Head) -> Volume:
    """Distance (x, y, z), about, to the nearest surface that the cortex lines."""
    depth = fields["depth"]
    in_cerebellum = fields["cerebellum"] < 0
    # Sulci end at their depth, and before the insula and the nuclei; they narrow inwards.
    beyond = np.maximum(depth - head.sulcus_depth - 0.3 * fields["sylvian"].clip(0, 30), 3 - fields["centre"])
    sulci = np.hypot(fields["folds"], np.maximum(beyond, 0)) + 0.03 * np.clip(depth, 0, 25)
    folia = np.abs(np.sin((fields["height"] + 0.35 * fields["folds"]) * (np.pi / 5.5))) * 1.6 + np.maximum(depth - 9, 0)
    cortex = np.where(in_cerebellum, folia + 0.7, sulci)
    fissure = np.hypot(fields["midline"], np.maximum(2 - fields["callosum"], 0)) + 0.4
    fissure = np.where(fields["height"] > -18, fissure, 99)
    distance = np.minimum.reduce([depth, cortex, fissure, np.abs(fields["cerebellum"]) + 0.3, fields["sylvian"]])
    # No cortex lines the stem.
    return np.asarray(np.where(fields["stem"] < 0, np.maximum(distance, np.minimum(depth, 9.0)), distance), np.float32)


# --- tumour ---------------------------------------------------------------------------------------------------------


def _draw_tumour(rng: np.random.Generator, side: Side | None) -> _Tumour:
    """A tumour of any kind and size that gliomas have."""
    drawn: Side = "left" if rng.random() < 0.5 else "right"
    kind = str(rng.choice(["ring", "solid", "patchy", "low_grade"], p=[0.6, 0.1, 0.15, 0.15]))
    radius = float(np.clip(np.exp(rng.normal(np.log(17.0), 0.38)), 5.0, 28.0))
    wide = rng.random() < (0.3 if kind == "low_grade" else 0.8)
    return _Tumour(
        kind=kind,
        side=side or drawn,
        radius=radius,
        lobes=int(rng.integers(1, 6)),
        roughness=float(rng.uniform(0.06, 0.2)),
        rim=float(np.clip(rng.normal(3.8, 1.6), 2.0, 8.0)),
        gaps=float(max(0.0, rng.normal(0.1, 0.5))),
        spread=float(rng.uniform(8, 32) if wide else rng.uniform(1.5, 8)),
        push=float(rng.uniform(0, 0.5) * radius),
        satellite=float(rng.uniform(0.25, 0.6) if rng.random() < 0.14 else 0.0),
    )


def _place(tumour: _Tumour, head: _Head, rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """Centres of the foci (anatomical mm), in white matter of the tumour's hemisphere."""
    white = _tissues(head.fields, head)["white"]
    fields = head.fields
    sign = 1.0 if tumour.side == "right" else -1.0
    lateral = sign * fields["midline"]
    deep_enough = fields["depth"] > min(0.6 * tumour.radius + 4, 18)
    possible = (white > 0.6) & deep_enough & (lateral > min(5 + 0.7 * tumour.radius, 22)) & (fields["cerebellum"] > 4)
    possible &= (fields["stem"] > 4) & (fields["height"] > -36)
    lattice = _lattice_points()
    candidates = lattice[:, possible].T
    first = candidates[rng.integers(len(candidates))].astype(np.float64)
    if not tumour.satellite:
        return [first]
    apart = np.linalg.norm(candidates - first, axis=1)
    near = candidates[(apart > tumour.radius * (1 + tumour.satellite) + 5) & (apart < tumour.radius * 2 + 40)]
    return [first, near[rng.integers(len(near))].astype(np.float64)] if len(near) else [first]


def _tumour_fields(
    tumour: _Tumour, centres: list[NDArray[np.float64]], head: _Head, rng: np.random.Generator
) -> tuple[Volume, Volume]:
    """On the lattice: signed distance to the core (negative inside), and how far oedema travels to each point."""
    points = _lattice_points()
    balls = []
    for number, centre in enumerate(centres):
        radius = tumour.radius * (1.0 if number == 0 else tumour.satellite)
        for lobe in range(tumour.lobes if number == 0 else 1):
            direction = rng.standard_normal(3)
            direction *= (0.75 * radius if lobe else 0.0) / np.linalg.norm(direction)
            axes = radius * (0.72 if tumour.lobes > 1 and number == 0 else 0.9) * rng.uniform(0.75, 1.25, 3)
            balls.append(_ellipsoid(points, tuple(centre + direction), tuple(axes)))
    core = balls[0]
    for ball in balls[1:]:
        core = _blend(core, ball, 0.3 * tumour.radius)
    ripple = _lattice_noise(rng, 6.5) + 0.35 * _lattice_noise(rng, 3.5)
    core = np.asarray(core + tumour.roughness * min(tumour.radius, 16.0) * ripple, np.float32)
    # The falx holds tumours back, except below it.
    sign = 1.0 if tumour.side == "right" else -1.0
    core += np.maximum(2 - sign * head.fields["midline"], 0) * 2
    return core, _travel(core, head)


def _travel(core: Volume, head: _Head) -> Volume:
    """Least cost from the core to each lattice point: 1 per mm in white matter, more elsewhere."""
    tissues = _tissues(head.fields, head)
    cost = tissues["white"] + 1.8 * tissues["deep"] + 3.5 * tissues["grey"] + 12 * (tissues["csf"] + tissues["rim"])
    cost += 1.5 * _above(-head.fields["cerebellum"], 0, 4) + 1.5 * _above(-head.fields["stem"], 0, 4)
    starts = np.argwhere(core <= max(float(core.min()) + 0.1, 0.0))
    costs, _ = MCP_Geometric(cost.astype(np.float64)).find_costs(starts.tolist())
    return np.asarray(np.minimum(costs * _STEP, 90.0), np.float32)


def _paint_tumour(
    tumour: _Tumour,
    canvas: _Canvas,
    fields: Mapping[str, Volume],
    tissues: Mapping[str, Volume],
    rng: np.random.Generator,
) -> dict[str, Volume]:
    """How much of each voxel is necrosis, enhancing tumour and oedema."""
    solid = _above(-fields["core"], 0, 1.4) * _above(fields["depth"], 1.2, 1.4)
    enhancing = _above(_enhancement(tumour, canvas, fields["core"], rng), 0, 1.6)
    reach = fields["reach"] * (1 + 0.18 * canvas.noise(rng, 7.0)) + 0.8 * canvas.noise(rng, 3.0)
    soaked = tissues["white"] + tissues["deep"] + tissues["grey"] * _above(tumour.spread * 0.25 - reach, 0, 2)
    soaked = gaussian_filter(soaked, [0.9 / size for size in canvas.voxel], truncate=2)
    oedema = _above(tumour.spread - reach, 0, 2.5) * soaked * (1 - solid)
    whole = _kept(solid + oedema, canvas)
    return {
        "necrosis": solid * (1 - enhancing) * whole,
        "enhancing": solid * enhancing * whole,
        "oedema": oedema * whole,
    }


def _enhancement(tumour: _Tumour, canvas: _Canvas, core: Volume, rng: np.random.Generator) -> Volume:
    """Positive where the core enhances, in mm."""
    coarse, fine = canvas.noise(rng, 6.5), canvas.noise(rng, 3.2)
    if tumour.kind == "low_grade":
        return np.full(core.shape, -9, np.float32)
    if tumour.kind == "solid":
        return np.asarray(4 + 2.5 * fine + 0.15 * core, np.float32)
    if tumour.kind == "patchy":
        return np.asarray(2.5 * (coarse + 0.5 * fine - 0.3), np.float32)
    gaps = tumour.gaps * np.maximum(canvas.noise(rng, 11.0), 0)
    rim = tumour.rim * (1 + 0.35 * coarse + 0.15 * fine - gaps) + core
    septa = 0.9 - 4 * np.abs(coarse + 0.3 * fine) - 0.06 * np.maximum(-core - tumour.rim, 0)
    return np.asarray(np.maximum(rim, septa), np.float32)


def _kept(share: Volume, canvas: _Canvas) -> Volume:
    """1 at the tumour's large parts, 0 at specks that no reader would outline."""
    smallest = max(2, round(_SPECK_MM3 / float(np.prod(canvas.voxel))))
    components = connected_components(share > 0.5)
    large = np.bincount(components.ravel()) >= smallest
    large[0] = False
    parts = large[components] if large.any() else share > 0.5
    # One voxel of margin keeps the soft edge.
    return np.asarray(binary_dilation(parts, np.ones((3, 3, 3)), iterations=1), np.float32)


def _labels(parts: Mapping[str, Volume], brain: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The label of what fills most of a voxel that is more than half tumour."""
    whole = parts["necrosis"] + parts["enhancing"] + parts["oedema"]
    order = np.stack([parts["necrosis"], parts["oedema"], parts["enhancing"]])
    labels = np.array([Label.NCR, Label.ED, Label.ET], np.uint8)[order.argmax(axis=0)]
    return np.where((whole > 0.5) & brain, labels, 0).astype(np.uint8)


# --- picture --------------------------------------------------------------------------------------------------------


def _image(
    parts: Mapping[str, Volume], fields: Mapping[str, Volume], canvas: _Canvas, rng: np.random.Generator
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
            result[index] = shading * _acquire(z, brain, canvas.voxel[2], _THICK_CHANCE[index], generator)
    return np.rint(result)


def _draw_means(tissue: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """Mean z-scores (4,) of a tissue in one case, no further from the usual than 1.5 standard deviations."""
    mean, deviation = (np.array(values) for values in _TISSUES[tissue])
    return np.asarray(mean + deviation * np.clip(rng.standard_normal(len(SEQUENCES)), -1.5, 1.5), np.float64)


def _mixture(
    parts: Mapping[str, Volume], fields: Mapping[str, Volume], canvas: _Canvas, rng: np.random.Generator
) -> dict[str, Volume]:
    """How much of each voxel is each of `_TISSUES`: healthy tissue makes room for tumour, then vessels are added."""
    lesion = {name: parts[name] for name in ("oedema", "necrosis", "enhancing")}
    room = np.clip(1 - sum(lesion.values()), 0, 1)
    shares = {name: parts[name] * room for name in ("csf", "grey", "white", "deep", "rim")}
    vessel = _vessels(parts, fields, canvas, rng) * room
    shares = {name: share * (1 - vessel) for name, share in shares.items()}
    return shares | {"vessel": vessel} | lesion


def _vessels(
    parts: Mapping[str, Volume], fields: Mapping[str, Volume], canvas: _Canvas, rng: np.random.Generator
) -> Volume:
    """What takes up contrast without being tumour: sinuses, veins on the surface, choroid plexus."""
    sinus = np.hypot(fields["midline"], fields["depth"] - 1.5)
    sinus = np.where((fields["height"] > 0) | (fields["posterior"] > 60), sinus, 99)
    amount = _above(rng.uniform(1.2, 3.0) - sinus, 0, 1.5)
    patchy = canvas.noise(rng, 3.0) + 0.8 * canvas.noise(rng, 12.0)
    veins = _above(patchy, rng.uniform(1.4, 2.6), 0.6) * np.maximum(parts["rim"], parts["csf"])
    veins *= _above(4 - fields["depth"], 0, 2)
    choroid = _above(canvas.noise(rng, 3.0), rng.uniform(1.3, 2.2), 0.6) * _above(-fields["ventricles"], 0.5, 1)
    choroid *= _above(fields["posterior"], 0, 10)
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
    return np.where(brain, np.maximum(np.rint(values), 2), 0).astype(np.float32)
