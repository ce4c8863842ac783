"""The report of a run: `index.html`, one file that needs nothing else, and its tables as JSON and Markdown."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from inference.errors import UsageError
from inference.report.record import plain
from inference.schema import read_json, to_json
from inference.templates import render
from training.bundles.freeze import provenance
from training.config import RunConfig
from training.data.datasets import read_cases
from training.data.folds import FoldMap
from training.data.stratify import load_subtypes
from training.evaluation import compare
from training.evaluation.evaluate import Evaluation
from training.evaluation.systems import differences
from training.evaluation.tables import write_text
from training.report import sections, tables
from training.report.arms import VERSIONS, Claim, claims, make_plan, score_arms, systems_of
from training.report.curves import read_curves
from training.report.sections import Section
from training.tune.tuning import read_tuning
from training.workers import open_workers


def write_report(config: RunConfig, work: Path, *, revision: str = "unknown", jobs: int = 0) -> Path:
    """Write the report of a run to `work/report` and return its page; of a run that is under way, what there is so far.

    UsageError where the run has no cases yet, or a file of it does not say what it should.
    """
    folder, entries = work / "report", read_cases(work / "cases.json")
    found: list[Section] = []
    said: list[Claim] = []
    is_tuned = (work / "tuning.json").is_file()
    if is_tuned:
        said, found = _compare_arms(config, work, jobs)
    if (work / "folds.json").is_file():
        found.append(sections.strata_section(read_json(work / "folds.json", FoldMap, UsageError)))
    curves = read_curves(work)
    found.append(sections.curves_section(curves))
    sources = tables.sources_table(config, entries)
    found.append(Section("provenance", "What this was made from", tables=[sources]))
    made = provenance(config, entries, revision)  # as the bundle of the run states it
    title = f"Training run {config.bundle.name} {config.bundle.version}"
    page = render(
        "training.report/page.html.jinja",
        title=title,
        sections=found,
        config=config,
        claims=said,
        is_tuned=is_tuned,
        provenance=made,
        settings=json.dumps(made.config, indent=1, ensure_ascii=False),
    )
    write_text(folder / "index.html", page)
    write_text(folder / "tables.md", render("training.report/tables.md.jinja", title=title, sections=found))
    content = {
        "claims": [{**asdict(claim), "answer": claim.answer} for claim in said],
        "tables": {section.anchor: [asdict(table) for table in section.tables] for section in found},
        "trainings": [{**asdict(curve), "folder": curve.folder.name} for curve in curves],
    }
    write_text(folder / "report.json", to_json(plain(content)).decode())
    return folder / "index.html"


def _compare_arms(config: RunConfig, work: Path, jobs: int) -> tuple[list[Claim], list[Section]]:
    """Score the arms; write their scores as `evaluate` does, for `compare`, and the comparison of all pairs."""
    tuning, ruling = read_tuning(config, work), config.tuning.metric
    plan = make_plan(config, work, tuning)
    with open_workers(jobs) as workers:
        scores = score_arms(config, work, plan, workers)
    systems = {version: systems_of(scores, plan.arms, version) for version in VERSIONS}
    tests = {version: differences(each) for version, each in systems.items()}
    # Both editions, as `evaluate` would write them: `compare` can set the arms against other systems.
    for version in VERSIONS:
        for arm in plan.arms:
            evaluation = Evaluation(version, {entry.case: entry.scores[arm][version] for entry in scores})
            write_text(work / "report" / "scores" / str(version) / f"{arm}.json", evaluation.as_json())
        comparison = compare.report(systems[version], tests[version])
        write_text(work / "report" / f"comparison.{version}.md", comparison)
    # Claims are judged by the edition that the thresholds were chosen for.
    said = claims(plan.arms, tests[ruling])
    clusters = load_subtypes(work / "subtypes.json").clusters
    return said, [
        Section("claims", "What the cases say", tables=[tables.claims_table(said)]),
        sections.arms_section(ruling, scores, plan.arms, systems),
        sections.refinement_section(ruling, tuning, clusters),
        Section("weights", "Ensemble weights", tables=[tables.weights_table(config, tuning)]),
        sections.hardest_section(config, work, plan, scores, ruling),
    ]
