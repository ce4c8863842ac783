"""The step `tune`: out-of-fold predictions in, `tuning.json`, `subtypes.*` and `scores.json` out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.bundle.tables import StoredThresholds, stored_thresholds
from inference.errors import UsageError
from inference.files import write_whole
from inference.labels import REGIONS, labels_from_regions, region_mask
from inference.refine.radiomics import PRESETS, NoFeatures, extract_features
from inference.refine.subtypes import subtype_tables
from inference.schema import to_json
from training.config import RunConfig
from training.data.datasets import CaseEntry, load_case
from training.data.stratify import SPACING, save_subtypes
from training.data.subtyping import SubtypeFit, fit_subtypes
from training.evaluation.lesionwise import score_case
from training.evaluation.scores import RegionScore, Version
from training.fit.predict import scored_cases
from training.tune.choices import Choice, Scorer, tables_of
from training.tune.ensemble_weights import choose_weights
from training.tune.out_of_fold import ensemble, load_predictions
from training.tune.thresholds import ByFold, groups_of, honest_gains, select, tune_all
from training.tune.tuning import PredictedSubtypes, Scores, Tuning
from training.workers import open_workers

log = logging.getLogger(__name__)


def tune(config: RunConfig, work: Path, *, jobs: int = 0) -> None:
    """Write `tuning.json` (weights, thresholds, gains, evidence), `subtypes.*` and `scores.json`."""
    version = config.tuning.metric
    with open_workers(jobs) as workers:
        scored = list(scored_cases(config, work).items())
        models = [model.name for model in config.models]
        read = partial(load_predictions, models=models, config=config, work=work)
        cases = list(workers.map(read, scored, name=lambda case: case[0].id))
        log.info("tuning: %d cases", len(cases))
        weights = choose_weights(config, cases, version, workers)
        chosen = weights[config.tuning.weights]
        mixed = [ensemble(case.probabilities, chosen.by_fold[case.fold]) for case in cases]
        scorer = Scorer(cases, mixed, version, workers=workers)
        # These come first since they decide what a predicted tumour is.
        before = [name for name in config.tuning.groups if name in ("regions", "confidence")]
        first = select(scorer, range(len(cases)), groups_of(scorer, before)).choice
        fit, scorer.clusters = _predicted_subtypes(config, [entry for entry, _ in scored], scorer, first)
        overall, by_fold = tune_all(scorer, config.tuning.groups)
        scores = score_systems(config, scorer, by_fold)
    save_subtypes(subtype_tables(fit.model), work / "subtypes.json")

    def stored(choice: Choice) -> StoredThresholds:
        return stored_thresholds(tables_of(choice, len(fit.model.centroids)))

    clusters = {case.case: cluster for case, cluster in zip(cases, scorer.clusters, strict=True)}
    tuning = Tuning(
        weights=dict(chosen.weights),
        thresholds=stored(overall.choice),
        nested_gain=dict(overall.gains),
        honest_gain=honest_gains(scorer, by_fold),
        metric=f"mean lesion-wise Dice {config.tuning.metric}",
        weight_choices=weights,
        subtypes=PredictedSubtypes(dict(fit.silhouettes), clusters),
        found={name: stored(choice) for name, choice in overall.found.items()},
        by_fold={
            fold: {name: stored(choice) for name, choice in selection.steps.items()}
            for fold, selection in by_fold.items()
        },
    )
    write_whole(work / "tuning.json", to_json(tuning))
    write_whole(work / "scores.json", to_json(scores))


_Tumour = tuple[CaseEntry, NDArray[np.bool_], tuple[int, int, int]]
"""A case, its predicted tumour (X, Y, Z) in the crop of its prediction, and where that crop begins in the scan."""


def _describe(tumour: _Tumour, config: RunConfig) -> NDArray[np.float64] | None:
    """Features (386,); none where the tumour has none."""
    entry, mask, corner = tumour
    data, _ = load_case(entry, config)
    # Back in the scan: features normalise intensities over all of it.
    whole = np.zeros(data.shape[1:], np.bool_)
    whole[tuple(slice(start, start + length) for start, length in zip(corner, mask.shape, strict=True))] = mask
    features = extract_features(data, whole, SPACING, PRESETS[config.subtypes.extraction])
    return None if isinstance(features, NoFeatures) else features


def _predicted_subtypes(
    config: RunConfig, entries: Sequence[CaseEntry], scorer: Scorer, choice: Choice
) -> tuple[SubtypeFit, list[int | None]]:
    """Subtypes fitted to the predicted tumours, and that of every case; none where its tumour has no features."""
    tumours = [
        (entry, region_mask(scorer.labels(index, choice), "WT"), scorer.cases[index].corner)
        for index, entry in enumerate(entries)
    ]
    vectors: list[NDArray[np.float64] | None] = []
    for vector in scorer.workers.map(partial(_describe, config=config), tumours, name=lambda tumour: tumour[0].id):
        vectors.append(vector)
        log.info("tuning: %d of %d predicted tumours described", len(vectors), len(tumours))
    described = [vector for vector in vectors if vector is not None]
    if not described:
        raise UsageError("no predicted tumour could be described: subtypes cannot be fitted")
    fit = fit_subtypes(np.stack(described), config.subtypes, config.seed)
    # The fit knows only the tumours that have features; its subtypes go back to their cases in the same order.
    found = iter(fit.clusters)
    return fit, [None if vector is None else next(found) for vector in vectors]


def score_systems(config: RunConfig, scorer: Scorer, by_fold: ByFold) -> Scores:
    """Out-of-fold Dice per system and region: whole-volume over cases that have the region (left out where none has),
    and lesion-wise.

    Systems: each model alone, the ensemble, and the ensemble refined by thresholds chosen without the case's fold.
    """
    cases = scorer.cases
    systems: dict[str, Callable[[int], NDArray[np.uint8]]] = {
        model.name: lambda index, name=model.name: labels_from_regions(cases[index].probabilities[name])  # type: ignore[misc]
        for model in config.models
    }
    systems["ensemble"] = lambda index: labels_from_regions(scorer.ensembles[index])
    systems["refined"] = lambda index: scorer.labels(index, by_fold[cases[index].fold].choice)
    return {system: _score_system(labels_of, scorer) for system, labels_of in systems.items()}


def _score_pair(pair: tuple[NDArray[np.uint8], NDArray[np.uint8], Version]) -> dict[str, RegionScore]:
    """Scores of a reference and a prediction, for a process of its own."""
    reference, labels, version = pair
    return score_case(reference, labels, SPACING, version, metrics="dice")


def _score_system(labels_of: Callable[[int], NDArray[np.uint8]], scorer: Scorer) -> dict[str, dict[str, float]]:
    cases = scorer.cases
    # Both editions whatever was tuned by: the manifest of a bundle states both.
    versions: tuple[Version, Version] = (2023, 2024)
    pairs = [(case.reference, labels_of(i), version) for version in versions for i, case in enumerate(cases)]
    found = list(scorer.workers.map(_score_pair, pairs))
    scores = {2023: found[: len(cases)], 2024: found[len(cases) :]}
    summary = {}
    for region in REGIONS:
        # The paper's Table 2: a whole-volume Dice of an absent region says nothing of overlap.
        present = [region_mask(case.reference, region).any() for case in cases]
        whole = [score[region].dice for score, has in zip(scores[2023], present, strict=True) if has]
        summary[region] = {
            **({"dice": float(np.mean(whole))} if whole else {}),
            "cases_with_region": float(len(whole)),
            "lesionwise_dice_2023": float(np.mean([score[region].lesionwise_dice for score in scores[2023]])),
            "lesionwise_dice_2024": float(np.mean([score[region].lesionwise_dice for score in scores[2024]])),
            "cases": float(len(cases)),
        }
    return summary
