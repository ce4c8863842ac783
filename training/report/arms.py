"""The arms that a run compares, as the paper's Table 3 does, each scored on cases that it has not seen.

Networks predict their own fold's cases; weights and thresholds of the arms that have any are those that the other folds
chose and kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from inference.errors import UsageError
from inference.labels import REGIONS, labels_from_regions, region_mask
from training.config import RunConfig
from training.data.datasets import CaseEntry
from training.data.stratify import SPACING, load_subtypes
from training.evaluation.lesionwise import score_case
from training.evaluation.scores import Version
from training.evaluation.systems import Difference, Systems
from training.fit.predict import prediction_path, scored_cases
from training.tune.choices import Choice, choice_of, refined, trusted_labels
from training.tune.out_of_fold import OutOfFold, ensemble, load_predictions
from training.tune.thresholds import GROUPS, SUBTYPES
from training.tune.tuning import Tuning
from training.workers import Workers

log = logging.getLogger(__name__)

# Endings of comparison models' names: trained from random weights, or not fine-tuned (`network_name` of the trainings).
SCRATCH, PRETRAINED = "-scratch", "-pretrained"
MODEL_TITLES = {"nnunet": "nnU-Net", "mednext": "MedNeXt"}
"""Names of models where people read."""
STEP_TITLES = {
    "regions": "+ region thresholds",
    "confidence": "+ lesions in doubt left out",
    "components": "+ component removal",
    "ratio": "+ relabelling",
    "subtypes": "+ subtypes' own thresholds",
}
"""Names of the steps after the ensemble; each includes those before it."""
VERSIONS: tuple[Version, Version] = (2023, 2024)
METRICS = ("lesionwise_dice", "lesionwise_hd95", "dice")
"""Metrics that are compared."""
MEAN = "mean"
"""Stands beside the regions for their mean."""


Arms = Mapping[str, str]
"""Name in files → title in tables and figures of every arm, in the order of the table."""


@dataclass(frozen=True)
class Plan:
    """All that turns out-of-fold predictions into the label maps of every arm."""

    models: tuple[str, ...]
    """Models that are scored alone, comparison models first."""
    weights: Mapping[int, Mapping[str, float]]
    """By fold: weights of the ensemble."""
    steps: Mapping[int, Mapping[str, Choice]]
    """By fold: thresholds after each step."""
    clusters: Mapping[str, int | None]
    """Subtype of each case's predicted tumour."""

    @property
    def arms(self) -> Arms:
        """The models alone, their ensemble, and what is added to it step by step."""
        alone = {
            name: model_title(name) + ("" if name.endswith((SCRATCH, PRETRAINED)) else " alone") for name in self.models
        }
        steps = {name: STEP_TITLES[name] for name in next(iter(self.steps.values()))}
        return {**alone, "ensemble": "weighted ensemble", **steps}


def model_title(name: str) -> str:
    """Name of a model where people read."""
    plain = name.removesuffix(SCRATCH).removesuffix(PRETRAINED)
    title = MODEL_TITLES.get(plain, plain)
    if name.endswith(SCRATCH):
        return f"{title} from scratch"
    return f"{title} before fine-tuning" if name.endswith(PRETRAINED) else title


def make_plan(config: RunConfig, work: Path, tuning: Tuning) -> Plan:
    """The plan of a run that was tuned; UsageError where it was tuned on other cases or folds than it has now."""
    scored = scored_cases(config, work)
    weights = tuning.weight_choices[config.tuning.weights].by_fold
    lacks = {f"case {entry.id}" for entry in scored if entry.id not in tuning.subtypes.of}
    lacks |= {f"fold {fold}" for fold in scored.values() if fold not in tuning.by_fold or fold not in weights}
    if lacks:
        raise UsageError(f"{work / 'tuning.json'}: found nothing of {min(lacks)}: run the step `tune` again")
    # Tables have a row for every subtype, also for those that no choice names.
    count = load_subtypes(work / "subtypes.json").clusters
    steps = {}
    for fold, chosen in tuning.by_fold.items():
        choices = {name: choice_of(stored.tables("tuning.json", count)) for name, stored in chosen.items()}
        steps[fold] = {name: choice for name, choice in choices.items() if name in GROUPS}
        if len(steps[fold]) < len(choices):  # the choices of all subtypes are one step
            steps[fold][SUBTYPES] = list(choices.values())[-1]
    # In the order of the table: what the method is compared with comes before it.
    models = (*_comparison_models(config, work, scored), *(model.name for model in config.models))
    return Plan(models, weights, steps, tuning.subtypes.of)


def _comparison_models(config: RunConfig, work: Path, cases: Collection[CaseEntry]) -> list[str]:
    """Comparison models that predicted every case; one that predicted only some is left out, with a warning."""
    found = []
    # By what lies in the folder and not by the configuration: comparisons may have been trained by an earlier one.
    for name in (f"{model.name}{kind}" for kind in (SCRATCH, PRETRAINED) for model in config.models):
        there = sum(prediction_path(work, name, case.id).is_file() for case in cases)
        if there == len(cases):
            found.append(name)
        elif there:
            log.warning("report: %s is left out: it predicted %d of %d cases", name, there, len(cases))
    return found


