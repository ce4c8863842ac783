"""Whether agreement of the networks tells how good a segmentation is.

Every case of the folders that has a reference is predicted, and for each region the agreement of the networks
(`inference.predict.agreement`) is set beside the Dice of the ensemble's mask with the reference, both before
refinement. The last lines are Spearman's rank correlation of the two over the cases whose reference has the region,
its two-sided p by permutation, and their number.

`--own-fold` asks of each case only the networks of the fold that its bundle's `folds.json` gives it, which have not
been trained on it. Without it networks judge cases that they may have learnt from: on such cases both numbers are
higher than they will be on others.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import isnan, nan
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import labelled_cases
from inference.bundle.store import Bundle, load_bundle
from inference.errors import ExitStatus
from inference.intake.cases import Case
from inference.intake.label_map import read_labels
from inference.intake.scan import read_scan
from inference.labels import REGIONS, region_mask
from inference.predict.engines import Engine, choose_profile, open_engine
from inference.predict.ensemble import predict
from inference.settings import EMBEDDED, PROFILES
from training.data.datasets import read_folds
from training.evaluation import overlap
from training.evaluation.tables import Row, markdown

_LOG: Final = logging.getLogger(__name__)
# Few enough for a second, enough for a p of 0.001.
_PERMUTATIONS: Final = 9999

Judged = Mapping[str, tuple[float, float]]
"""By region: the networks' agreement, and the ensemble's Dice, NaN where the reference has no such region."""


def spearman(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Spearman's correlation of pairs, and its two-sided p by permutation; NaN below 3 pairs or for a constant."""
    if len(pairs) < 3 or any(len(set(series)) < 2 for series in zip(*pairs, strict=True)):
        return nan, nan
    from scipy import stats

    one, other = (stats.rankdata(series) for series in zip(*pairs, strict=True))
    found = float(np.corrcoef(one, other)[0, 1])
    generator = np.random.default_rng(0)
    chance = [abs(np.corrcoef(generator.permutation(one), other)[0, 1]) for _ in range(_PERMUTATIONS)]
    # Rounding must not make a permutation that is as good a worse one. The series itself is one permutation, so p is
    # never 0 (Phipson and Smyth 2010, DOI 10.2202/1544-6115.1585).
    return found, float((1 + np.sum(np.array(chance) >= abs(found) - 1e-12)) / (_PERMUTATIONS + 1))


def dice(reference: NDArray[np.bool_], mask: NDArray[np.bool_]) -> float:
    """Dice of a mask with a reference; NaN where the reference is empty."""
    return overlap.dice(reference, mask) if reference.any() else nan


def judge(case: Case, labels: Path, bundle: Bundle, engine: Engine, profile: str) -> Judged:
    """Predict a case and set the networks' agreement beside the ensemble's Dice."""
    scan, thresholds = read_scan(case), bundle.thresholds.regions
    reference, _ = read_labels(labels)
    regions = predict(
        scan.data,
        scan.spacing,
        bundle.models,
        engine,
        choose_profile(profile, engine),
        orientation=bundle.manifest.orientation,
        compare_at=thresholds,
    )
    assert regions.agreement is not None, "it was asked for"
    agreement = regions.agreement.overlap
    return {
        region: (agreement[region], dice(region_mask(reference, region), probability > threshold))
        for region, probability, threshold in zip(REGIONS, regions.array, thresholds, strict=True)
    }


def rows_of(judged: Mapping[str, Judged]) -> Iterator[Row]:
    """One row per case, then one per number of the correlation."""
    for case, found in judged.items():
        yield case, *(number for region in REGIONS for number in found[region])
    known = [[found[region] for found in judged.values() if not isnan(found[region][1])] for region in REGIONS]
    results = [(*spearman(pairs), len(pairs)) for pairs in known]
    for place, name in enumerate(("Spearman", "p", "cases with the region")):
        yield name, *(cell for result in results for cell in (result[place], ""))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `agreement`."""
    parser.add_argument("--cases", type=Path, action="append", required=True, metavar="DIR")
    parser.add_argument("--bundle", type=Path, default=EMBEDDED, metavar="DIR")
    parser.add_argument("--own-fold", action="store_true", help="each case by the networks that have not seen it")
    parser.add_argument("--profile", choices=PROFILES, default="auto")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda")


def run(arguments: argparse.Namespace) -> int:
    """Predict, and print a Markdown table."""
    bundle = load_bundle(arguments.bundle)
    engine = open_engine("auto", arguments.device)
    folds = read_folds(arguments.bundle / "folds.json") if arguments.own_fold else {}
    # One bundle per fold, made once: an engine knows the networks that it has loaded by their model.
    of_fold = {
        fold: replace(bundle, models=tuple(model.of_folds(fold) for model in bundle.models)) for fold in folds.values()
    }
    judged = {}
    for case, labels in labelled_cases(arguments.cases):
        if arguments.own_fold and case.id not in folds:
            _LOG.warning("left out: %s is in no fold of the bundle", case.id)
            continue
        asked = of_fold[folds[case.id]] if arguments.own_fold else bundle
        judged[case.id] = judge(case, labels, asked, engine, arguments.profile)
        _LOG.info("%s: %s", case.id, judged[case.id])
    header = ("case", *(f"{region} {what}" for region in REGIONS for what in ("agreement", "Dice")))
    sys.stdout.write(markdown(header, list(rows_of(judged)), digits=3))
    return ExitStatus.OK
