"""Cases from BraTS folders and phantoms, as nnU-Net's raw data sets in canonical RAS.

A *case* is a scan with its reference labels.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.errors import UsageError
from inference.files import whole_file, write_whole
from inference.intake.cases import Case, find_cases
from inference.intake.geometry import SAME_PLACE, Geometry
from inference.intake.label_map import read_labels
from inference.intake.scan import Scan, read_scan
from inference.labels import REGIONS, SEQUENCES
from inference.schema import Text, read_json
from inference.text import times
from training.config import STAGES, RunConfig, SourceConfig
from training.data.folds import FoldMap
from training.workers import open_workers

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


def dataset_name(stage: str) -> str:
    """nnU-Net's name of a stage's data set."""
    return f"Dataset{DATASET_IDS[stage]:03d}_{stage}"


def patient_of(case: str) -> str:
    """Patient of a case ID: what precedes the time point in names like `BraTS-GLI-00001-000`, else the ID."""
    return re.sub(r"(.+-\d{5})-\d{3}$", r"\1", case)


def list_cases(config: RunConfig) -> list[CaseEntry]:
    """Every case of every source, sorted by ID; UsageError for a case without labels or an ID that occurs twice."""
    entries = [entry for source in config.sources for entry in _cases_of(source, config.seed)]
    identifiers = [entry.id for entry in entries]
    twice = sorted({name for name in identifiers if identifiers.count(name) > 1})
    if twice:
        raise UsageError(f"case IDs occur in more than one source: {', '.join(twice)}")
    return sorted(entries, key=lambda entry: entry.id)


def _cases_of(source: SourceConfig, seed: int) -> Iterator[CaseEntry]:
    if source.phantoms:
        for number in range(source.phantoms):
            name = f"{source.name}-{number:05d}-000"
            yield CaseEntry(name, source.name, name, "", seed * 1000 + number, source.scored)
        return
    listing = find_cases(Path(source.folder))
    for problem in listing.problems:
        raise UsageError(f"source {source.name!r}: {problem}")
    for case in listing.cases:
        labels = labels_of(case.id, case.paths["t1n"].parent)
        patient = source.patients.get(case.id, patient_of(case.id))
        yield CaseEntry(case.id, source.name, patient, str(labels), in_folds=source.scored)
    if unknown := set(source.patients) - {case.id for case in listing.cases}:
        raise UsageError(
            f"source {source.name!r}: patients names {', '.join(sorted(unknown))}, which it has no case of"
        )


def labels_of(case: str, folder: Path) -> Path:
    """The label map of a case in a folder; UsageError where there is none."""
    for ending in ("-seg.nii.gz", "_seg.nii.gz", "-seg.nii", "_seg.nii", ".nii.gz", ".nii"):
        path = folder / f"{case}{ending}"
        if path.is_file():
            return path
    raise UsageError(
        f"{case}: no label map in {folder}, expected {case}-seg.nii.gz, {case}_seg.nii.gz or {case}.nii.gz"
    )


def write_cases(entries: list[CaseEntry], path: Path) -> None:
    """Freeze the list of cases."""
    write_json([asdict(entry) for entry in entries], path)


def read_cases(path: Path) -> list[CaseEntry]:
    """The frozen list of cases; UsageError where the run has not begun."""
    if not path.exists():
        raise UsageError(f"{path}: not there, since nothing has been run; `python -m training run` makes it")
    return read_json(path, list[CaseEntry], UsageError)


def read_folds(path: Path) -> dict[str, int]:
    """The frozen case → fold map."""
    return read_json(path, FoldMap, UsageError).folds


def cases_of(work: Path, stage: str) -> list[str]:
    """IDs of the cases in a stage's raw data set, sorted."""
    labels = work / "nnunet" / "raw" / dataset_name(stage) / "labelsTr"
    return sorted(path.name.removesuffix(".nii.gz") for path in labels.iterdir())


def load_case(entry: CaseEntry, config: RunConfig) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A case's data (4, X, Y, Z) and labels (X, Y, Z), canonical RAS.

    UsageError for voxels that are not of 1 mm, or labels that lie elsewhere than the scan.
    """
    if entry.phantom_seed is not None:
        from training.data.phantoms import make_phantom

        phantom = make_phantom(entry.phantom_seed, config.source(entry.source).size)
        return phantom.data, phantom.labels
    scan = read_scan(_listed(Path(config.source(entry.source).folder))[entry.id])
    labels, place = read_labels(Path(entry.labels))
    _check_grid(scan, place)
    return scan.data, labels


def _check_grid(scan: Scan, labels: Geometry) -> None:
    """UsageError for voxels that are not of 1 mm, as what counts them here takes for granted, or labels elsewhere."""
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
    if entry.phantom_seed is not None:
        return load_case(entry, config)[1]
    return read_labels(Path(entry.labels))[0]


@functools.cache
def _listed(folder: Path) -> dict[str, Case]:
    """Cases of a folder by their IDs."""
    return {case.id: case for case in find_cases(folder).cases}


def write_dataset(config: RunConfig, stage: str, entries: list[CaseEntry], raw: Path, *, jobs: int = 1) -> Path:
    """Write a stage's raw data set for nnU-Net under `raw` and return its folder; what is there already is kept."""
    wanted = config.dataset(stage)
    for name in wanted.sources:
        config.source(name)
    chosen = [entry for entry in entries if entry.source in wanted.sources]
    folder = raw / dataset_name(stage)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    with open_workers(jobs) as workers:
        list(workers.map(partial(_write_case, config=config, folder=folder), chosen))
    write_json(dataset_description(len(chosen)), folder / "dataset.json")
    return folder


def _write_case(entry: CaseEntry, config: RunConfig, folder: Path) -> None:
    """Write the scan of one case, then its labels, which say that it is whole."""
    import nibabel

    target = folder / "labelsTr" / f"{entry.id}.nii.gz"
    if target.is_file():
        return
    data, labels = load_case(entry, config)
    for channel, volume in enumerate(data):
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / "imagesTr" / f"{entry.id}_{channel:04d}.nii.gz")
    with whole_file(target) as unfinished:
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), unfinished)


def write_json(content: object, path: Path) -> None:
    """Write JSON so that a reader finds all of it or none."""
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def dataset_description(cases: int) -> dict[str, object]:
    """nnU-Net's `dataset.json`. The key order of `labels` is the order of the network's heads: WT, TC, ET."""
    labels: dict[str, object] = {"background": 0}
    labels |= {region: [int(label) for label in members] for region, members in REGIONS.items()}
    return {
        "channel_names": {str(number): name for number, name in enumerate(SEQUENCES)},
        "labels": labels,
        "regions_class_order": [2, 1, 3],
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
