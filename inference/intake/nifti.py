"""One NIfTI file: its header checked against its size before any voxel is read, then its voxels."""

from __future__ import annotations

import gzip
import io
import math
import os
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from inference.errors import CaseError
from inference.intake.geometry import Geometry, read_geometry

FEWEST_VOXELS: Final = 8
"""Shortest axis that is accepted."""

MOST_VOXELS_PER_AXIS: Final = 1024
MOST_VOXELS: Final = 96 * 2**20
"""Largest image: 480 × 480 × 310 at half a millimetre fits, and four of them in float32 are 1.5 GiB."""

_GZIP: Final = b"\x1f\x8b"
_BEST_RATIO: Final = 1040
"""Deflate cannot compress more than 1032 : 1."""

_START: Final = 2**16
"""Bytes of a file that are enough to find the header in."""

_FARTHEST_VOXELS: Final = 2**24
"""Largest offset of the first voxel, in bytes: what lies before it are header extensions."""

_ELSEWHERE: Final[dict[bytes, str]] = {
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
"""How other files begin that people give the name of a NIfTI file."""


@dataclass(frozen=True, eq=False)
class Image:
    """A file whose header is sound and fits its size; its voxels are not read yet."""

    case: str
    path: Path
    geometry: Geometry
    dtype: np.dtype[np.generic]
    """Of the voxels in the file, with its byte order."""
    offset: int
    """Bytes before the first voxel, after decompression."""
    slope: float
    intercept: float
    """A voxel's value is slope × stored + intercept."""
    repairs: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes up to the end of the last voxel, after decompression."""
        return self.offset + math.prod(self.geometry.shape) * self.dtype.itemsize


def open_image(path: Path, case: str) -> Image:
    """Read and check the header of the NIfTI-1 or NIfTI-2 file at `path` (CaseError naming `case` and the file).

    Nothing that the header says is believed before it is compared with the size of the file, so that no claim about
    dimensions costs memory. Whether the file is compressed is seen from its contents, not its name.
    """
    repairs: list[str] = []
    warnings: list[str] = []
    with _opened(path, case) as file:
        length = os.fstat(file.fileno()).st_size
        start, compressed = _first_bytes(file, case, path.name)
    header = _parsed(start, case, path.name)
    if compressed != (path.suffix.lower() == ".gz"):
        repairs.append(f"the file is {'' if compressed else 'not '}compressed, unlike its name says")
    shape = _shape(header, case, path.name, repairs)
    dtype = _dtype(header, case, path.name)
    slope, intercept = _scaling(header, repairs)
    offset = _offset(header, case, path.name, repairs)
    expected = offset + math.prod(shape) * dtype.itemsize
    room = length * _BEST_RATIO if compressed else length
    if room < expected:
        raise CaseError(
            case, f"{path.name}: truncated, or its header lies",
            found=f"a file of {length} bytes" + " compressed" * compressed, expected=f"{expected} bytes for {_times(shape)} {dtype.name}",
        )  # fmt: skip
    geometry = read_geometry(header, shape, case, path.name, repairs, warnings)
    return Image(case, path, geometry, dtype, offset, slope, intercept, tuple(repairs), tuple(warnings))


def read_voxels(image: Image) -> tuple[NDArray[np.generic], tuple[str, ...]]:
    """The voxels as stored (stored shape and dtype, before scaling, Fortran order, read-only), and what was repaired.

    CaseError where the file ends early, is corrupt, or holds a slice or more beyond what its header declares.
    """
    name, size, repairs = image.path.name, image.size, []
    slack = image.geometry.shape[0] * image.geometry.shape[1] * image.dtype.itemsize
    with _opened(image.path, image.case) as file:
        try:
            raw = file.read(size + size // 50 + slack + _START)
        except OSError as error:
            raise _unreadable(image.case, name, error) from error
    contents = _inflated(raw, size + slack, image.case, name) if raw.startswith(_GZIP) else raw
    if len(contents) < size:
        raise CaseError(image.case, f"{name}: truncated", found=f"{len(contents)} bytes", expected=f"{size} bytes")
    if len(contents) >= size + slack:
        declared = f"{size} bytes for {_times(image.geometry.shape)} {image.dtype.name}"
        raise CaseError(image.case, f"{name}: more data than its header declares", found=f"{size + slack} bytes or more", expected=declared)  # fmt: skip
    if len(contents) > size:
        repairs.append(f"{len(contents) - size} bytes after the last voxel were ignored")
    flat = np.frombuffer(contents, image.dtype, offset=image.offset, count=math.prod(image.geometry.shape))
    return flat.reshape(image.geometry.shape, order="F"), tuple(repairs)


def _unreadable(case: str, name: str, error: Exception) -> CaseError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return CaseError(case, f"{name}: cannot be read", found=reason, expected="a readable file")


def _opened(path: Path, case: str) -> BinaryIO:
    """The file at `path`, which is a regular one; a pipe or device in its place does not block."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise _unreadable(case, path.name, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CaseError(case, f"{path.name}: not a file", found="a folder, pipe or device", expected="a NIfTI file")
    return os.fdopen(descriptor, "rb")


def _first_bytes(file: BinaryIO, case: str, name: str) -> tuple[bytes, bool]:
    """Enough bytes for a header, decompressed where need be, and whether they were compressed."""
    try:
        start = file.read(_START)
    except OSError as error:
        raise _unreadable(case, name, error) from error
    if not start:
        raise CaseError(case, f"{name}: empty", found="0 bytes", expected="a NIfTI file")
    if not start.startswith(_GZIP):
        return start, False
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(start)) as stream:
            return stream.read(nib.Nifti2Header.sizeof_hdr), True
    except (EOFError, OSError, zlib.error) as error:
        raise _corrupt(case, name, error) from error


