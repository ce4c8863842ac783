"""Label maps and maps of fractions: the one reader of what others or we wrote, and the writer of ours."""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from inference.errors import CaseError
from inference.files import write_whole
from inference.intake.geometry import Geometry, check_place
from inference.intake.nifti import open_image, read_contents, read_voxels, scale_into
from inference.intake.notes import Notes
from inference.labels import Label

# Enhancing tumour in releases up to BraTS 2021.
_OLD_ET: Final = 4
# Distance from a whole number that counts as one: a slope in float32 leaves 2.9999998 of a label 3.
_NEARLY_WHOLE: Final = 1e-4
# Of gzip. Label maps shrink to some 50 kB in 20 ms; higher levels cost more time than they save.
_COMPRESSION: Final = 4


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A label map as it is stored, read and checked."""

    labels: NDArray[np.uint8]
    """(X, Y, Z) in the orientation of the file: 0 background, 1 NCR, 2 ED, 3 ET."""
    geometry: Geometry
    """Of the file; its spacing is that of the affine, whatever pixdim says."""
    relabelled: bool
    """Whether label 4 was read as 3."""
    notes: Notes
    """Repairs and warnings of the reading."""

    @property
    def canonical(self) -> NDArray[np.uint8]:
        """(X, Y, Z) in canonical RAS, C order."""
        return np.ascontiguousarray(self.geometry.to_canonical(self.labels))

    def check_place(self, expected: Geometry, of: str) -> None:
        """CaseError where it lies elsewhere than what is called `of`, or has another shape, in canonical RAS."""
        check_place(self.geometry, expected, of, self.notes)


def read_label_map(path: Path, case: str = "") -> LabelMap:
    """Read a label map, whole numbers to within 1e-4.

    ET is 3, or 4 in releases up to BraTS 2021: where no voxel is 3, 4 becomes 3. Raises CaseError, naming `case` or
    else the file, where the file is damaged or no image, or holds anything but labels.
    """
    # A reference may be a cut-out of any size; the limit for scans is that of the networks.
    image = open_image(path, case or path.name, fewest=1)
    stored = read_voxels(image)
    values = np.empty(stored.shape, np.float32, order="F")
    scale_into(image, stored, values)
    with np.errstate(invalid="ignore"):  # NaN and infinite values, which are found to be no labels
        # Rounding takes time, so only what is no whole number already is rounded: in most files nothing.
        labels = values.astype(np.uint8)
        unlike = (labels != values) | (labels > _OLD_ET)
        near = np.rint(values[unlike])
        wrong = ~((np.abs(near - values[unlike]) <= _NEARLY_WHOLE) & (near >= 0) & (near <= _OLD_ET))
    if wrong.any():
        found = ", ".join(f"{value:.9g}" for value in np.unique(values[unlike][wrong])[:4])
        raise image.notes.refusal("labels", found=found, expected="0, 1, 2 and 3 (or 4)")
    labels[unlike] = near
    old = labels == _OLD_ET
    relabelled = bool(old.any())
    if relabelled:
        # Both at once are no known convention, and either reading would be a guess.
        if (labels == Label.ET).any():
            raise image.notes.refusal("labels", found="both 3 and 4", expected="one of them, as enhancing tumour")
        labels[old] = Label.ET
    return LabelMap(labels, image.geometry, relabelled, image.notes)


def read_labels(path: Path) -> tuple[NDArray[np.uint8], Geometry]:
    """The labels (X, Y, Z; canonical RAS) of :func:`read_label_map`, and the geometry that they are stored in."""
    label_map = read_label_map(path)
    return label_map.canonical, label_map.geometry


def read_stamp(path: Path) -> str:
    """The stamp that :func:`write_labels` put on the image at `path` (CaseError)."""
    header = open_image(path, path.name, fewest=1).geometry.header
    return bytes(header["descrip"]).rstrip(b"\0").decode("utf-8", "replace")


def write_labels(labels: NDArray[np.uint8], geometry: Geometry, path: Path, *, stamp: str = "") -> None:
    """Write labels (X, Y, Z; canonical RAS) as uint8 in the shape, affine, forms and codes of `geometry`.

    `stamp`, at most 79 bytes, goes into the header's `descrip`. The file appears whole or not at all, and the same
    labels and stamp give the same bytes. Raises FolderError where it cannot be written, and ValueError where the shape
    is not that of `geometry`.
    """
    _write(labels.astype(np.uint8, casting="safe", copy=False), geometry, path, slope=1.0, stamp=stamp)


def write_fractions(
    volume: NDArray[np.float32] | NDArray[np.float64] | NDArray[np.float16],
    geometry: Geometry,
    path: Path,
    *,
    stamp: str = "",
) -> None:
    """Write fractions in [0, 1], (X, Y, Z) or (X, Y, Z, C), as uint8 with a slope of 1/255; else as write_labels."""
    _write(np.rint(volume.astype(np.float32) * 255).astype(np.uint8), geometry, path, slope=1 / 255, stamp=stamp)


def holds_fractions(path: Path, geometry: Geometry, channels: int, *, stamp: str) -> bool:
    """Whether the file at `path` is whole, and one that write_fractions made with this geometry and stamp."""
    # Its first bytes and its length say so; the values need not be looked at.
    expected = _header(geometry, (channels,), 1 / 255, stamp)
    whole = len(expected) + math.prod(geometry.shape) * channels
    try:
        contents = read_contents(path, whole + 1, Notes(path.name, path.name))
    except CaseError:
        return False
    return len(contents) == whole and contents.startswith(expected)


def image_bytes(values: NDArray[np.uint8], geometry: Geometry, *, slope: float = 1.0, stamp: str = "") -> bytes:
    """The uncompressed file of an image (X, Y, Z) or (X, Y, Z, C), canonical RAS, in a place; see write_labels."""
    if values.shape[:3] != geometry.canonical_shape:
        raise ValueError(f"array of {values.shape} for an image of {geometry.canonical_shape}")
    stored = geometry.from_canonical(values)
    return _header(geometry, stored.shape[3:], slope, stamp) + stored.tobytes(order="F")


def _header(geometry: Geometry, channels: tuple[int, ...], slope: float, stamp: str) -> bytes:
    """The bytes before the voxels in a file."""
    header = geometry.new_header(channels)
    header["scl_slope"] = slope
    header["descrip"] = stamp.encode()
    block: bytes = header.binaryblock + bytes(4)
    return block


def _write(values: NDArray[np.uint8], geometry: Geometry, path: Path, *, slope: float, stamp: str) -> None:
    contents = image_bytes(values, geometry, slope=slope, stamp=stamp)
    if path.suffix == ".gz":
        contents = gzip.compress(contents, _COMPRESSION, mtime=0)  # without a time the same labels are the same bytes
    write_whole(path, contents)
