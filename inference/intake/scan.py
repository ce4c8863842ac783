"""A case as the networks want it, and results back in the geometry of the case."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from inference.errors import CaseError
from inference.files import write_whole
from inference.intake.cases import Case
from inference.intake.geometry import SAME_PLACE, Geometry, atlas_geometry
from inference.intake.nifti import Image, open_image, read_voxels
from inference.intake.repairs import mend_voxels, odd_anatomy
from inference.labels import SEQUENCES, Label
from inference.text import times

__all__ = [
    "Geometry",
    "Scan",
    "any_geometry",
    "holds_fractions",
    "read_labels",
    "read_scan",
    "read_stamp",
    "write_fractions",
    "write_labels",
]

_REFERENCE: Final = "t1n"
"""The sequence whose geometry the result takes."""

_SEVERAL_AT_ONCE: Final = 2**24
"""Voxels up to which the four sequences are decompressed side by side, and above which one after another."""

_OLD_ET: Final = 4
"""Enhancing tumour in releases up to BraTS 2021."""

_COMPRESSION: Final = 4
"""Label maps shrink to some 50 kB in 20 ms; higher levels cost more time than they save."""


@dataclass(frozen=True, eq=False)
class Scan:
    """One case, read, checked and repaired."""

    case: str
    """ID of the case."""
    data: NDArray[np.float32]
    """(4, X, Y, Z), canonical RAS, sequences as in `labels.SEQUENCES`. In memory x runs fastest, as in files."""
    spacing: tuple[float, float, float]
    """Voxel edges in mm along the canonical axes."""
    geometry: Geometry
    """Of the stored t1n."""
    repairs: tuple[str, ...]
    """What was mended, each with its sequence."""
    warnings: tuple[str, ...]
    """What is odd but was left alone, each with its sequence."""


def read_scan(case: Case) -> Scan:
    """Read, check and repair the four sequences of a case.

    All four headers are compared before any voxel is read: in canonical RAS the shapes must be equal, and every corner
    must lie in the same place to within a tenth of a voxel. Raises CaseError with the file, what was found and what was
    expected.
    """
    images = {sequence: open_image(case.paths[sequence], case.id) for sequence in SEQUENCES}
    reference = images[_REFERENCE].geometry
    for image in images.values():
        _check_same_grid(image, images[_REFERENCE])
    x, y, z = reference.canonical_shape
    data = np.empty((len(SEQUENCES), z, y, x), np.float32).transpose(0, 3, 2, 1)
    if x * y * z <= _SEVERAL_AT_ONCE:
        _read_side_by_side(images, data)
    else:
        for image, sequence in zip(images.values(), data, strict=True):
            _read_sequence(image, sequence)
    return Scan(
        case=case.id,
        data=data,
        spacing=reference.spacing,
        geometry=reference,
        repairs=_merged({sequence: image.notes.repairs for sequence, image in images.items()}),
        warnings=(
            *_merged({sequence: image.notes.warnings for sequence, image in images.items()}),
            *odd_anatomy(data, reference.spacing),
        ),
    )


def _check_same_grid(image: Image, reference: Image) -> None:
    """CaseError where an image lies elsewhere than the reference; a note where only its stored orientation differs."""
    geometry, expected = image.geometry, reference.geometry
    if geometry.canonical_shape != expected.canonical_shape:
        raise image.notes.refusal(
            "another shape",
            found=times(geometry.canonical_shape),
            expected=f"{times(expected.canonical_shape)} as {reference.path.name}",
        )
    distance, limit = geometry.displacement(expected), SAME_PLACE * min(expected.spacing)
    if not distance <= limit:
        raise image.notes.refusal(
            "another place, orientation or voxel size",
            found=f"corners up to {distance:.3g} mm from those of {reference.path.name}",
            expected=f"at most {limit:.2g} mm",
        )
    if geometry.codes != expected.codes:
        image.notes.repairs.append(f"stored as {geometry.codes}, t1n as {expected.codes}: reoriented")


def _read_side_by_side(images: Mapping[str, Image], data: NDArray[np.float32]) -> None:
    reading = [_readers().submit(_read_sequence, *pair) for pair in zip(images.values(), data, strict=True)]
    wait(reading)
    for sequence in reading:
        sequence.result()


@cache
def _readers() -> ThreadPoolExecutor:
    """Threads that are started once and not for every case: one that finds no memory to start with never says so."""
    return ThreadPoolExecutor(len(SEQUENCES), "sequence")


def _read_sequence(image: Image, into: NDArray[np.float32]) -> None:
    """Fill `into` (X, Y, Z; canonical RAS) with the voxels of an image, mended."""
    _scale_into(image, image.geometry.to_canonical(read_voxels(image)), into)
    mend_voxels(into.T, image.notes)


def _scale_into(image: Image, stored: NDArray[np.generic[object]], into: NDArray[np.float32]) -> None:
    """Fill `into` with the values of the voxels `stored` in an image, in the same shape."""
    with np.errstate(all="ignore"):  # what overflows float32 becomes infinite, and is mended like other such voxels
        if image.slope == 1 and image.intercept == 0:
            into[...] = stored
            return
        # Slice by slice, as they lie in memory: in float64 the whole would be as large as all four sequences.
        axis = int(np.argmax(np.abs(stored.strides)))
        for plane, target in zip(np.moveaxis(stored, axis, 0), np.moveaxis(into, axis, 0), strict=True):
            target[...] = plane.astype(np.float64) * image.slope + image.intercept


def _merged(notes: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Notes with their sequence in front; one that all sequences share is said once."""
    shared = [note for note in notes[_REFERENCE] if all(note in others for others in notes.values())]
    single = [f"{sequence}: {note}" for sequence, own in notes.items() for note in own if note not in shared]
    return (*(f"all sequences: {note}" for note in shared), *single)


