"""`python -m training evaluate`: the official lesion-wise scores of a folder of predictions."""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf, isfinite, isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

import numpy as np

from inference.console import say
from inference.errors import CaseError, ExitStatus, UsageError
from inference.files import check_replaceable, prepare_folder
from inference.intake.label_map import LabelMap
from inference.labels import Label
from training.evaluation.editions import CaseScores, Edition, score, shown, worst
from training.evaluation.files import Pair, check_geometry, match, read_one
from training.evaluation.surfaces import Spacing
from training.evaluation.tables import Row, check_table, comma_separated, markdown, write_text
from training.workers import open_workers

if TYPE_CHECKING:
    from training.evaluation.scores import LesionScore

_LOG = logging.getLogger(__name__)

# Relative difference between the voxel sizes of pixdim and affine that passes without a word: both are rounded.
_SAME_SIZE: Final = 1e-3

# Of finite values alone; `std` is of a sample (n - 1), as in the challenge's tables.
_STATISTICS: Final[Mapping[str, Callable[[list[float]], float]]] = {
    "mean": statistics.fmean,
    "median": statistics.median,
    "std": lambda values: statistics.stdev(values) if len(values) > 1 else nan,
}

Scores = Mapping[str, Mapping[str, float]]
"""Values by region and metric."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of a folder of predictions against a folder of references."""

    version: Edition
    """Edition of the official definition."""
    cases: Mapping[str, Scores]
    """Scores of each case that has a readable reference."""
    missing: tuple[str, ...] = ()
    """Cases without a prediction; they are in `cases` with the worst scores."""
    damaged: Mapping[str, str] = field(default_factory=dict)
    """Cases whose prediction cannot be scored, and why; they are in `cases` with the worst scores, too."""
    extra: tuple[str, ...] = ()
    """Predictions without a reference; they are not scored."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Cases whose reference cannot be read, and why; they are in no mean."""
    relabelled: tuple[str, ...] = ()
    """Cases of which a label 4 was read as 3."""
    dropped: tuple[str, ...] = ()
    """Cases of whose prediction label 4 was left out, as it belongs to no region."""
    lesions: Mapping[str, Mapping[str, tuple[LesionScore, ...]]] = field(default_factory=dict)
    """The lesions of each case by region."""

    def summary(self, statistic: str) -> Scores:
        """The mean, median, std or count of the finite values of each region and metric over the cases."""
        return {
            region: {
                name: float(len(values)) if statistic == "count" else _STATISTICS[statistic](values) if values else nan
                for name in scores
                # A list of one, which gives the values a name within the comprehension.
                for values in [[case[region][name] for case in self.cases.values() if isfinite(case[region][name])]]
            }
            for region, scores in next(iter(self.cases.values()), {}).items()
        }

    def as_json(self) -> str:
        """The evaluation as a JSON document; what is not defined is null, and what is infinite "inf"."""
        summaries = {statistic: _storable(self.summary(statistic)) for statistic in (*_STATISTICS, "count")}
        cases = {case: _storable(scores) for case, scores in self.cases.items()}
        notes = {
            name: getattr(self, name) for name in ("missing", "damaged", "extra", "failed", "relabelled", "dropped")
        }
        document = {"version": self.version, "cases": cases, **summaries, **notes}
        return json.dumps(document, indent=1, allow_nan=False) + "\n"

    def overview(self) -> str:
        """A Markdown table of the means."""
        means = self.summary("mean")
        names = [name for name in next(iter(means.values()), {}) if shown(name, self.version)]
        return markdown(("metric", *means), [(name, *(scores[name] for scores in means.values())) for name in names])

    def sentence(self) -> str:
        """The means that rank, and what became of the cases, in one line."""
        means = self.summary("mean")
        dice = ", ".join(f"{region} {scores['lesionwise_dice']:.4f}" for region, scores in means.items())
        # What lowers the means, or is not in them, stands beside them.
        told = {"missing": self.missing, "damaged": self.damaged, "left out for their reference": self.failed}
        counts = [f"{len(cases)} {word}" for word, cases in told.items() if cases]
        scored = f"{len(self.cases)} case{'s' * (len(self.cases) != 1)}"
        return f"BraTS {self.version}, {', '.join([scored, *counts])}: lesion-wise Dice {dice}"

    def as_table(self, suffix: str) -> str:
        """One row for each case and region, and for the statistics over cases, as `.csv` or `.md`."""
        summaries = ((statistic, self.summary(statistic)) for statistic in _STATISTICS)
        blocks = [*self.cases.items(), *summaries]
        names = list(dict.fromkeys(name for _, block in blocks for scores in block.values() for name in scores))
        if suffix == ".md":
            names = [name for name in names if shown(name, self.version)]
        rows: list[Row] = [
            (case, region, *(scores[name] for name in names))
            for case, block in blocks
            for region, scores in block.items()
        ]
        header = ("case", "region", *names)
        return comma_separated(header, rows) if suffix == ".csv" else markdown(header, rows)

    def lesion_table(self) -> str:
        """One row for each lesion, as CSV; centres are voxel indices in the file."""
        rows: list[Row] = []
        for case, by_region in self.lesions.items():
            for region, lesions in by_region.items():
                for number, lesion in enumerate(lesions, start=1):
                    flags = ("yes" if flag else "no" for flag in (lesion.counted, lesion.matched))
                    values = (lesion.dice, lesion.hd95, lesion.nsd, *(round(at, 1) for at in lesion.centre))
                    rows.append((case, region, number, lesion.side, lesion.volume, *flags, *values))
        measures = ("volume_mm3", "counted", "matched", "dice", "hd95_mm", "nsd", "x", "y", "z")
        return comma_separated(("case", "region", "lesion", "side", *measures), rows)