def label_maps(case: OutOfFold, plan: Plan) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Name and label map (X, Y, Z) of every arm on one case."""
    for name in plan.models:
        yield name, labels_from_regions(case.probabilities[name])
    mixed = ensemble(case.probabilities, plan.weights[case.fold])
    yield "ensemble", labels_from_regions(mixed)
    for name, choice in plan.steps[case.fold].items():
        yield name, refined(trusted_labels(mixed, choice), choice.of(plan.clusters[case.case]))


Scores = Mapping[str, Mapping[str, float]]
"""Values by region and metric."""


@dataclass(frozen=True)
class CaseScores:
    """How every arm did on one case."""

    case: str
    fold: int
    present: tuple[str, ...]
    """Regions that the reference has."""
    scores: Mapping[str, Mapping[int, Scores]]
    """By arm and edition."""


def score_one(scored: tuple[CaseEntry, int], config: RunConfig, work: Path, plan: Plan) -> CaseScores:
    """Score every arm on a case, given with its fold, by both editions; equal label maps are scored once."""
    loaded = load_predictions(scored, plan.models, config, work)
    known: dict[bytes, Mapping[int, Scores]] = {}
    scores = {}
    for name, labels in label_maps(loaded, plan):
        # A step that was not kept leaves all label maps alone, and scoring takes seconds.
        key = labels.tobytes()
        if key not in known:
            found = {version: score_case(loaded.reference, labels, SPACING, version) for version in VERSIONS}
            known[key] = {
                version: {region: score.named() for region, score in regions.items()}
                for version, regions in found.items()
            }
        scores[name] = known[key]
    present = tuple(region for region in REGIONS if region_mask(loaded.reference, region).any())
    return CaseScores(loaded.case, loaded.fold, present, scores)


def score_arms(config: RunConfig, work: Path, plan: Plan, workers: Workers) -> list[CaseScores]:
    """Score every arm on every case."""
    cases = list(scored_cases(config, work).items())
    task: Callable[[tuple[CaseEntry, int]], CaseScores] = partial(score_one, config=config, work=work, plan=plan)
    found = []
    for scores in workers.map(task, cases):
        found.append(scores)
        log.info("report: %d of %d cases scored", len(found), len(cases))
    return found


def systems_of(scores: Sequence[CaseScores], arms: Arms, version: Version) -> Systems:
    """The arms as systems to compare: one edition, every region and their mean."""
    values = np.array(
        [
            [[[entry.scores[arm][version][region][m] for m in METRICS] for region in REGIONS] for entry in scores]
            for arm in arms
        ]
    )
    # The mean over regions of each case, so that its differences are paired by case like all others.
    values = np.concatenate([values, values.mean(axis=2, keepdims=True)], axis=2)
    cases = tuple(entry.case for entry in scores)
    return Systems(version, tuple(arms.values()), cases, (*REGIONS, MEAN), METRICS, values, {})


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and the difference of two arms that speaks for or against it."""

    text: str
    difference: Difference
    """Lesion-wise Dice, mean over regions; positive where the claim holds."""

    @property
    def answer(self) -> Literal["supported", "contradicted", "not decided"]:
        """Answer of the interval: it decides where it excludes zero."""
        if self.difference.low > 0:
            return "supported"
        return "contradicted" if self.difference.high < 0 else "not decided"


def models_alone(arms: Arms) -> list[str]:
    """Names of the arms before the ensemble: each model alone, those of the comparison included."""
    return list(arms)[: list(arms).index("ensemble")]


def claims(arms: Arms, found: Sequence[Difference]) -> list[Claim]:
    """The paper's claims about the arms that there are, with their differences among those of all pairs."""
    alone, last = models_alone(arms), list(arms)[-1]
    models = [name for name in alone if not name.endswith((SCRATCH, PRETRAINED))]
    gains = {SCRATCH: "pretraining and fine-tuning over training from scratch", PRETRAINED: "fine-tuning"}
    asked = [
        (f"{model_title(name)} gains by {gain}", name, f"{name}{kind}")
        for kind, gain in gains.items()
        for name in models
        if f"{name}{kind}" in arms
    ]
    if len(models) > 1:
        asked += [(f"The ensemble gains over {arms[name]}", "ensemble", name) for name in models]
    if last != "ensemble":
        asked.append(("All of refinement gains over the ensemble as it is", last, "ensemble"))
    scratch = [name for name in alone if name.endswith(SCRATCH)]
    asked += [(f"The whole method gains over {arms[name]}", last, name) for name in scratch]
    # Pairs come as later minus earlier, and claims are about later against earlier.
    of = {(d.system, d.against): d for d in found if (d.region, d.metric) == (MEAN, "lesionwise_dice")}
    return [Claim(text, of[arms[system], arms[against]]) for text, system, against in asked]
