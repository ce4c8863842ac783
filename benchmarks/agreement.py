"""Whether agreement of the networks tells how good a segmentation is: `python -m benchmarks.agreement --cases DIR`.

Every case of the folders that has a reference is predicted, and for each region the agreement of the networks
(`inference.predict.agreement`) is set beside the Dice of the ensemble's mask with the reference, both before
refinement. The last lines are Spearman's rank correlation of the two over the cases whose reference has the region,
with their number, and with its two-sided p by permutation.

`--own-fold` asks of each case only the networks of the fold that its bundle's `folds.json` gives it, which have not
been trained on it. Without it networks judge cases that they may have learnt from: on such cases both numbers are
higher than they will be on others.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from inference.bundle.store import Model, load_bundle
from inference.errors import ExitStatus, GliomaError, UsageError
from inference.intake.cases import Case, find_cases
from inference.intake.scan import read_labels, read_scan
from inference.labels import REGIONS, region_mask
from inference.predict.engines import Engine, choose_profile, open_engine
from inference.predict.ensemble import predict
from inference.settings import EMBEDDED
from training.data.datasets import labels_of, read_folds
from training.evaluation.tables import Row, markdown

_LOG: Final = logging.getLogger(__name__)
_PERMUTATIONS: Final = 9999


@dataclass(frozen=True)
class Judged:
    """One case."""

    case: str
    """ID of the case."""
    agreement: dict[str, float]
    """Per region, of the networks with their ensemble."""
    dice: dict[str, float]
    """Per region, of the ensemble with the reference; NaN where the reference has no such region."""


@dataclass(frozen=True)
class Members:
    """What prediction takes for a bundle."""

    models: tuple[Model, ...]
    """The models, each with the folds that are asked."""
    orientation: str
    """The bundle's."""


def spearman(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Spearman's correlation of two equally long series, and its two-sided p by permutation; NaN below 3 values."""
    if len(one) < 3 or len(set(one)) < 2 or len(set(other)) < 2:
        return float("nan"), float("nan")
    ranks = [stats.rankdata(series) for series in (one, other)]
    found = float(np.corrcoef(*ranks)[0, 1])
    generator = np.random.default_rng(0)
    chance = [abs(np.corrcoef(generator.permutation(ranks[0]), ranks[1])[0, 1]) for _ in range(_PERMUTATIONS)]
    return found, float((1 + np.sum(np.array(chance) >= abs(found) - 1e-12)) / (_PERMUTATIONS + 1))


def dice(reference: NDArray[np.bool_], mask: NDArray[np.bool_]) -> float:
    """Dice of a mask with a reference; NaN where the reference is empty."""
    if not reference.any():
        return float("nan")
    return float(2 * np.count_nonzero(reference & mask) / (np.count_nonzero(reference) + np.count_nonzero(mask)))


def judge(
    case: Case, labels: Path, members: Members, *, thresholds: Sequence[float], engine: Engine, profile: str
) -> Judged:
    """Predict a case and set the networks' agreement beside the ensemble's Dice."""
    scan = read_scan(case)
    reference, _ = read_labels(labels)
    regions = predict(scan.data, scan.spacing, members, engine, choose_profile(profile, engine), compare_at=thresholds)
    assert regions.agreement is not None, "it was asked for"
    found = {
        region: dice(region_mask(reference, region), probability > threshold)
        for region, probability, threshold in zip(REGIONS, regions.array, thresholds, strict=True)
    }
    return Judged(case.id, dict(regions.agreement.overlap), found)


def rows_of(judged: Sequence[Judged]) -> Iterator[Row]:
    """One row per case, then one per number of the correlation."""
    for one in judged:
        yield one.case, *(number for region in REGIONS for number in (one.agreement[region], one.dice[region]))
    pairs = {region: [(one.agreement[region], one.dice[region]) for one in judged] for region in REGIONS}
    known = {region: [pair for pair in both if not np.isnan(pair[1])] for region, both in pairs.items()}
    results = {
        region: (*spearman([a for a, _ in both], [d for _, d in both]), len(both)) for region, both in known.items()
    }
    for place, name in enumerate(("Spearman", "p", "cases with the region")):
        yield name, *(cell for region in REGIONS for cell in (results[region][place], ""))


def labelled_cases(folders: Sequence[Path]) -> Iterator[tuple[Case, Path]]:
    """The cases below the folders that have a reference, each with its file."""
    for folder in folders:
        for case in find_cases(folder).cases:
            try:
                yield case, labels_of(case.id, case.paths["t1n"].parent)
            except UsageError as error:
                _LOG.warning("left out: %s", error)


def main(arguments: list[str] | None = None) -> int:
    """Predict, print a Markdown table; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, action="append", required=True, metavar="DIR")
    parser.add_argument("--bundle", type=Path, default=EMBEDDED, metavar="DIR")
    parser.add_argument("--own-fold", action="store_true", help="each case by the networks that have not seen it")
    parser.add_argument("--profile", choices=("auto", "paper", "fast"), default="auto")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        bundle = load_bundle(given.bundle)
        engine = open_engine("auto", given.device)
        folds = read_folds(given.bundle / "folds.json") if given.own_fold else {}
        members = {fold: tuple(replace(m, folds=(fold,)) for m in bundle.models) for fold in folds.values()}
        judged = []
        for case, labels in labelled_cases(given.cases):
            if given.own_fold and case.id not in folds:
                _LOG.warning("left out: %s is in no fold of the bundle", case.id)
                continue
            chosen = members[folds[case.id]] if given.own_fold else bundle.models
            asked = Members(chosen, bundle.orientation)
            judged.append(
                judge(case, labels, asked, thresholds=bundle.region_thresholds, engine=engine, profile=given.profile)
            )
            _LOG.info("%s", judged[-1])
    except GliomaError as error:
        _LOG.error("error: %s", error)
        return ExitStatus.NOTHING_ATTEMPTED
    header = ("case", *(f"{region} {what}" for region in REGIONS for what in ("agreement", "Dice")))
    sys.stdout.write(markdown(header, list(rows_of(judged)), digits=3))
    return ExitStatus.OK


if __name__ == "__main__":
    sys.exit(main())
