"""Cases from BraTS folders and phantoms, as nnU-Net's raw data sets in canonical RAS.

A *case* is a scan with its reference labels.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.errors import CaseError, FolderError, GliomaError, SeveralErrors, UsageError
from inference.files import prepare_folder, whole_file, write_whole
from inference.intake.cases import Case, digest_files, find_cases
from inference.intake.geometry import SAME_PLACE, Geometry
from inference.intake.label_map import read_labels, read_stamp
from inference.intake.scan import Scan, read_scan
from inference.labels import REGIONS, SEQUENCES
from inference.schema import Text, read_json, to_json
from inference.text import times
from training.config import STAGES, RunConfig, SourceConfig
from training.data.folds import FoldMap
from training.workers import Workers, open_workers

log = logging.getLogger("training")

DATASET_IDS = {stage: number for number, stage in enumerate(STAGES, start=1)}
"""nnU-Net's number of each stage's data set."""


@dataclass(frozen=True)
class CaseEntry:
    """One line of `cases.json`."""

    id: Text
    """ID of the case."""
    source: Text
    """Name of its source in the configuration."""
    patient: Text
    """Whom it shows: time points of one patient share it."""
    labels: str
    """Path of the reference label map; empty for a phantom."""
    phantom_seed: int | None = None
    """Seed of the phantom; none for a real case."""

    in_folds: bool = True
    """Whether it is dealt into a fold and predicted by the networks that have not seen it; else it always trains."""
    made_from: str = ""
    """:func:`digest_case` when the list was written; empty in lists that are older than this field."""


def dataset_name(stage: str) -> str:
    """nnU-Net's name of a stage's data set."""
    return f"Dataset{DATASET_IDS[stage]:03d}_{stage}"


def patient_of(case: str) -> str:
    """Patient of a case ID: what precedes the time point in names like `BraTS-GLI-00001-000`, else the ID."""
    # Five digits, then three. In other names the last digits may be the patient's: `TCGA-DU-7294`.
    return re.sub(r"(.+-\d{5})-\d{3}$", r"\1", case)


def list_cases(config: RunConfig) -> list[CaseEntry]:
    """Every case of every source, sorted by ID.

    UsageError or CaseError for a case that is not whole or has no labels, or an ID that occurs twice; all of them are
    named, by :class:`SeveralErrors` where they are several.
    """
    problems: list[GliomaError] = []
    entries = [entry for source in config.sources for entry in _cases_of(source, config.seed, problems)]
    if problems:
        raise problems[0] if len(problems) == 1 else SeveralErrors(problems)
    counts = Counter(entry.id for entry in entries)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise UsageError(f"case IDs occur in more than one source: {', '.join(twice)}")
    return sorted(entries, key=lambda entry: entry.id)


def _cases_of(source: SourceConfig, seed: int, problems: list[GliomaError]) -> Iterator[CaseEntry]:
    """The usable cases of a source; what is wrong with the others is added to `problems`."""
    if source.phantoms:
        for number in range(source.phantoms):
            name = f"{source.name}-{number:05d}-000"
            # A thousand phantoms apart, so that runs of neighbouring seeds learn from different ones.
            yield CaseEntry(name, source.name, name, "", seed * 1000 + number, source.scored)
        return
    listing = find_cases(Path(source.folder))
    problems += [UsageError(f"source {source.name!r}: {problem}") for problem in listing.problems]
    for case in listing.cases:
        try:
            labels = labels_of(case.id, case.paths["t1n"].parent)
        except UsageError as error:
            problems.append(error)
            continue
        patient = source.patients.get(case.id, patient_of(case.id))
        yield CaseEntry(case.id, source.name, patient, str(labels), in_folds=source.scored)
    if unknown := set(source.patients) - {case.id for case in listing.cases} - set(listing.found):
        names = ", ".join(sorted(unknown))
        problems.append(UsageError(f"source {source.name!r}: patients names {names}, which it has no case of"))


def labels_of(case: str, folder: Path) -> Path:
    """The label map of a case in a folder; UsageError where there is none."""
    # As BraTS names them since 2023, as it did before, and as predictions are named.
    for ending in ("-seg.nii.gz", "_seg.nii.gz", "-seg.nii", "_seg.nii", ".nii.gz", ".nii"):
        path = folder / f"{case}{ending}"
        if path.is_file():
            return path
    raise UsageError(
        f"{case}: no label map in {folder}, expected {case}-seg.nii.gz, {case}_seg.nii.gz or {case}.nii.gz"
    )


def with_contents(entries: list[CaseEntry], config: RunConfig) -> list[CaseEntry]:
    """The same cases, each with what its files hold now; CaseError or :class:`SeveralErrors` for unreadable ones."""
    return list(Workers().map(lambda entry: replace(entry, made_from=digest_case(entry, config)), entries))


def follow_changes(config: RunConfig, path: Path) -> None:
    """Where the cases were listed before: write the list again if scans or labels have changed since, and tell which.

    The graph then makes anew all that comes from the list. Cases that were added since are told and left out. Raises
    UsageError for a case that is no longer there.
    """
    if not path.is_file():
        return
    now = {entry.id: entry for entry in list_cases(config)}
    # A case that comes or goes would change all folds, and with them every network: that is a new run.
    listed = read_cases(path)
    if gone := [entry.id for entry in listed if entry.id not in now]:
        raise UsageError(f"{', '.join(gone)}: in no source any more, but in {path}: put it back, or delete that list")
    for name in sorted(now.keys() - {entry.id for entry in listed}):
        log.warning("%s: added since the run began, and no part of it; delete %s to begin with it", name, path)
    current = with_contents([now[entry.id] for entry in listed], config)
    before = path.stat()
    changed = [new.id for old, new in zip(listed, current, strict=True) if old.made_from and old != new]
    for name in changed:
        log.warning("%s: changed since the run began; what comes of it is made anew", name)
    if current != listed:
        write_json(current, path)
    # A list of before contents were recorded gets them, and nothing has to be made anew: Snakemake goes by times.
    if not changed:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def read_cases(path: Path) -> list[CaseEntry]:
    """The frozen list of cases; UsageError where the run has not begun."""
    if not path.exists():
        raise UsageError(f"{path}: not there, since nothing has been run; `python -m training run` makes it")
    return read_json(path, list[CaseEntry], UsageError)


def read_folds(path: Path) -> dict[str, int]:
    """The frozen case → fold map."""
    return read_json(path, FoldMap, UsageError).folds


def cases_of(work: Path, stage: str) -> list[str]:
    """IDs of the cases in a stage's raw data set, sorted; FolderError where there is none yet."""
    labels = work / "nnunet" / "raw" / dataset_name(stage) / "labelsTr"
    try:
        return sorted(path.name.removesuffix(".nii.gz") for path in labels.iterdir())
    except OSError as error:
        raise FolderError(f"{labels}: cannot be read ({error.strerror}); `training dataset` makes it") from error


