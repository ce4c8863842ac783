"""`python -m training evaluate`: the official lesion-wise scores of a folder of predictions."""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, get_args

from inference.console import say
from inference.errors import CaseError, ExitStatus, UsageError
from training.evaluation.files import check_geometry, find_label_maps, read_label_map, unmatched
from training.evaluation.lesionwise import RegionScore, Version, score_case, score_missing
from training.evaluation.tables import Row, check_table, comma_separated, markdown, write_text

_LOG = logging.getLogger(__name__)

_STATISTICS: Final[Mapping[str, Callable[[list[float]], float]]] = {
    "mean": statistics.fmean,
    "median": statistics.median,
    "std": statistics.pstdev,
}
"""What is reported over cases; std is that of the population."""

Scores = Mapping[str, Mapping[str, float]]
"""Values by region and metric."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of a folder of predictions against a folder of references."""

    version: Version
    """Edition of the official definition."""
    cases: Mapping[str, Scores]
    """Scores of each case that could be scored."""
    missing: tuple[str, ...] = ()
    """Cases without a prediction; they are in `cases` with the worst scores."""
    extra: tuple[str, ...] = ()
    """Predictions without a reference; they are not scored."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Cases that could not be scored, and why; they are in no mean."""
    relabelled: tuple[str, ...] = ()
    """Cases of which a label 4 was read as 3."""

    def summary(self, statistic: str) -> Scores:
        """The mean, median or std (of the population) of each region and metric over the cases."""
        compute = _STATISTICS[statistic]
        first = next(iter(self.cases.values()), {})
        return {
            region: {name: compute([case[region][name] for case in self.cases.values()]) for name in scores}
            for region, scores in first.items()
        }

    def as_json(self) -> str:
        """The evaluation as a JSON document."""
        summaries = {statistic: self.summary(statistic) for statistic in _STATISTICS}
        notes = {"missing": self.missing, "extra": self.extra, "failed": self.failed, "relabelled": self.relabelled}
        return json.dumps({"version": self.version, "cases": self.cases, **summaries, **notes}, indent=1) + "\n"

    def overview(self) -> str:
        """A Markdown table of the means."""
        means = self.summary("mean")
        names = list(next(iter(means.values()), {}))
        return markdown(("metric", *means), [(name, *(scores[name] for scores in means.values())) for name in names])

    def as_table(self, suffix: str) -> str:
        """One row for each case and region, and for the statistics over cases, as `.csv` or `.md`."""
        blocks = [*self.cases.items(), *((statistic, self.summary(statistic)) for statistic in _STATISTICS)]
        names = list(dict.fromkeys(name for _, block in blocks for scores in block.values() for name in scores))
        rows: list[Row] = [
            (case, region, *(scores[name] for name in names))
            for case, block in blocks
            for region, scores in block.items()
        ]
        header = ("case", "region", *names)
        return comma_separated(header, rows) if suffix == ".csv" else markdown(header, rows)


@dataclass(frozen=True)
class _Pair:
    """One case to score."""

    case: str
    reference: tuple[Path, ...]
    prediction: tuple[Path, ...]
    """Empty where the prediction is missing."""


@dataclass(frozen=True)
class _Outcome:
    """What came of one case."""

    case: str
    scores: Mapping[str, RegionScore] | None = None
    error: str = ""
    relabelled: bool = False


def evaluate_folders(reference: Path, prediction: Path, version: Version, jobs: int = 1) -> Evaluation:
    """Score every case of a reference folder; what is missing, extra or wrong is logged and listed.

    Raises:
        FolderError: a folder cannot be read or holds no label map.

    """
    references, predictions = find_label_maps(reference), find_label_maps(prediction)
    missing, extra = unmatched(references, predictions)
    for case in missing:
        _LOG.warning("%s: no prediction; scored as the worst", case)
    for case in extra:
        _LOG.warning("%s: no reference; not scored", case)
    pairs = [_Pair(case, references[case], predictions.get(case, ())) for case in sorted(references)]
    outcomes = list(_outcomes(pairs, version, jobs))
    for outcome in outcomes:
        if outcome.error:
            _LOG.error("%s", outcome.error)
        if outcome.relabelled:
            _LOG.warning("%s: label 4 was read as 3", outcome.case)
    return Evaluation(
        version,
        {
            outcome.case: {region: score.named() for region, score in outcome.scores.items()}
            for outcome in outcomes
            if outcome.scores is not None
        },
        tuple(missing),
        tuple(extra),
        {outcome.case: outcome.error for outcome in outcomes if outcome.error},
        tuple(outcome.case for outcome in outcomes if outcome.relabelled),
    )


def _outcomes(pairs: list[_Pair], version: Version, jobs: int) -> Iterator[_Outcome]:
    if jobs == 1:
        yield from map(partial(_outcome, version=version), pairs)
        return
    # Spawned, since forking a process that has threads can hang.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(partial(_outcome, version=version), pairs)


def _outcome(pair: _Pair, version: Version) -> _Outcome:
    try:
        reference = read_label_map(pair.reference, pair.case)
        if not pair.prediction:
            scores = score_missing(reference.labels, reference.spacing, version)
            return _Outcome(pair.case, scores, relabelled=reference.relabelled)
        prediction = read_label_map(pair.prediction, pair.case)
        check_geometry(reference, prediction, pair.case)
    except CaseError as error:
        return _Outcome(pair.case, error=str(error))
    # The official programs take the voxel size from the prediction; both are equal here.
    scores = score_case(reference.labels, prediction.labels, prediction.spacing, version)
    return _Outcome(pair.case, scores, relabelled=reference.relabelled or prediction.relabelled)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `evaluate`."""
    parser.description = (
        "Score predicted label maps by the official lesion-wise definitions of BraTS-Africa. Cases are matched by ID. "
        "Exit status 0: all cases were scored; 1: some could not be; 2: nothing was attempted."
    )
    parser.add_argument("--reference", type=Path, required=True, metavar="DIR", help="reference label maps")
    parser.add_argument("--prediction", type=Path, required=True, metavar="DIR", help="predicted label maps")
    parser.add_argument("--version", type=int, choices=get_args(Version), required=True, help="official edition")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="all scores")
    parser.add_argument("--table", type=Path, metavar="FILE.csv|.md", help="one row for each case and region")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="cases at a time (default: 1)")


def run(arguments: argparse.Namespace) -> int:
    """Carry out `evaluate`; the exit status. Without `--output` and `--table` the means go to the standard output.

    Raises UsageError or FolderError where nothing could be attempted.
    """
    output: Path | None = arguments.output
    table: Path | None = None if arguments.table is None else check_table(arguments.table)
    if arguments.jobs < 1:
        raise UsageError(f"--jobs {arguments.jobs}: at least one")
    evaluation = evaluate_folders(arguments.reference, arguments.prediction, arguments.version, arguments.jobs)
    if output is not None:
        write_text(output, evaluation.as_json())
    if table is not None:
        write_text(table, evaluation.as_table(table.suffix))
    if output is None and table is None:
        say(evaluation.overview())
    return ExitStatus.CASE_FAILED if evaluation.failed else ExitStatus.OK
