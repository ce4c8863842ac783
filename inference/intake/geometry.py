"""Where the voxels of a NIfTI image lie, and the way to canonical RAS and back."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from inference.intake.notes import Notes
from inference.text import times

_Scalar = TypeVar("_Scalar", bound="np.generic[object]")

# The header fields that say where the voxels lie, beside the first four of pixdim. Nothing else of an input's header
# goes into an output: a description or a display range of the t1n says nothing about labels.
_SPATIAL_FIELDS: Final = (
    "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip

# Volume of a voxel over the product of its edges, below which an affine counts as singular.
_FLAT: Final = 1e-3
# Cosines between two voxel axes. Rounding in float32 headers stays below the first; the second is about 6 degrees from
# a right angle, and moves the end of a grid that is taken as rectangular by a tenth of its length.
_SHEAR_NOTED: Final = 1e-3
_SHEAR_REFUSED: Final = 0.1
# Degrees between voxel axes and anatomical axes from which a scan is said not to be in atlas space.
_OBLIQUE_NOTED: Final = 10.0
# Voxel edges in mm, far beyond those of clinical scans.
_SPACING_LIMITS: Final = (0.1, 10.0)
# Field of view in mm³ (a cube of 512 mm). On the networks' grid of about 1 mm it is as many voxels, all in memory.
_LARGEST_VOLUME: Final = 2.0**27
# Relative difference between voxel sizes stated twice in a header; pixdim may be rounded.
_SAME_SIZE: Final = 0.01
# Spatial units of NIfTI beside millimetres and none. Where edges are those of a brain in mm, they are a mistake.
_UNITS: Final = {1: "metres", 3: "micrometres"}

SAME_PLACE: Final = 0.1
"""Two images lie in the same place where no corner differs by more than this part of the smallest voxel edge."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """Geometry of one image as stored, exactly enough to write another image in its place."""

    shape: tuple[int, int, int]
    """Stored shape, without trailing axes of length one."""
    affine: NDArray[np.float64]
    """(4, 4), stored voxel indices to world mm (RAS+): the one in force, see :func:`read_geometry`."""
    orientation: NDArray[np.float64]
    """(3, 2), nibabel's orientation of stored axes with respect to RAS."""
    header: nib.Nifti1Header
    """The NIfTI-1 or NIfTI-2 header, little-endian: what is written back is copied from it."""

    @property
    def codes(self) -> str:
        """Directions of the stored axes, such as LPS."""
        return "".join(nib.orientations.ornt2axcodes(self.orientation))

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        """Shape in canonical RAS."""
        x, y, z = (self.shape[axis] for axis in self._stored_axes)
        return x, y, z

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel edges in mm by the affine, canonical axes."""
        x, y, z = (float(np.linalg.norm(self.affine[:3, axis])) for axis in self._stored_axes)
        return x, y, z

    @property
    def canonical_affine(self) -> NDArray[np.float64]:
        """(4, 4), canonical voxel indices to world mm."""
        change = nib.orientations.inv_ornt_aff(self.orientation, self.shape)
        return np.asarray(self.affine @ change, np.float64)

    @property
    def _stored_axes(self) -> list[int]:
        """For each canonical axis, the stored one."""
        return [int(axis) for axis in np.argsort(self.orientation[:, 0])]

    def to_canonical(self, stored: NDArray[_Scalar]) -> NDArray[_Scalar]:
        """A view in canonical RAS of an array (stored shape, any further axes)."""
        view: NDArray[_Scalar] = nib.orientations.apply_orientation(stored, self.orientation)
        return view

    def from_canonical(self, canonical: NDArray[_Scalar]) -> NDArray[_Scalar]:
        """A view in the stored orientation of an array (canonical shape, any further axes)."""
        identity = nib.orientations.axcodes2ornt("RAS")
        back = nib.orientations.ornt_transform(identity, self.orientation)
        view: NDArray[_Scalar] = nib.orientations.apply_orientation(canonical, back)
        return view

    def displacement(self, other: Geometry) -> float:
        """Largest distance in mm between the same corner of both canonical grids, which have the same shape."""
        return _distance(self.canonical_affine, other.canonical_affine, self.canonical_shape)

    def same_as(self, other: Geometry) -> bool:
        """Whether an image written in this geometry has the very header of one written in the other."""
        # Byte for byte, codes and both forms: a result is resumed only if it would be written the same again.
        return bool(self.new_header().binaryblock == other.new_header().binaryblock)

    def new_header(self, further: Sequence[int] = ()) -> nib.Nifti1Header:
        """A header for uint8 voxels in this place: the spatial fields of the stored one, and nothing else of it.

        `further` are the lengths of axes after the three of space.
        """
        header = type(self.header)(endianness="<")
        header.set_data_dtype(np.uint8)
        header.set_data_shape((*self.shape, *further))
        for name in _SPATIAL_FIELDS:
            header[name] = self.header[name]
        header["pixdim"][:4] = self.header["pixdim"][:4]
        header["vox_offset"] = int(header.sizeof_hdr) + 4  # four bytes say that no extension follows
        header["scl_slope"], header["scl_inter"] = 1, 0
        return header


def check_place(found: Geometry, expected: Geometry, of: str, notes: Notes) -> None:
    """Refuse an image that lies elsewhere than the one called `of` (CaseError).

    In canonical RAS the shapes must be equal, and every corner must lie in the same place to within a tenth of a voxel.
    """
    # Corners, not affines: a small angle or scale in an affine is a large distance at the far end.
    if found.canonical_shape != expected.canonical_shape:
        shape = f"{times(expected.canonical_shape)} as {of}"
        raise notes.refusal("another shape", found=times(found.canonical_shape), expected=shape)
    distance, limit = found.displacement(expected), SAME_PLACE * min(expected.spacing)
    if not distance <= limit:  # so that a distance that is not a number is refused, too
        raise notes.refusal(
            "another place, orientation or voxel size",
            found=f"corners up to {distance:.3g} mm from those of {of}",
            expected=f"at most {limit:.2g} mm",
        )


def geometry_on(shape: tuple[int, int, int], affine: NDArray[np.float64]) -> Geometry:
    """The geometry of a new image of `shape` whose sform and qform are both `affine` (code 1, millimetres)."""
    header = nib.Nifti1Header(endianness="<")
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    header.set_qform(affine, 1)
    header.set_sform(affine, 1)
    return read_geometry(header, shape, Notes("new", "image"))


def atlas_geometry() -> Geometry:
    """The grid that BraTS publishes its adult gliomas on: 240 × 240 × 155, 1 mm, LPS, origin (0, 239, 0)."""
    return geometry_on((240, 240, 155), np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]]))


def read_geometry(header: nib.Nifti1Header, shape: tuple[int, int, int], notes: Notes) -> Geometry:
    """The geometry that a header states for an image of `shape`.

    The affine in force is nibabel's choice: the sform where its code is set, else the qform where its code is set, else
    the voxel sizes alone. A form that is not finite or has no volume is passed over for the next, and `notes` says so.
    CaseError where none is left, or where the voxels are sheared, or of a size that no brain scan has.
    """
    affine = _affine_in_force(header, notes)
    _check_edges(affine, shape, notes)
    _check_angles(affine, notes)
    _check_statements(header, affine, notes)
    orientation = np.asarray(nib.io_orientation(affine), np.float64)
    return Geometry(shape, affine, orientation, header.as_byteswapped("<"))


def _qform(header: nib.Nifti1Header) -> NDArray[np.float64] | None:
    """The header's qform; as nibabel does on loading, without signs of voxel sizes, and with 1 for a size of 0."""
    mended = header.copy()  # the header itself is what results are written with
    sizes = np.abs(mended["pixdim"][1:4])
    mended["pixdim"][1:4] = np.where(sizes > 0, sizes, 1)
    if abs(float(mended["pixdim"][0])) != 1:
        mended["pixdim"][0] = 1
    try:
        with np.errstate(all="ignore"):
            return np.asarray(mended.get_qform(), np.float64)
    except (HeaderDataError, ValueError, ArithmeticError):
        return None


