"""Finding cases: which files of a folder belong to which case, and which sequence each of them is."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from inference.errors import CaseError, FolderError
from inference.files import check_name
from inference.intake.notes import Notes
from inference.labels import SEQUENCES
from inference.text import printable

_ALIASES: Final[Mapping[str, str]] = {
    "t1n": "t1n", "t1": "t1n", "0000": "t1n",
    "t1c": "t1c", "t1ce": "t1c", "t1gd": "t1c", "0001": "t1c",
    "t2w": "t2w", "t2": "t2w", "0002": "t2w",
    "t2f": "t2f", "flair": "t2f", "0003": "t2f",
}  # fmt: skip
"""How a file name ends, and the sequence that this means: BraTS from 2023, BraTS up to 2021, nnU-Net."""

_NAME: Final = re.compile(
    r"(?P<id>.*?)(?:(?:^|[-_])(?P<word>t1n|t1ce|t1c|t1gd|t1|t2w|t2f|t2|flair)|_(?P<number>000[0-3]))\.nii(?:\.gz)?",
    re.IGNORECASE | re.DOTALL,
)

_STRAY_FOLDERS: Final = frozenset({"__MACOSX", "lost+found", "$RECYCLE.BIN", "System Volume Information"})

_SUFFIX: Final = ".nii.gz"


@dataclass(frozen=True)
class Case:
    """One case: four sequences of one patient at one time."""

    id: str
    """As in the file names; the result is called `<id>.nii.gz`."""
    paths: Mapping[str, Path]
    """One file for each of `labels.SEQUENCES`."""


@dataclass(frozen=True)
class CaseListing:
    """Cases in a folder, and what is wrong with others."""

    cases: tuple[Case, ...]
    """The complete cases, by ID."""
    problems: tuple[CaseError, ...]
    """One for each case that cannot be attempted, by ID."""
    found: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    """For each case in `problems`, the sequences of it that are there and unambiguous."""


@dataclass(frozen=True)
class _Candidate:
    """A name that says that it is a sequence of a case."""

    id: str
    """Empty where the name says nothing but the sequence."""
    sequence: str
    path: Path


def find_cases(folder: Path, *, ignored: Collection[Path] = ()) -> CaseListing:
    """The cases in `folder`: files side by side, or one sub-folder for each case, or both.

    Names begin with the ID and end in the sequence (`-t1n`, `_t1ce`, `_0003`, …; `.nii` or `.nii.gz`; capitals too); a
    file whose whole name is the sequence belongs to the case that its folder names. Hidden and other files are ignored,
    and so are sub-folders in `ignored` (an output folder inside the input folder, say) and links to a folder that
    contains them. A sub-folder without any sequence is a problem, unless the cases lie side by side, its case has files
    elsewhere, or it contains one of `ignored`.

    Raises FolderError where `folder` cannot be read or holds nothing like a case.
    """
    candidates, folders = _candidates(folder)
    problems: list[CaseError] = []
    nameless: list[Path] = []
    hidden = {os.path.realpath(path) for path in ignored}
    flat = bool(candidates)
    for subfolder in folders:
        real = os.path.realpath(subfolder)
        if real in hidden or Path(os.path.realpath(folder)).is_relative_to(real):
            continue
        try:
            inside = _in_subfolder(subfolder)
        except CaseError as error:
            problems.append(error)
            continue
        candidates += inside
        if not inside and not flat and not any(Path(path).is_relative_to(real) for path in hidden):
            nameless.append(subfolder)
    if not candidates:
        raise FolderError(
            f"{printable(str(folder))}: no case found (none of its files and none in its {len(folders)} sub-folders is "
            f"named like a sequence, expected <ID>/<ID>-t1n{_SUFFIX}, -t1c, -t2w, -t2f, or <ID>_t1, _t1ce, _t2, _flair)"
        )
    known = {candidate.id for candidate in candidates}
    problems += [_empty(subfolder) for subfolder in nameless if printable(subfolder.name) not in known]
    return _listing(candidates, problems)


def _candidates(folder: Path) -> tuple[list[_Candidate], list[Path]]:
    """Names in `folder` that look like a sequence, and its sub-folders, both sorted by name (FolderError)."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise FolderError(f"{printable(str(folder))}: cannot be read ({error.strerror or error})") from error
    candidates, folders = [], []
    for name in names:
        match = _NAME.fullmatch(name)
        path = folder / name
        if match:
            word = match["word"] or match["number"]
            identifier = match["id"] or printable(_own_name(folder))
            candidates.append(_Candidate(identifier, _ALIASES[word.lower()], path))
        elif name not in _STRAY_FOLDERS and os.path.isdir(path):  # noqa: PTH112 (never raises, unlike Path.is_dir on a loop)
            folders.append(path)
    return candidates, folders