def _storable(scores: Scores) -> dict[str, dict[str, float | str | None]]:
    """JSON knows neither NaN nor infinity."""
    return {
        region: {name: None if isnan(value) else "inf" if value == inf else value for name, value in values.items()}
        for region, values in scores.items()
    }


@dataclass(frozen=True)
class _Outcome:
    """Outcome of one case."""

    case: str
    scores: CaseScores | None = None
    """None where the reference cannot be read."""
    error: str = ""
    """Why, or what is wrong with the prediction."""
    warnings: tuple[str, ...] = ()
    relabelled: bool = False
    dropped: bool = False


@dataclass(frozen=True)
class Rules:
    """How cases are scored."""

    version: Edition
    """Edition of the official definition."""
    label_4_is_et: bool = False
    """Whether label 4 of a prediction counts as enhancing tumour, which no official program does."""
    package_faults: bool = False
    """2026: what the official package does where voxels are not cubes of 1 mm."""


def evaluate_folders(reference: Path, prediction: Path, rules: Rules, jobs: int = 1) -> Evaluation:
    """Score every case of a reference folder; what is missing, damaged or extra is logged and listed.

    Raises:
        FolderError: a folder cannot be read or holds no label map.

    """
    matching = match(reference, prediction)
    # Told first: as a rule a name has gone wrong, and whoever waits for hours of scores wants to know now.
    for case in matching.extra:
        _LOG.warning("%s: no reference; not scored", case)
    outcomes = []
    for outcome in _outcomes(matching.pairs, rules, jobs):
        outcomes.append(outcome)
        for warning in outcome.warnings:
            _LOG.warning("%s: %s", outcome.case, warning)
        if outcome.error:
            _LOG.error("%s%s", outcome.error, "; scored as the worst" if outcome.scores else "; left out")
    missing = tuple(pair.case for pair in matching.pairs if not pair.prediction)
    for case in missing:
        _LOG.warning("%s: no prediction; scored as the worst", case)
    scored = {outcome.case: outcome.scores for outcome in outcomes if outcome.scores is not None}
    return Evaluation(
        rules.version,
        {case: {region: score.named() for region, score in scores.items()} for case, scores in scored.items()},
        missing,
        {outcome.case: outcome.error for outcome in outcomes if outcome.error and outcome.scores is not None},
        matching.extra,
        {outcome.case: outcome.error for outcome in outcomes if outcome.scores is None},
        tuple(outcome.case for outcome in outcomes if outcome.relabelled),
        tuple(outcome.case for outcome in outcomes if outcome.dropped),
        {case: {region: score.lesions for region, score in scores.items()} for case, scores in scored.items()},
    )


def _outcomes(pairs: Sequence[Pair], rules: Rules, jobs: int) -> Iterator[_Outcome]:
    from tqdm import tqdm

    # A terminal sees a bar, a log only what is wrong.
    quiet = sys.stderr is None or not sys.stderr.isatty()
    with open_workers(jobs) as workers, tqdm(total=len(pairs), unit="case", disable=quiet) as bar:
        for outcome in workers.map(partial(_outcome, rules=rules), pairs):
            bar.update()
            yield outcome


