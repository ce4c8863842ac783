"""One NIfTI file: its header checked against its size before any voxel is read, then its voxels."""

from __future__ import annotations

import gzip
import io
import math
import os
import stat
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from inference.errors import CaseError
from inference.intake.geometry import Geometry, read_geometry
from inference.intake.notes import Notes
from inference.text import times

# Length of an axis. A single slice or a thumbnail is no brain scan, and networks halve each axis several times.
_FEWEST_VOXELS: Final = 8
_MOST_VOXELS_PER_AXIS: Final = 1024
# Largest image: 480 × 480 × 310 at half a millimetre fits, and four of them in float32 are 1.1 GiB.
_MOST_VOXELS: Final = 96 * 2**20
_GZIP: Final = b"\x1f\x8b"
# Deflate cannot compress more than 1032 : 1 (https://zlib.net/zlib_tech.html); gzip's own bytes come on top.
_BEST_RATIO: Final = 1040
# Bytes of a file in which the header is found, compressed or not, even where gzip begins with a long file name.
_START: Final = 2**16
# Largest offset of the first voxel, in bytes: what lies before it are header extensions, which hold texts.
_FARTHEST_VOXELS: Final = 2**24
# Size of a header, and the magic of an image in one file; `ni1` and `ni2` are pairs of .hdr and .img.
_MAGIC: Final[Mapping[int, bytes]] = {348: b"n+1", 540: b"n+2"}

# How other files begin that people give the name of a NIfTI file.
_OTHERS: Final[Mapping[bytes, str]] = {
    b"version https://git-lfs": "a Git LFS pointer: the scan itself was not downloaded",
    b"/annex/objects": "a git-annex pointer: the scan itself was not downloaded",
    b"<": "a web page or XML",
    b"{": "JSON",
    b"PK\x03\x04": "a ZIP archive",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"\x89HDF": "HDF5 (or MINC)",
    b"NRRD": "NRRD",
    b"ObjectType": "MetaImage",
    b"\x93NUMPY": "a NumPy array",
    _GZIP: "gzip inside gzip",
}


@dataclass(frozen=True, eq=False)
class Image:
    """A file whose header is sound and fits its size; its voxels are not read yet."""

    path: Path
    geometry: Geometry
    dtype: np.dtype[np.generic[object]]
    """Of the voxels in the file, with its byte order."""
    offset: int
    """Bytes before the first voxel, after decompression."""
    slope: float
    intercept: float
    """A voxel's value is slope × stored + intercept."""
    notes: Notes
    """The case, and what was found so far; reading the voxels adds to it."""


@np.errstate(all="ignore")  # a header's numbers may be anything, and what is not finite is looked for
def open_image(path: Path, case: str, *, fewest: int = _FEWEST_VOXELS) -> Image:
    """Read and check the header of the NIfTI-1 or NIfTI-2 file at `path` (CaseError naming `case` and the file).

    `fewest` is the length of the shortest axis that is accepted.

    Nothing that the header says is believed before it is compared with the size of the file, so that no claim about
    dimensions costs memory. Whether the file is compressed is seen from its contents, not its name.
    """
    notes = Notes(case, path.name)
    with _opened(path, notes) as file:
        length = os.fstat(file.fileno()).st_size
        start, compressed = _first_bytes(file, notes)
    if compressed != (path.suffix.lower() == ".gz"):
        notes.repairs.append(f"the file is {'' if compressed else 'not '}compressed, although its name says otherwise")
    header = _parsed(start, notes)
    shape = _shape(header, fewest, notes)
    dtype = _dtype(header, notes)
    slope, intercept = _scaling(header, notes)
    offset = _offset(header, notes)
    expected = offset + math.prod(shape) * dtype.itemsize
    if expected > (length * _BEST_RATIO if compressed else length):
        raise notes.refusal(
            "truncated, or its header lies about its size",
            found=f"{length} bytes" + " of gzip" * compressed,
            expected=f"{expected} bytes for {times(shape)} {dtype.name}",
        )
    return Image(path, read_geometry(header, shape, notes), dtype, offset, slope, intercept, notes)