def _corrupt(case: str, name: str, error: Exception) -> CaseError:
    if isinstance(error, EOFError):
        return CaseError(case, f"{name}: truncated", found="a gzip stream that ends early", expected="a whole file")
    return CaseError(case, f"{name}: corrupt", found=f"a broken gzip stream: {error}", expected="a whole file")


def _inflated(raw: bytes, most: int, case: str, name: str) -> bytes:
    """Decompress at most `most` bytes, checking the sum at the end; several gzip members are one stream."""
    try:
        stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
        contents = stream.decompress(raw, most)
        if stream.eof and stream.unused_data.startswith(_GZIP):
            with gzip.GzipFile(fileobj=io.BytesIO(raw)) as members:
                return members.read(most)
    except (EOFError, OSError, zlib.error) as error:
        raise _corrupt(case, name, error) from error
    if not stream.eof and len(contents) < most:
        raise _corrupt(case, name, EOFError())
    return contents


def _parsed(start: bytes, case: str, name: str) -> nib.Nifti1Header:
    """The header in the first bytes of a file, in either byte order, as it is: nothing mended."""
    for header_class, magic in ((nib.Nifti1Header, b"n+1"), (nib.Nifti2Header, b"n+2\0\r\n\x1a\n")):
        size = header_class.sizeof_hdr
        for endianness, order in (("<", "little"), (">", "big")):
            if int.from_bytes(start[:4], order) != size or len(start) < size:  # type: ignore[arg-type]
                continue
            header = header_class(start[:size], endianness, check=False)
            if bytes(header["magic"]).rstrip(b"\0") != magic.rstrip(b"\0"):
                found = repr(bytes(header["magic"]))
                raise CaseError(
                    case, f"{name}: not a NIfTI file in one piece", found=f"magic {found}", expected=repr(magic)
                )
            return header
    found = next(
        (what for mark, what in _ELSEWHERE.items() if start.startswith(mark)), f"a file that begins {start[:8]!r}"
    )
    if start[128:132] == b"DICM":
        found = "a DICOM file"
    raise CaseError(
        case, f"{name}: not a NIfTI file", found=found, expected="a NIfTI-1 or NIfTI-2 file, .nii or .nii.gz"
    )


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _shape(header: nib.Nifti1Header, case: str, name: str, repairs: list[str]) -> tuple[int, int, int]:
    """The three axes of the image; further axes of length one are dropped."""
    count = int(header["dim"][0])
    if not 1 <= count <= 7:
        raise CaseError(case, f"{name}: number of dimensions", found=str(count), expected="3")
    full = shape = tuple(int(n) for n in header["dim"][1 : count + 1])
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        raise CaseError(case, f"{name}: dimensions", found=_times(full), expected="a 3-D image")
    if min(shape) < FEWEST_VOXELS:
        raise CaseError(
            case, f"{name}: too small", found=_times(full), expected=f"{FEWEST_VOXELS} voxels or more along each axis"
        )
    if max(shape) > MOST_VOXELS_PER_AXIS or math.prod(shape) > MOST_VOXELS:
        limit = f"at most {MOST_VOXELS_PER_AXIS} voxels along an axis and {MOST_VOXELS / 1e6:.0f} million in all"
        raise CaseError(case, f"{name}: too large", found=_times(full), expected=limit)
    if len(full) > 3:
        repairs.append(f"{len(full)}-D with single further axes ({_times(full)}), taken as 3-D")
    x, y, z = shape
    return x, y, z


def _dtype(header: nib.Nifti1Header, case: str, name: str) -> np.dtype[np.generic]:
    expected = "real numbers of 8 to 64 bits"
    try:
        dtype: np.dtype[np.generic] = header.get_data_dtype()
    except (nib.spatialimages.HeaderDataError, KeyError) as error:
        raise CaseError(
            case, f"{name}: data type", found=f"code {int(header['datatype'])}", expected=expected
        ) from error
    if dtype.kind not in "iuf" or not 1 <= dtype.itemsize <= 8:
        label = nib.nifti1.data_type_codes.label[int(header["datatype"])]
        raise CaseError(case, f"{name}: data type", found=str(label), expected=expected)
    return dtype


def _scaling(header: nib.Nifti1Header, repairs: list[str]) -> tuple[float, float]:
    """Slope and intercept; a slope of zero means by the standard that there is no scaling."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope):
        if not math.isfinite(slope):
            repairs.append(f"scl_slope is {slope}: values were taken as stored")
        return 1.0, 0.0
    if not math.isfinite(intercept):
        repairs.append(f"scl_inter is {intercept}: taken as 0")
        return slope, 0.0
    return slope, intercept


def _offset(header: nib.Nifti1Header, case: str, name: str, repairs: list[str]) -> int:
    """Bytes before the first voxel."""
    stated, least = float(header["vox_offset"]), int(header.sizeof_hdr) + 4
    if stated == 0:
        repairs.append(f"vox_offset is 0: taken as {least}")
        return least
    if not least <= stated <= _FARTHEST_VOXELS:
        expected = f"{least} to {_FARTHEST_VOXELS}"
        raise CaseError(case, f"{name}: vox_offset", found=f"{stated:g}", expected=expected)
    return int(stated)
