"""Ensemble weights from out-of-fold scores: by score share, by rank, by search, and the paper's preset.

Whatever the configuration names rules; all of them are reported, each scored on every fold with the weights that the
other folds give.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from inference.errors import UsageError
from inference.labels import labels_from_regions
from training.config import RunConfig
from training.data.stratify import SPACING
from training.evaluation.lesionwise import score_case
from training.evaluation.scores import Version
from training.tune.out_of_fold import OutOfFold, ensemble, mean_dice
from training.workers import Workers

log = logging.getLogger(__name__)

PAPER_WEIGHTS = {"nnunet": 17 / 36, "mednext": 19 / 36}
"""The paper's ensemble weights, 0.4722 and 0.5278."""
# Parts that the search shares among the models. Tenths: each further weighting is scored on every case.
WEIGHT_STEPS = 10
# A model that finds nothing would else weigh nothing, or all of them 0 / 0.
LEAST_SCORE = 0.001

Weights = Mapping[str, float]


@dataclass(frozen=True)
class WeightChoice:
    """One way to weigh the models."""

    weights: Weights
    """From all folds."""
    by_fold: Mapping[int, Weights]
    """From the other folds: what a fold's cases may honestly be ensembled with."""
    score: float
    """Mean lesion-wise Dice of the ensemble over regions and cases, each case under its fold's weights."""


@dataclass(frozen=True)
class Evidence:
    """Scores that weights are chosen from."""

    names: tuple[str, ...]
    """The models."""
    alone: NDArray[np.float64]
    """(models, cases, regions): lesion-wise Dice of each model alone."""
    mixed: NDArray[np.float64]
    """(weightings, cases): mean lesion-wise Dice of the mean probabilities under each of :func:`simplex`."""


def simplex(models: int, steps: int = WEIGHT_STEPS) -> NDArray[np.float64]:
    """(weightings, models): all ways to share `steps` equal parts, one at least for each model, the most even first."""
    shares = np.array([parts for parts in product(range(1, steps + 1), repeat=models) if sum(parts) == steps])
    weights: NDArray[np.float64] = shares / steps
    # Rounded, so that equally even weights are a tie, which a stable sort leaves in the order of the models.
    return weights[np.argsort(np.abs(weights - 1 / models).max(axis=1).round(12), kind="stable")]


def score_share(evidence: Evidence, cases: Sequence[int]) -> Weights:
    """Each model's share of the sum of mean scores, none below LEAST_SCORE: a bundle holds no model without a say."""
    scores = evidence.alone[:, cases].mean(axis=(1, 2)).clip(min=LEAST_SCORE)
    return {name: float(score / scores.sum()) for name, score in zip(evidence.names, scores, strict=True)}


def rank(evidence: Evidence, cases: Sequence[int]) -> Weights:
    """Each model's share of the rank points: in every case and region the best of n gets n, the worst 1, ties share."""
    points = stats.rankdata(evidence.alone[:, cases], axis=0).mean(axis=(1, 2))
    return {name: float(point / points.sum()) for name, point in zip(evidence.names, points, strict=True)}


def search(evidence: Evidence, cases: Sequence[int]) -> Weights:
    """The weighting with the highest score of the mean probabilities, the most even among equals."""
    # Scores that differ by rounding are equal, and argmax takes the first: the most even weights.
    best = int(np.argmax(evidence.mixed[:, cases].mean(axis=1).round(9)))
    weights = simplex(len(evidence.names))[best]
    return {name: float(weight) for name, weight in zip(evidence.names, weights, strict=True)}


def paper(evidence: Evidence, _: Sequence[int]) -> Weights:
    """The paper's, whatever the scores."""
    return {name: PAPER_WEIGHTS[name] for name in evidence.names}


WAYS: Mapping[str, Callable[[Evidence, Sequence[int]], Weights]] = {
    "score_share": score_share,
    "rank": rank,
    "search": search,
    "paper": paper,
}
"""Named choices of `tuning: weights`."""


def choose_weights(
    config: RunConfig, cases: Sequence[OutOfFold], version: Version, workers: Workers
) -> dict[str, WeightChoice]:
    """Every way to weigh the models that fits them, by name; UsageError where the one that is asked for does not."""
    names = tuple(model.name for model in config.models)
    ways = {name: way for name, way in WAYS.items() if name != "paper" or set(names) == set(PAPER_WEIGHTS)}
    if config.tuning.weights not in ways:
        raise UsageError(f"the paper's ensemble weights are for {', '.join(PAPER_WEIGHTS)}, not {', '.join(names)}")
    found = []
    for scores in workers.map(partial(_score, names=names, version=version), cases):
        found.append(scores)
        log.info("tuning: weights: %d of %d cases scored", len(found), len(cases))
    evidence = Evidence(names, np.stack([alone for alone, _ in found], axis=1), np.stack([m for _, m in found], axis=1))
    folds = sorted({case.fold for case in cases})
    others = {fold: [i for i, case in enumerate(cases) if case.fold != fold] for fold in folds}
    overall = {name: way(evidence, range(len(cases))) for name, way in ways.items()}
    # Where there is but one fold no other speaks, and the models weigh the same.
    even = dict.fromkeys(names, 1 / len(names))
    by_fold = {
        name: {fold: way(evidence, others[fold]) if others[fold] else even for fold in folds}
        for name, way in ways.items()
    }
    # Each case under weights that its own fold had no say in, so that the ways can be compared.
    tasks = [(case, [by_fold[name][case.fold] for name in ways]) for case in cases]
    held_out = np.array(list(workers.map(partial(_score_mixes, version=version), tasks))).mean(axis=0)
    return {
        name: WeightChoice(overall[name], by_fold[name], float(score))
        for name, score in zip(ways, held_out, strict=True)
    }


def _score(
    case: OutOfFold, names: tuple[str, ...], version: Version
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One case's part of the evidence: (models, regions) and (weightings,)."""
    alone = []
    for name in names:
        labels = labels_from_regions(case.probabilities[name])
        scores = score_case(case.reference, labels, SPACING, version, metrics="dice")
        alone.append([score.lesionwise_dice for score in scores.values()])
    grid = [dict(zip(names, weights, strict=True)) for weights in simplex(len(names)).tolist()]
    return np.array(alone), np.array(_score_mixes((case, grid), version))


def _score_mixes(task: tuple[OutOfFold, Sequence[Weights]], version: Version) -> list[float]:
    """Mean lesion-wise Dice of one case's ensemble under each of some weightings."""
    case, weightings = task
    found = []
    for weights in weightings:
        labels = labels_from_regions(ensemble(case.probabilities, weights))
        found.append(mean_dice(score_case(case.reference, labels, SPACING, version, metrics="dice")))
    return found
