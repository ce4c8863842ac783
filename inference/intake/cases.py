"""Finding cases: which files of a folder belong to which case, which sequence each of them is, and their digest."""

from __future__ import annotations

import hashlib
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

# How a file name ends, and the sequence that this means: BraTS from 2023, BraTS up to 2021, nnU-Net.
_ALIASES: Final[Mapping[str, str]] = {
    "t1n": "t1n", "t1": "t1n", "0000": "t1n",
    "t1c": "t1c", "t1ce": "t1c", "t1gd": "t1c", "0001": "t1c",
    "t2w": "t2w", "t2": "t2w", "0002": "t2w",
    "t2f": "t2f", "flair": "t2f", "0003": "t2f",
}  # fmt: skip

# A number follows an underscore, as nnU-Net writes it: that of P-0001.nii.gz is the patient's.
_NAME: Final = re.compile(
    r"(?P<id>.*?)(?:(?:^|[-_])(?P<word>t1n|t1ce|t1c|t1gd|t1|t2w|t2f|t2|flair)|_(?P<number>000[0-3]))\.nii(?:\.gz)?",
    re.IGNORECASE | re.DOTALL,
)

# Folders that macOS, Linux and Windows leave on disks and in archives; they are nobody's case.
_STRAY_FOLDERS: Final = frozenset({"__MACOSX", "lost+found", "$RECYCLE.BIN", "System Volume Information"})

_NamedFile = tuple[str, str, Path]
"""A file that is named like a sequence: the ID of its case, the sequence, the path."""


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


def find_cases(folder: Path, *, ignored: Collection[Path] = ()) -> CaseListing:
    """The cases in `folder`: files side by side, or one sub-folder for each case, or both.

    Names begin with the ID and end in the sequence (`-t1n`, `_t1ce`, `_0003`, …; `.nii` or `.nii.gz`; capitals too); a
    file whose whole name is the sequence belongs to the case that its folder names. Hidden and other files are ignored,
    and so are sub-folders in `ignored` (an output folder inside the input folder, say) and links to a folder that
    contains them. A sub-folder without any sequence is a problem, unless the cases lie side by side, its case has files
    elsewhere, or it contains one of `ignored`.

    Raises FolderError where `folder` cannot be read or holds nothing like a case.
    """
    files, subfolders = _named_files(folder)
    side_by_side = bool(files)
    hidden = {os.path.realpath(path) for path in ignored}
    problems: list[CaseError] = []
    without: list[Path] = []
    for subfolder in subfolders:
        real = os.path.realpath(subfolder)
        if real in hidden or Path(os.path.realpath(folder)).is_relative_to(real):
            continue
        try:
            inside = _files_of_subfolder(subfolder)
        except CaseError as error:
            problems.append(error)
            continue
        files += inside
        if not inside and not side_by_side and not any(Path(path).is_relative_to(real) for path in hidden):
            without.append(subfolder)
    if not files:
        raise FolderError(
            f"{printable(str(folder))}: no case found (none of its files and none in its {len(subfolders)} sub-folders "
            "is named like a sequence, expected <ID>/<ID>-t1n.nii.gz, -t1c, -t2w, -t2f, or <ID>_t1, _t1ce, _t2, _flair)"
        )
    known = {identifier for identifier, _, _ in files}
    for name in (printable(subfolder.name) for subfolder in without):
        if name not in known:
            expected = ", ".join(f"{name}-{sequence}.nii.gz" for sequence in SEQUENCES)
            found = "no file named like one"
            problems.append(CaseError(name, "its folder holds no sequence", found=found, expected=expected))
    return _listing(files, problems)