def load_case(entry: CaseEntry, config: RunConfig) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A case's data (4, X, Y, Z) and labels (X, Y, Z), canonical RAS.

    UsageError for voxels that are not of 1 mm, or labels that lie elsewhere than the scan.
    """
    if entry.phantom_seed is not None:
        from training.data.phantoms import make_phantom

        phantom = make_phantom(entry.phantom_seed, config.source(entry.source).size)
        return phantom.data, phantom.labels
    scan = read_scan(_scans_of(entry, config))
    labels, place = _read_labels(entry)
    _check_grid(scan, place)
    return scan.data, labels


def digest_case(entry: CaseEntry, config: RunConfig, *, labels: bool = True) -> str:
    """Digest of a case's scans and `labels`, or a phantom's seed and shape (CaseError)."""
    if entry.phantom_seed is not None:
        return f"phantom {entry.phantom_seed} {'x'.join(map(str, config.source(entry.source).size))}"
    scans = _scans_of(entry, config)
    files = [scans.paths[sequence] for sequence in SEQUENCES]
    return digest_files(entry.id, [*files, Path(entry.labels)] if labels else files)


def _scans_of(entry: CaseEntry, config: RunConfig) -> Case:
    folder = Path(config.source(entry.source).folder)
    found = _listed(folder).get(entry.id)
    if found is None:
        raise CaseError(entry.id, "its scans are gone", found=f"no whole case in {folder}", expected="all sequences")
    return found


def _read_labels(entry: CaseEntry) -> tuple[NDArray[np.uint8], Geometry]:
    """A real case's reference labels, and where they lie. Errors name the case before the file (CaseError)."""
    try:
        return read_labels(Path(entry.labels))
    except CaseError as error:
        problem = error.problem if error.problem.startswith(error.case) else f"{error.case}: {error.problem}"
        raise CaseError(entry.id, problem, found=error.found, expected=error.expected) from error


