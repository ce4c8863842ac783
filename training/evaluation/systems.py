"""Comparison of systems by their scores on the same cases: paired statistics and the BraTS ranking."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations, product
from math import inf, nan
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from inference.errors import UsageError
from inference.schema import read_json
from training.evaluation.editions import Edition
from training.evaluation.scores import WORST_DISTANCE_MM

RANKED_METRICS: Final[Mapping[int, tuple[str, ...]]] = {
    2023: ("lesionwise_dice", "lesionwise_hd95"),
    2024: ("lesionwise_dice", "lesionwise_hd95"),
    2025: ("lesionwise_dice",),
    2026: ("lesionwise_dice", "lesionwise_hd95"),
}
"""Metrics that each edition ranks by; 2026 has not said yet."""

UNITS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("lesionwise_hd95", "hd95"), "mm"),
    **dict.fromkeys(("tp", "fp", "fn"), "lesions"),
    **dict.fromkeys(
        (
            *("lesionwise_dice", "dice", "sensitivity", "specificity", "voxel_sensitivity", "voxel_specificity"),
            *("lesionwise_nsd_0.5", "lesionwise_nsd_1.0", "nsd_0.5", "nsd_1.0", "lesionwise_nsd", "nsd"),
        ),
        "0 to 1",
    ),
}
"""Every metric that `evaluate` writes, and its unit."""

# Permutations at a time: with 10 000 cases they take 80 MB.
_BLOCK: Final = 1000

_Scores = dict[str, dict[str, float | Literal["inf"] | None]]


@dataclass(frozen=True)
class ScoresFile:
    """The file that `evaluate --output` writes, as far as systems are compared by it."""

    version: Edition
    cases: dict[str, _Scores]
    """By case, region and metric; None where it is not defined: nothing to find, and nothing found."""
    mean: _Scores = field(default_factory=dict)
    median: _Scores = field(default_factory=dict)
    std: _Scores = field(default_factory=dict)
    count: _Scores = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    damaged: dict[str, str] = field(default_factory=dict)
    extra: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    relabelled: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    @property
    def lost(self) -> set[str]:
        """Cases that the system was scored on and has no scores of."""
        return {*self.missing, *self.damaged, *self.failed} - set(self.cases)


@dataclass(frozen=True, eq=False)
class Systems:
    """Scores of several systems on the same cases."""

    version: int
    """Edition of the official definition that all were scored by."""
    names: tuple[str, ...]
    """The systems."""
    cases: tuple[str, ...]
    """IDs of the cases that all systems were scored on."""
    regions: tuple[str, ...]
    metrics: tuple[str, ...]
    values: NDArray[np.float64]
    """(systems, cases, regions, metrics); NaN where a score is not defined."""
    dropped: Mapping[str, tuple[str, ...]]
    """Cases of each system that another one was not scored on."""
    worst: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Cases that each system has no scores of, and has the worst of here."""

    def means(self) -> NDArray[np.float64]:
        """(systems, regions, metrics): mean over the cases with a finite score; NaN without any."""
        # One infinite HD95 would make a mean of all cases infinite; how many there are is told apart.
        finite = np.isfinite(self.values)
        counts = finite.sum(axis=1)
        sums = np.where(finite, self.values, 0).sum(axis=1)
        return np.asarray(np.divide(sums, counts, out=np.full(sums.shape, nan), where=counts > 0))

    def ranks(self) -> NDArray[np.float64]:
        """(systems, cases, regions, metrics): rank among the systems, 1 the best; ties share their mean rank.

        Where a score is not defined there was nothing to find and nothing was found, which is the best there is.
        """
        return self._ranked(np.where(np.isnan(self.values), -inf, self.values * self._signs()))

    def ranking(self) -> NDArray[np.float64]:
        """(systems,): the BraTS ranking score, the rank averaged over cases, regions and metrics."""
        return np.asarray(self.ranks().mean(axis=(1, 2, 3)))

    def mean_ranking(self) -> NDArray[np.float64]:
        """(systems,): the rank of the mean over cases, averaged over regions and metrics."""
        means = self.means()
        return np.asarray(self._ranked(np.where(np.isnan(means), inf, means * self._signs())).mean(axis=(1, 2)))

    def _signs(self) -> NDArray[np.int64]:
        """Signs that make smaller the better."""
        return np.where([smaller_is_better(metric) for metric in self.metrics], 1, -1)

    @staticmethod
    def _ranked(values: NDArray[np.float64]) -> NDArray[np.float64]:
        from scipy import stats  # takes half a second, which nobody wants to wait for an error

        return np.asarray(stats.rankdata(values, axis=0), np.float64)