def _own_name(folder: Path) -> str:
    """Name of a folder here, whatever a link leads to; the name of `.` or `..` is that of the folder itself."""
    return folder.name if folder.name not in ("", "..") else Path(os.path.realpath(folder)).name


def _in_subfolder(folder: Path) -> list[_Candidate]:
    """The candidates of one sub-folder (CaseError where it is unreadable or mixes the files of several cases)."""
    try:
        candidates, _ = _candidates(folder)
    except FolderError as error:
        raise CaseError(printable(folder.name), f"its folder {error}") from error
    groups = _grouped(candidates)
    if len(groups) > 1 and not any(len(group) == len(SEQUENCES) for group in groups.values()):
        raise CaseError(
            printable(folder.name),
            "the files in its folder carry different IDs",
            found=_shortened(sorted(groups)),
            expected="one ID, or all sequences of each",
        )
    return candidates


def _empty(folder: Path) -> CaseError:
    return CaseError(
        printable(folder.name),
        "its folder holds no sequence",
        found="no file named like one",
        expected=", ".join(f"{printable(folder.name)}-{sequence}{_SUFFIX}" for sequence in SEQUENCES),
    )


def _grouped(candidates: Iterable[_Candidate]) -> dict[str, dict[str, list[Path]]]:
    """ID → sequence → the files that claim to be it, each file once however many links lead to it."""
    groups: dict[str, dict[str, list[Path]]] = {}
    for candidate in candidates:
        paths = groups.setdefault(candidate.id, {}).setdefault(candidate.sequence, [])
        if not paths or os.path.realpath(candidate.path) not in map(os.path.realpath, paths):
            paths.append(candidate.path)
    return groups


def _listing(candidates: Iterable[_Candidate], problems: list[CaseError]) -> CaseListing:
    cases: list[Case] = []
    found: dict[str, Mapping[str, Path]] = {}
    groups = _grouped(candidates)
    twins: dict[str, list[str]] = {}
    for identifier in sorted(groups):
        twins.setdefault(_without_capitals(identifier), []).append(identifier)
    for identifier, paths in groups.items():
        try:
            _check_alone(identifier, twins[_without_capitals(identifier)])
            cases.append(_case(identifier, paths))
        except CaseError as error:
            problems.append(error)
            found[error.case] = {sequence: files[0] for sequence, files in paths.items() if len(files) == 1}
    return CaseListing(
        tuple(sorted(cases, key=lambda case: case.id)), tuple(sorted(problems, key=lambda problem: problem.case)), found
    )


def _without_capitals(identifier: str) -> str:
    """A name as file systems keep it that know no capitals, or one way to write an accent."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", identifier).casefold())


def _check_alone(identifier: str, twins: list[str]) -> None:
    """Refuse an ID whose result would be taken for that of another case on some file system, and overwrite it."""
    if len(twins) > 1:
        raise CaseError(
            printable(identifier),
            "its name is that of another case but for capitals or the writing of accents",
            found=_shortened(twins),
            expected="names that differ everywhere, or one name for all files of a case",
        )


def _case(identifier: str, paths: Mapping[str, list[Path]]) -> Case:
    """The case, or a CaseError that says what is wrong with its names or files."""
    check_name(identifier)
    for sequence, files in paths.items():
        if len(files) > 1:
            names = _shortened([str(file) for file in files])
            raise CaseError(identifier, f"{sequence} is there {len(files)} times", found=names, expected="one file")
    missing = [sequence for sequence in SEQUENCES if sequence not in paths]
    if missing:
        there = [paths[sequence][0].name for sequence in SEQUENCES if sequence in paths]
        raise CaseError(
            identifier,
            f"missing {' and '.join(missing)}",
            found=_shortened(there),
            expected=f"a file for each of {', '.join(SEQUENCES)}",
        )
    for files in paths.values():
        _check_regular(identifier, files[0])
    return Case(identifier, {sequence: paths[sequence][0] for sequence in SEQUENCES})


def _check_regular(identifier: str, path: Path) -> None:
    """Refuse what is named like a file but is none, without opening it (a pipe would wait for ever)."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise Notes(identifier, path.name).unreadable(error) from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise Notes(identifier, path.name).refusal("not a file", found=kind, expected="a NIfTI file")


def _shortened(names: list[str], most: int = 4) -> str:
    """Names on one line, the first few of them."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + rest
