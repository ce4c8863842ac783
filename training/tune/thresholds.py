"""What out-of-fold predictions decide: ensemble weights, subtypes of predicted tumours, and thresholds.

Every choice maximises the official lesion-wise Dice, averaged over regions and cases. A group of thresholds is kept
only if choosing it on the other folds beats leaving the predictions alone on the fold that was left out (nested
cross-validation). What all of it is worth is measured once more around that: each fold's cases are scored with what the
other folds alone would have chosen *and kept*, so that a gain is a finding and not a fit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.bundle.tables import StoredThresholds, Thresholds, ThresholdTables, stored_thresholds
from inference.errors import UsageError
from inference.files import write_whole
from inference.labels import REGIONS, TUMOUR_LABELS, labels_from_regions, region_mask
from inference.refine.components import connected_components
from inference.refine.postprocess import relabel_by_ratio, remove_components
from inference.refine.radiomics import NoFeatures, extract_features
from inference.refine.subtypes import subtype_tables
from inference.schema import to_json
from training.config import RunConfig
from training.data.datasets import CaseEntry, load_case
from training.data.stratify import SPACING, extraction_settings, save_subtypes
from training.data.subtyping import SubtypeFit, fit_subtypes
from training.evaluation.lesionwise import RegionScore, Version, score_case
from training.fit.predict import scored_cases
from training.tune.ensemble_weights import choose_weights
from training.tune.out_of_fold import OutOfFold, ensemble, load_predictions, mean_dice
from training.tune.tuning import PredictedSubtypes, Scores, Tuning
from training.workers import Workers, open_workers

log = logging.getLogger(__name__)

COMPONENT_GRID = tuple(float(size) for size in range(0, 501, 25))
"""Smallest components tried, mm³ (the authors' grid)."""
RATIO_GRID = tuple(step / 20 for step in range(20))
"""Smallest ET/WT tried (the authors' grid)."""
REGION_GRID = (0.5, 0.3, 0.4, 0.6, 0.7)
"""Region thresholds tried; the first is the one that stays where nothing is better. No higher ones: out of fold one
network a model speaks, in the bundle the mean of five, which is less sure of itself."""
SHRINKAGE = 10
"""A subtype of n tumours has the say n / (n + this) in its own thresholds, all tumours the rest."""
LEAST_GAIN = 1e-9
"""Gains up to this are rounding."""
NEUTRAL = Thresholds({label.name: 0.0 for label in TUMOUR_LABELS}, 0.0)
"""Leaves every label map alone."""


@dataclass(frozen=True)
class Choice:
    """All thresholds that a label map goes through."""

    regions: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Of WT, TC, ET."""
    thresholds: Thresholds = NEUTRAL
    """Of refinement."""
    subtypes: Mapping[int, Thresholds] = field(default_factory=dict)
    """Of refinement, for the subtypes that have their own."""

    def of(self, cluster: int | None) -> Thresholds:
        """The thresholds of refinement for a tumour of this subtype, or of none."""
        return self.thresholds if cluster is None else self.subtypes.get(cluster, self.thresholds)


@dataclass(frozen=True)
class LabelMap:
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


def label_map(probabilities: NDArray[np.float32], thresholds: tuple[float, float, float]) -> LabelMap:
    """Labels from region probabilities (3, X, Y, Z), and their components."""
    labels = labels_from_regions(probabilities, thresholds)
    components = connected_components(labels)
    sizes = np.bincount(components.ravel()) * float(np.prod(SPACING))
    label_of = np.zeros(sizes.shape, np.uint8)
    label_of[components] = labels
    volumes = {label.name: np.sort(sizes[label_of == label]) for label in TUMOUR_LABELS}
    return LabelMap(labels, volumes)


def refined(labels: NDArray[np.uint8], thresholds: Thresholds) -> NDArray[np.uint8]:
    """A label map (X, Y, Z) after both steps of refinement."""
    cleaned, _ = remove_components(labels, SPACING, thresholds.smallest_component_mm3)
    return relabel_by_ratio(cleaned, thresholds.et_wt_ratio)[0]


@dataclass(frozen=True)
class _Trial:
    """A label map, and thresholds to score it under."""

    reference: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    thresholds: Thresholds
    version: Version


def _try(trial: _Trial) -> float:
    labels = refined(trial.labels, trial.thresholds)
    return mean_dice(score_case(trial.reference, labels, SPACING, trial.version, metrics="dice"))


@dataclass
class Scorer:
    """Scores of choices on ensembled predictions; what it has scored it knows.

    Thousands of choices have the same effect on a label map, so that what was scored is remembered by its effect.
    """

    cases: Sequence[OutOfFold]
    """What is scored."""
    ensembles: Sequence[NDArray[np.float32]]
    """Weighted probabilities (3, X, Y, Z) of each case."""
    version: Version
    """Of the official score."""
    clusters: Sequence[int | None] = ()
    """Subtype of each case's predicted tumour; empty as long as there are none."""
    workers: Workers = field(default_factory=Workers)
    """The processes that score."""
    _label_maps: dict[tuple[int, tuple[float, ...]], LabelMap] = field(default_factory=dict)
    _known: dict[tuple[object, ...], float] = field(default_factory=dict)

    @property
    def scored(self) -> int:
        """How many label maps were scored so far."""
        return len(self._known)

    def cluster(self, index: int) -> int | None:
        """Subtype of one case's predicted tumour."""
        return self.clusters[index] if self.clusters else None

    def _label_map(self, index: int, choice: Choice) -> LabelMap:
        key = (index, choice.regions)
        if key not in self._label_maps:
            self._label_maps[key] = label_map(self.ensembles[index], choice.regions)
        return self._label_maps[key]

    def labels(self, index: int, choice: Choice) -> NDArray[np.uint8]:
        """The label map (X, Y, Z) of one case under `choice`, by the steps of inference."""
        return refined(self._label_map(index, choice).labels, choice.of(self.cluster(index)))

    def _key(self, index: int, choice: Choice) -> tuple[object, ...]:
        thresholds = choice.of(self.cluster(index))
        return (index, choice.regions, self._label_map(index, choice).effect(thresholds))

    def prepare(self, indices: Iterable[int], choices: Sequence[Choice]) -> None:
        """Score all of these choices on all of these cases, the workers sharing what is not known yet."""
        trials: dict[tuple[object, ...], _Trial] = {}
        for index, choice in product(indices, choices):
            key = self._key(index, choice)
            if key not in self._known and key not in trials:
                labels, thresholds = self._label_map(index, choice).labels, choice.of(self.cluster(index))
                trials[key] = _Trial(self.cases[index].reference, labels, thresholds, self.version)
        self._known.update(zip(trials, self.workers.map(_try, list(trials.values()), chunk=2), strict=True))

    def score(self, index: int, choice: Choice) -> float:
        """Lesion-wise Dice of one case under `choice`, mean over regions."""
        key = self._key(index, choice)
        if key not in self._known:
            self.prepare([index], [choice])
        return self._known[key]

    def mean(self, indices: Sequence[int], choice: Choice) -> float:
        """Mean score over some cases."""
        return float(np.mean([self.score(index, choice) for index in indices]))


@dataclass(frozen=True)
class Objective:
    """What a choice is worth: a weighted mean of the scores of some cases."""

    scorer: Scorer
    """Gives the scores."""
    shares: Mapping[int, float]
    """Weight of each case by index; they sum to 1."""

    def best(self, start: Choice, candidates: Sequence[Choice]) -> Choice:
        """The candidate with the highest value, the first among equals; `start` unless it is beaten."""
        self.scorer.prepare(self.shares, [start, *candidates])
        values = [self._value(candidate) for candidate in candidates]
        best = int(np.argmax(values))
        return candidates[best] if values[best] > self._value(start) + LEAST_GAIN else start

    def _value(self, choice: Choice) -> float:
        return sum(share * self.scorer.score(index, choice) for index, share in self.shares.items())


def best_regions(objective: Objective, start: Choice) -> Choice:
    """The best region thresholds, one region after the other."""
    chosen = start
    for index in range(len(REGIONS)):
        candidates = []
        for value in REGION_GRID:
            whole, core, enhancing = (value if i == index else old for i, old in enumerate(chosen.regions))
            candidates.append(replace(chosen, regions=(whole, core, enhancing)))
        chosen = objective.best(chosen, candidates)
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
        chosen = objective.best(chosen, candidates)
    return chosen


def best_ratio(objective: Objective, start: Choice) -> Choice:
    """The best smallest ET/WT."""
    candidates = [replace(start, thresholds=replace(start.thresholds, et_wt_ratio=value)) for value in RATIO_GRID]
    return objective.best(start, candidates)


Step = Callable[[Scorer, Sequence[int], Choice], Choice]
"""Chooses one group of thresholds on some cases, on top of what was kept before."""


def _for_all(
    best: Callable[[Objective, Choice], Choice], scorer: Scorer, indices: Sequence[int], start: Choice
) -> Choice:
    return best(Objective(scorer, dict.fromkeys(indices, 1 / len(indices))), start)


def _for_subtype(cluster: int, scorer: Scorer, indices: Sequence[int], start: Choice) -> Choice:
    """Component and ratio thresholds of one subtype, shrunk to those of all cases."""
    own = [index for index in indices if scorer.cluster(index) == cluster]
    if not own:
        return start
    say = len(own) / (len(own) + SHRINKAGE)
    shares = dict.fromkeys(indices, (1 - say) / len(indices))
    for index in own:
        shares[index] += say / len(own)
    objective = Objective(scorer, shares)
    found = best_ratio(objective, best_components(objective, replace(start, subtypes={}))).thresholds
    return start if found == start.thresholds else replace(start, subtypes={**start.subtypes, cluster: found})


GROUPS: Mapping[str, Step] = {
    "regions": partial(_for_all, best_regions),
    "components": partial(_for_all, best_components),
    "ratio": partial(_for_all, best_ratio),
}
"""What is chosen for all cases, in this order, each on top of what was kept before."""
SUBTYPES = "subtypes"
"""What is chosen after that: own thresholds of subtypes, each subtype a group of its own."""


def groups_of(scorer: Scorer, wanted: Sequence[str] = (*GROUPS, SUBTYPES)) -> dict[str, Step]:
    """The wanted groups of thresholds in their order; subtypes where they are known."""
    known = sorted({cluster for cluster in scorer.clusters if cluster is not None})
    own = {f"{SUBTYPES} {cluster}": partial(_for_subtype, cluster) for cluster in known if SUBTYPES in wanted}
    return {**{name: step for name, step in GROUPS.items() if name in wanted}, **own}


@dataclass(frozen=True)
class Selection:
    """What was chosen on some cases."""

    steps: Mapping[str, Choice]
    """What is kept after each group."""
    found: Mapping[str, Choice]
    """What each group would have been, kept or not."""
    gains: Mapping[str, float]
    """Nested gain of each group in mean lesion-wise Dice, kept or not; 0 where nothing was found."""

    @property
    def choice(self) -> Choice:
        """What is kept after all groups."""
        return list(self.steps.values())[-1] if self.steps else Choice()


def select(
    scorer: Scorer, indices: Sequence[int], groups: Mapping[str, Step], report: Callable[[str], None] = log.debug
) -> Selection:
    """Choose every group on some cases, keeping what has a nested gain over their folds.

    Cases of a single fold cannot show a gain, so that nothing is kept.
    """
    fold_of = {index: scorer.cases[index].fold for index in indices}
    folds = sorted(set(fold_of.values()))
    choice, by_fold = Choice(), dict.fromkeys(folds, Choice())
    steps, found, gains = {}, {}, {}
    for name, step in groups.items():
        found[name], gains[name] = step(scorer, indices, choice), 0.0
        if found[name] != choice and len(folds) > 1:
            trial = {
                fold: step(scorer, [index for index in indices if fold_of[index] != fold], by_fold[fold])
                for fold in folds
            }
            gained = [scorer.score(i, trial[fold]) - scorer.score(i, by_fold[fold]) for i, fold in fold_of.items()]
            gains[name] = float(np.mean(gained))
            if gains[name] > LEAST_GAIN:
                choice, by_fold = found[name], trial
        steps[name] = choice
        verdict = "kept" if choice == found[name] and gains[name] > LEAST_GAIN else "left alone"
        report(f"{name}: {verdict}, nested gain {gains[name]:+.4f}; {scorer.scored} label maps scored")
    return Selection(steps, found, gains)


@dataclass(frozen=True)
class Tuned:
    """Thresholds that rule every case, and what the folds alone would have chosen."""

    overall: Selection
    """From all folds."""
    by_fold: Mapping[int, Selection]
    """Chosen and kept without the fold: what the fold's cases may honestly be scored with."""

    @property
    def choice(self) -> Choice:
        """What rules every case."""
        return self.overall.choice


def tune_all(scorer: Scorer, wanted: Sequence[str] = (*GROUPS, SUBTYPES)) -> Tuned:
    """Tune every group on all cases, and without each fold."""
    everyone, groups = range(len(scorer.cases)), groups_of(scorer, wanted)
    overall = select(scorer, everyone, groups, lambda line: log.info("tuning: %s", line))
    nothing = replace(overall, steps=dict.fromkeys(groups, Choice()))
    by_fold = {}
    folds = sorted({case.fold for case in scorer.cases})
    for number, fold in enumerate(folds, start=1):
        others = [index for index in everyone if scorer.cases[index].fold != fold]
        by_fold[fold] = select(scorer, others, groups) if others else nothing
        log.info("tuning: honest gain: %d of %d folds; %d label maps scored", number, len(folds), scorer.scored)
    return Tuned(overall, by_fold)


def honest_gains(scorer: Scorer, tuned: Tuned) -> dict[str, float]:
    """What each group adds to the mean lesion-wise Dice where both choosing and keeping never saw the scored fold."""
    means = [scorer.mean(range(len(scorer.cases)), Choice())]
    for name in tuned.overall.steps:
        scores = [scorer.score(i, tuned.by_fold[case.fold].steps[name]) for i, case in enumerate(scorer.cases)]
        means.append(float(np.mean(scores)))
    return {name: after - before for name, (before, after) in zip(tuned.overall.steps, pairwise(means), strict=True)}


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
        wanted = sorted(config.tuning.groups, key=(*GROUPS, SUBTYPES).index)
        # Region thresholds come first since they decide what a predicted tumour is.
        first = select(scorer, range(len(cases)), groups_of(scorer, wanted[:1])).choice
        fit, scorer.clusters = _predicted_subtypes(config, [entry for entry, _ in scored], scorer, first.regions)
        tuned = tune_all(scorer, config.tuning.groups)
        scores = score_systems(config, cases, scorer, tuned)
    save_subtypes(subtype_tables(fit.model), work / "subtypes.json")

    def stored(choice: Choice) -> StoredThresholds:
        return stored_thresholds(tables_of(choice, len(fit.model.centroids)))

    clusters = {case.case: cluster for case, cluster in zip(cases, scorer.clusters, strict=True)}
    tuning = Tuning(
        weights=dict(chosen.weights),
        thresholds=stored(tuned.choice),
        nested_gain=dict(tuned.overall.gains),
        honest_gain=honest_gains(scorer, tuned),
        metric=f"mean lesion-wise Dice {config.tuning.metric}",
        weight_choices=weights,
        subtypes=PredictedSubtypes(dict(fit.silhouettes), clusters),
        found={name: stored(choice) for name, choice in tuned.overall.found.items()},
        by_fold={
            fold: {name: stored(choice) for name, choice in selection.steps.items()}
            for fold, selection in tuned.by_fold.items()
        },
    )
    write_whole(work / "tuning.json", to_json(tuning))
    write_whole(work / "scores.json", to_json(scores))


def tables_of(choice: Choice, clusters: int) -> ThresholdTables:
    """A choice as a bundle's tables for so many subtypes."""
    return ThresholdTables(
        regions=choice.regions,
        overall=choice.thresholds,
        subtypes={cluster: choice.of(cluster) for cluster in range(clusters)},
        use="subtypes" if choice.subtypes else "global",
    )


def choice_of(tables: ThresholdTables) -> Choice:
    """What a bundle's tables do."""
    return Choice(tables.regions, tables.overall, tables.subtypes if tables.use == "subtypes" else {})


@dataclass(frozen=True)
class _Tumour:
    """A predicted tumour to describe."""

    entry: CaseEntry
    mask: NDArray[np.bool_]
    corner: tuple[int, int, int]


def _describe(tumour: _Tumour, config: RunConfig) -> NDArray[np.float64] | None:
    """Features (386,); none where the tumour has none."""
    data, _ = load_case(tumour.entry, config)
    whole = np.zeros(data.shape[1:], np.bool_)
    box = tuple(slice(start, start + length) for start, length in zip(tumour.corner, tumour.mask.shape, strict=True))
    whole[box] = tumour.mask
    features = extract_features(data, whole, SPACING, extraction_settings(config))
    return None if isinstance(features, NoFeatures) else features.values


def _predicted_subtypes(
    config: RunConfig, entries: Sequence[CaseEntry], scorer: Scorer, regions: tuple[float, float, float]
) -> tuple[SubtypeFit, list[int | None]]:
    """Subtypes fitted to the predicted tumours, and that of every case; none where its tumour has no features."""
    tumours = [
        _Tumour(entry, region_mask(scorer.labels(index, Choice(regions)), "WT"), scorer.cases[index].corner)
        for index, entry in enumerate(entries)
    ]
    vectors: list[NDArray[np.float64] | None] = []
    for vector in scorer.workers.map(partial(_describe, config=config), tumours, name=lambda tumour: tumour.entry.id):
        vectors.append(vector)
        log.info("tuning: %d of %d predicted tumours described", len(vectors), len(tumours))
    described = [vector for vector in vectors if vector is not None]
    if not described:
        raise UsageError("no predicted tumour could be described: subtypes cannot be fitted")
    fit = fit_subtypes(
        np.stack(described),
        extraction_settings(config),
        scaling=config.subtypes.scaling,
        variance=config.subtypes.variance,
        cluster_counts=config.subtypes.clusters,
        seed=config.seed,
    )
    found = iter(fit.clusters)
    return fit, [None if vector is None else next(found) for vector in vectors]


def score_systems(config: RunConfig, cases: Sequence[OutOfFold], scorer: Scorer, tuned: Tuned) -> Scores:
    """Out-of-fold Dice per system and region: whole-volume over cases that have the region (left out where none has),
    and lesion-wise.

    Systems: each model alone, the ensemble, and the ensemble refined by thresholds chosen without the case's fold.
    """
    systems: dict[str, Callable[[int], NDArray[np.uint8]]] = {
        model.name: lambda index, name=model.name: labels_from_regions(cases[index].probabilities[name])  # type: ignore[misc]
        for model in config.models
    }
    systems["ensemble"] = lambda index: labels_from_regions(scorer.ensembles[index])
    systems["refined"] = lambda index: scorer.labels(index, tuned.by_fold[cases[index].fold].choice)
    return {system: _score_system(labels_of, scorer) for system, labels_of in systems.items()}


def _score_pair(pair: tuple[NDArray[np.uint8], NDArray[np.uint8], Version]) -> dict[str, RegionScore]:
    reference, labels, version = pair
    return score_case(reference, labels, SPACING, version, metrics="dice")


def _score_system(labels_of: Callable[[int], NDArray[np.uint8]], scorer: Scorer) -> dict[str, dict[str, float]]:
    cases = scorer.cases
    versions: tuple[Version, Version] = (2023, 2024)
    pairs = [(case.reference, labels_of(i), version) for version in versions for i, case in enumerate(cases)]
    found = list(scorer.workers.map(_score_pair, pairs))
    scores = {2023: found[: len(cases)], 2024: found[len(cases) :]}
    summary = {}
    for region in REGIONS:
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