@dataclass(frozen=True)
class Difference:
    """One system against another in one region and metric, paired by case."""

    system: str
    against: str
    region: str
    metric: str
    per_case: tuple[float, ...]
    """`system` minus `against` for each case; NaN, and in nothing below, where one of them is not finite."""
    mean: float
    """Their mean."""
    low: float
    """2.5th percentile of the mean over bootstrap samples of cases."""
    high: float
    """97.5th percentile."""
    p_value: float
    """Of the two-sided Wilcoxon signed-rank test, not corrected for the number of tests; 1 where nothing differs."""


@dataclass(frozen=True)
class RankTest:
    """Whether two systems differ in their mean rank."""

    system: str
    against: str
    difference: float
    """Mean rank over cases, regions and metrics: `system` minus `against`."""
    p_value: float
    """Of the two-sided permutation test that swaps the two systems' ranks within cases, not corrected."""


def smaller_is_better(metric: str) -> bool:
    """Whether a smaller value of a metric is better."""
    return metric.endswith("hd95") or metric in {"fp", "fn"}


def load_systems(paths: Sequence[Path], metrics: Sequence[str] | None = None) -> Systems:
    """Systems from the JSON files that `evaluate` writes, one for each system; by default what the edition ranks by.

    A case whose prediction was missing or damaged has the worst scores. One that a system was never scored on is left
    out for all.

    Raises:
        UsageError: fewer than two files, one that is no such file, different editions, no case in common, or a metric
            that is not in all of them.

    """
    if len({os.path.realpath(path) for path in paths}) < max(2, len(paths)):
        raise UsageError("compare needs the scores of at least two systems, each in a file of its own")
    names = _names(paths)
    files = {name: read_json(path, ScoresFile, UsageError) for name, path in zip(names, paths, strict=True)}
    versions = {file.version for file in files.values()}
    if len(versions) > 1:
        raise UsageError(f"scores of different editions cannot be compared: {sorted(versions)}")
    version = versions.pop()
    common = sorted(set.intersection(*(set(file.cases) | file.lost for file in files.values())))
    example = next((file.cases[case] for case in common for file in files.values() if case in file.cases), {})
    if not example:
        raise UsageError("the systems have no case in common")
    regions, known = tuple(example), next(iter(example.values()))
    metrics = tuple(metrics or RANKED_METRICS[version])
    for metric in metrics:
        if metric not in known:
            raise UsageError(f"no metric {metric!r}; there are {', '.join(known)}")
    values = np.full((len(names), len(common), len(regions), len(metrics)), nan)
    # First all that was scored: the worst of a count is that of the others.
    for (s, (name, file)), (c, case) in product(enumerate(files.items()), enumerate(common)):
        if case in file.cases:
            values[s, c] = _table(file.cases[case], regions, metrics, f"{name}: {case}", version)
    worst = {name: tuple(case for case in common if case not in file.cases) for name, file in files.items()}
    for s, lost in enumerate(worst.values()):
        at = [common.index(case) for case in lost]
        for m, metric in enumerate(metrics):
            column = values[..., m]
            column[s, at] = _worst(column[:, at], metric, version)
    dropped = {name: tuple(sorted(set(file.cases) - set(common))) for name, file in files.items()}
    return Systems(version, names, tuple(common), regions, metrics, values, dropped, worst)


