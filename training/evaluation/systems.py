"""Comparison of systems by their scores on the same cases: paired statistics and the BraTS ranking."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from inference.errors import UsageError

RANKED_METRICS: Final = ("lesionwise_dice", "lesionwise_hd95")
"""What BraTS 2023 and 2024 rank by."""


@dataclass(frozen=True, eq=False)
class Systems:
    """Scores of several systems on the cases that all of them have."""

    version: int
    """Edition of the official definition that all were scored by."""
    names: tuple[str, ...]
    """The systems."""
    cases: tuple[str, ...]
    """IDs of the cases that all systems have scores for."""
    regions: tuple[str, ...]
    metrics: tuple[str, ...]
    values: NDArray[np.float64]
    """(systems, cases, regions, metrics)."""
    dropped: Mapping[str, tuple[str, ...]]
    """Cases of each system that another one lacks."""

    def means(self) -> NDArray[np.float64]:
        """(systems, regions, metrics): mean over cases."""
        return np.asarray(self.values.mean(axis=1))

    def ranks(self) -> NDArray[np.float64]:
        """(systems, cases, regions, metrics): rank among the systems, 1 the best; ties share their mean rank."""
        from scipy import stats  # takes half a second, which nobody wants to wait for an error

        signs = np.where([smaller_is_better(metric) for metric in self.metrics], 1, -1)
        return np.asarray(stats.rankdata(self.values * signs, axis=0), np.float64)

    def ranking(self) -> NDArray[np.float64]:
        """(systems,): the BraTS ranking score, the rank averaged over cases, regions and metrics."""
        return np.asarray(self.ranks().mean(axis=(1, 2, 3)))


@dataclass(frozen=True)
class Difference:
    """One system against another in one region and metric, paired by case."""

    system: str
    against: str
    region: str
    metric: str
    per_case: tuple[float, ...]
    """`system` minus `against` for each case."""
    mean: float
    """Their mean."""
    low: float
    """2.5th percentile of the mean over bootstrap samples of cases."""
    high: float
    """97.5th percentile."""
    p_value: float
    """Of the two-sided Wilcoxon signed-rank test, not corrected for the number of tests; 1 where nothing differs."""


def smaller_is_better(metric: str) -> bool:
    """Whether a smaller value of a metric is better."""
    return metric.endswith("hd95") or metric in {"fp", "fn"}


def load_systems(paths: Sequence[Path], metrics: Sequence[str] = RANKED_METRICS) -> Systems:
    """Systems from the JSON files that `evaluate` writes, one for each system.

    Raises:
        UsageError: fewer than two files, one that is no such file, different editions, no case in common, or a metric
            that is not in all of them.

    """
    if len({os.path.realpath(path) for path in paths}) < max(2, len(paths)):
        raise UsageError("compare needs the scores of at least two systems, each in a file of its own")
    names = _names(paths)
    documents = dict(zip(names, map(_load, paths), strict=True))
    versions = {version for version, _ in documents.values()}
    if len(versions) > 1:
        raise UsageError(f"scores of different editions cannot be compared: {sorted(versions)}")
    scores = {name: cases for name, (_, cases) in documents.items()}
    common = sorted(set.intersection(*(set(cases) for cases in scores.values())))
    if not common:
        raise UsageError("the systems have no case in common")
    regions = tuple(scores[names[0]][common[0]])
    known = scores[names[0]][common[0]][regions[0]]
    for metric in metrics:
        if metric not in known:
            raise UsageError(f"no metric {metric!r}; there are {', '.join(known)}")
    try:
        values = [
            [[[cases[case][region][metric] for metric in metrics] for region in regions] for case in common]
            for cases in scores.values()
        ]
    except KeyError as error:
        raise UsageError(f"some case has no {error.args[0]!r}, which others have") from error
    dropped = {name: tuple(sorted(set(cases) - set(common))) for name, cases in scores.items()}
    return Systems(versions.pop(), names, tuple(common), regions, tuple(metrics), np.array(values, np.float64), dropped)


def differences(systems: Systems, *, resamples: int = 10000, seed: int = 0) -> list[Difference]:
    """Every pair of systems, later minus earlier, in each region and metric.

    The bootstrap draws cases with replacement; the same draws serve all pairs, regions and metrics.
    """
    from scipy import stats

    count = len(systems.cases)
    draws = np.random.default_rng(seed).integers(count, size=(resamples, count))
    found = []
    for (a, against), (b, system) in combinations(enumerate(systems.names), 2):
        for r, region in enumerate(systems.regions):
            for m, metric in enumerate(systems.metrics):
                difference = systems.values[b, :, r, m] - systems.values[a, :, r, m]
                low, high = np.percentile(difference[draws].mean(axis=1), (2.5, 97.5))
                p_value = float(stats.wilcoxon(difference).pvalue) if difference.any() else 1.0
                found.append(
                    Difference(
                        system,
                        against,
                        region,
                        metric,
                        tuple(difference.tolist()),
                        float(difference.mean()),
                        float(low),
                        float(high),
                        p_value,
                    )
                )
    return found


def _names(paths: Sequence[Path]) -> tuple[str, ...]:
    """File names without their endings, or the whole paths where these are not unique."""
    names = tuple(path.stem for path in paths)
    return names if len(set(names)) == len(names) else tuple(map(str, paths))


def _load(path: Path) -> tuple[int, dict[str, dict[str, dict[str, float]]]]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        version, cases = int(document["version"]), dict(document["cases"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} holds no scores that `evaluate` wrote: {error}") from error
    return version, cases
