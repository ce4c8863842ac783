"""From a finished run to a bundle: weights, plans, subtypes, thresholds, folds, and how good it is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from inference.bundle.manifest import DataSet, Provenance
from inference.bundle.store import Bundle, Model, load_bundle
from inference.bundle.writing import NewBundle, write_bundle
from inference.errors import UsageError
from inference.labels import REGIONS, labels_from_regions, region_mask
from inference.predict.engines import open_engine
from inference.predict.ensemble import predict
from inference.schema import read_json
from inference.settings import Profile
from training.config import STAGES, RunConfig
from training.data.datasets import CaseEntry, load_case, read_cases
from training.data.folds import FoldMap
from training.data.stratify import SPACING, known_folds, load_subtypes
from training.evaluation import overlap
from training.fit.predict import trained_network
from training.tune.tuning import Scores, read_tuning

# What decides about weights and tables; a version of all others is in the lock.
_LIBRARIES: Final = ("torch", "nnunetv2", "numpy", "scikit-learn")


def freeze(config: RunConfig, work: Path, target: Path, *, revision: str) -> Bundle:
    """Write the bundle of a finished run to `target`; BundleError or UsageError says what is missing."""
    subtypes = load_subtypes(work / "subtypes.json")
    tuning = read_tuning(config, work)
    entries = read_cases(work / "cases.json")
    scores: dict[str, object] = {
        "out_of_fold": read_json(work / "scores.json", Scores, UsageError),
        "nested_gain": tuning.nested_gain,
        "how": (
            "each case predicted by the one network per model that has not seen it, "
            f"profile {config.tuning.profile}; lesion-wise scores after the official definitions"
        ),
    }
    if config.bundle.half_precision:
        scores["half_precision"] = half_precision_agreement(config, work, entries)
    return write_bundle(
        target,
        NewBundle(
            name=config.bundle.name,
            version=config.bundle.version,
            intended_use=config.bundle.intended_use,
            limits=config.bundle.limits,
            licence=config.bundle.licence,
            provenance=provenance(config, entries, revision),
            models=[_new_model(config, work, model.name, tuning.weights[model.name]) for model in config.models],
            thresholds=tuning.thresholds.tables("tuning.json", subtypes.clusters),
            scores=scores,
            subtypes=subtypes,
            fold_subtypes=load_subtypes(work / "fold_subtypes.json"),
            folds=all_folds(config, work),
        ),
    )


def all_folds(config: RunConfig, work: Path) -> dict[str, object]:
    """Complete the run's `folds.json` with the folds of its ancestors' cases, and the cases that always trained.

    A case of an ancestor's fold that trained in every fold here is held out of nothing any more.
    """
    own, old = read_json(work / "folds.json", FoldMap, UsageError), known_folds(config.ancestor)
    here = {entry.id: entry.patient for entry in read_cases(work / "cases.json") if entry.phantom_seed is None}
    always = sorted({*old.always_trained, *(case for case in here if case not in own.folds)})
    learnt = {here.get(case, case) for case in always}
    held_out = {case: fold for case, fold in old.folds.items() if old.patients.get(case, case) not in learnt}
    complete = msgspec.structs.replace(
        own,
        folds=held_out | own.folds,
        patients=old.patients | here | own.patients,
        always_trained=always,
    )
    found: dict[str, object] = msgspec.to_builtins(complete, str_keys=True)
    return found


def _new_model(config: RunConfig, work: Path, name: str, weight: float) -> Model:
    folds = tuple(range(config.folds))
    half = config.bundle.half_precision
    # A model of each fold, which become one model of all folds.
    trained = [trained_network(config, work, name, fold, half_precision=half) for fold in folds]
    entry = dataclasses.replace(trained[0].entry, folds=folds, weight=weight)
    networks = {fold: network for model in trained for fold, network in model.networks.items()}
    return Model(entry, trained[0].plans, networks)


def provenance(config: RunConfig, entries: list[CaseEntry], revision: str) -> Provenance:
    """Provenance of a run: data sets, configuration, revision of the code, versions of libraries, ancestors."""
    found: list[DataSet] = []
    ancestry: tuple[str, ...] = ()
    if config.ancestor:
        ancestor = load_bundle(Path(config.ancestor))
        before = ancestor.manifest.provenance
        found += before.data_sets
        itself = f"{ancestor.manifest.name} {ancestor.manifest.version}, manifest sha256 {ancestor.digest}"
        ancestry = (*before.ancestry, itself)
    for source in config.sources:
        stages = [stage for stage in config.stages if source.name in config.dataset(stage).sources]
        use = f"{' and '.join(stages)}; {source.licence}" if source.licence else " and ".join(stages)
        name = f"{source.name} ({source.doi})" if source.doi else source.name
        found.append(DataSet(name, sum(entry.source == source.name for entry in entries), use))
    settings = dataclasses.asdict(config)
    # Where the data lay is nobody's business, and a path may hold a user's name.
    for source in settings["sources"]:
        source["folder"] = Path(source["folder"]).name
    settings["ancestor"] = Path(config.ancestor).name
    # Through JSON, so that a manifest is the same once it is read again: tuples become lists.
    plain = json.loads(json.dumps(settings))
    return Provenance(_merged(found), plain, revision, {name: version(name) for name in _LIBRARIES}, ancestry)


def _merged(found: Sequence[DataSet]) -> tuple[DataSet, ...]:
    """Data sets with those of several rounds once, their stages together, in the order in which each came first."""
    stages: dict[tuple[str, int, str], set[str]] = {}
    for data_set in found:
        used, _, terms = data_set.use.partition("; ")
        words = set(used.split(" and "))
        if not words <= set(STAGES):  # an imported bundle has words of its own
            words, terms = set(), data_set.use
        stages.setdefault((data_set.name, data_set.cases, terms), set()).update(words)
    merged = []
    for (name, cases, terms), words in stages.items():
        used = " and ".join(stage for stage in STAGES if stage in words)
        merged.append(DataSet(name, cases, "; ".join(filter(None, (used, terms)))))
    return tuple(merged)


def half_precision_agreement(config: RunConfig, work: Path, entries: list[CaseEntry]) -> dict[str, float]:
    """How float16 weights agree with float32 ones: one case, the first fold of every model, worst of all.

    `largest_difference` is in probability, `dice_<region>` between the two label maps.
    """
    # One case stands for all: each costs two predictions of every model.
    data, _ = load_case(next(entry for entry in entries if entry.in_folds), config)
    engine = open_engine("torch", "cpu")
    agreement = {"largest_difference": 0.0} | {f"dice_{region}": 1.0 for region in REGIONS}
    for model in config.models:
        both = [
            predict(data, SPACING, [network], engine, Profile(config.tuning.profile)).array
            for network in (trained_network(config, work, model.name, 0, half_precision=half) for half in (True, False))
        ]
        difference = float(np.abs(both[0] - both[1]).max())
        agreement["largest_difference"] = max(agreement["largest_difference"], difference)
        labels = [labels_from_regions(array) for array in both]
        for region in REGIONS:
            dice = overlap.dice(*(region_mask(side, region) for side in labels))
            agreement[f"dice_{region}"] = min(agreement[f"dice_{region}"], dice)
    return agreement
