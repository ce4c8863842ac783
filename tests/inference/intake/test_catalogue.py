"""The catalogue of malformed input: what each kind of it gets, while the sound case beside it is read as ever.

An entry spoils one sound case, called `ill`, in a folder that also holds a sound one. It is then read without a word,
or mended and said so, or read with a warning, or refused with the case, the file, what was found and what was expected.
"""

# ruff: noqa: E501  (a table with one entry a line is easier to read than one that is wrapped)

from __future__ import annotations

import gzip
import os
import time
import tracemalloc
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from inference.errors import CaseError
from inference.intake.cases import find_cases
from inference.intake.scan import Scan, read_scan
from inference.labels import SEQUENCES
from tests.inference.intake.samples import (
    LPS,
    SHAPE,
    Header,
    brain,
    header_for,
    nifti,
    put,
    put_case,
    sequence_path,
)

Spoil = Callable[[Path], object]


@dataclass(frozen=True)
class Entry:
    """One kind of input, and what becomes of it."""

    name: str
    spoil: Spoil
    outcome: str
    """read, mended, warned or refused."""
    said: str = ""
    """Part of the repair, of the warning, or of the refusal's problem."""
    found: str = ""
    expected: str = ""
    """Parts of a refusal's evidence."""


def t1c(folder: Path) -> Path:
    return sequence_path(folder, "t1c")


def raw(change: Callable[[bytes], bytes]) -> Spoil:
    """Change the bytes of the t1c file."""
    return lambda folder: t1c(folder).write_bytes(change(t1c(folder).read_bytes()))


def whole(contents: bytes) -> Spoil:
    """Other contents for the t1c file."""
    return raw(lambda _: contents)


def unpacked(change: Callable[[bytes], bytes]) -> Spoil:
    """Change the bytes of the t1c file before compression."""
    return raw(lambda contents: gzip.compress(change(gzip.decompress(contents))))


def field(name: str, value: object, *, everywhere: bool = False) -> Spoil:
    """Another value in one header field of t1c, or of all sequences."""

    def edit(header: Header) -> None:
        header[name] = value

    return headers(edit) if everywhere else header_edit(edit)


def header_edit(edit: Callable[[Header], None]) -> Spoil:
    return lambda folder: put(t1c(folder), nifti(brain(1), edit=edit))


def headers(edit: Callable[[Header], None]) -> Spoil:
    """The same change in the headers of all four sequences."""

    def spoil(folder: Path) -> None:
        for number, sequence in enumerate(SEQUENCES):
            put(sequence_path(folder, sequence), nifti(brain(number), edit=edit))

    return spoil


def affine(matrix: np.ndarray, codes: tuple[int, int] = (0, 1)) -> Spoil:
    """The same affine for all four sequences."""

    def spoil(folder: Path) -> None:
        for number, sequence in enumerate(SEQUENCES):
            array = brain(number)
            header = header_for(array, codes=codes)
            header.set_sform(matrix, codes[1])
            if codes[0]:
                header.set_qform(matrix, codes[0])
            put(sequence_path(folder, sequence), nifti(array, header))

    return spoil


def image(array: np.ndarray, edit: Callable[[Header], None] | None = None, **options: str) -> Spoil:
    """Another image as t1c."""
    return lambda folder: put(t1c(folder), nifti(array, edit=edit, **options))


def voxels(**values: float) -> Spoil:
    """Values for single voxels of t1c, as float32: v10_12_9=7 puts 7 at (10, 12, 9)."""

    def spoil(folder: Path) -> None:
        array = brain(1, dtype="float32")
        for key, value in values.items():
            array[tuple(map(int, key[1:].split("_")))] = value
        put(t1c(folder), nifti(array))

    return spoil