def _usable(affine: NDArray[np.float64]) -> bool:
    """Whether an affine is finite and its voxels have a volume."""
    if not np.isfinite(affine).all():
        return False
    with np.errstate(all="ignore"):
        edges = np.linalg.norm(affine[:3, :3], axis=0)
        if not (np.isfinite(edges).all() and (edges > 0).all()):
            return False
        return bool(abs(np.linalg.det(affine[:3, :3] / edges)) > _FLAT)


def _affine_in_force(header: nib.Nifti1Header, notes: Notes) -> NDArray[np.float64]:
    forms = {"sform": np.asarray(header.get_sform(), np.float64), "qform": _qform(header)}
    coded = {form: affine for form, affine in forms.items() if int(header[f"{form}_code"]) > 0}
    usable = {form: affine for form, affine in coded.items() if affine is not None and _usable(affine)}
    broken = [form for form in coded if form not in usable]
    if broken and not usable:
        affine = coded[broken[0]]
        rows = "no rotation" if affine is None else str([[float(f"{v:.4g}") for v in row] for row in affine[:3]])
        raise notes.refusal(f"{broken[0]} has no inverse", found=rows, expected="an invertible affine")
    if broken:
        notes.repairs.append(f"the {broken[0]} has no inverse, the {next(iter(usable))} was used")
    if not usable:
        notes.warnings.append("neither sform nor qform is set: left and right are a guess (x is taken to point left)")
        with np.errstate(all="ignore"):
            base = np.asarray(header.get_base_affine(), np.float64)
        if not _usable(base):
            sizes = times(tuple(header["pixdim"][1:4]))
            raise notes.refusal("voxel size, and neither sform nor qform", found=sizes, expected="three positive sizes")
        return base
    if len(usable) == 2:
        distance = _distance(usable["sform"], usable["qform"], header["dim"][1:4])
        if distance > SAME_PLACE * float(np.linalg.norm(usable["sform"][:3, :3], axis=0).min()):
            notes.warnings.append(f"sform and qform disagree by up to {distance:.3g} mm, the sform was used")
    return next(iter(usable.values()))


