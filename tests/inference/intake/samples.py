"""Small cases made for the tests of intake."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from inference.labels import SEQUENCES

SHAPE = (20, 24, 18)
LPS = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])

Header = nib.Nifti1Header
Edit = Callable[[Header], None]


def brain(seed: int, shape: tuple[int, ...] = SHAPE, dtype: str = "int16") -> NDArray[np.generic]:
    """Noise within an ellipsoid, exactly 0 outside."""
    grid = np.ix_(*(np.linspace(-1, 1, n) for n in shape[:3]))
    inside = sum(axis**2 for axis in grid) < 0.8
    values = np.random.default_rng(seed).integers(100, 200, shape[:3], dtype=np.uint8)
    return np.where(inside, values, 0).astype(dtype).reshape(shape)


def header_for(
    array: NDArray[np.generic], affine: NDArray[np.floating] = LPS, *, codes: tuple[int, int] = (1, 1), version: int = 1
) -> Header:
    """A header for `array`; `codes` are those of qform and sform."""
    header = (nib.Nifti1Header if version == 1 else nib.Nifti2Header)()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_xyzt_units("mm")
    header.set_qform(affine, codes[0])
    header.set_sform(affine, codes[1])
    header["vox_offset"] = header.sizeof_hdr + 4
    header["scl_slope"], header["scl_inter"] = 1, 0
    return header


def nifti(
    array: NDArray[np.generic], header: Header | None = None, edit: Edit | None = None, endian: str = "<"
) -> bytes:
    """The bytes of a NIfTI file, whose header `edit` may have spoilt."""
    header = (header_for(array) if header is None else header).as_byteswapped(endian)
    if edit:
        edit(header)
    return header.binaryblock + bytes(4) + array.astype(array.dtype.newbyteorder(endian)).tobytes(order="F")


def put(path: Path, contents: bytes) -> Path:
    """Write a file, compressed where its name ends in .gz, and the folder that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(contents, 1) if path.suffix == ".gz" else contents)
    return path


def sequence_path(folder: Path, sequence: str, case: str = "ill") -> Path:
    return folder / case / f"{case}-{sequence}.nii.gz"


def put_case(folder: Path, case: str = "ill", names: dict[str, str] | None = None) -> dict[str, Path]:
    """Four sound sequences of a case; `names` are file names in `folder`, by default in the style of BraTS 2023."""
    return {
        sequence: put(
            folder / names[sequence] if names else sequence_path(folder, sequence, case), nifti(brain(number))
        )
        for number, sequence in enumerate(SEQUENCES)
    }
