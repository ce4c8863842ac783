"""`python -m training check-submission`: a folder of label maps against what the challenges take, before they see it.

The rules are those of BraTS 2023 to 2026: one `<ID>.nii.gz` a case in one folder with nothing else in it (2023 and 2024
turn away names that do not end in `00001-000.nii.gz`, from 2025 on every entry is read as a label map), whole numbers 0
to 3, on the grid of the case's scans.
"""

from __future__ import annotations

import argparse
import logging
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inference.console import say
from inference.errors import CaseError, ExitStatus, reason
from inference.intake.cases import find_cases
from inference.intake.label_map import read_label_map
from inference.intake.nifti import open_image
from training.evaluation.files import Image, find_label_maps, together
from training.evaluation.tables import Row, check_table, comma_separated, markdown, write_text

_LOG = logging.getLogger(__name__)

RULES: Final = ("names", "count", "labels", "geometry", "dtype", "size")
"""Rules that a submission is checked by, in the order of the report."""

# Bytes of a file beside its voxels that pass: a NIfTI header, and gzip's lengthening of what it cannot compress.
_HEADERS: Final = 2000


@dataclass(frozen=True)
class Finding:
    """A breach of one rule by one file."""

    file: str
    """Its path below the folder, or the ID of a case that has none."""
    rule: str
    """One of :data:`RULES`."""
    found: str
    mend: str
    """The line that mends it: a command, or what to do."""
    is_note: bool = False
    """Whether the challenge takes it all the same."""


def check_submission(folder: Path, scans: Path | None = None) -> Iterator[Finding]:
    """Everything in a folder of label maps that a challenge would not take, or score as the worst.

    With `scans`, the folder of the cases as `infer` reads it, also which cases are missing and where each has to lie.

    Raises:
        FolderError: a folder cannot be read, or holds no label map or no case.

    """
    images = find_label_maps(folder)
    # Cases that `infer` could not read are expected all the same, as far as their t1n is there to lie on.
    listing = None if scans is None else find_cases(scans)
    cases = {} if listing is None else {case.id: case.paths["t1n"] for case in listing.cases}
    cases |= {} if listing is None else {case: paths["t1n"] for case, paths in listing.found.items() if "t1n" in paths}
    expected = [Image(path, case, case, "", called=False) for case, path in cases.items()]
    groups, missing, extra = together(expected, images)
    owner = {file.path: scan for (scan, *_), files in groups for file in files}
    for image in images:
        yield from _names(image, folder, owner.get(image.path))
        yield from _contents(image, folder, owner.get(image.path))
    for scan in missing:
        yield Finding(scan.id, "count", "no label map", f"predict it, as {scan.id}.nii.gz: a missing case is the worst")
    for image in extra if scans else ():
        yield Finding(_shown(image.path, folder), "count", "no scan of this case", _away(image.path))
    # Two label maps of one case: which of them a challenge would take is a matter of chance.
    whose = {image.path: owner[image.path].id if image.path in owner else image.number for image in images}
    twins = Counter(case for case in whose.values() if case)
    for path in (path for path, case in whose.items() if case and twins[case] > 1):
        yield Finding(_shown(path, folder), "count", "another label map of its case", _away(path))
    known = {part for image in images for part in (image.path, *image.path.parents)}
    for path in sorted(folder.iterdir()):
        if path not in known:
            yield Finding(path.name, "names", "no label map", _away(path))


def _names(image: Image, folder: Path, scan: Image | None) -> Iterator[Finding]:
    name = f"{scan.id if scan else image.case}.nii.gz"
    if scan is None and image.number is None:
        yield Finding(
            _shown(image.path, folder), "names", "no ID that ends in 00001-000", "call it as its case, <ID>.nii.gz"
        )
    elif image.path != folder / name:
        pack = f"gzip -n {shlex.quote(str(image.path))} && " if image.path.suffix == ".nii" else ""
        source = f"{image.path}.gz" if pack else str(image.path)
        move = f"{pack}mv {shlex.quote(source)} {shlex.quote(str(folder / name))}"
        yield Finding(_shown(image.path, folder), "names", "another name or folder", move)


