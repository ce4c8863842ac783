"""Thresholds from out-of-fold predictions, by nested cross-validation.

Every choice maximises the official lesion-wise Dice, averaged over regions and cases. A group of thresholds is kept
only if choosing it on all other patients beats leaving the predictions alone on the patient who was left out (nested
cross-validation). What all of it is worth is measured once more around that: each fold's cases are scored with what the
other folds alone would have chosen *and kept*, so that a gain is a finding and not a fit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np

from inference.labels import REGIONS, TUMOUR_LABELS
from training.tune.choices import Choice, Scorer

log = logging.getLogger(__name__)

# The grids of the paper's authors: smallest components in mm³, and smallest ET/WT.
COMPONENT_GRID = tuple(float(size) for size in range(0, 501, 25))
RATIO_GRID = tuple(step / 20 for step in range(20))
# 0.5 first, which stays where nothing is better. No higher ones than 0.7: out of fold one network of a model speaks, in
# the bundle the mean of five, which is less sure of itself.
REGION_GRID = (0.5, 0.3, 0.4, 0.6, 0.7)
# Least confidence tried, as shares of the largest lesion's. One network is sure of .95 to .98 of a large lesion and of
# .8 to .9 of a true one of half a millilitre, whose border is a large part of it: a share of 1 would leave only one.
CONFIDENCE_GRID = (0.0, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
# A subtype of n tumours has the say n / (n + 10) in its own thresholds, all tumours the rest: on a handful of tumours a
# search finds gains that do not last (docs/method.md).
SHRINKAGE = 10
# Nested gains up to this, in mean Dice, keep nothing: a thousandth is one small lesion in dozens of cases.
LEAST_GAIN = 0.001
# Parts that patients are left out in, one by one where there are no more: each part is a search of its own.
MOST_PARTS = 25
# Differences up to this are no better choice.
ROUNDING = 1e-9

Shares = Mapping[int, float]
"""Weights of cases by index, that sum to 1: a choice is worth the weighted mean of its scores."""


def best(scorer: Scorer, shares: Shares, start: Choice, candidates: Sequence[Choice]) -> Choice:
    """The candidate that is worth most, the first among equals; `start` unless it is beaten."""
    scorer.prepare(shares, [start, *candidates])
    value, *values = (
        sum(share * scorer.score(index, choice) for index, share in shares.items()) for choice in (start, *candidates)
    )
    highest = int(np.argmax(values))
    return candidates[highest] if values[highest] > value + ROUNDING else start


def best_regions(scorer: Scorer, shares: Shares, start: Choice) -> Choice:
    """The best region thresholds, one region after the other."""
    # Not all combinations: 15 choices in place of 125, and less to fit to.
    chosen = start
    for index in range(len(REGIONS)):
        candidates = []
        for value in REGION_GRID:
            whole, core, enhancing = (value if i == index else old for i, old in enumerate(chosen.regions))
            candidates.append(replace(chosen, regions=(whole, core, enhancing)))
        chosen = best(scorer, shares, chosen, candidates)
    return chosen


def best_confidence(scorer: Scorer, shares: Shares, start: Choice) -> Choice:
    """The best confidence below which a lesion is left out: one for all regions, since false lesions are few."""
    return best(scorer, shares, start, [replace(start, confidence=value) for value in CONFIDENCE_GRID])


def best_components(scorer: Scorer, shares: Shares, start: Choice) -> Choice:
    """The best smallest components, one label after the other."""
    chosen = start
    for label in TUMOUR_LABELS:
        sizes = chosen.thresholds.smallest_component_mm3
        candidates = [
            replace(chosen, thresholds=replace(chosen.thresholds, smallest_component_mm3={**sizes, label.name: value}))
            for value in COMPONENT_GRID
        ]
        chosen = best(scorer, shares, chosen, candidates)
    return chosen


def best_ratio(scorer: Scorer, shares: Shares, start: Choice) -> Choice:
    """The best smallest ET/WT."""
    candidates = [replace(start, thresholds=replace(start.thresholds, et_wt_ratio=value)) for value in RATIO_GRID]
    return best(scorer, shares, start, candidates)


Step = Callable[[Scorer, Sequence[int], Choice], Choice]
"""Chooses one group of thresholds on some cases, on top of what was kept before."""


def _for_all(
    choose: Callable[[Scorer, Shares, Choice], Choice], scorer: Scorer, indices: Sequence[int], start: Choice
) -> Choice:
    return choose(scorer, dict.fromkeys(indices, 1 / len(indices)), start)


def _for_subtype(cluster: int, scorer: Scorer, indices: Sequence[int], start: Choice) -> Choice:
    """Component and ratio thresholds of one subtype, shrunk to those of all cases."""
    own = [index for index in indices if scorer.cluster(index) == cluster]
    if not own:
        return start
    say = len(own) / (len(own) + SHRINKAGE)
    shares = dict.fromkeys(indices, (1 - say) / len(indices))
    for index in own:
        shares[index] += say / len(own)
    # Searched as if it ruled all tumours, each of which counts by its share.
    components = best_components(scorer, shares, replace(start, subtypes={}))
    found = best_ratio(scorer, shares, components).thresholds
    return start if found == start.thresholds else replace(start, subtypes={**start.subtypes, cluster: found})


GROUPS: Mapping[str, Step] = {
    "regions": partial(_for_all, best_regions),
    "confidence": partial(_for_all, best_confidence),
    "components": partial(_for_all, best_components),
    "ratio": partial(_for_all, best_ratio),
}
"""Groups of thresholds chosen for all cases, in this order, each on top of what was kept before."""
SUBTYPES = "subtypes"
"""Name of the groups chosen after that: own thresholds of subtypes, each subtype a group of its own."""


def groups_of(scorer: Scorer, wanted: Sequence[str] = (*GROUPS, SUBTYPES)) -> dict[str, Step]:
    """The wanted groups of thresholds in their order; subtypes where they are known."""
    known = sorted({cluster for cluster in scorer.clusters if cluster is not None})
    own = {f"{SUBTYPES} {cluster}": partial(_for_subtype, cluster) for cluster in known if SUBTYPES in wanted}
    return {**{name: step for name, step in GROUPS.items() if name in wanted}, **own}


@dataclass(frozen=True)
class Selection:
    """A choice on some cases."""

    steps: Mapping[str, Choice]
    """The choice that is kept after each group."""
    found: Mapping[str, Choice]
    """The choice that each group found, kept or not."""
    gains: Mapping[str, float]
    """Nested gain of each group in mean lesion-wise Dice, kept or not; 0 where nothing was found."""

    @property
    def choice(self) -> Choice:
        """The choice that is kept after all groups."""
        return list(self.steps.values())[-1] if self.steps else Choice()


def select(
    scorer: Scorer, indices: Sequence[int], groups: Mapping[str, Step], report: Callable[[str], None] = log.debug
) -> Selection:
    """Choose every group on some cases, keeping what has a nested gain over their patients.

    Patients are left out in parts, and their cases scored with what all others would choose. (Without a whole fold, too
    few would be left to choose on, and what helps would be given up.) The cases of a single patient cannot show a gain:
    nothing is kept.
    """
    patients = sorted({scorer.cases[index].patient for index in indices})
    parts = min(len(patients), MOST_PARTS)
    part_of = {index: patients.index(scorer.cases[index].patient) % parts for index in indices}
    choice, without = Choice(), dict.fromkeys(range(parts), Choice())
    steps, found, gains = {}, {}, {}
    for name, step in groups.items():
        found[name], gains[name] = step(scorer, indices, choice), 0.0
        if found[name] != choice and parts > 1:
            # For each part, what this step finds without it, on top of what the steps before found without it.
            trial = {
                part: step(scorer, [index for index in indices if part_of[index] != part], without[part])
                for part in range(parts)
            }
            gained = [scorer.score(i, trial[own]) - scorer.score(i, without[own]) for i, own in part_of.items()]
            gains[name] = float(np.mean(gained))
            if gains[name] > LEAST_GAIN:
                choice, without = found[name], trial
        steps[name] = choice
        verdict = "kept" if choice == found[name] and gains[name] > LEAST_GAIN else "left alone"
        report(f"{name}: {verdict}, nested gain {gains[name]:+.4f}; {scorer.scored} label maps scored")
    return Selection(steps, found, gains)


ByFold = Mapping[int, Selection]
"""By fold, what is chosen and kept without it: what the fold's cases may honestly be scored with."""