def _named_files(folder: Path) -> tuple[list[_NamedFile], list[Path]]:
    """Files in `folder` that are named like a sequence, and its sub-folders, both sorted by name (FolderError)."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise FolderError(f"{printable(str(folder))}: cannot be read ({error.strerror or error})") from error
    # A linked folder keeps its own name, whatever the link leads to; `.` and `..` have none.
    own_name = folder.name if folder.name not in ("", "..") else Path(os.path.realpath(folder)).name
    files, subfolders = [], []
    for name in names:
        path = folder / name
        if match := _NAME.fullmatch(name):
            word = match["word"] or match["number"]
            files.append((match["id"] or printable(own_name), _ALIASES[word.lower()], path))
        elif name not in _STRAY_FOLDERS and os.path.isdir(path):  # noqa: PTH112 (never raises, unlike Path.is_dir on a loop)
            subfolders.append(path)
    return files, subfolders


def _files_of_subfolder(folder: Path) -> list[_NamedFile]:
    """The files of one sub-folder (CaseError where it is unreadable or mixes the files of several cases)."""
    try:
        files, _ = _named_files(folder)
    except FolderError as error:
        raise CaseError(printable(folder.name), f"its folder {error}") from error
    groups = _grouped(files)
    # Beside a whole case the others are cases of their own; pieces alone may be one case whose files were misnamed.
    if len(groups) > 1 and not any(len(group) == len(SEQUENCES) for group in groups.values()):
        problem, expected = "the files in its folder carry different IDs", "one ID, or all sequences of each"
        raise CaseError(printable(folder.name), problem, found=_shortened(sorted(groups)), expected=expected)
    return files


def _grouped(files: Iterable[_NamedFile]) -> dict[str, dict[str, list[Path]]]:
    """ID → sequence → the files that claim to be it, each file once however many links lead to it."""
    groups: dict[str, dict[str, list[Path]]] = {}
    for identifier, sequence, path in files:
        paths = groups.setdefault(identifier, {}).setdefault(sequence, [])
        if not paths or os.path.realpath(path) not in map(os.path.realpath, paths):
            paths.append(path)
    return groups


def _listing(files: Iterable[_NamedFile], problems: list[CaseError]) -> CaseListing:
    cases: list[Case] = []
    found: dict[str, Mapping[str, Path]] = {}
    groups = _grouped(files)
    twins: dict[str, list[str]] = {}
    for identifier in sorted(groups):
        twins.setdefault(_without_capitals(identifier), []).append(identifier)
    for identifier, paths in groups.items():
        try:
            cases.append(_case(identifier, paths, twins[_without_capitals(identifier)]))
        except CaseError as error:
            problems.append(error)
            found[error.case] = {sequence: same[0] for sequence, same in paths.items() if len(same) == 1}
    return CaseListing(
        tuple(sorted(cases, key=lambda case: case.id)), tuple(sorted(problems, key=lambda problem: problem.case)), found
    )


def _without_capitals(identifier: str) -> str:
    """A name as file systems keep it that know no capitals, or one way to write an accent."""
    # Normalised twice: folding takes some letters apart, such as ẖ.
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", identifier).casefold())


def _case(identifier: str, paths: Mapping[str, list[Path]], twins: list[str]) -> Case:
    """The case, or a CaseError that says what is wrong with its names or files.

    `twins` are the IDs, its own among them, whose results would have the same name on some file system.
    """
    if len(twins) > 1:  # else the result of one would overwrite that of the other there
        raise CaseError(
            printable(identifier),
            "its name is that of another case but for capitals or the writing of accents",
            found=_shortened(twins),
            expected="names that differ everywhere, or one name for all files of a case",
        )
    check_name(identifier)
    for sequence, same in paths.items():
        if len(same) > 1:
            names = _shortened([str(file) for file in same])
            raise CaseError(identifier, f"{sequence} is there {len(same)} times", found=names, expected="one file")
    missing = [sequence for sequence in SEQUENCES if sequence not in paths]
    if missing:
        there = _shortened([paths[sequence][0].name for sequence in SEQUENCES if sequence in paths])
        words = ", ".join(word for word, sequence in _ALIASES.items() if sequence in missing)
        expected = f"a file for each of {', '.join(SEQUENCES)}; names of what is missing end in {words}"
        raise CaseError(identifier, f"missing {' and '.join(missing)}", found=there, expected=expected)
    for same in paths.values():
        _check_regular(identifier, same[0])
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


def _shortened(names: list[str]) -> str:
    """Names on one line, the first four of them."""
    rest = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(map(printable, names[:4])) + rest


def digest_scans(case: Case) -> str:
    """:func:`digest_files` of a case's scans, in the order of the sequences."""
    return digest_files(case.id, [case.paths[sequence] for sequence in SEQUENCES])


def digest_files(case: str, paths: Iterable[Path]) -> str:
    """First 16 digits of the SHA-256 of a case's files, in their order (CaseError)."""
    digest = hashlib.sha256()
    # File by file: the digest of their concatenation would be the same wherever one ends and the next begins.
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise Notes(case, path.name).unreadable(error) from error
    return digest.hexdigest()[:16]