def _contents(image: Image, folder: Path, scan: Image | None) -> Iterator[Finding]:
    file = _shown(image.path, folder)
    try:
        # How the voxels are stored: reading the label map rounds and converts them.
        header = open_image(image.path, image.case, fewest=1)
        label_map = read_label_map(image.path, image.case)
    except CaseError as error:
        yield Finding(file, "labels", reason(error, image.case), "write it again, as whole numbers 0 to 3")
        return
    if label_map.relabelled:
        yield Finding(file, "labels", "label 4, which is in no region since 2023", "labels[labels == 4] = 3")
    if not label_map.labels.any():
        yield Finding(file, "labels", "no tumour at all", "look at the case", is_note=True)
    if header.dtype.kind == "f" or (header.slope, header.intercept) != (1, 0):
        found = f"{header.dtype.name}, slope {header.slope:g}, intercept {header.intercept:g}"
        yield Finding(file, "dtype", found, "Nifti1Image(np.rint(labels).astype(np.uint8), affine)")
    elif header.dtype.itemsize > 1:  # taken all the same, so that it is but a note
        found = f"{header.dtype.name}, which is larger than need be"
        yield Finding(file, "dtype", found, "labels.astype(np.uint8)", is_note=True)
    bytes_found, bytes_needed = image.path.stat().st_size, label_map.labels.size + _HEADERS
    if bytes_found > bytes_needed:
        found = f"{bytes_found / 1e6:.1f} MB, more than {bytes_needed / 1e6:.1f} MB without compression"
        yield Finding(file, "size", found, "save as uint8, with a name that ends in .nii.gz")
    if scan is None:
        return
    try:
        grid = open_image(scan.path, scan.id).geometry
        label_map.check_place(grid, "its t1n")
    except CaseError as error:
        yield Finding(file, "geometry", reason(error, image.case), "resample it onto the t1n, to the nearest label")
        return
    if label_map.geometry.codes != grid.codes:
        found = f"stored as {label_map.geometry.codes}, its t1n as {grid.codes}"
        yield Finding(file, "geometry", found, f"image.as_reoriented(...) to {grid.codes}: programs ignore the affine")


def _shown(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder))


def _away(path: Path) -> str:
    return f"mv {shlex.quote(str(path))} elsewhere"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `check-submission`."""
    parser.description = (
        "Check a folder of label maps against the rules of the challenges: names, count, labels, geometry, dtype and "
        "size. Exit status 0: they would be taken; 1: something is to be mended, with the line that does; 2: there is "
        "nothing to check."
    )
    parser.add_argument("--prediction", type=Path, required=True, metavar="DIR", help="the label maps to hand in")
    parser.add_argument("--reference-scans", type=Path, metavar="DIR", help="the cases that they were predicted from")
    parser.add_argument("--table", type=Path, metavar="FILE.csv|.md", help="write the table there, too")


def run(arguments: argparse.Namespace) -> int:
    """Carry out `check-submission`; the exit status. Raises FolderError where there is nothing to check."""
    if arguments.table is not None:
        check_table(arguments.table)
    _LOG.info("checking %s", arguments.prediction)
    findings = list(check_submission(arguments.prediction, arguments.reference_scans))
    header = ("file", "rule", "found", "to mend it")
    rows: list[Row] = [
        (finding.file, finding.rule + " (note)" * finding.is_note, finding.found, finding.mend) for finding in findings
    ]
    if arguments.table is not None:
        write_text(arguments.table, (comma_separated if arguments.table.suffix == ".csv" else markdown)(header, rows))
    wrong = Counter(finding.rule for finding in findings if not finding.is_note)
    skipped = () if arguments.reference_scans else ("geometry",)
    states = [
        (rule, "not checked" if rule in skipped else f"{wrong[rule]} to mend" if wrong[rule] else "ok")
        for rule in RULES
    ]
    say(markdown(("rule", "state"), states) + ("\n" + markdown(header, rows)) * bool(rows))
    return ExitStatus.CASE_FAILED if wrong else ExitStatus.OK
