"""Label maps on disk: which reference and which prediction are of one case, and reading them as they are stored.

The official programs score arrays in the order of the file, and the 2024 scores depend on it. So nothing is turned to a
canonical orientation here; a prediction has to be stored along the axes of its reference, in the same place.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inference.errors import CaseError, FolderError, UsageError
from inference.intake.label_map import LabelMap, read_label_map

_ENDING: Final = re.compile(r"\.nii(?:\.gz)?\Z", re.IGNORECASE)
# How the name of a label map may end.
_CALLED: Final = re.compile(
    r"(?:^|[-_.])(?:seg|segmentation|label|labels|pred|prediction|output|result)$", re.IGNORECASE
)
# How the names of other images end that lie beside label maps: scans, nnU-Net's channels, masks, probabilities.
_SEQUENCE: Final = re.compile(r"(?:^|[-_])(?:t1n|t1ce|t1c|t1gd|t1|t2w|t2f|t2|flair)$", re.IGNORECASE)
_COMPANION: Final = re.compile(
    r"(?:^|[-_.])(?:000[0-3]|(?:brain[-_]?)?mask|brain|probabilities|probability|softmax|uncertainty)$", re.IGNORECASE
)
# How IDs of BraTS 2023 and later end, by which the challenge's own programs match. Cohorts count on their own.
_NUMBER: Final = re.compile(r"(?:BraTS\d*[-_](?P<cohort>[A-Za-z]+)[-_]|(?<!\d))(?P<number>\d{5}-\d{3})$", re.IGNORECASE)


@dataclass(frozen=True)
class Pair:
    """The files of one case."""

    case: str
    """Its ID, after the reference."""
    reference: tuple[Path, ...]
    """More than one where that is ambiguous."""
    prediction: tuple[Path, ...]
    """Empty where the prediction is missing."""


@dataclass(frozen=True)
class Matching:
    """Every reference with its prediction."""

    pairs: tuple[Pair, ...]
    """One for each reference, by ID."""
    extra: tuple[str, ...]
    """IDs of predictions without a reference."""


@dataclass(frozen=True)
class Image:
    """A NIfTI file by its name."""

    path: Path
    stem: str
    """The name without `.nii.gz`."""
    id: str
    """The stem without a last word such as `-seg`; where nothing is left, the name of the folder."""
    folder: str
    """Name of the folder that it lies in; empty for the folder that was searched."""
    called: bool
    """Whether the name says that it is a label map."""

    @property
    def odd(self) -> bool:
        """Whether the name says that it is something else."""
        return bool(_SEQUENCE.search(self.stem) or _COMPANION.search(self.stem))

    @property
    def name(self) -> str:
        """The stem, or the folder's where it is but a word such as `seg`."""
        return self.stem if _CALLED.sub("", self.stem) else self.id

    @property
    def number(self) -> tuple[str, str] | None:
        """Cohort, empty where it is not said, and number of an ID of BraTS 2023 and later; else nothing."""
        found = _NUMBER.search(self.id)
        return ((found["cohort"] or "").upper(), found["number"]) if found else None

    @property
    def digits(self) -> str:
        """The number alone, empty without one."""
        return self.number[1] if self.number else ""

    @property
    def folder_digits(self) -> str:
        """The number at the end of the folder's name."""
        found = _NUMBER.search(self.folder)
        return found["number"] if found else ""

    @property
    def case(self) -> str:
        """The ID to show: that of BraTS where the name ends in one with its cohort, else the whole."""
        found = _NUMBER.search(self.id)
        return found.group() if found and found["cohort"] else self.id


def match(reference: Path, prediction: Path) -> Matching:
    """References and predictions of the same cases: two folders, or two files that are one case.

    Two files belong together by their whole names, with or without a word such as `-seg` at the end; else by the
    `00001-000` that the names of BraTS 2023 and later end in, within a cohort where both name theirs; else by the name
    of a folder that holds one label map.

    Raises:
        UsageError: a file and a folder.
        FolderError: a folder cannot be read or holds no label map, or no two files belong together.

    """
    if reference.is_file() and prediction.is_file():
        return Matching((Pair(_image(reference, "").case, (reference,), (prediction,)),), ())
    if reference.is_file() or prediction.is_file():
        raise UsageError(f"{reference}, {prediction}: found a file and a folder, expected two of either")
    references, predictions = _images(reference), _images(prediction)
    references, predictions = _label_maps(references, predictions), _label_maps(predictions, references)
    groups, alone, extra = together(references, predictions)
    if not groups:
        found = [
            f"{len(files)} in {folder} ({', '.join(file.path.name for file in files[:3])}{', …' * (len(files) > 3)})"
            for folder, files in ((reference, references), (prediction, predictions))
        ]
        raise FolderError(f"no prediction has the name of a reference: found {found[0]} and {found[1]}")
    missing: dict[str, list[Image]] = {}
    for file in alone:
        missing.setdefault(file.id, []).append(file)
    groups += [(files, []) for files in missing.values()]
    # The short ID where it says which case is meant, else the whole name.
    shown = Counter(files[0].case for files, _ in groups)
    pairs = []
    for files, predicted in groups:
        case = files[0].case if shown[files[0].case] == 1 else files[0].name
        pairs.append(Pair(case, tuple(file.path for file in files), tuple(file.path for file in predicted)))
    return Matching(tuple(sorted(pairs, key=lambda pair: pair.case)), tuple(sorted({file.case for file in extra})))


def find_label_maps(folder: Path) -> list[Image]:
    """The label maps below a folder, by path; FolderError where it cannot be read or holds none."""
    return _label_maps(_images(folder), ())


