"""Coverage-guided fuzzing of intake by atheris: any bytes as a NIfTI file, any text as file names.

`.venv/bin/python -m tests.fuzz.fuzz_nifti`, in the root: 20 000 inputs, or as many as `-runs=N` says; all of
libFuzzer's options are understood. Every input has to be read, or refused by a named error. The first that is not, or
that takes ten seconds or half a gigabyte, ends the run, its bytes in `crash-…`, `timeout-…` or `oom-…`. What was done
is told every five hundred inputs.
"""

from __future__ import annotations

import gzip
import os
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["inference"]):
    from inference.errors import CaseError, FolderError
    from inference.intake.cases import Case, find_cases
    from inference.intake.label_map import read_labels
    from inference.intake.scan import any_geometry, read_scan

import nibabel as nib
import numpy as np

from inference.labels import SEQUENCES
from tests.inference.intake.samples import brain, header_for, nifti

SHAPE = (8, 9, 10)
SOUND = {version: nifti(brain(0, SHAPE), header_for(brain(0, SHAPE), version=version)) for version in (1, 2)}
HEADERS = {1: nib.Nifti1Header, 2: nib.Nifti2Header}
FIELDS = {version: [name for name in header().keys() if name != "sizeof_hdr"] for version, header in HEADERS.items()}  # noqa: SIM118 (no mapping)
REALS = [0.0, -0.0, 1.0, -1.0, 2.0, 352.0, 1e-45, 1e-30, 1e15, 1.2e36, 3e38, np.nan, np.inf, -np.inf]
WHOLE = [0, 1, 2, 3, 4, 7, 8, 9, 10, 16, 64, 255, 256, 512, 1024, 1025, 32767, -1, -32768]
ENDS = ["-t1n", "_t1", "_0000", "_0001", "-t2f", "_FLAIR", "-seg", "-t1c", "-t2w", ""]
WHOLE_CASE = ["_T1", "-t1c", "_0002", "_flair"]
NAMES = 4
"""Of how many inputs one is a list of file names; the others are files."""
SEEDS = 200
"""Random inputs that the fuzzer sets out from."""
DEFAULTS = ("-runs=20000", "-seed=1", "-timeout=10", "-rss_limit_mb=512", "-max_len=4096", "-len_control=0")

done: Counter[str] = Counter()
"""How many inputs there were of each kind, and what became of their cases."""


def check_file(data: atheris.FuzzedDataProvider, folder: Path) -> None:
    """A sound file that is spoilt, or bytes as they come, as one sequence or all, and as labels."""
    make = data.PickValueInList([with_other_fields, with_other_bytes, with_other_voxels, from_nothing])
    (folder / "odd.nii.gz").write_bytes(dressed(make(data), data))
    everywhere = data.ConsumeBool()
    paths = {name: folder / ("odd.nii.gz" if everywhere or name == "t2w" else "sound.nii") for name in SEQUENCES}
    for read in (lambda: read_scan(Case("fuzz", paths)), lambda: read_labels(folder / "odd.nii.gz")):
        try:
            read()
            done["images read"] += 1
        except CaseError as error:
            evidence(error)
            done["images refused"] += 1
    any_geometry({"t1n": folder / "odd.nii.gz"})


def with_other_fields(data: atheris.FuzzedDataProvider) -> bytes:
    """Up to four header fields, or elements of them, with values that lie."""
    version = data.PickValueInList([1, 2])
    contents = SOUND[version]
    header = HEADERS[version](contents[: HEADERS[version].sizeof_hdr], "<", check=False)
    for _ in range(data.ConsumeIntInRange(1, 4)):
        name = data.PickValueInList(FIELDS[version])
        field = header[name]
        kind = field.dtype.kind
        if kind == "S":
            value = np.array(data.ConsumeBytes(8), field.dtype)
        elif kind == "f":
            value = np.array(data.PickValueInList(REALS) if data.ConsumeBool() else data.ConsumeFloat())
        else:
            value = np.array(data.PickValueInList(WHOLE) if data.ConsumeBool() else data.ConsumeInt(8))
        with np.errstate(all="ignore"):
            value = value.astype(field.dtype, casting="unsafe")
        if field.shape:
            field[data.ConsumeIntInRange(0, field.size - 1)] = value
        else:
            header[name] = value
    if data.ConsumeBool():
        header = header.as_byteswapped(">")  # the voxels are then other numbers
    return header.binaryblock + contents[header.sizeof_hdr :]


def with_other_bytes(data: atheris.FuzzedDataProvider) -> bytes:
    """A few bytes of header changed, and the end cut off."""
    contents = bytearray(SOUND[data.PickValueInList([1, 2])])
    for _ in range(data.ConsumeIntInRange(1, 6)):
        place = data.ConsumeIntInRange(0, 555)
        patch = data.ConsumeBytes(data.ConsumeIntInRange(1, 8))
        contents[place : place + len(patch)] = patch
    return bytes(contents[: data.PickValueInList([len(contents), 2000, 600, 540, 352, 348, 100, 4])])