def any_geometry(paths: Mapping[str, Path]) -> Geometry:
    """A geometry for the empty result of a case that failed: of the first of its sequences whose header can be read.

    That is t1n where possible. Where none can be read, it is the grid of the BraTS atlas.
    """
    for sequence in SEQUENCES:
        try:
            return open_image(paths[sequence], sequence).geometry
        except (KeyError, CaseError):
            continue
    return atlas_geometry()


def read_labels(path: Path) -> tuple[NDArray[np.uint8], Geometry]:
    """A label map (X, Y, Z) in canonical RAS, and the geometry that it is stored in.

    ET is 3, or 4 in releases up to BraTS 2021: where no voxel is 3, 4 becomes 3. Raises CaseError (whose case is the
    name of the file) where the file is no image, or holds anything but these whole numbers.
    """
    image = open_image(path, path.name)
    stored = read_voxels(image)
    values = np.empty(stored.shape, np.float32, order="F")
    _scale_into(image, stored, values)
    with np.errstate(invalid="ignore"):
        labels = values.astype(np.uint8)
    wrong = labels != values
    wrong |= labels > _OLD_ET
    if wrong.any():
        odd = ", ".join(f"{value:g}" for value in np.unique(values[wrong])[:4])
        raise image.notes.refusal("labels", found=odd, expected="0, 1, 2 and 3 (or 4)")
    old = labels == _OLD_ET
    if old.any():
        if (labels == Label.ET).any():
            raise image.notes.refusal("labels", found="both 3 and 4", expected="one of them, as enhancing tumour")
        labels[old] = Label.ET
    return np.ascontiguousarray(image.geometry.to_canonical(labels)), image.geometry


def read_stamp(path: Path) -> str:
    """What :func:`write_labels` was told to stamp on the image at `path` (CaseError)."""
    return open_image(path, path.name).geometry.description


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
    """Whether the file (.nii.gz) at `path` is whole, and one that write_fractions made with this geometry and stamp."""
    expected = _header(geometry, (channels,), 1 / 255, stamp)
    try:
        contents = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error):
        return False
    whole = len(expected) + math.prod(geometry.shape) * channels
    return len(contents) == whole and contents.startswith(expected)


def _header(geometry: Geometry, channels: tuple[int, ...], slope: float, stamp: str) -> bytes:
    """What precedes the voxels in a file."""
    header = geometry.new_header(channels)
    header["scl_slope"] = slope
    header["descrip"] = stamp.encode()
    block: bytes = header.binaryblock + bytes(4)
    return block


def _write(values: NDArray[np.uint8], geometry: Geometry, path: Path, *, slope: float, stamp: str = "") -> None:
    if values.shape[:3] != geometry.canonical_shape:
        raise ValueError(f"array of {values.shape} for an image of {geometry.canonical_shape}")
    stored = geometry.from_canonical(values)
    contents = _header(geometry, stored.shape[3:], slope, stamp) + stored.tobytes(order="F")
    if path.suffix == ".gz":
        contents = gzip.compress(contents, _COMPRESSION, mtime=0)
    write_whole(path, contents)