def read_voxels(image: Image) -> NDArray[np.generic[object]]:
    """The voxels as stored: stored shape and dtype, before scaling, Fortran order, read-only.

    CaseError where the file ends early, is corrupt, or holds a slice or more beyond what its header declares.
    """
    notes, shape, dtype = image.notes, image.geometry.shape, image.dtype
    size = image.offset + math.prod(shape) * dtype.itemsize
    # A few bytes at the end are padding; a slice or more means that the header's dimensions are wrong.
    most = size + shape[0] * shape[1] * dtype.itemsize
    contents = read_contents(image.path, most, notes)
    expected = f"{size} bytes for {times(shape)} {dtype.name}"
    if len(contents) < size:
        raise notes.refusal("truncated", found=f"{len(contents)} bytes", expected=expected)
    if len(contents) >= most:
        raise notes.refusal("more data than its header declares", found=f"{most} bytes or more", expected=expected)
    if len(contents) > size:
        notes.repairs.append(f"{len(contents) - size} bytes after the last voxel were ignored")
    return np.frombuffer(contents, dtype, math.prod(shape), image.offset).reshape(shape, order="F")


def read_contents(path: Path, most: int, notes: Notes) -> bytes:
    """Read the file at `path`, decompressed and its checksum compared, but not more than about `most` bytes.

    CaseError where it is no regular file, cannot be read or is damaged.
    """
    with _opened(path, notes) as file:
        try:
            length = os.fstat(file.fileno()).st_size
            contents = file.read(min(length, most + most // 50 + _START))  # gzip lengthens what it cannot compress
        except OSError as error:
            raise notes.unreadable(error) from error
    return _inflated(contents, most, notes) if contents.startswith(_GZIP) else contents


def scale_into(image: Image, stored: NDArray[np.generic[object]], into: NDArray[np.float32]) -> None:
    """Fill `into` with the values of the voxels `stored` in an image, in the same shape."""
    with np.errstate(all="ignore"):  # what overflows float32 becomes infinite, and is mended like other such voxels
        if image.slope == 1 and image.intercept == 0:
            into[...] = stored
            return
        # Slice by slice, as they lie in memory: in float64 the whole would be as large as all four sequences.
        axis = int(np.argmax(np.abs(stored.strides)))
        for plane, target in zip(np.moveaxis(stored, axis, 0), np.moveaxis(into, axis, 0), strict=True):
            target[...] = plane.astype(np.float64) * image.slope + image.intercept


def _opened(path: Path, notes: Notes) -> BinaryIO:
    """The file at `path`, which is a regular one; a pipe or device in its place does not block."""
    try:
        # What was a file when the folder was listed may be a pipe by now: opened as usual, it waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise notes.unreadable(error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise notes.refusal("not a file", found="a folder, pipe or device", expected="a NIfTI file")
    return os.fdopen(descriptor, "rb")


def _first_bytes(file: BinaryIO, notes: Notes) -> tuple[bytes, bool]:
    """Enough bytes for a header, decompressed where need be, and whether they were compressed."""
    try:
        start = file.read(_START)
    except OSError as error:
        raise notes.unreadable(error) from error
    if not start:
        raise notes.refusal("empty", found="0 bytes", expected="a NIfTI file")
    if not start.startswith(_GZIP):
        return start, False
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(start)) as stream:
            return stream.read(max(_MAGIC)), True
    except (EOFError, OSError, zlib.error) as error:
        raise _corrupt(notes, error) from error


def _corrupt(notes: Notes, error: Exception) -> CaseError:
    if isinstance(error, EOFError):
        return notes.refusal("truncated", found="a gzip stream that ends early", expected="a whole file")
    return notes.refusal("corrupt", found=f"a broken gzip stream ({error})", expected="a whole file")


def _inflated(raw: bytes, most: int, notes: Notes) -> bytes:
    """Decompress at most `most` bytes, checking the sum at the end; several gzip members are one stream."""
    try:
        # By zlib itself, since gzip's module refuses bytes after the stream, which are noted and ignored here.
        stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
        contents = stream.decompress(raw, most)
        if stream.eof and stream.unused_data.startswith(_GZIP):
            with gzip.GzipFile(fileobj=io.BytesIO(raw)) as members:
                return members.read(most)
    except (EOFError, OSError, zlib.error) as error:
        raise _corrupt(notes, error) from error
    if not stream.eof and len(contents) < most:
        raise _corrupt(notes, EOFError())
    if stream.unused_data.strip(b"\0"):  # zeros are padding, as of tapes
        notes.repairs.append(f"{len(stream.unused_data)} bytes after the end of the gzip stream were ignored")
    return contents


def _parsed(start: bytes, notes: Notes) -> nib.Nifti1Header:
    """The header in the first bytes of a file, in either byte order, as it is: nothing mended."""
    for header_class in (nib.Nifti1Header, nib.Nifti2Header):
        size = int(header_class.sizeof_hdr)
        orders = {size.to_bytes(4, "little"): "<", size.to_bytes(4, "big"): ">"}
        if start[:4] not in orders:
            continue
        if len(start) < size:
            raise notes.refusal("truncated", found=f"{len(start)} bytes", expected=f"a header of {size}")
        header = header_class(start[:size], orders[start[:4]], check=False)
        magic = bytes(header["magic"]).rstrip(b"\0")
        if magic != _MAGIC[size]:
            raise notes.refusal("not a NIfTI image in one file", found=f"magic {magic!r}", expected=repr(_MAGIC[size]))
        return header
    if not start:  # of a gzip stream of nothing
        raise notes.refusal("empty", found="0 bytes once decompressed", expected="a NIfTI file")
    known = (what for mark, what in _OTHERS.items() if start.startswith(mark))
    found = next(known, f"a file that begins {str(start[:8])[1:]}")
    if start[128:132] == b"DICM":  # after a preamble of any content
        found = "a DICOM file"
    raise notes.refusal("not a NIfTI file", found=found, expected="NIfTI-1 or NIfTI-2")


def _shape(header: nib.Nifti1Header, fewest: int, notes: Notes) -> tuple[int, int, int]:
    """The three axes of the image; further axes of length one are dropped."""
    count = int(header["dim"][0])
    if not 1 <= count <= 7:
        raise notes.refusal("number of dimensions", found=str(count), expected="3")
    full = shape = tuple(int(n) for n in header["dim"][1 : count + 1])
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        raise notes.refusal("dimensions", found=times(full), expected="a 3-D image")
    if min(shape) < fewest:
        raise notes.refusal("too small", found=times(full), expected=f"{fewest} voxels or more along each axis")
    if max(shape) > _MOST_VOXELS_PER_AXIS or math.prod(shape) > _MOST_VOXELS:
        limit = f"at most {_MOST_VOXELS_PER_AXIS} voxels along an axis and {_MOST_VOXELS / 1e6:.0f} million in all"
        raise notes.refusal("too large", found=times(full), expected=limit)
    if len(full) > 3:
        notes.repairs.append(f"{len(full)}-D with single further axes ({times(full)}), taken as 3-D")
    x, y, z = shape
    return x, y, z


def _dtype(header: nib.Nifti1Header, notes: Notes) -> np.dtype[np.generic[object]]:
    """The type of the voxels, which has to be a real number that float32 can stand for."""
    code, expected = int(header["datatype"]), "real numbers of 8 to 64 bits"
    try:
        dtype: np.dtype[np.generic[object]] = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise notes.refusal("data type", found=f"code {code}", expected=expected) from error
    # Neither colours nor complex numbers; float128 is another format on every processor.
    if dtype.kind not in "iuf" or not 1 <= dtype.itemsize <= 8:
        label = str(nib.nifti1.data_type_codes.label[code])
        raise notes.refusal("data type", found=label, expected=expected)
    if int(header["bitpix"]) != dtype.itemsize * 8:
        notes.repairs.append(f"bitpix is {int(header['bitpix'])}: the data type, {dtype.name}, counts")
    return dtype


def _scaling(header: nib.Nifti1Header, notes: Notes) -> tuple[float, float]:
    """Slope and intercept; a slope of zero means by the standard that there is no scaling."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not math.isfinite(slope):
        notes.repairs.append(f"scl_slope is {slope}: values were taken as stored")
    if slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0
    if not math.isfinite(intercept):
        notes.repairs.append(f"scl_inter is {intercept}: taken as 0")
        return slope, 0.0
    return slope, intercept


def _offset(header: nib.Nifti1Header, notes: Notes) -> int:
    """Bytes before the first voxel."""
    stated, least = float(header["vox_offset"]), int(header.sizeof_hdr) + 4
    if stated == 0:  # some writers leave it out
        notes.repairs.append(f"vox_offset is 0: taken as {least}")
        return least
    if not least <= stated <= _FARTHEST_VOXELS:
        raise notes.refusal("vox_offset", found=f"{stated:g}", expected=f"{least} to {_FARTHEST_VOXELS}")
    return int(stated)
