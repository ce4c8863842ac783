"""The report of a run: `index.html`, one file that needs nothing else, and its tables as JSON and Markdown."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from inference.report.record import plain
from training.config import RunConfig
from training.evaluation import compare
from training.evaluation.evaluate import Evaluation
from training.evaluation.lesionwise import Version
from training.evaluation.systems import Systems, differences
from training.evaluation.tables import write_text
from training.report import sections
from training.report.arms import VERSIONS, CaseScores, Plan, read_plan, score_arms, systems_of
from training.report.curves import Curve, read_curves
from training.report.sections import Folded, Section
from training.report.tables import Table
from training.report.verdicts import Verdict, verdicts
from training.workers import Workers, open_workers

log = logging.getLogger(__name__)

FOLDER = "report"
"""Of a run's folder."""
PAGE = "index.html"
"""The page's name in it."""


@dataclass(frozen=True)
class _Comparison:
    """The arms on all cases, and what follows."""

    plan: Plan
    scores: Sequence[CaseScores]
    systems: Mapping[Version, Systems]
    verdicts: Sequence[Verdict]


def write_report(config: RunConfig, work: Path, *, revision: str = "unknown", jobs: int = 0) -> Path:
    """Write the report of a run to `work/report` and return its page; of a run that is under way, what there is so far.

    UsageError where the run has no cases yet, or tuned with a revision that did not say what each fold chose.
    """
    curves = read_curves(work)
    found: list[Section] = []
    comparison = None
    if (work / "tuning.json").is_file():
        with open_workers(jobs) as workers:
            comparison = _compare(config, work, workers)
        found += _comparison_sections(config, work, comparison)
    if (work / "folds.json").is_file():
        found.append(sections.strata_section(config, work))
    found += [sections.curves_section(curves), sections.provenance_section(config, work, revision)]
    folder = work / FOLDER
    write_text(folder / PAGE, render_page(config, found, finished=comparison is not None))
    write_text(folder / "tables.md", _markdown(config, found))
    write_text(folder / "report.json", _as_json(found, curves, comparison))
    if comparison is not None:
        _write_scores(comparison, folder)
    return folder / PAGE


def _compare(config: RunConfig, work: Path, workers: Workers) -> _Comparison:
    plan = read_plan(config, work)
    scores = score_arms(config, work, plan, workers)
    systems = {version: systems_of(scores, plan.arms, version) for version in VERSIONS}
    return _Comparison(plan, scores, systems, verdicts(systems[config.tuning.metric], plan.arms))


def _comparison_sections(config: RunConfig, work: Path, found: _Comparison) -> list[Section]:
    said = sections.verdict_section(found.verdicts)
    numbers = sections.comparison_table(found.verdicts)
    return [
        Section(said.anchor, said.title, (*said.parts, sections.folded("The same in numbers", numbers))),
        sections.arms_section(config, found.scores, found.plan.arms, found.systems),
        sections.refinement_section(config, work),
        sections.weights_section(config, work),
        sections.hardest_section(config, work, found.plan, found.scores, config.tuning.metric),
    ]


def render_page(config: RunConfig, found: Sequence[Section], *, finished: bool) -> str:
    """The page with these sections."""
    assets = files("training.report") / "assets"
    style, page = (assets.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "html"))
    state = "" if finished else " The run is not tuned yet: arms, refinement and weights are still to come."
    return Template(page).substitute(
        title=escape(f"Training run {config.bundle.name} {config.bundle.version}"),
        summary=escape(f"{len(config.models)} models, {config.folds} folds.{state}"),
        style=style,
        links="".join(f'<li><a href="#{section.anchor}">{escape(section.title)}</a></li>' for section in found),
        sections="\n".join("\n".join(sections.render(section)) for section in found),
    )


def _tables(section: Section) -> list[Table]:
    """The tables of a section, those on demand too."""
    found = []
    for part in section.parts:
        found += [part] if isinstance(part, Table) else part.tables if isinstance(part, Folded) else []
    return found


def _markdown(config: RunConfig, found: Sequence[Section]) -> str:
    parts = [f"# Training run {config.bundle.name} {config.bundle.version}\n"]
    for section in found:
        if tables := _tables(section):
            parts += [f"## {section.title}\n", *(table.as_markdown() for table in tables)]
    return "\n".join(parts) + "\n"


def _as_json(found: Sequence[Section], curves: Sequence[Curve], comparison: _Comparison | None) -> str:
    said = [] if comparison is None else comparison.verdicts
    content = {
        "verdicts": [{**asdict(verdict), "shown": verdict.shown, "sentence": verdict.sentence} for verdict in said],
        "tables": {section.anchor: [asdict(table) for table in _tables(section)] for section in found},
        "trainings": [asdict(curve) for curve in curves],
    }
    return json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _write_scores(comparison: _Comparison, folder: Path) -> None:
    """Scores of every arm as `evaluate` writes them, for `compare`, and the comparison of all pairs of arms."""
    for version, systems in comparison.systems.items():
        for arm in comparison.plan.arms:
            evaluation = Evaluation(
                version, {entry.case: entry.scores[arm.name][version] for entry in comparison.scores}
            )
            write_text(folder / "scores" / str(version) / f"{arm.name}.json", evaluation.as_json())
        write_text(folder / f"comparison.{version}.md", compare.report(systems, differences(systems)))
