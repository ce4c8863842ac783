"""Strata and folds: features of the reference tumours, their subtypes, and the one case → fold map."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from inference.bundle.store import read_tensors
from inference.bundle.tables import SubtypeTables, parse_subtypes, subtypes_to_json
from inference.errors import BundleError, UsageError
from inference.files import write_whole
from inference.labels import region_mask
from inference.refine.radiomics import PRESETS, NoFeatures, extract_features
from inference.refine.subtypes import subtype_tables
from inference.schema import read_json, to_json
from training.config import RunConfig
from training.data.datasets import CaseEntry, load_case, read_cases
from training.data.folds import FoldMap, stratified_folds
from training.data.subtyping import fit_subtypes
from training.workers import open_workers

SPACING: Final = (1.0, 1.0, 1.0)
"""Voxel edges (X, Y, Z) in mm of the training data, which are BraTS's."""
# Numbers of strata: the source's place in the configuration times this, plus the subtype.
_MOST_SUBTYPES: Final = 1000


def reference_features(config: RunConfig, entries: list[CaseEntry], jobs: int = 1) -> dict[str, NDArray[np.float64]]:
    """Features (386,) of every case's reference tumour; an error names all cases that cannot be described."""
    with open_workers(jobs) as workers:
        found = list(workers.map(partial(_features_of, config=config), entries, name=lambda entry: entry.id))
    return {entry.id: values for entry, values in zip(entries, found, strict=True)}


def _features_of(entry: CaseEntry, config: RunConfig) -> NDArray[np.float64]:
    data, labels = load_case(entry, config)
    features = extract_features(data, region_mask(labels, "WT"), SPACING, PRESETS[config.subtypes.extraction])
    if isinstance(features, NoFeatures):
        raise UsageError(f"{entry.id}: its reference tumour cannot be described, since {features.reason}")
    return features


def stratify(config: RunConfig, work: Path, *, jobs: int = 1) -> None:
    """Write `folds.json`, and `fold_subtypes.*`, the model that made the strata. Phantoms belong to no fold.

    Every subtype of every source is shared out equally. What an ancestor was trained on keeps the ancestor's folds.
    """
    entries = [entry for entry in read_cases(work / "cases.json") if entry.in_folds]
    features = reference_features(config, entries, jobs)
    table = np.stack(list(features.values()))
    fit = fit_subtypes(table, config.subtypes, config.seed)
    clusters = dict(zip(features, fit.clusters, strict=True))
    patients = {entry.id: entry.patient for entry in entries}
    # By source as well, so that no fold has most of a small collection.
    places = {source.name: number * _MOST_SUBTYPES for number, source in enumerate(config.sources)}
    strata = {entry.id: places[entry.source] + clusters[entry.id] for entry in entries}
    folds = stratified_folds(strata, patients, config.folds, config.seed) | kept_folds(config, patients)
    # For the report's picture of the strata: the first two principal components, 0 where there is but one.
    projected = np.pad(fit.model.project(table), ((0, 0), (0, 1)))[:, :2]
    components = {case: (x, y) for case, (x, y) in zip(features, projected.tolist(), strict=True)}
    save_subtypes(subtype_tables(fit.model), work / "fold_subtypes.json")
    write_whole(work / "folds.json", to_json(FoldMap(folds, clusters, patients, dict(fit.silhouettes), components)))


def known_folds(folder: str) -> FoldMap:
    """The `folds.json` of an ancestor's folder; empty without an ancestor, or where it has none."""
    path = Path(folder) / "folds.json"
    return read_json(path, FoldMap, UsageError) if folder and path.is_file() else FoldMap({})


def kept_folds(config: RunConfig, patients: Mapping[str, str]) -> dict[str, int]:
    """Case → fold of those cases (case → patient) whose patient has a fold in the ancestor; empty without an ancestor.

    Otherwise a network could be scored on a patient whom its ancestor has learnt from. UsageError where every network
    would have, since this run has no such fold, or the ancestor held the patient out of none.
    """
    # Patients, not cases: a follow-up scan may be new to this run while the patient is not. Old lists name no patients.
    old = known_folds(config.ancestor)
    fold_of = {old.patients.get(case, case): fold for case, fold in old.folds.items()}
    learnt = {old.patients.get(case, case) for case in old.always_trained}
    kept = {case: fold_of[patient] for case, patient in patients.items() if patient in fold_of}
    for case, patient in patients.items():
        if patient in learnt:
            raise UsageError(f"{case}: every network of the ancestor has learnt from this patient: in_folds: false")
        if kept.get(case, 0) >= config.folds:
            raise UsageError(
                f"{case}: every network of this run's {config.folds} folds starts from one that has learnt from this"
                f" patient, who is in fold {kept[case]} of the ancestor; expected more folds, or a run without it"
            )
    return kept


def save_subtypes(tables: SubtypeTables, path: Path) -> None:
    """Write a subtype model as `path` (JSON) and the arrays beside it (safetensors), as bundles store it."""
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(array) for name, array in tables.arrays.items()}
    write_whole(path.with_suffix(".safetensors"), save(arrays))
    write_whole(path, to_json(subtypes_to_json(tables)))


def load_subtypes(path: Path) -> SubtypeTables:
    """The subtype model that :func:`save_subtypes` wrote."""
    arrays = read_tensors(path.with_suffix(".safetensors"), path.with_suffix(".safetensors").name)
    return parse_subtypes(read_json(path, dict[str, object], BundleError), arrays, path.name)