def _distance(first: NDArray[np.float64], second: NDArray[np.float64], shape: Iterable[int]) -> float:
    """Largest distance in mm between the same corner of images of `shape` by two affines."""
    corners = [(*corner, 1.0) for corner in itertools.product(*((0.0, float(n) - 1) for n in shape))]
    with np.errstate(all="ignore"):
        return float(np.linalg.norm((first - second)[:3] @ np.array(corners).T, axis=0).max())


def _check_edges(affine: NDArray[np.float64], shape: tuple[int, int, int], notes: Notes) -> None:
    """Refuse voxels, and fields of view, that are no brain scan's: on the networks' grid they could fill any memory."""
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    low, high = _SPACING_LIMITS
    found = " × ".join(f"{edge:.4g}" for edge in edges) + " mm"
    if edges.min() < low or edges.max() > high:
        raise notes.refusal("voxel size", found=found, expected=f"edges of {low:g} to {high:g} mm")
    if float(np.prod(edges * shape)) > _LARGEST_VOLUME:
        expected = f"at most {_LARGEST_VOLUME / 1e6:.0f} litres"
        raise notes.refusal("field of view", found=f"{times(shape)} voxels of {found}", expected=expected)


def _check_angles(affine: NDArray[np.float64], notes: Notes) -> None:
    """Refuse sheared voxels, and note axes that are tilted away from the anatomical ones."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    shear = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if shear > _SHEAR_REFUSED:
        degrees = float(np.degrees(np.arcsin(min(shear, 1.0))))
        found, expected = f"axes {degrees:.0f}° from a right angle", "axes at right angles: resample the scan"
        raise notes.refusal("sheared voxels", found=found, expected=expected)
    if shear > _SHEAR_NOTED:
        notes.warnings.append(f"voxel axes are not quite at right angles (cosine {shear:.2g})")
    tilt = float(np.degrees(np.arccos(np.clip(np.abs(axes).max(axis=0), 0, 1))).max())
    if tilt > _OBLIQUE_NOTED:
        notes.warnings.append(f"voxel axes are tilted by {tilt:.0f}°: register the scan to the atlas first")


def _check_statements(header: nib.Nifti1Header, affine: NDArray[np.float64], notes: Notes) -> None:
    """Note voxel sizes and units in the header that the affine in force contradicts; the affine counts."""
    stated, edges = np.asarray(header["pixdim"][1:4], np.float64), np.linalg.norm(affine[:3, :3], axis=0)
    if not np.all(np.abs(stated - edges) <= _SAME_SIZE * edges):
        sizes = " × ".join(f"{size:.4g}" for size in stated)
        notes.warnings.append(f"pixdim states voxels of {sizes} mm, the affine others: the affine was used")
    unit = _UNITS.get(int(header["xyzt_units"]) & 0x07)
    if unit:
        notes.warnings.append(f"xyzt_units says {unit}: taken as mm")
