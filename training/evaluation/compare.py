"""`python -m training compare`: systems against each other on the same cases, from the files that `evaluate` writes."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from inference.console import say
from inference.errors import ExitStatus, UsageError
from inference.files import prepare_folder, whole_file
from training.evaluation.systems import UNITS, Difference, RankTest, Systems, differences, load_systems, rank_tests
from training.evaluation.tables import Row, check_table, comma_separated, markdown, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOG = logging.getLogger(__name__)

_RANKING: Final = """\
## Ranking
1 is the best. By cases: rank in each case, averaged over cases, regions and metrics. By means: rank of the mean over
cases, averaged over regions and metrics.
"""

_RANK_TESTS: Final = """\
Difference of the mean ranks by cases, and the p-value of the paired permutation test (two-sided, not corrected for the
number of tests).
"""

_DIFFERENCES: Final = """\
## Differences
Mean over cases, 95 % bootstrap interval, and the p-value of the paired Wilcoxon signed-rank test (two-sided, not
corrected for the number of tests).
"""


def report(systems: Systems, tests: list[Difference], ranked: Sequence[RankTest] = ()) -> str:
    """The comparison as Markdown: ranking, means, tests, and the differences of each case."""
    by_cases, by_means = systems.ranking(), systems.mean_ranking()
    order = np.argsort(by_cases, kind="stable")  # equal ranks stay in the order in which the files were named
    ranking: list[Row] = [(systems.names[at], float(by_cases[at]), float(by_means[at])) for at in order]
    swapped: list[Row] = [(f"{test.system} - {test.against}", test.difference, test.p_value) for test in ranked]
    means: list[Row] = [
        (region, metric, *(float(mean) for mean in systems.means()[:, r, m]))
        for r, region in enumerate(systems.regions)
        for m, metric in enumerate(systems.metrics)
    ]
    tested: list[Row] = [
        (f"{test.system} - {test.against}", test.region, test.metric, test.mean, test.low, test.high, test.p_value)
        for test in tests
    ]
    parts = [
        f"# Comparison of {len(systems.names)} systems on {len(systems.cases)} cases, BraTS {systems.version}\n",
        _RANKING,
        markdown(("system", "by cases", "by means"), ranking),
        *([_RANK_TESTS, markdown(("systems", "difference", "p"), swapped)] if swapped else []),
        "## Means\n",
        markdown(("region", "metric", *systems.names), means),
        _DIFFERENCES,
        markdown(("systems", "region", "metric", "mean", "low", "high", "p"), tested),
        "## Differences by case\n",
        *(_by_case(systems, tests, pair) for pair in dict.fromkeys((test.system, test.against) for test in tests)),
    ]
    return "\n".join(parts)


def _by_case(systems: Systems, tests: list[Difference], pair: tuple[str, str]) -> str:
    """The differences of one pair of systems, a row for each case."""
    columns = [test for test in tests if (test.system, test.against) == pair]
    rows: list[Row] = [(case, *(test.per_case[at] for test in columns)) for at, case in enumerate(systems.cases)]
    header = ("case", *(f"{test.region} {test.metric}" for test in columns))
    return f"### {pair[0]} - {pair[1]}\n\n{markdown(header, rows)}"


def long_table(systems: Systems, tests: list[Difference], ranked: Sequence[RankTest] = ()) -> str:
    """The same as CSV, one value a row."""
    rows: list[Row] = [
        (kind, name, "", "", "", "", float(rank))
        for kind, ranking in (("rank", systems.ranking()), ("rank of means", systems.mean_ranking()))
        for name, rank in zip(systems.names, ranking, strict=True)
    ]
    for pair in ranked:
        rows.append(("rank difference", pair.system, pair.against, "", "", "", pair.difference))
        rows.append(("rank p", pair.system, pair.against, "", "", "", pair.p_value))
    for (s, r, m), mean in np.ndenumerate(systems.means()):
        rows.append(("mean", systems.names[s], "", systems.regions[r], systems.metrics[m], "", float(mean)))
    for test in tests:
        where = (test.system, test.against, test.region, test.metric)
        named = {"difference": test.mean, "low": test.low, "high": test.high, "p": test.p_value}
        rows.extend((name, *where, "", value) for name, value in named.items())
        rows.extend(
            ("difference", *where, case, value) for case, value in zip(systems.cases, test.per_case, strict=True)
        )
    return comma_separated(("value_of", "system", "against", "region", "metric", "case", "value"), rows)


def plot(systems: Systems, path: Path) -> None:
    """Every case's value by system, one panel for each metric and region, as PNG.

    Boxes span the quartiles, lines join the same case, and a diamond is the mean.
    """
    from matplotlib.figure import Figure

    rows, columns = len(systems.metrics), len(systems.regions)
    width = max(3.0, 0.9 * len(systems.names) + 1)  # inches, so that slanted names of systems do not overlap
    figure = Figure(figsize=(width * columns, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for (m, r), panel in np.ndenumerate(panels):
        _panel(panel, systems, r, m)
    prepare_folder(path.parent)
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=150)


def _panel(panel: Axes, systems: Systems, region: int, metric: int) -> None:
    # An axis cannot show infinity; `_warn` has told how many there are.
    values = np.where(np.isfinite(systems.values), systems.values, np.nan)[:, :, region, metric]
    positions = np.arange(1, len(systems.names) + 1)
    panel.plot(positions, values, color="0.8", linewidth=0.6, zorder=1)
    finite = [column[np.isfinite(column)] for column in values]
    # Without outliers of its own: every case is a dot already.
    panel.boxplot(finite, positions=positions, showfliers=False, medianprops={"color": "black"})
    for position, column in zip(positions, values, strict=True):
        panel.plot(np.full(column.size, position), column, ".", color="tab:blue", alpha=0.6, zorder=2)
    panel.plot(positions, systems.means()[:, region, metric], "D", color="tab:red", zorder=3)
    panel.set_xticks(positions, systems.names, rotation=20, ha="right")
    panel.set_title(f"{systems.regions[region]} {systems.metrics[metric]}")
    panel.set_ylabel(UNITS.get(systems.metrics[metric], ""))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `compare`."""
    parser.description = (
        "Compare systems on the cases that all were scored on: the BraTS ranking by cases and by means with a paired "
        "permutation test, means, and differences by case with a paired Wilcoxon test and bootstrap intervals. Missing "
        "and damaged predictions count as the worst. Systems are called by their files."
    )
    parser.add_argument("scores", type=Path, nargs="+", metavar="FILE.json", help="written by `evaluate --output`")
    parser.add_argument("--table", type=Path, action="append", default=[], metavar="FILE.md|.csv", help="repeatable")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="every case's value by system")
    known = ", ".join(f"{metric} ({unit})" for metric, unit in UNITS.items())
    parser.add_argument(
        "--metrics", nargs="+", metavar="NAME", help=f"to rank by (default: what the edition ranks by): {known}"
    )
    parser.add_argument(
        "--resamples",
        type=int,
        default=10000,  # the 95 % interval then moves by about a hundredth of its width between seeds
        metavar="N",
        help="of the bootstrap and the permutation test (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of both (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Carry out `compare`; the exit status. Without `--table` the report goes to the standard output.

    Raises UsageError or FolderError where nothing could be attempted.
    """
    tables = [check_table(path) for path in arguments.table]
    if arguments.plot is not None and arguments.plot.suffix != ".png":
        raise UsageError(f"{arguments.plot}: the plot ends in .png")
    if arguments.resamples < 1:
        raise UsageError(f"--resamples {arguments.resamples}: at least one")
    systems = load_systems(arguments.scores, arguments.metrics)
    # Before the tests, which take a while.
    _warn(systems)
    ranked = rank_tests(systems, permutations=arguments.resamples, seed=arguments.seed)
    tests = differences(systems, resamples=arguments.resamples, seed=arguments.seed)
    for path in tables:
        write_text(path, (long_table if path.suffix == ".csv" else report)(systems, tests, ranked))
    if arguments.plot is not None:
        plot(systems, arguments.plot)
    if not tables:
        say(report(systems, tests, ranked))
    return ExitStatus.OK


def _warn(systems: Systems) -> None:
    """Tell which cases and scores do not count as they are."""
    for name, cases in systems.dropped.items():
        if cases:
            _LOG.warning("%s: %d cases that not all systems have are left out: %s", name, len(cases), ", ".join(cases))
    for name, cases in systems.worst.items():
        if cases:
            _LOG.warning("%s: %d missing or damaged cases count as the worst: %s", name, len(cases), ", ".join(cases))
    for name, values in zip(systems.names, systems.values, strict=True):
        if undefined := int(np.count_nonzero(np.isnan(values))):
            _LOG.warning("%s: %d scores are not defined: the best rank, and in no mean or difference", name, undefined)
        if infinite := int(np.count_nonzero(np.isinf(values))):
            _LOG.warning("%s: %d scores are infinite: they are in no mean or difference", name, infinite)
