"""What out-of-fold predictions decide: ensemble weights, subtypes of predicted tumours, and thresholds.

Every choice maximises the official lesion-wise Dice, averaged over regions and cases. A group of thresholds is kept
only if choosing it on the other folds beats leaving the predictions alone on the fold that was left out (nested
cross-validation), so that a gain is a finding and not a fit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.bundle.tables import Thresholds, ThresholdTables, thresholds_to_json
from inference.errors import UsageError
from inference.labels import REGIONS, TUMOUR_LABELS, labels_from_regions, region_mask
from inference.refine.postprocess import relabel_by_ratio, remove_components
from inference.refine.radiomics import Box, NoFeatures, extract_features
from inference.refine.subtypes import subtype_tables
from training.config import RunConfig
from training.crossval import prediction_path
from training.datasets import copy_name, load_case, read_cases, read_folds
from training.evaluation.lesionwise import RegionScore, Version, score_case
from training.stratify import SPACING, extraction_settings, save_subtypes
from training.subtyping import fit_subtypes

COMPONENT_GRID = tuple(float(size) for size in range(0, 501, 25))
"""Smallest components tried, mm³ (the authors' grid)."""
RATIO_GRID = tuple(step / 20 for step in range(20))
"""Smallest ET/WT tried (the authors' grid)."""
REGION_GRID = (0.5, 0.3, 0.4, 0.6, 0.7)
"""Region thresholds tried; the first is the one that stays where nothing is better. No higher ones: out of fold one
network a model speaks, in the bundle the mean of five, which is less sure of itself."""
SHRINKAGE = 10
"""A subtype of n tumours has the say n / (n + this) in its own thresholds, all tumours the rest."""
PAPER_WEIGHTS = {"nnunet": 17 / 36, "mednext": 19 / 36}
"""The paper's ensemble weights, 0.4722 and 0.5278."""
NEUTRAL = Thresholds({label.name: 0.0 for label in TUMOUR_LABELS}, 0.0)
"""Leaves every label map alone."""


@dataclass(frozen=True)
class OutOfFold:
    """One copy of a case with its out-of-fold predictions, cropped to where there is anything."""

    copy: str
    """Name of the copy."""
    form: str
    """Its form."""
    fold: int
    """Its fold."""
    reference: NDArray[np.uint8]
    """Reference labels (X, Y, Z)."""
    probabilities: Mapping[str, NDArray[np.float32]]
    """Per model, region probabilities (3, X, Y, Z)."""


@dataclass(frozen=True)
class Choice:
    """All thresholds that a label map goes through."""

    regions: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Of WT, TC, ET."""
    thresholds: Thresholds = NEUTRAL
    """Of refinement."""


@dataclass(frozen=True)
class Painted:
    """A label map before refinement, and what is needed to foresee refinement's effect on it."""

    labels: NDArray[np.uint8]
    """(X, Y, Z)."""
    volumes: Mapping[str, NDArray[np.float64]]
    """Volumes of the components of each label, mm³, in ascending order."""

    def effect(self, thresholds: Thresholds) -> tuple[int | bool, ...]:
        """What `thresholds` do here: components removed per label, and whether ET is relabelled."""
        left = {}
        removed = []
        for label, volumes in self.volumes.items():
            count = int(np.searchsorted(volumes, thresholds.smallest_component_mm3[label]))
            removed.append(count)
            left[label] = float(volumes[count:].sum())
        whole = sum(left.values())
        return (*removed, whole > 0 and 0 < left["ET"] / whole < thresholds.et_wt_ratio)


def paint(probabilities: NDArray[np.float32], thresholds: tuple[float, float, float]) -> Painted:
    """Labels from region probabilities (3, X, Y, Z), and their components."""
    import cc3d

    labels = labels_from_regions(probabilities, thresholds)
    components = cc3d.connected_components(labels, connectivity=26)
    sizes = np.bincount(components.ravel()) * float(np.prod(SPACING))
    label_of = np.zeros(sizes.shape, np.uint8)
    label_of[components] = labels
    volumes = {label.name: np.sort(sizes[label_of == label]) for label in TUMOUR_LABELS}
    return Painted(labels, volumes)


@dataclass
class Scorer:
    """Scores of choices on ensembled predictions; what it has scored it knows.

    Thousands of choices have the same effect on a label map, so that what was scored is remembered by its effect.
    """

    copies: Sequence[OutOfFold]
    """What is scored."""
    ensembles: Sequence[NDArray[np.float32]]
    """Weighted probabilities (3, X, Y, Z) of each copy."""
    version: Version
    """Of the official score."""
    _painted: dict[tuple[int, tuple[float, ...]], Painted] = field(default_factory=dict)
    _known: dict[tuple[object, ...], float] = field(default_factory=dict)

    def _paint(self, index: int, choice: Choice) -> Painted:
        key = (index, choice.regions)
        if key not in self._painted:
            self._painted[key] = paint(self.ensembles[index], choice.regions)
        return self._painted[key]

    def labels(self, index: int, choice: Choice) -> NDArray[np.uint8]:
        """The label map (X, Y, Z) of one copy under `choice`, by the steps of inference."""
        painted = self._paint(index, choice).labels
        cleaned, _ = remove_components(painted, SPACING, choice.thresholds.smallest_component_mm3)
        return relabel_by_ratio(cleaned, choice.thresholds.et_wt_ratio)[0]

    def score(self, index: int, choice: Choice) -> float:
        """Lesion-wise Dice of one copy under `choice`, mean over regions."""
        key = (index, choice.regions, self._paint(index, choice).effect(choice.thresholds))
        if key not in self._known:
            labels = self.labels(index, choice)
            scores = score_case(self.copies[index].reference, labels, SPACING, self.version, metrics="dice")
            self._known[key] = mean_dice(scores)
        return self._known[key]

    def mean(self, indices: Sequence[int], choice: Choice) -> float:
        """Mean score over some copies."""
        return float(np.mean([self.score(index, choice) for index in indices]))


def mean_dice(scores: Mapping[str, RegionScore]) -> float:
    """Mean over regions of the lesion-wise Dice."""
    return float(np.mean([score.lesionwise_dice for score in scores.values()]))


def load_out_of_fold(config: RunConfig, work: Path) -> list[OutOfFold]:
    """Every out-of-fold prediction with its reference."""
    folds = read_folds(work / "folds.json")
    copies = []
    for entry, form in product(read_cases(work / "cases.json"), config.tuning.forms):
        if entry.id not in folds:
            continue
        _, reference = load_case(entry, config)
        copy = copy_name(entry.id, form)
        probabilities = {}
        for model in config.models:
            with np.load(prediction_path(work, model.name, copy)) as stored:
                probabilities[model.name] = stored["probabilities"].astype(np.float32)
        box = _box(reference, probabilities)
        cropped = {name: np.ascontiguousarray(array[:, *box]) for name, array in probabilities.items()}
        copies.append(OutOfFold(copy, form, folds[entry.id], np.ascontiguousarray(reference[box]), cropped))
    return copies


def _box(reference: NDArray[np.uint8], probabilities: Mapping[str, NDArray[np.float32]]) -> Box:
    """Around everything that any threshold of the grid can call tumour."""
    anything: NDArray[np.bool_] = np.greater(reference, 0)
    for array in probabilities.values():
        anything |= (array > 0.1).any(axis=0)
    if not anything.any():
        return (slice(0, 1),) * 3
    where = [np.flatnonzero(anything.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(slice(int(index[0]), int(index[-1]) + 1) for index in where)


def ensemble_weights(config: RunConfig, copies: Sequence[OutOfFold]) -> dict[str, float]:
    """Each model's share: of the sum of mean out-of-fold scores, or the paper's."""
    names = [model.name for model in config.models]
    if config.tuning.weights == "paper":
        if set(names) != set(PAPER_WEIGHTS):
            raise UsageError(f"the paper's ensemble weights are for {', '.join(PAPER_WEIGHTS)}, not {', '.join(names)}")
        return {name: PAPER_WEIGHTS[name] for name in names}
    if config.tuning.weights != "score_share":
        raise UsageError(f"ensemble weights {config.tuning.weights!r}: expected score_share or paper")
    scores = {}
    for name in names:
        scorer = Scorer(copies, [copy.probabilities[name] for copy in copies], _version(config))
        scores[name] = scorer.mean(range(len(copies)), Choice())
    total = sum(scores.values())
    return {name: score / total if total else 1 / len(names) for name, score in scores.items()}


def _version(config: RunConfig) -> Version:
    if config.tuning.metric == 2023:
        return 2023
    if config.tuning.metric == 2024:
        return 2024
    raise UsageError(f"tuning metric {config.tuning.metric}: expected 2023 or 2024")


def ensemble(copy: OutOfFold, weights: Mapping[str, float]) -> NDArray[np.float32]:
    """Weighted probabilities (3, X, Y, Z)."""
    mixed = np.zeros_like(next(iter(copy.probabilities.values())))
    for name, probabilities in copy.probabilities.items():
        mixed += np.float32(weights[name]) * probabilities
    return mixed


Objective = Callable[[Choice], float]


def best_regions(objective: Objective, start: Choice) -> Choice:
    """The best region thresholds, one region after the other."""
    chosen = start
    for index in range(len(REGIONS)):
        candidates = []
        for value in REGION_GRID:
            whole, core, enhancing = (value if i == index else old for i, old in enumerate(chosen.regions))
            candidates.append(replace(chosen, regions=(whole, core, enhancing)))
        chosen = _best(objective, chosen, candidates)
    return chosen


def best_components(objective: Objective, start: Choice) -> Choice:
    """The best smallest components, one label after the other."""
    chosen = start
    for label in TUMOUR_LABELS:
        sizes = chosen.thresholds.smallest_component_mm3
        candidates = [
            replace(chosen, thresholds=replace(chosen.thresholds, smallest_component_mm3={**sizes, label.name: value}))
            for value in COMPONENT_GRID
        ]
        chosen = _best(objective, chosen, candidates)
    return chosen


def best_ratio(objective: Objective, start: Choice) -> Choice:
    """The best smallest ET/WT."""
    candidates = [replace(start, thresholds=replace(start.thresholds, et_wt_ratio=value)) for value in RATIO_GRID]
    return _best(objective, start, candidates)


def _best(objective: Objective, start: Choice, candidates: Sequence[Choice]) -> Choice:
    """The candidate with the highest score, the first among equals; `start` unless it is beaten."""
    scores = [objective(candidate) for candidate in candidates]
    best = int(np.argmax(scores))
    return candidates[best] if scores[best] > objective(start) else start


GROUPS: Mapping[str, Callable[[Objective, Choice], Choice]] = {
    "regions": best_regions,
    "components": best_components,
    "ratio": best_ratio,
}
"""What is chosen, in this order, each on top of what was kept before."""


@dataclass(frozen=True)
class Tuned:
    """Thresholds that rule every case, what the folds alone would have chosen, and what each group was worth."""

    choice: Choice
    """From all folds; groups without a nested gain are neutral."""
    by_fold: Mapping[int, Choice]
    """Chosen without the fold: what the fold's cases may honestly be scored with."""
    gains: Mapping[str, float]
    """Nested gain of each group in mean lesion-wise Dice, whether it was kept or not."""


def tune_all(scorer: Scorer) -> Tuned:
    """Tune every group on all copies, by nested cross-validation over their folds."""
    everyone = range(len(scorer.copies))
    folds = sorted({copy.fold for copy in scorer.copies})
    choice, by_fold, gains = Choice(), dict.fromkeys(folds, Choice()), {}
    for name, best in GROUPS.items():
        trial, gain = {}, 0.0
        for fold in folds:
            others = [index for index in everyone if scorer.copies[index].fold != fold]
            held_out = [index for index in everyone if scorer.copies[index].fold == fold]
            trial[fold] = best(lambda candidate, others=others: scorer.mean(others, candidate), by_fold[fold])  # type: ignore[misc]
            gain += sum(scorer.score(i, trial[fold]) - scorer.score(i, by_fold[fold]) for i in held_out)
        gains[name] = gain / len(scorer.copies)
        if gain > 0:
            choice, by_fold = best(lambda candidate: scorer.mean(everyone, candidate), choice), trial
    return Tuned(choice, by_fold, gains)


def tune_subtypes(scorer: Scorer, clusters: Sequence[int | None], tuned: Tuned) -> tuple[dict[int, Thresholds], float]:
    """Thresholds per subtype, shrunk to those of all cases, and their nested gain over the global ones."""
    everyone = range(len(scorer.copies))
    known = sorted({cluster for cluster in clusters if cluster is not None})

    def choose(cluster: int, indices: Sequence[int], start: Choice) -> Choice:
        own = [index for index in indices if clusters[index] == cluster]
        say = len(own) / (len(own) + SHRINKAGE)

        def objective(choice: Choice) -> float:
            common = scorer.mean(indices, choice)
            return say * scorer.mean(own, choice) + (1 - say) * common if own else common

        return best_ratio(objective, best_components(objective, start))

    gain = 0.0
    for fold, start in tuned.by_fold.items():
        others = [index for index in everyone if scorer.copies[index].fold != fold]
        held_out = [index for index in everyone if scorer.copies[index].fold == fold and clusters[index] is not None]
        chosen = {
            cluster: choose(cluster, others, start)
            for cluster in {clusters[index] for index in held_out}
            if cluster is not None
        }
        for index in held_out:
            cluster = clusters[index]
            assert cluster is not None
            gain += scorer.score(index, chosen[cluster]) - scorer.score(index, start)
    thresholds = {cluster: choose(cluster, everyone, tuned.choice).thresholds for cluster in known}
    return thresholds, gain / len(scorer.copies)


def tune(config: RunConfig, work: Path) -> None:
    """Write `tuning.json` (weights, thresholds, gains), `subtypes.*` and `scores.json`."""
    copies = load_out_of_fold(config, work)
    weights = ensemble_weights(config, copies)
    scorer = Scorer(copies, [ensemble(copy, weights) for copy in copies], _version(config))
    tuned = tune_all(scorer)
    clusters = _predicted_subtypes(config, work, scorer, tuned)
    subtypes, gain = tune_subtypes(scorer, clusters, tuned)
    count = max(subtypes) + 1
    tables = ThresholdTables(
        regions=tuned.choice.regions,
        overall=tuned.choice.thresholds,
        subtypes={cluster: subtypes.get(cluster, tuned.choice.thresholds) for cluster in range(count)},
        use="subtypes" if gain > 0 else "global",
    )
    content = {
        "weights": weights,
        "thresholds": thresholds_to_json(tables),
        "nested_gain": {**tuned.gains, "subtypes": gain},
        "metric": f"mean lesion-wise Dice {config.tuning.metric}",
    }
    (work / "tuning.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    scores = score_systems(config, copies, scorer, tuned)
    (work / "scores.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")


def _predicted_subtypes(config: RunConfig, work: Path, scorer: Scorer, tuned: Tuned) -> list[int | None]:
    """Fit and write the subtypes of the predicted tumours; the subtype of every copy, none where it has no features."""
    entries = {
        copy_name(entry.id, form): (entry, form)
        for entry in read_cases(work / "cases.json")
        for form in config.tuning.forms
    }
    settings = extraction_settings(config)
    vectors: list[NDArray[np.float64] | None] = []
    for index, copy in enumerate(scorer.copies):
        entry, form = entries[copy.copy]
        data, reference = load_case(entry, config, form)
        stored = {}
        for model in config.models:
            with np.load(prediction_path(work, model.name, copy.copy)) as file:
                stored[model.name] = file["probabilities"].astype(np.float32)
        box = _box(reference, stored)
        whole = np.zeros(reference.shape, np.bool_)
        whole[box] = region_mask(labels_from_regions(scorer.ensembles[index], tuned.choice.regions), "WT")
        features = extract_features(data, whole, SPACING, settings)
        vectors.append(None if isinstance(features, NoFeatures) else features.values)
    described = [vector for vector in vectors if vector is not None]
    if not described:
        raise UsageError("no predicted tumour could be described: subtypes cannot be fitted")
    fit = fit_subtypes(
        np.stack(described),
        settings,
        scaling=config.subtypes.scaling,
        variance=config.subtypes.variance,
        cluster_counts=config.subtypes.clusters,
        seed=config.seed,
    )
    save_subtypes(subtype_tables(fit.model), work / "subtypes.json")
    found = iter(fit.clusters)
    return [None if vector is None else next(found) for vector in vectors]


def score_systems(
    config: RunConfig, copies: Sequence[OutOfFold], scorer: Scorer, tuned: Tuned
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Out-of-fold Dice per system, form and region: whole-volume over copies that have the region, and lesion-wise.

    Systems: each model alone, the ensemble, and the ensemble refined by thresholds chosen without the copy's fold.
    """
    systems: dict[str, Callable[[int], NDArray[np.uint8]]] = {
        model.name: lambda index, name=model.name: labels_from_regions(copies[index].probabilities[name])  # type: ignore[misc]
        for model in config.models
    }
    systems["ensemble"] = lambda index: labels_from_regions(scorer.ensembles[index])
    systems["refined"] = lambda index: scorer.labels(index, tuned.by_fold[copies[index].fold])
    return {
        system: {form: _score_form(labels_of, copies, form) for form in config.tuning.forms}
        for system, labels_of in systems.items()
    }


def _score_form(
    labels_of: Callable[[int], NDArray[np.uint8]], copies: Sequence[OutOfFold], form: str
) -> dict[str, dict[str, float]]:
    chosen = [index for index, copy in enumerate(copies) if copy.form == form]
    versions: tuple[Version, Version] = (2023, 2024)
    scores = {
        version: [
            score_case(copies[index].reference, labels_of(index), SPACING, version, metrics="dice") for index in chosen
        ]
        for version in versions
    }
    summary = {}
    for region in REGIONS:
        present = [region_mask(copies[index].reference, region).any() for index in chosen]
        whole = [score[region].dice for score, has in zip(scores[2023], present, strict=True) if has]
        summary[region] = {
            "dice": float(np.mean(whole)) if whole else float("nan"),
            "cases_with_region": float(len(whole)),
            "lesionwise_dice_2023": float(np.mean([score[region].lesionwise_dice for score in scores[2023]])),
            "lesionwise_dice_2024": float(np.mean([score[region].lesionwise_dice for score in scores[2024]])),
            "cases": float(len(chosen)),
        }
    return summary