def read_one(paths: Sequence[Path], case: str) -> LabelMap:
    """Read the one label map of a case; CaseError where several files claim to be it, or it is damaged."""
    if len(paths) > 1:
        raise CaseError(case, "more than one label map", found=", ".join(map(str, paths)), expected="one")
    return read_label_map(paths[0], case)


def check_geometry(prediction: LabelMap, reference: LabelMap, of: str = "the reference") -> None:
    """CaseError where a prediction lies elsewhere than its reference, or is stored along other axes."""
    prediction.check_place(reference.geometry, of)
    if prediction.geometry.codes != reference.geometry.codes:
        raise prediction.notes.refusal(
            "other axes", found=prediction.geometry.codes, expected=f"{reference.geometry.codes} as {of}"
        )


def _images(folder: Path) -> list[Image]:
    """The NIfTI files below a folder, links to folders followed; hidden ones are passed over."""
    found, seen = [], set()

    def refuse(error: OSError) -> None:
        raise FolderError(f"{error.filename}: cannot be read ({error.strerror})") from error

    if not folder.is_dir():
        raise FolderError(f"no folder {folder}")
    for where, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        # A link may lead back up: no folder twice, by its real path.
        real = os.path.realpath(where)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        if real not in seen:
            inside = "" if Path(where) == folder else Path(where).name
            images = (name for name in sorted(files) if not name.startswith(".") and _ENDING.search(name))
            found += [_image(Path(where, name), inside) for name in images]
        seen.add(real)
    if not found:
        raise FolderError(f"no label map (*.nii, *.nii.gz) in {folder}")
    return found


def _image(path: Path, folder: str) -> Image:
    stem = _ENDING.sub("", path.name)
    rest = _CALLED.sub("", stem)
    return Image(path, stem, rest or folder or stem, folder, rest != stem)


def _label_maps(images: list[Image], others: Sequence[Image]) -> list[Image]:
    """The label maps among the images of a folder, by their names; `others` are those of the other side.

    Scans, brain masks and probabilities lie beside label maps. An image is passed over where its name goes on after
    that of a label map in its folder: with such a word, or with anything if that one is called a label map (`-seg`).
    Sequences are, too, where there are several of a case or the case is one of BraTS. What has the ID of a label map on
    the other side is one none the less: IDs may end in `_T2`.
    """
    wanted = {name for other in others if not other.odd for name in (other.stem, other.id)}
    # Each name without its last word, in its folder: of images that are surely label maps, and of those called so.
    clear = {(image.path.parent, _CALLED.sub("", image.stem)) for image in images if not image.odd}
    clear |= {(where, "") for where, _ in clear}  # for images whose whole name is such a word
    called = {(image.path.parent, _CALLED.sub("", image.stem)) for image in images if image.called}
    sequences = Counter((image.path.parent, _SEQUENCE.sub("", image.stem)) for image in images)

    def is_label_map(image: Image) -> bool:
        if image.called or image.stem in wanted:
            return True
        where, begin = image.path.parent, _SEQUENCE.sub("", image.stem)
        begins = [(where, image.stem[:at]) for at, sign in enumerate(image.stem) if sign in "-_."] + [(where, "")]
        if any(key in called for key in (*begins, (where, image.folder))):
            return False
        if begin != image.stem and (sequences[where, begin] > 1 or _NUMBER.search(begin)):
            return False
        whole = bool(_SEQUENCE.fullmatch(image.stem) or _COMPANION.fullmatch(image.stem))
        return not (image.odd and any(key in clear for key in (begins if whole else begins[:-1])))

    return [image for image in images if is_label_map(image)]


_BY_NAME: Final = (("name", "name"), ("id", "name"), ("id", "id"), ("name", "id"), ("number", "number"))
"""Parts of a name that a case's reference and prediction share; the surest first."""
_ONE_TO_ONE: Final = (
    ("digits", "digits"),
    ("id", "folder"),
    ("folder", "id"),
    ("folder", "folder"),
    ("digits", "folder_digits"),
)
"""The same where one case alone has it on each side: a number without a cohort, and names of folders."""

_Group = tuple[list[Image], list[Image]]


def together(references: list[Image], predictions: list[Image]) -> tuple[list[_Group], list[Image], list[Image]]:
    """Files of one case on both sides, and what is left of the references and of the predictions; see :func:`match`."""
    groups: list[_Group] = []
    for keys in (*_BY_NAME, *_ONE_TO_ONE):
        mine, theirs = _grouped(references, keys[0]), _grouped(predictions, keys[1])
        for key in mine.keys() & theirs.keys():
            group = mine[key], theirs[key]
            one = all(len({file.number or file.path for file in files}) == 1 for files in group)
            # Where both name a cohort it counts: BraTS-SSA-00001-000 is not BraTS-GLI-00001-000.
            numbers = [files[0].number for files in group]
            differ = all(number and number[0] for number in numbers) and numbers[0] != numbers[1]
            if keys in _BY_NAME or (one and not differ):
                groups.append(group)
        # What has found its like is out of the game, so that a weaker likeness cannot take it.
        taken = {file.path for group in groups for files in group for file in files}
        references = [file for file in references if file.path not in taken]
        predictions = [file for file in predictions if file.path not in taken]
    # A second file by the name of a case makes it ambiguous, rather than being a case of its own.
    cases: dict[object, _Group]
    cases = {name: group for group in groups for name in (group[0][0].id, group[0][0].number) if name}
    left: _Group = ([], [])
    for side, files in enumerate((references, predictions)):
        for file in files:
            group = cases.get(file.id) or cases.get(file.number) or left
            group[side].append(file)
    return groups, *left


def _grouped(files: list[Image], key: str) -> dict[object, list[Image]]:
    """Files by one of their properties; those whose property is empty are left out."""
    found: dict[object, list[Image]] = {}
    for file in files:
        if value := getattr(file, key):
            found.setdefault(value, []).append(file)
    return found