def _check_grid(scan: Scan, labels: Geometry) -> None:
    """UsageError for voxels that are not of 1 mm, as what counts them here takes for granted, or labels elsewhere."""
    # Headers of 1 mm scans say such as 0.9999; from a twentieth on, volumes would be off by more than 15 %.
    if not np.allclose(scan.spacing, 1, atol=0.05):
        found = " × ".join(f"{edge:g}" for edge in scan.spacing)
        raise UsageError(
            f"{scan.case}: found voxels of {found} mm, expected 1 × 1 × 1 mm: resample scan and labels first"
        )
    found, expected = times(labels.canonical_shape), times(scan.geometry.canonical_shape)
    if found != expected:
        raise UsageError(f"{scan.case}: found labels of {found} voxels, expected {expected} as the scan has")
    distance = labels.displacement(scan.geometry)
    if distance > SAME_PLACE:
        raise UsageError(
            f"{scan.case}: found labels up to {distance:.3g} mm from the scan, expected at most {SAME_PLACE} mm"
        )


def load_labels(entry: CaseEntry, config: RunConfig) -> NDArray[np.uint8]:
    """A case's reference labels (X, Y, Z), canonical RAS, without reading its scan."""
    return _read_labels(entry)[0] if entry.phantom_seed is None else load_case(entry, config)[1]


@functools.cache
def _listed(folder: Path) -> dict[str, Case]:
    """Cases of a folder by their IDs."""
    # Cached: every case of a collection asks for the same list.
    return {case.id: case for case in find_cases(folder).cases}


def write_dataset(config: RunConfig, stage: str, entries: list[CaseEntry], raw: Path, *, jobs: int = 1) -> Path:
    """Write a stage's raw data set for nnU-Net under `raw` and return its folder.

    Label maps carry what their case was made from. A case that is there already, of the same scans and labels, is
    kept; one of others is made anew, and a case that the stage no longer has is removed, both told. A case that cannot
    be used is an error when all others are written (:class:`SeveralErrors` where they are several).
    """
    sources = config.dataset(stage).sources
    chosen = [entry for entry in entries if entry.source in sources]
    folder = raw / dataset_name(stage)
    for part in ("imagesTr", "labelsTr"):
        prepare_folder(folder / part)
    _remove_others({entry.id for entry in chosen}, folder)
    write = partial(_write_case, config=config, folder=folder)
    with open_workers(jobs) as workers:
        for entry, renewed in zip(chosen, workers.map(write, chosen, name=lambda entry: entry.id), strict=True):
            if renewed:
                log.warning("%s: %s: made anew, since its scans or labels have changed", stage, entry.id)
    write_json(dataset_description(len(chosen)), folder / "dataset.json")
    return folder


def _remove_others(cases: set[str], folder: Path) -> None:
    """Remove what the data set in `folder` has of other than these cases: whatever lies there is learnt from."""
    for path in sorted((folder / "labelsTr").glob("*.nii.gz")):
        if (case := path.name.removesuffix(".nii.gz")) not in cases:
            log.warning("%s: removed from %s, which no longer has it", case, folder)
            path.unlink()
    for path in (folder / "imagesTr").glob("*_????.nii.gz"):
        if path.name[: -len("_0000.nii.gz")] not in cases:
            path.unlink()


def _write_case(entry: CaseEntry, config: RunConfig, folder: Path) -> bool:
    """Write the scan of one case, then its labels, which say that it is whole; whether it replaces an older one."""
    import nibabel

    target = folder / "labelsTr" / f"{entry.id}.nii.gz"
    images = [folder / "imagesTr" / f"{entry.id}_{channel:04d}.nii.gz" for channel in range(len(SEQUENCES))]
    stamp, renewed = digest_case(entry, config), target.is_file()
    if renewed and all(image.is_file() for image in images):
        with contextlib.suppress(CaseError):  # a damaged file is made anew
            if read_stamp(target) == stamp:
                return False
    data, labels = load_case(entry, config)
    # In canonical RAS on a grid of 1 mm: where the scan lay in the scanner is nothing to learn from.
    for image, volume in zip(images, data, strict=True):
        with whole_file(image) as unfinished:
            nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), unfinished)
    # The header's free text, 80 bytes, which nnU-Net does not read.
    stamped = nibabel.Nifti1Image(labels, np.eye(4))
    stamped.header["descrip"] = stamp
    with whole_file(target) as unfinished:
        nibabel.save(stamped, unfinished)
    return renewed


def write_json(content: object, path: Path) -> None:
    """Write JSON so that a reader finds all of it or none."""
    write_whole(path, to_json(content))


def dataset_description(cases: int) -> dict[str, object]:
    """nnU-Net's `dataset.json`. The key order of `labels` is the order of the network's heads: WT, TC, ET."""
    labels: dict[str, object] = {"background": 0}
    labels |= {region: [int(label) for label in members] for region, members in REGIONS.items()}
    return {
        "channel_names": {str(number): name for number, name in enumerate(SEQUENCES)},
        "labels": labels,
        # The labels that nnU-Net's own predictions give to the regions, later ones over earlier ones: ED, NCR, ET.
        "regions_class_order": [2, 1, 3],
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