def tune_all(scorer: Scorer, wanted: Sequence[str] = (*GROUPS, SUBTYPES)) -> tuple[Selection, ByFold]:
    """Tune every group on all cases, which rules every case, and without each fold."""
    everyone, groups = range(len(scorer.cases)), groups_of(scorer, wanted)
    overall = select(scorer, everyone, groups, lambda line: log.info("tuning: %s", line))
    nothing = replace(overall, steps=dict.fromkeys(groups, Choice()))
    by_fold = {}
    # The same procedure once without each fold, deciding what to keep included: the outer loop of the nesting.
    folds = sorted({case.fold for case in scorer.cases})
    for number, fold in enumerate(folds, start=1):
        others = [index for index in everyone if scorer.cases[index].fold != fold]
        by_fold[fold] = select(scorer, others, groups) if others else nothing
        log.info("tuning: honest gain: %d of %d folds; %d label maps scored", number, len(folds), scorer.scored)
    return overall, by_fold


def honest_gains(scorer: Scorer, by_fold: ByFold) -> dict[str, float]:
    """Gain of each group in the mean lesion-wise Dice where both choosing and keeping never saw the scored fold."""
    groups = list(next(iter(by_fold.values())).steps)
    means = [scorer.mean(range(len(scorer.cases)), Choice())]
    for name in groups:
        scores = [scorer.score(i, by_fold[case.fold].steps[name]) for i, case in enumerate(scorer.cases)]
        means.append(float(np.mean(scores)))
    return {name: after - before for name, (before, after) in zip(groups, pairwise(means), strict=True)}