def everywhere(array: np.ndarray, edit: Callable[[Header], None] | None = None) -> Spoil:
    """Other images in this shape and type as all sequences."""

    def spoil(folder: Path) -> None:
        for sequence in SEQUENCES:
            put(sequence_path(folder, sequence), nifti(array, edit=edit))
            array[tuple(n // 2 for n in array.shape)] += 1

    return spoil


def spaced(*edges: float, shape: tuple[int, int, int] = SHAPE) -> Spoil:
    """Voxels of another size in all sequences."""

    def spoil(folder: Path) -> None:
        for number, sequence in enumerate(SEQUENCES):
            array = brain(number, shape, "uint8")
            put(sequence_path(folder, sequence), nifti(array, header_for(array, np.diag([*edges, 1.0]))))

    return spoil


def swap(name: str) -> Spoil:
    """Put something else in the place of the t1c file."""

    def spoil(folder: Path) -> None:
        path = t1c(folder)
        path.unlink()
        makers = {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "loop": lambda: path.symlink_to(path.name)}
        makers.get(name, lambda: path.symlink_to(name))()

    return spoil


def rename(pattern: str) -> Spoil:
    """Give the whole case another name (the files keep the style of BraTS 2023)."""

    def spoil(folder: Path) -> None:
        for sequence in SEQUENCES:
            sequence_path(folder, sequence).rename(
                sequence_path(folder, sequence).with_name(f"{pattern}-{sequence}.nii.gz")
            )
        (folder / "ill").rename(folder / pattern)

    return spoil


def names(*files: str) -> Spoil:
    """Other file names for the four sequences, in the order t1n t1c t2w t2f."""

    def spoil(folder: Path) -> None:
        for sequence, name in zip(SEQUENCES, files, strict=True):
            target = folder / name
            target.parent.mkdir(exist_ok=True)
            sequence_path(folder, sequence).rename(target)
        if not any((folder / "ill").iterdir()):
            (folder / "ill").rmdir()

    return spoil


def beside(*files: str, contents: bytes = b"stray") -> Spoil:
    """Further files in the input folder."""
    return lambda folder: [put(folder / name, contents) for name in files]


def missing(*sequences: str) -> Spoil:
    return lambda folder: [sequence_path(folder, sequence).unlink() for sequence in sequences]


def no_forms(header: Header) -> None:
    header["qform_code"] = header["sform_code"] = 0


def qform_only(name: str, value: object) -> Callable[[Header], None]:
    def edit(header: Header) -> None:
        header["sform_code"] = 0
        header[name] = value

    return edit


def dims(*values: int) -> Callable[[Header], None]:
    def edit(header: Header) -> None:
        header["dim"][: len(values)] = values

    return edit


def shifted(offset: float) -> Callable[[Header], None]:
    def edit(header: Header) -> None:
        header["srow_x"][3] += offset
        header["qoffset_x"] += offset

    return edit


def scaled(header: Header) -> None:
    header["scl_slope"], header["scl_inter"] = 0.5, 0.25


def other_qform(header: Header) -> None:
    header["quatern_b"], header["quatern_d"] = 1, 0


def nifti2(array: np.ndarray, edit: Callable[[Header], None] | None = None, endian: str = "<") -> bytes:
    return nifti(array, header_for(array, version=2), edit, endian)


def other_orientation(folder: Path) -> None:
    array = brain(1)[::-1, ::-1]
    ras = np.diag([1.0, 1, 1, 1])
    ras[:2, 3] = [-(SHAPE[0] - 1), 239 - (SHAPE[1] - 1)]
    put(t1c(folder), nifti(array, header_for(array, ras)))


def member(folder: Path) -> None:
    contents = gzip.decompress(t1c(folder).read_bytes())
    t1c(folder).write_bytes(
        gzip.compress(contents[:100]) + gzip.compress(contents[100:5000]) + gzip.compress(contents[5000:])
    )


def parent_link(folder: Path) -> None:
    (folder / "again").symlink_to(folder, target_is_directory=True)
    (folder / "ill" / "up").symlink_to(folder, target_is_directory=True)


def linked_twice(folder: Path) -> None:
    (folder / "copy").symlink_to(folder / "ill", target_is_directory=True)


def flat_and_nested(folder: Path) -> None:
    put(folder / "ill-t1n.nii.gz", nifti(brain(5)))


def undecodable(folder: Path) -> None:
    os.rename(os.fsencode(folder / "ill"), os.fsencode(folder) + b"/ill\xff")  # noqa: PTH104 (Path takes no bytes)
    inside = Path(os.fsdecode(os.fsencode(folder) + b"/ill\xff"))
    for path in inside.iterdir():
        path.rename(inside / path.name.removeprefix("ill-"))


def in_two_writings(first: str, second: str) -> Spoil:
    """The case under two names that some file systems take for one."""

    def spoil(folder: Path) -> None:
        rename(first)(folder)
        put_case(folder, second)

    return spoil


def pair(folder: Path) -> None:
    contents = gzip.decompress(t1c(folder).read_bytes())
    t1c(folder).unlink()
    put(folder / "ill" / "ill-t1c.hdr", contents[:348])
    put(folder / "ill" / "ill-t1c.img", contents[352:])


def extended(*sizes: int) -> Spoil:
    """Header extensions of 64 kB each that state these sizes."""

    def spoil(folder: Path) -> None:
        extensions = b"".join(size.to_bytes(4, "little", signed=True) + bytes(2**16 - 4) for size in sizes)

        def edit(header: Header) -> None:
            header["vox_offset"] = 352 + len(extensions)

        contents = nifti(brain(1), edit=edit)
        put(t1c(folder), contents[:348] + b"\1\0\0\0" + extensions + contents[352:])

    return spoil


def sparse(folder: Path) -> None:
    """A terabyte of nothing behind a sound file."""
    t1c(folder).write_bytes(gzip.decompress(t1c(folder).read_bytes()))
    os.truncate(t1c(folder), 2**40)


def bomb(folder: Path) -> None:
    """Two gigabytes of zeros in 4 MB of gzip members, behind a sound image."""
    zeros = gzip.compress(bytes(2**24))
    t1c(folder).write_bytes(t1c(folder).read_bytes() + zeros * 128)


def described(name: int) -> Spoil:
    """A gzip header with a file name of so many bytes."""
    return raw(lambda b: b[:3] + b"\x08" + b[4:10] + b"n" * name + b"\0" + b[10:])


def two_patients(folder: Path) -> None:
    t1c(folder).rename(t1c(folder).with_name("other-t1c.nii.gz"))


SHEARED = LPS @ np.array([[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
SLIGHTLY_SHEARED = LPS @ np.array([[1, 0.02, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
TILTED = nib.affines.from_matvec(nib.eulerangles.euler2mat(x=np.radians(20))) @ LPS
SINGULAR = np.diag([1.0, 1, 0, 1])
NOT_FINITE = np.where(np.eye(4) > 0, np.nan, 0) + np.diag([0, 0, 0, 1.0])
FLOAT = brain(1, dtype="float32")
CUT = nifti(brain(1))[:-4000]

CONTENTS = [
    Entry("gzip cut in the middle", raw(lambda b: b[: len(b) // 2]), "refused", "truncated", "ends early", "whole"),
    Entry("gzip cut in the header", raw(lambda b: b[:15]), "refused", "truncated", "ends early", "whole file"),
    Entry("gzip without its check sum", raw(lambda b: b[:-6]), "refused", "truncated", "ends early", "whole file"),
    Entry("gzip with a flipped byte", raw(lambda b: b[:-8] + bytes([b[-8] ^ 1]) + b[-7:]), "refused", "corrupt", "gzip"),
    Entry("gzip with a bad block", raw(lambda b: b[:3000] + bytes(400) + b[3400:]), "refused", "", "gzip", "whole file"),
    Entry("gzip of a cut file", unpacked(lambda b: b[:-1000]), "refused", "truncated", "bytes", "bytes for 20×24×18"),
    Entry("gzip of nothing", whole(gzip.compress(b"")), "refused", "empty", "0 bytes", "a NIfTI file"),
    Entry("gzip inside gzip", raw(gzip.compress), "refused", "not a NIfTI file", "gzip inside gzip", "NIfTI-1"),
    Entry("gzip in three members", member, "read"),
    Entry("garbage after gzip", raw(lambda b: b + b"garbage"), "mended", "t1c: 7 bytes after the end of the gzip"),
    Entry("zeros after gzip", raw(lambda b: b + bytes(512)), "read"),
    Entry("not compressed, named .gz", raw(gzip.decompress), "mended", "t1c: the file is not compressed, although"),
    Entry("zero bytes", whole(b""), "refused", "empty", "0 bytes", "a NIfTI file"),
    Entry("one byte", whole(b"n"), "refused", "not a NIfTI file", "begins 'n'", "NIfTI"),
    Entry("noise", whole(np.random.default_rng(0).bytes(9999)), "refused", "not a NIfTI file", "begins", "NIfTI-1"),
    Entry("header alone", unpacked(lambda b: b[:348]), "refused", "", "bytes", "bytes"),
    Entry("half a header", unpacked(lambda b: b[:200]), "refused", "truncated", "200 bytes", "a header of 348"),
    Entry("Git LFS pointer", whole(b"version https://git-lfs.github.com/spec/v1\n"), "refused", "", "was not downloaded"),
    Entry("git-annex pointer", whole(b"/annex/objects/MD5E-s1--0.nii.gz\n"), "refused", "", "was not downloaded"),
    Entry("web page", whole(b"<!DOCTYPE html><title>Sign in</title>"), "refused", "not a NIfTI", "a web page", "NIfTI"),
    Entry("JSON", whole(b"{}"), "refused", "not a NIfTI file", "JSON", "NIfTI-1 or NIfTI-2"),
    Entry("ZIP", whole(b"PK\x03\x04" + bytes(600)), "refused", "not a NIfTI file", "a ZIP archive", "NIfTI-1"),
    Entry("DICOM", whole(bytes(128) + b"DICM" + bytes(600)), "refused", "not a NIfTI file", "a DICOM file", "NIfTI-1"),
    Entry("a few bytes too many", unpacked(lambda b: b + bytes(64)), "mended", "t1c: 64 bytes after the last voxel"),
    Entry("a bomb of two gigabytes", bomb, "refused", "more data than its header", "or more", "20×24×18"),
    Entry("a sparse terabyte", sparse, "refused", "more data than its header", "or more", "20×24×18"),
    Entry("gzip with a file name", described(20), "read"),
    Entry("gzip with a file name of 70 kB", described(70_000), "refused", "truncated", "ends early", "a whole file"),
    Entry("header extensions", extended(2**16, 2**16, 2**16), "read"),
    Entry("header extensions that lie", extended(-8, 2**31 - 1, 0), "read"),
    Entry("a bomb of zeros", unpacked(lambda b: b + bytes(2**24)), "refused", "more data than its header", "or more"),
]  # fmt: skip

HEADERS = [
    Entry("header claims more than there is", field("dim", [3, 200, 240, 155, 1, 1, 1, 1]), "refused", "", "bytes", "200×240×155"),
    Entry("header claims a few slices more", field("dim", [3, 20, 24, 21, 1, 1, 1, 1], everywhere=True), "refused", "truncated", "bytes", "20×24×21"),
    Entry("header claims less than there is", field("dim", [3, 20, 24, 12, 1, 1, 1, 1], everywhere=True), "refused", "more data than", "or more", "20×24×12"),
    Entry("huge dimensions", field("dim", [3, 32767, 32767, 32767, 1, 1, 1, 1]), "refused", "too large", "32767×", "at most 1024"),
    Entry("dimensions beyond 64 bits", whole(nifti2(brain(1), dims(3, 2**62, 2**62, 2**62))), "refused", "too large", "4611686018427387904×"),
    Entry("dimensions at the limit", field("dim", [3, 1024, 1024, 96, 1, 1, 1, 1]), "refused", "its header lies", "of gzip", "1024×1024×96"),
    Entry("dimensions at the limit in all sequences", field("dim", [3, 1024, 1024, 96, 1, 1, 1, 1], everywhere=True), "refused", "its header lies", "of gzip", "1024×1024×96"),
    Entry("no dimensions", header_edit(dims(0)), "refused", "number of dimensions", "0", "3"),
    Entry("ninety-nine dimensions", header_edit(dims(99)), "refused", "number of dimensions", "99", "3"),
    Entry("negative dimension", header_edit(dims(3, -20)), "refused", "dimensions", "-20×24×18", "3-D"),
    Entry("zero dimension", header_edit(dims(3, 20, 0)), "refused", "dimensions", "20×0×18", "3-D"),
    Entry("1-D", header_edit(dims(1, 8640, 1, 1)), "refused", "dimensions", "8640", "a 3-D image"),
    Entry("2-D", image(brain(1)[:, :, 9]), "refused", "dimensions", "20×24", "a 3-D image"),
    Entry("single slice", image(brain(1)[:, :, 9:10]), "refused", "too small", "20×24×1", "8 voxels"),
    Entry("tiny volume", image(brain(1)[7:12, 7:12, 7:12]), "refused", "too small", "5×5×5", "8 voxels"),
    Entry("4-D with one volume", image(brain(1)[..., None]), "mended", "t1c: 4-D with single further axes (20×24×18×1)"),
    Entry("5-D with one volume", image(brain(1)[..., None, None]), "mended", "t1c: 5-D with single further axes"),
    Entry("4-D with three volumes", image(np.stack([brain(1)] * 3, -1)), "refused", "dimensions", "20×24×18×3", "3-D"),
    Entry("5-D vectors", image(np.stack([brain(1)[..., None]] * 3, -1)), "refused", "dimensions", "20×24×18×1×3", "3-D"),
    Entry("wrong magic", field("magic", b"n+9"), "refused", "not a NIfTI image in one file", "n+9", "n+1"),
    Entry("header of a pair", field("magic", b"ni1"), "refused", "not a NIfTI image in one file", "ni1", "n+1"),
    Entry("Analyze", field("magic", b""), "refused", "not a NIfTI image in one file", "magic b''", "n+1"),
    Entry("wrong header size", field("sizeof_hdr", 347), "refused", "not a NIfTI file", "begins", "NIfTI-1 or NIfTI-2"),
    Entry("vox_offset 0", field("vox_offset", 0), "mended", "t1c: vox_offset is 0: taken as 352"),
    Entry("vox_offset inside the header", field("vox_offset", 100), "refused", "vox_offset", "100", "352 to"),
    Entry("vox_offset not a number", field("vox_offset", np.nan), "refused", "vox_offset", "nan", "352 to"),
    Entry("vox_offset negative", field("vox_offset", -352), "refused", "vox_offset", "-352", "352 to"),
    Entry("vox_offset far away", field("vox_offset", 1e30), "refused", "vox_offset", "1e+30", "352 to"),
    Entry("vox_offset past the end", field("vox_offset", 2**20), "refused", "", "bytes", "bytes"),
    Entry("vox_offset in the middle of a byte", field("vox_offset", 352.5), "read"),
    Entry("intent of a label map", field("intent_code", 1002), "read"),
    Entry("display range not a number", field("cal_max", np.nan), "read"),
    Entry("NIfTI-2 with the magic of NIfTI-1", whole(nifti2(brain(1), lambda h: h.__setitem__("magic", b"n+1"))), "refused", "not a NIfTI image in one file", "n+1", "n+2"),
    Entry("bitpix wrong", field("bitpix", 8), "mended", "t1c: bitpix is 8: the data type, int16, counts"),
    Entry("complex64", image(brain(1).astype(np.complex64)), "refused", "data type", "complex64", "real numbers"),
    Entry("complex128", image(brain(1).astype(np.complex128)), "refused", "data type", "complex128", "real numbers"),
    Entry("RGB", field("datatype", 128), "refused", "data type", "RGB", "real numbers of 8 to 64 bits"),
    Entry("RGBA", field("datatype", 2304), "refused", "data type", "RGBA", "real numbers of 8 to 64 bits"),
    Entry("binary", field("datatype", 1), "refused", "data type", "binary", "real numbers of 8 to 64 bits"),
    Entry("no data type", field("datatype", 0), "refused", "data type", "none", "real numbers of 8 to 64 bits"),
    Entry("float128", field("datatype", 1536), "refused", "data type", "float128", "real numbers of 8 to 64 bits"),
    Entry("unknown data type", field("datatype", 4711), "refused", "data type", "code 4711", "real numbers"),
    *(
        Entry(kind, image(brain(1).astype(kind)), "read")
        for kind in ("uint8", "int32", "uint16", "uint32", "int64", "uint64", "float32", "float64")
    ),
    Entry("int8", image((brain(1) // 2).astype(np.int8)), "read"),
    Entry("big-endian", image(brain(1), endian=">"), "read"),
    Entry("big-endian float64", image(brain(1).astype(np.float64), endian=">"), "read"),
    Entry("NIfTI-2", lambda folder: put(t1c(folder), nifti2(brain(1))), "read"),
    Entry("big-endian NIfTI-2", lambda folder: put(t1c(folder), nifti2(brain(1), endian=">")), "read"),
    Entry("scl_slope 0", field("scl_slope", 0), "read"),
    Entry("scl_slope not a number", field("scl_slope", np.nan), "mended", "t1c: scl_slope is nan: values were taken as"),
    Entry("scl_slope infinite", field("scl_slope", np.inf), "mended", "t1c: scl_slope is inf: values were taken as"),
    Entry("scl_inter not a number", field("scl_inter", np.nan), "mended", "t1c: scl_inter is nan: taken as 0"),
    Entry("scl_slope beyond float32", field("scl_slope", 3e38), "refused", "empty", "no finite voxel but 0", "a brain"),
]  # fmt: skip

VALUES = [
    Entry("not a number", voxels(v10_12_9=np.nan), "mended", "t1c: 1 voxel not finite, set to 0"),
    Entry("infinite", voxels(v10_12_9=np.inf, v10_12_8=-np.inf), "mended", "t1c: 2 voxels not finite, set to 0"),
    Entry("float64 beyond float32", image(np.where(brain(1) > 198, 1e300, brain(1))), "mended", "not finite, set to 0"),
    Entry("background not a number", image(np.where(FLOAT == 0, np.nan, FLOAT)), "mended", "not finite, set to 0"),
    Entry("nothing but not a number", image(np.full_like(FLOAT, np.nan)), "refused", "empty", "no finite voxel", "brain"),
    Entry("all zero", image(np.zeros_like(FLOAT)), "refused", "empty", "all voxels 0", "a brain"),
    Entry("constant", image(np.full_like(FLOAT, 7)), "refused", "no contrast", "no value but 7", "a brain"),
    Entry("values near the end of float32", image(FLOAT * 1.7e36), "refused", "intensities", "values from 1.7e+38 to", "at most 1e+15"),
    Entry("values below the end of float32", image(FLOAT * -1.7e36), "refused", "intensities", "e+38", "at most 1e+15"),
    Entry("values whose squares have no sum", image(FLOAT * 1e15), "refused", "intensities", "values from 1e+17 to", "at most 1e+15"),
    Entry("large values that can be z-scored", image(FLOAT * 1e12), "read"),
    Entry("small values that can be z-scored", image(FLOAT * 1e-8), "read"),
    Entry("values too small to be z-scored", image(FLOAT * 1e-12), "refused", "no contrast", "values from 1e-10", "differ by 1e-07"),
    Entry("values that are no normal float32", image(FLOAT * 1e-42), "refused", "no contrast", "values from", "differ by 1e-07"),
    Entry("one voxel near the end of float32", voxels(v10_12_9=3e38), "mended", "t1c: 1 voxel far above the rest (up to 3e+38)"),
    Entry("mask for a scan", image((brain(1) > 0).astype(np.uint8)), "refused", "no contrast", "no value but 1", "a brain"),
    Entry("labels for a scan", image(brain(1) // 60), "warned", "t1c: only 3 different values in a sample"),
    Entry("saturated voxel", voxels(v10_12_9=32767), "mended", "t1c: 1 voxel far above the rest (up to 32767)"),
    Entry("voxel at the bottom", voxels(v10_12_9=-32768), "mended", "t1c: 1 voxel far below the rest (up to -32768)"),
    Entry("voxel at the bottom beside the background", voxels(v10_12_1=-32768), "mended", "t1c: 1 voxel far below the rest (up to -32768)"),
    Entry("background at the bottom", voxels(v0_0_1=-32768), "mended", "t1c: 1 voxel far below the rest (up to -32768)"),
    Entry("saturated background", voxels(v0_0_1=32767), "mended", "t1c: 1 voxel far above the rest (up to 32767)"),
    Entry("constant background", image(np.where(FLOAT == 0, -1024, FLOAT)), "mended", "t1c: background was -1024"),
    Entry("negative intensities", image(FLOAT - 150 * (FLOAT != 0)), "read"),
    *(
        Entry(f"{kind} in all sequences, scaled", everywhere(brain(1).astype(kind), scaled), "mended", "all sequences: background was 0.25")
        for kind in ("int16", "float32", "float64")
    ),
    Entry("unstripped", everywhere(brain(1) + 10 * np.indices(SHAPE).sum(0).astype(np.int16) + 1), "warned", "looks unstripped"),
    Entry("the same sequence twice", image(brain(0)), "warned", "t1n and t1c are the same image"),
]  # fmt: skip

GEOMETRY = [
    Entry("singular sform", field("srow_z", [0, 0, 0, 0], everywhere=True), "mended", "all sequences: the sform has no inverse, the qform was used"),
    Entry("sform not finite", field("srow_z", [0, 0, np.nan, 0]), "mended", "t1c: the sform has no inverse, the qform was used"),
    Entry("singular sform alone", affine(SINGULAR), "refused", "sform has no inverse", "[0.0, 0.0, 0.0, 0.0]", "invertible"),
    Entry("sform alone, not finite", affine(NOT_FINITE), "refused", "sform has no inverse", "nan", "invertible"),
    Entry("sform of 1e38", affine(np.diag([1e38, 1e38, 1e38, 1])), "refused", "voxel size", "1e+38", "edges of 0.1 to 10 mm"),
    Entry("qform not finite", headers(qform_only("quatern_b", np.nan)), "refused", "qform has no inverse", "", "invertible"),
    Entry("quaternion too long", headers(qform_only("quatern_b", 7)), "refused", "qform has no inverse", "no rotation", "invertible"),
    Entry("sheared", affine(SHEARED), "refused", "sheared voxels", "27° from a right angle", "resample"),
    Entry("slightly sheared", affine(SLIGHTLY_SHEARED), "warned", "all sequences: voxel axes are not quite at right"),
    Entry("tilted", affine(TILTED), "warned", "all sequences: voxel axes are tilted by 20°"),
    Entry("neither sform nor qform", headers(no_forms), "warned", "all sequences: neither sform nor qform is set"),
    Entry("sform and qform disagree", headers(other_qform), "warned", "all sequences: sform and qform disagree by up to"),
    Entry("one sequence stored otherwise", other_orientation, "mended", "t1c: stored as RAS, t1n as LPS: reoriented"),
    Entry("pixdim 0", field("pixdim", [1, 0, 0, 0, 0, 0, 0, 0], everywhere=True), "warned", "pixdim states voxels of 0 × 0 × 0 mm"),
    Entry("pixdim negative", field("pixdim", [-1, -1, 1, 1, 0, 0, 0, 0]), "warned", "t1c: pixdim states voxels of -1 × 1 × 1"),
    Entry("pixdim alone, 0", headers(lambda h: (no_forms(h), h.__setitem__("pixdim", 0))), "refused", "voxel size", "0", "three positive"),
    Entry("pixdim a signalling NaN", unpacked(lambda b: b[:80] + bytes.fromhex("0000a07f") + b[84:]), "warned", "t1c: pixdim states voxels of nan"),
    Entry("units in metres", field("xyzt_units", 1), "warned", "t1c: xyzt_units says metres: taken as mm"),
    Entry("half a millimetre", spaced(0.5, 0.5, 0.5), "warned", "voxels of 0.5 × 0.5 × 0.5 mm"),
    Entry("5 mm", spaced(5, 5, 5), "warned", "voxels of 5 × 5 × 5 mm"),
    Entry("thick slices", spaced(1, 1, 6), "warned", "voxels of 1 × 1 × 6 mm"),
    Entry("micrometres", spaced(0.001, 0.001, 0.001), "refused", "voxel size", "0.001 × 0.001", "edges of 0.1 to 10 mm"),
    Entry("centimetres", spaced(50, 50, 50), "refused", "voxel size", "50 × 50 × 50 mm", "edges of 0.1 to 10 mm"),
    Entry("field of view of metres", spaced(10, 10, 10, shape=(60, 60, 60)), "refused", "field of view", "60×60×60 voxels", "litres"),
    Entry("another shape", image(brain(1, (20, 24, 17))), "refused", "another shape", "20×24×17", "20×24×18 as ill-t1n.nii.gz"),
    Entry("axes in another order", image(brain(1, (24, 20, 18))), "refused", "another shape", "24×20×18", "20×24×18"),
    Entry("another origin", header_edit(shifted(5)), "refused", "another place", "corners up to 5 mm", "at most 0.1 mm"),
    Entry("origin not finite", header_edit(shifted(np.inf)), "refused", "has no inverse", "inf", "invertible"),
    Entry("rounding in the origin", header_edit(shifted(0.01)), "read"),
    Entry("another code", field("qform_code", 2), "read"),
]  # fmt: skip

NAMES = [
    Entry("missing sequence", missing("t2f"), "refused", "missing t2f", "ill-t1n.nii.gz, ill-t1c", "end in t2f, flair, 0003"),
    Entry("three missing", missing("t1n", "t2w", "t2f"), "refused", "missing t1n and t2w and t2f", "ill-t1c.nii.gz"),
    Entry("empty case folder", missing(*SEQUENCES), "refused", "its folder holds no sequence", "no file", "ill-t1n.nii.gz"),
    Entry("duplicate, .nii beside .nii.gz", beside("ill/ill-t1n.nii"), "refused", "t1n is there 2 times", "ill-t1n.nii", "one file"),
    Entry("two styles at once", beside("ill/ill_t1.nii.gz", "ill/ill_flair.nii.gz"), "refused", "is there 2 times", "ill_", "one file"),
    Entry("in its folder and beside it", flat_and_nested, "refused", "t1n is there 2 times", "ill-t1n.nii.gz", "one file"),
    Entry("styles mixed", names("ill/ill-t1n.nii.gz", "ill/ill_t1ce.nii.gz", "ill/ill_0002.nii.gz", "ill/ill_FLAIR.nii.gz"), "read"),
    Entry("BraTS up to 2021", names("ill/ill_t1.nii.gz", "ill/ill_t1ce.nii.gz", "ill/ill_t2.nii.gz", "ill/ill_flair.nii.gz"), "read"),
    Entry("side by side", names("ill-t1n.nii.gz", "ill-t1c.nii.gz", "ill-t2w.nii.gz", "ill-t2f.nii.gz"), "read"),
    Entry("nnU-Net", names("ill_0000.nii.gz", "ill_0001.nii.gz", "ill_0002.nii.gz", "ill_0003.nii.gz"), "read"),
    Entry("sequences without ID", names("ill/t1n.nii.gz", "ill/t1c.nii.gz", "ill/t2w.nii.gz", "ill/t2f.nii.gz"), "read"),
    Entry("capitals", names("ill/ill-T1N.NII.GZ", "ill/ill-T1C.nii.gz", "ill/ill-T2W.nii.gz", "ill/ill-T2F.nii.gz"), "read"),
    Entry("compressed, named .nii", names("ill/ill-t1n.nii", "ill/ill-t1c.nii.gz", "ill/ill-t2w.nii.gz", "ill/ill-t2f.nii.gz"), "mended", "t1n: the file is compressed, although"),
    Entry("files of two patients", two_patients, "refused", "carry different IDs", "ill, other", "one ID"),
    Entry("a stray label map", beside("ill/ill-seg.nii.gz", "ill_seg.nii.gz"), "read"),
    Entry("stray files", beside(".DS_Store", "dataset.json", "ill/notes.txt", "ill/.hidden-t1n.nii.gz"), "read"),
    Entry("AppleDouble files", beside("ill/._ill-t1n.nii.gz", "._ill-t1n.nii.gz"), "read"),
    Entry("archive remains", beside("__MACOSX/ill/._ill-t1n.nii.gz", "lost+found/x"), "read"),
    Entry("a folder named like a file", swap("folder"), "refused", "ill-t1c.nii.gz: not a file", "a folder", "a NIfTI file"),
    Entry("a pipe", swap("pipe"), "refused", "ill-t1c.nii.gz: not a file", "a pipe", "a NIfTI file"),
    Entry("link to a device", swap("/dev/zero"), "refused", "ill-t1c.nii.gz: not a file", "device", "a NIfTI file"),
    Entry("link to a process's memory", swap("/proc/self/mem"), "refused", "ill-t1c.nii.gz: ", "", "file"),
    Entry("header and image apart", pair, "refused", "missing t1c", "ill-t1n.nii.gz", "a file for each of"),
    Entry("names that differ in capitals", in_two_writings("ill", "ILL"), "refused", "but for capitals", "ILL, ill", "names that differ"),
    Entry("an accent written in two ways", in_two_writings("ill\u00e9", "ille\u0301"), "refused", "the writing of accents", "ill", "names that differ"),
    Entry("a folder too deep", lambda f: (f / "ill").rename(f / "x") and ((f / "ill").mkdir(), (f / "x").rename(f / "ill" / "x")), "refused", "its folder holds no sequence", "no file", "ill-t1n.nii.gz"),
    Entry("link to itself", swap("loop"), "refused", "ill-t1c.nii.gz: cannot be read", "symbolic links", "readable"),
    Entry("link to nothing", swap("nowhere.nii.gz"), "refused", "ill-t1c.nii.gz: cannot be read", "No such file", "readable"),
    Entry("links to folders above", parent_link, "read"),
    Entry("a second name for the folder", linked_twice, "read"),
    Entry("spaces", rename("ill  and pale "), "read"),
    Entry("not ASCII", rename("ill-Đặng-病-é"), "read"),
    Entry("line break", rename("ill\nwell: segmented"), "refused", "its name cannot be used", "control characters", "plain"),
    Entry("terminal commands", rename("ill\x1b[2J"), "refused", "its name cannot be used", "control characters", "plain"),
    Entry("written from right to left", rename("ill\u202egpj"), "refused", "its name cannot be used", "control", "plain"),
    Entry("not UTF-8", undecodable, "refused", "its name cannot be used", "control characters", "plain text"),
    Entry("out of the folder by backslashes", rename("ill\\..\\..\\evil"), "refused", "its name cannot be used", "a backslash"),
    Entry("out of the folder by dots", beside("..-t1n.nii.gz", "..-t1c.nii.gz", "..-t2w.nii.gz", "..-t2f.nii.gz"), "read"),
    Entry("a name too long for its result", lambda f: put(f / ("ill" + "x" * 246) / "t1n.nii", b""), "refused", "its name is too long", "256 bytes", "255"),
]  # fmt: skip

CATALOGUE = [*CONTENTS, *HEADERS, *VALUES, *GEOMETRY, *NAMES]


@dataclass(frozen=True)
class Result:
    scan: Scan | None
    refusals: tuple[CaseError, ...]
    peak: int
    """Bytes in use at once, at most."""


def read_folder(folder: Path) -> dict[str, Result]:
    """Find and read every case of a folder; what is not a named error goes up, warnings of libraries too."""
    results = {}
    listing = find_cases(folder)
    for problem in listing.problems:
        results[problem.case] = Result(None, (problem,), 0)
    for case in listing.cases:
        tracemalloc.start()
        try:
            results[case.id] = Result(read_scan(case), (), tracemalloc.get_traced_memory()[1])
        except CaseError as error:
            results[case.id] = Result(None, (error,), tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return results


def test_catalogue_is_large_and_its_names_are_unique():
    assert len({entry.name for entry in CATALOGUE}) == len(CATALOGUE) >= 100


@pytest.mark.timeout(60)
@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_each_kind_is_mended_and_said_so_or_refused_with_evidence(entry, tmp_path):
    put_case(tmp_path, "sound")
    put_case(tmp_path, "ill")
    entry.spoil(tmp_path)
    begun = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = read_folder(tmp_path)
    assert time.monotonic() - begun < 10

    sound = results.pop("sound").scan
    assert sound is not None
    assert sound.repairs == ()
    ill = next(result for case, result in results.items() if case.startswith("ill"))
    if entry.outcome != "refused":
        assert len(results) == 1
        assert ill.scan is not None, ill.refusals
        assert np.isfinite(ill.scan.data).all()
        repairs, odd = "\n".join(ill.scan.repairs), "\n".join(ill.scan.warnings)
        assert (entry.said in repairs and repairs) if entry.outcome == "mended" else repairs == ""
        if entry.outcome == "warned":
            assert entry.said in odd
    else:
        assert ill.scan is None
        (error,) = ill.refusals
        assert entry.said in error.problem
        assert entry.found in error.found
        assert entry.expected in error.expected
        assert error.found
        assert error.expected
        assert "\n" not in str(error)
        assert str(error).isprintable()
        assert "ill" in str(error)


@pytest.mark.parametrize("entry", [*CONTENTS, *HEADERS], ids=lambda entry: entry.name)
def test_no_file_costs_more_than_twice_the_memory_of_a_sound_one(entry, tmp_path):
    put_case(tmp_path, "sound")
    put_case(tmp_path, "ill")
    entry.spoil(tmp_path)
    results = read_folder(tmp_path)
    assert results["ill"].peak < 2 * results["sound"].peak + 2**18


@pytest.mark.parametrize("entry", [entry for entry in [*CONTENTS, *HEADERS] if entry.outcome in {"read", "mended"}], ids=lambda e: e.name)  # fmt: skip
def test_a_file_in_another_dress_reads_as_the_plain_one(entry, tmp_path):
    put_case(tmp_path)
    entry.spoil(tmp_path)
    scan = read_folder(tmp_path)["ill"].scan
    expected = brain(1)[::-1, ::-1].astype(np.float32)
    if entry.name == "int8":
        expected = expected // 2
    np.testing.assert_array_equal(scan.data[1], expected)


def test_ten_thousand_stray_files_change_nothing(tmp_path):
    put_case(tmp_path)
    for number in range(10_000):
        (tmp_path / f"stray-{number}.txt").touch()
    begun = time.monotonic()
    listing = find_cases(tmp_path)
    assert time.monotonic() - begun < 5
    assert [case.id for case in listing.cases] == ["ill"]
    assert listing.problems == ()


def test_the_whole_atlas_space_of_mni_is_read(tmp_path):
    shape = (182, 218, 182)
    for number, sequence in enumerate(SEQUENCES):
        array = brain(number, shape, "uint8")
        put(tmp_path / f"mni-{sequence}.nii", nifti(array, header_for(array)))
    (case,) = find_cases(tmp_path).cases
    scan = read_scan(case)
    assert scan.data.shape == (4, *shape)
    assert scan.repairs == ()
    assert [warning for warning in scan.warnings if "ml" not in warning] == []


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_a_file_that_may_not_be_read_is_refused(sequence, tmp_path, monkeypatch):
    put_case(tmp_path)
    (case,) = find_cases(tmp_path).cases
    opened = os.open

    def refuse(path, *arguments, **options):
        if str(path).endswith(f"-{sequence}.nii.gz"):
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr("inference.intake.nifti.os.open", refuse)
    with pytest.raises(CaseError, match=rf"ill: ill-{sequence}\.nii\.gz: cannot be read \(found Permission denied"):
        read_scan(case)


@pytest.mark.parametrize("change", ["gone", "cut", "pipe"])
def test_a_file_that_changes_after_it_was_found_is_refused(change, tmp_path):
    put_case(tmp_path)
    (case,) = find_cases(tmp_path).cases
    path = case.paths["t2w"]
    path.unlink()
    if change == "cut":
        path.write_bytes(CUT)
    elif change == "pipe":
        os.mkfifo(path)
    with pytest.raises(CaseError, match=r"ill: ill-t2w\.nii\.gz"):
        read_scan(case)


def test_a_disk_that_fails_while_reading_is_named(tmp_path, monkeypatch):
    class Failing:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def fileno(self):
            return 0

        def read(self, _):
            raise OSError(5, "Input/output error")

    put_case(tmp_path)
    (case,) = find_cases(tmp_path).cases
    monkeypatch.setattr("inference.intake.nifti._opened", lambda *_: Failing())
    with pytest.raises(CaseError, match="Input/output error"):
        read_scan(case)