def _table(
    scores: _Scores, regions: Sequence[str], metrics: Sequence[str], where: str, version: Edition
) -> list[list[float]]:
    """Scores of one case (regions, metrics); NaN where 2026 defines none."""
    try:
        found = [[scores[region][metric] for metric in metrics] for region in regions]
    except KeyError as error:
        raise UsageError(f"{where}: found no {error.args[0]!r}, which other cases have") from error
    if version != 2026 and any(value is None for row in found for value in row):
        raise UsageError(f"{where}: found null, expected numbers: in {version} every score is defined")
    return [[nan if value is None else float(value) for value in row] for row in found]


def _worst(others: NDArray[np.float64], metric: str, version: Edition) -> NDArray[np.float64] | float:
    """The worst value of a metric; counts have none but that of the worst of the others (systems, cases, regions)."""
    if metric in {"fp", "fn"}:
        return np.asarray(np.nanmax(others, axis=0, initial=0))
    if metric.endswith("hd95"):
        return inf if version == 2026 else WORST_DISTANCE_MM
    return 0.0


def differences(systems: Systems, *, resamples: int = 10000, seed: int = 0) -> list[Difference]:
    """Every pair of systems, later minus earlier, in each region and metric.

    The bootstrap draws cases with replacement; the same draws serve all pairs, regions and metrics
    with as many finite differences.
    """
    from scipy import stats

    # The same draws for all, so that intervals differ by their cases and not by chance.
    @lru_cache(maxsize=1)  # with a thousand cases a table takes 100 MB
    def draws(count: int) -> NDArray[np.int64]:
        return np.random.default_rng(seed).integers(count, size=(resamples, count))

    found = []
    for (a, against), (b, system) in combinations(enumerate(systems.names), 2):
        for (r, region), (m, metric) in product(enumerate(systems.regions), enumerate(systems.metrics)):
            with np.errstate(invalid="ignore"):  # infinity minus infinity
                difference = systems.values[b, :, r, m] - systems.values[a, :, r, m]
            difference[~np.isfinite(difference)] = nan
            kept = difference[np.isfinite(difference)]
            low = high = mean = nan
            if kept.size:
                low, high = np.percentile(kept[draws(kept.size)].mean(axis=1), (2.5, 97.5))
                mean = float(kept.mean())
            # Signed ranks, not a t-test: differences of Dice are mostly near 0, with a few large ones.
            p_value = float(stats.wilcoxon(kept).pvalue) if kept.any() else 1.0
            per_case = tuple(difference.tolist())
            found.append(Difference(system, against, region, metric, per_case, mean, float(low), float(high), p_value))
    return found


def rank_tests(systems: Systems, *, permutations: int = 10000, seed: int = 0) -> list[RankTest]:
    """Every pair of systems, later minus earlier, by their ranks among all.

    If two systems were alike, either's rank in a case could as well be the other's: the test swaps them in all ways
    where these are no more than `permutations`, else at random so often, and counts how often the mean ranks differ at
    least as much (BraTS 2018 summary, arXiv:1811.02629, for mean ranks over cases).
    """
    ranks = systems.ranks().mean(axis=(2, 3))
    count = ranks.shape[1]
    found = []
    for (a, against), (b, system) in combinations(enumerate(systems.names), 2):
        difference = ranks[b] - ranks[a]
        least = abs(difference.sum()) - 1e-9  # sums of the same ranks in another order are rounded differently
        generator, extreme = np.random.default_rng(seed), 0
        if 2**count <= permutations:
            signs = np.array(list(product((-1, 1), repeat=count)))
            p_value = float(np.mean(np.abs(signs @ difference) >= least))
        else:
            for start in range(0, permutations, _BLOCK):
                signs = generator.choice((-1.0, 1.0), (min(_BLOCK, permutations - start), count))
                extreme += int(np.count_nonzero(np.abs(signs @ difference) >= least))
            # The order as found is one of the permutations: no p-value of 0 (Phipson and Smyth, 2010).
            p_value = (extreme + 1) / (permutations + 1)
        found.append(RankTest(system, against, float(difference.mean()), p_value))
    return found


def _names(paths: Sequence[Path]) -> tuple[str, ...]:
    """File names without their endings, or the whole paths where these are not unique."""
    names = tuple(path.stem for path in paths)
    return names if len(set(names)) == len(names) else tuple(map(str, paths))