def with_other_voxels(data: atheris.FuzzedDataProvider) -> bytes:
    """Voxels of any type whose bytes are what comes, again and again, and any scaling."""
    dtype = data.PickValueInList(["uint8", "int8", "int16", "int32", "uint64", "float32", "float64"])
    pattern = data.ConsumeBytes(64) or b"\0"
    size = int(np.prod(SHAPE)) * np.dtype(dtype).itemsize
    voxels = np.frombuffer((pattern * size)[:size], dtype).reshape(SHAPE, order="F")
    header = header_for(voxels)
    with np.errstate(all="ignore"):
        if data.ConsumeIntInRange(1, 4) == 1:
            header["scl_slope"], header["scl_inter"] = data.ConsumeFloat(), data.ConsumeFloat()
    return nifti(voxels, header)


def from_nothing(data: atheris.FuzzedDataProvider) -> bytes:
    return data.PickValueInList([b"", b"\x1f\x8b\x08", b"\x1f\x8b\x08\x08", SOUND[1][:348]]) + data.ConsumeBytes(4000)


def dressed(contents: bytes, data: atheris.FuzzedDataProvider) -> bytes:
    """As it is, with much behind it, or compressed: whole, cut, with a bit flipped, or in two members."""
    dress = data.PickValueInList(["plain", "plain", "gzip", "gzip", "cut", "twice", "flipped", "bomb"])
    if dress == "plain":
        return contents
    packed = bytearray(gzip.compress(contents + bytes(2**20 * (dress == "bomb")), 1, mtime=0))
    number = data.ConsumeIntInRange(0, 10**6)
    if dress == "cut":
        del packed[number % len(packed) :]
    elif dress == "twice":
        packed += gzip.compress(bytes(number), 1)
    elif dress == "flipped":
        packed[number % len(packed)] ^= 1 << number % 8
    return bytes(packed)


def check_names(data: atheris.FuzzedDataProvider, folder: Path) -> None:
    """A folder of empty files whose names are what comes; cases that are found are read too."""
    place = folder / "names"
    place.mkdir()
    for _ in range(data.ConsumeIntInRange(1, 8)):
        stem = data.ConsumeUnicode(12).replace("/", "").replace("\0", "")
        subfolder = data.PickValueInList(["", "a", "b", stem])
        for end in data.PickValueInList([WHOLE_CASE, [data.PickValueInList(ENDS)]]):
            try:
                path = place / subfolder / f"{stem}{end}.nii.gz"
                path.parent.mkdir(exist_ok=True)
                path.touch()
            except (OSError, ValueError):
                continue
    try:
        check_listing(place)
    except FolderError as error:
        evidence(error)
        done["folders without a case"] += 1
    finally:
        shutil.rmtree(place)


def check_listing(place: Path) -> None:
    listing = find_cases(place)
    for case in listing.cases:
        assert case.id.isprintable()
        assert (place / f"{case.id}.nii.gz").parent == place
        done["cases found"] += 1
        try:
            read_scan(case)
        except CaseError as error:
            evidence(error)
        else:
            raise AssertionError("an empty file was read")
    for problem in listing.problems:
        evidence(problem)
        any_geometry(listing.found.get(problem.case, {}))
        done["cases refused by name"] += 1


def evidence(error: CaseError | FolderError) -> None:
    """A refusal is one line, and says what was found and expected."""
    assert str(error).isprintable()
    assert not isinstance(error, CaseError) or (error.found and error.expected)


def check(raw: bytes, folder: Path) -> None:
    data = atheris.FuzzedDataProvider(raw)
    names = data.ConsumeIntInRange(1, NAMES) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (check_names if names else check_file)(data, folder)
    done["lists of names" if names else "files"] += 1
    inputs = done["files"] + done["lists of names"]
    if inputs % 500 == 0:
        sys.stderr.write(f"{inputs} inputs passed: " + ", ".join(f"{n} {what}" for what, n in done.items()) + "\n")


def main() -> int:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:  # fast
        folder = Path(scratch)
        (folder / "sound.nii").write_bytes(SOUND[1])
        (folder / "corpus").mkdir()
        generator = np.random.default_rng(1)
        for number in range(SEEDS):  # rich enough from the start to make every choice
            (folder / "corpus" / f"{number}").write_bytes(generator.bytes(300))
        child = os.fork()  # libFuzzer ends the process that it runs in, which leaves nobody to tidy up
        if child == 0:
            atheris.Setup(
                [sys.argv[0], *DEFAULTS, *sys.argv[1:], str(folder / "corpus")], lambda raw: check(raw, folder)
            )
            atheris.Fuzz()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
