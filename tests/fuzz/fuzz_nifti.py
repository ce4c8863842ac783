"""Coverage-guided fuzzing of intake by atheris: any bytes as a NIfTI file, any text as file names.

Run by hand: `.venv/bin/python -m tests.fuzz.fuzz_nifti -runs=20000 -max_len=4096 -len_control=0`, in the root.
Every input has to be read, or refused by a named error; the first that is not ends the run with its bytes in `crash-…`.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["inference"]):
    from inference.errors import CaseError, FolderError
    from inference.intake.cases import Case, find_cases
    from inference.intake.scan import read_labels, read_scan

from inference.labels import SEQUENCES
from tests.inference.intake.samples import brain, header_for, nifti

SHAPE = (8, 9, 10)
SOUND = {version: nifti(brain(0, SHAPE), header_for(brain(0, SHAPE), version=version)) for version in (1, 2)}
FOLDER = Path(tempfile.mkdtemp())
NAMES = 4
"""Of how many inputs one is a list of file names; the others are files."""


def read_file(data: atheris.FuzzedDataProvider) -> None:
    """A sound file with a few bytes changed, or bytes as they come, as one sequence or all, and as labels."""
    contents = bytearray(SOUND[data.PickValueInList([1, 2])])
    if data.ConsumeBool():
        for _ in range(data.ConsumeIntInRange(1, 6)):
            place = data.ConsumeIntInRange(0, 555)
            patch = data.ConsumeBytes(data.ConsumeIntInRange(1, 8))
            contents[place : place + len(patch)] = patch
    else:
        contents = bytearray(data.ConsumeBytes(4000))
    (FOLDER / "odd.nii.gz").write_bytes(contents)
    everywhere = data.ConsumeBool()
    paths = {name: FOLDER / ("odd.nii.gz" if everywhere or name == "t2w" else "sound.nii") for name in SEQUENCES}
    for read in (lambda: read_scan(Case("fuzz", paths)), lambda: read_labels(FOLDER / "odd.nii.gz")):
        try:
            read()
        except CaseError as error:
            evidence(error)


def read_names(data: atheris.FuzzedDataProvider) -> None:
    """A folder of files whose names are what comes."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for _ in range(data.ConsumeIntInRange(1, 8)):
            stem = data.ConsumeUnicode(12).replace("/", "").replace("\0", "")
            end = data.PickValueInList(["-t1n", "_t1", "_0001", "-t2f", "_FLAIR", "-seg", "-t1c", "-t2w", ""])
            try:
                path = folder / data.PickValueInList(["", "a", "b"]) / f"{stem}{end}.nii.gz"
                path.parent.mkdir(exist_ok=True)
                path.touch()
            except (OSError, ValueError):
                continue
        try:
            listing = find_cases(folder)
        except FolderError as error:
            evidence(error)
            return
        for case in listing.cases:
            assert case.id.isprintable()
            assert (folder / f"{case.id}.nii.gz").parent == folder
        for problem in listing.problems:
            evidence(problem)


def evidence(error: CaseError | FolderError) -> None:
    """A refusal is one line, and says what was found and expected."""
    assert str(error).isprintable()
    assert not isinstance(error, CaseError) or (error.found and error.expected)


def check(raw: bytes) -> None:
    data = atheris.FuzzedDataProvider(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (read_names if data.ConsumeIntInRange(1, NAMES) == 1 else read_file)(data)


if __name__ == "__main__":
    (FOLDER / "sound.nii").write_bytes(SOUND[1])
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