def _outcome(pair: Pair, rules: Rules) -> _Outcome:
    try:
        reference = read_one(pair.reference, pair.case)
    except CaseError as error:
        return _Outcome(pair.case, error=str(error))
    prediction, problem = None, ""
    try:
        if pair.prediction:
            prediction = read_one(pair.prediction, pair.case)
            check_geometry(prediction, reference)
    except CaseError as error:
        prediction, problem = None, str(error)
    # Missing or damaged is the same to a ranking: a system that fails on a case must not gain by it.
    if prediction is None:
        lowest = worst(reference.labels, _voxel_size(reference, rules)[0], rules.version)
        return _Outcome(pair.case, lowest, problem, relabelled=reference.relabelled)
    labels = prediction.labels
    warnings = [f"{side.notes.file}: {note}" for side in (reference, prediction) for note in side.notes.repairs]
    relabelled = reference.relabelled or (prediction.relabelled and rules.label_4_is_et)
    if relabelled:
        warnings.append("label 4 was read as 3")
    dropped = prediction.relabelled and not rules.label_4_is_et
    if dropped:
        # The reader has called it 3, as it does where no voxel was 3.
        labels = np.where(labels == Label.ET, np.uint8(0), labels)
        warnings.append("label 4 of the prediction is in no region, as for the official programs: see --label-4-is-et")
    spacing, other = _voxel_size(prediction, rules)
    if not np.allclose(spacing, other, rtol=_SAME_SIZE):
        source = "header" if rules.version == 2023 else "affine"
        warnings.append(f"voxels of {spacing} mm by the {source}, which counts in {rules.version}, and of {other} mm")
    found = score(reference.labels, labels, spacing, rules.version, package_faults=rules.package_faults)
    return _Outcome(pair.case, found, "", tuple(warnings), relabelled, dropped)


def _voxel_size(label_map: LabelMap, rules: Rules) -> tuple[Spacing, Spacing]:
    """Along the stored axes in mm: the size that counts, and the other one that the file states.

    The program of 2023 takes the header's pixdim, or the affine where that is no size at all; later ones the affine.
    """
    x, y, z = map(float, label_map.geometry.header["pixdim"][1:4])
    stated: Spacing = (x, y, z)
    # Rounded: a column of an oblique affine is 1 mm but for the last digits, and a surface Dice allows 1 mm sharp.
    x, y, z = (round(float(side), 6) for side in np.linalg.norm(label_map.geometry.affine[:3, :3], axis=0))
    real: Spacing = (x, y, z)
    return (stated, real) if rules.version == 2023 and all(0 < side < inf for side in stated) else (real, stated)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `evaluate`."""
    parser.description = (
        "Score predicted label maps by the official lesion-wise definitions of BraTS-Africa. Cases are matched by ID; "
        "missing and damaged predictions score as the worst. Exit status 0: every file could be read; 1: one is "
        "damaged; 2: nothing was attempted. docs/scoring.md explains every score."
    )
    parser.add_argument(
        "--reference", type=Path, required=True, metavar="PATH", help="reference label maps: a folder, or one file"
    )
    parser.add_argument("--prediction", type=Path, required=True, metavar="PATH", help="predicted label maps, likewise")
    parser.add_argument("--version", type=int, choices=get_args(Edition), required=True, help="official edition")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="all scores")
    parser.add_argument("--table", type=Path, metavar="FILE.csv|.md", help="one row for each case and region")
    parser.add_argument("--lesions", type=Path, metavar="FILE.csv", help="one row for each lesion")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="cases at a time (default: 1)")
    parser.add_argument("--label-4-is-et", action="store_true", help="count label 4 of predictions as enhancing tumour")
    parser.add_argument("--package-faults", action="store_true", help="2026: the package's voxel sizes, see the docs")


def run(arguments: argparse.Namespace) -> int:
    """Carry out `evaluate`; the exit status. Without an output file the means go to the standard output.

    Raises UsageError or FolderError where nothing could be attempted.
    """
    if arguments.jobs < 1:
        raise UsageError(f"--jobs {arguments.jobs}: at least one")
    if arguments.table is not None:
        check_table(arguments.table)
    if arguments.lesions is not None and arguments.lesions.suffix != ".csv":
        raise UsageError(f"{arguments.lesions}: the table of lesions ends in .csv")
    outputs = [path for path in (arguments.output, arguments.table, arguments.lesions) if path is not None]
    for path in outputs:  # before hours of scoring, not after them
        prepare_folder(path.parent)
        check_replaceable(path)
    rules = Rules(arguments.version, arguments.label_4_is_et, arguments.package_faults)
    evaluation = evaluate_folders(arguments.reference, arguments.prediction, rules, arguments.jobs)
    if arguments.output is not None:
        write_text(arguments.output, evaluation.as_json())
    if arguments.table is not None:
        write_text(arguments.table, evaluation.as_table(arguments.table.suffix))
    if arguments.lesions is not None:
        write_text(arguments.lesions, evaluation.lesion_table())
    say(f"{evaluation.sentence()}\n" if outputs else evaluation.overview())
    return ExitStatus.CASE_FAILED if evaluation.damaged or evaluation.failed else ExitStatus.OK
