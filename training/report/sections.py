"""The parts of the report, each from what one step of the run left behind."""

from __future__ import annotations

import dataclasses
import json
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path

import numpy as np

from inference.bundle.tables import Thresholds, ThresholdTables, parse_thresholds
from inference.labels import REGIONS, TUMOUR_LABELS
from inference.refine.subtypes import subtype_model
from inference.report.views import LABEL_COLOURS, LABEL_NAMES
from training.bundles.freeze import provenance
from training.config import RunConfig
from training.data.datasets import load_case, read_cases
from training.data.stratify import first_components, load_subtypes, reference_features
from training.evaluation.lesionwise import Version
from training.evaluation.systems import Systems
from training.fit.predict import scored_cases
from training.report import figures
from training.report.arms import MEAN, Arm, CaseScores, Plan, label_maps, model_title
from training.report.curves import Curve
from training.report.pictures import draw_pair
from training.report.tables import Table, spread
from training.report.verdicts import Verdict
from training.tune.ensemble_weights import PAPER_WEIGHTS
from training.tune.out_of_fold import load_predictions

HARDEST = 4
"""Cases that are shown in pictures."""


@dataclass(frozen=True)
class Folded:
    """HTML that shows on demand, and the tables in it."""

    html: str
    """A `details` element."""
    tables: list[Table]
    """Its tables."""


Part = str | Table | Folded


@dataclass(frozen=True)
class Section:
    """One part of the page."""

    anchor: str
    """For links."""
    title: str
    """Its heading."""
    parts: tuple[Part, ...]
    """HTML, and tables, which go into the Markdown file too."""


def paragraph(text: str, style: str = "") -> str:
    """Plain text as HTML."""
    return f'<p class="{style}">{escape(text)}</p>' if style else f"<p>{escape(text)}</p>"


def figure(picture: bytes, kind: str, alt: str, caption: str = "") -> str:
    """An embedded picture."""
    source = f"data:image/{kind};base64,{b64encode(picture).decode()}"
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{escape(alt)}" src="{source}">{below}</figure>'


def gallery(pictures: Sequence[str]) -> str:
    """Figures side by side where there is room."""
    return f'<div class="gallery">{"".join(pictures)}</div>'


def folded(summary: str, *parts: str | Table) -> Folded:
    """What is there on demand."""
    inner = "".join(part.as_html() if isinstance(part, Table) else part for part in parts)
    html = f"<details><summary>{escape(summary)}</summary>{inner}</details>"
    return Folded(html, [part for part in parts if isinstance(part, Table)])


# --- arms -----------------------------------------------------------------------------------------------------------


def verdict_section(found: Sequence[Verdict]) -> Section:
    """Every verdict as a sentence."""
    parts: list[Part] = [
        paragraph(
            "Made from the numbers below: lesion-wise Dice, mean over WT, TC and ET, paired by case. Every case was "
            "scored with networks, weights and thresholds that have not seen it. Intervals come from drawing the cases "
            "anew; with few cases they are rather too narrow than too wide, and they are not corrected for how much is "
            "asked.",
            "hint",
        )
    ]
    for topic, group in groupby(found, key=lambda verdict: verdict.question.topic):
        items = "".join(
            f'<li class="{"shown" if verdict.shown else "open"}">{escape(verdict.sentence)}</li>' for verdict in group
        )
        parts.append(f"<h3>{escape(topic)}</h3><ul>{items}</ul>")
    return Section("verdicts", "What the cases say", tuple(parts))


def arms_section(
    config: RunConfig, scores: Sequence[CaseScores], arms: Sequence[Arm], systems: Mapping[Version, Systems]
) -> Section:
    """The equivalents of the paper's tables, and every case's score."""
    ruling = config.tuning.metric
    other = next(version for version in systems if version != ruling)
    picture = figure(
        figures.arms(systems[ruling], "lesionwise_dice", f"lesion-wise Dice {ruling}"),
        "svg+xml",
        "Lesion-wise Dice of every case and arm",
        "A dot is a case, a diamond the mean.",
    )
    parts: list[Part] = [
        gallery([picture]),
        lesionwise_table(systems[ruling], f"Table 3: lesion-wise, edition {ruling}"),
        folded(f"The same by the definition of {other}", lesionwise_table(systems[other], f"Table 3: edition {other}")),
        whole_volume_table(scores, arms),
        folded("Each model, fold by fold", fold_table(scores, arms, ruling)),
    ]
    return Section("arms", "The arms compared", tuple(parts))


def lesionwise_table(systems: Systems, caption: str) -> Table:
    """Mean and standard deviation over cases of lesion-wise Dice and HD95 per region."""
    rows = []
    for s, name in enumerate(systems.names):
        cells = [name]
        for metric, digits in (("lesionwise_dice", 3), ("lesionwise_hd95", 1)):
            at = systems.metrics.index(metric)
            cells += [spread(systems.values[s, :, r, at].tolist(), digits) for r in range(len(systems.regions))]
        rows.append(cells)
    header = ["arm", *(f"{r} Dice" for r in systems.regions), *(f"{r} HD95, mm" for r in systems.regions)]
    note = f"Mean ± standard deviation over {len(systems.cases)} cases. Arms with a + include those before them."
    return Table(caption, header, rows, note)


def whole_volume_table(scores: Sequence[CaseScores], arms: Sequence[Arm]) -> Table:
    """Dice of whole volumes, over the cases whose reference has the region."""
    rows = [
        [
            arm.title,
            *(
                spread([e.scores[arm.name][2023][region]["dice"] for e in scores if region in e.present])
                for region in REGIONS
            ),
        ]
        for arm in arms
    ]
    counts = ", ".join(f"{region} {sum(region in entry.present for entry in scores)}" for region in REGIONS)
    note = f"Mean ± standard deviation over the cases whose reference has the region: {counts}."
    return Table("Table 2: Dice of whole volumes", ["arm", *REGIONS], rows, note)


def fold_table(scores: Sequence[CaseScores], arms: Sequence[Arm], version: Version) -> Table:
    """Lesion-wise Dice of the models alone, fold by fold."""
    folds = sorted({entry.fold for entry in scores})
    models = arms[: [arm.name for arm in arms].index("ensemble")]
    rows = []
    for arm in models:
        for region in REGIONS:
            values = {
                fold: [e.scores[arm.name][version][region]["lesionwise_dice"] for e in scores if e.fold == fold]
                for fold in folds
            }
            means = [f"{np.mean(values[fold]):.3f}" for fold in folds]
            every = spread([value for of_fold in values.values() for value in of_fold])
            rows.append([f"{arm.title}, {region}", *means, every])
    header = ["model, region", *(f"fold {fold}" for fold in folds), "all cases"]
    return Table(f"Table 1: lesion-wise Dice {version} by fold", header, rows)


# --- what tuning chose ----------------------------------------------------------------------------------------------


def refinement_section(config: RunConfig, work: Path) -> Section:
    """Thresholds: what was found, what was kept, what rules, and the honest gain."""
    tuning = json.loads((work / "tuning.json").read_text(encoding="utf-8"))
    clusters = load_subtypes(work / "subtypes.json").clusters
    honest = tuning["honest_gain"]
    each = ", ".join(f"{_group_title(name)} {gain:+.4f}" for name, gain in honest.items())
    parts: list[Part] = [
        paragraph(
            "Chosen and kept without the scored fold, refinement changes the mean lesion-wise Dice "
            f"{config.tuning.metric} by {sum(honest.values()):+.4f}" + (f": {each}." if each else ".")
        ),
        _found_table(tuning, clusters),
        _ruling_table(tuning, clusters),
    ]
    return Section("refinement", "Refinement", tuple(parts))


def _found_table(tuning: Mapping[str, Mapping[str, object]], clusters: int) -> Table:
    rows = []
    for name, value in tuning["found"].items():
        gain = tuning["nested_gain"][name]
        assert isinstance(gain, float | int)
        found = parse_thresholds(value, "tuning.json", clusters)
        what = _found_words(name, found)
        verdict = "kept" if gain > 1e-9 else "nothing found" if what == "as it is" else "rejected"
        rows.append([_group_title(name), what, f"{gain:+.4f}", verdict])
    return Table(
        "What the search on all cases found, and what was kept",
        ["group", "found", "nested gain", "verdict"],
        rows,
        "A group is kept only where choosing it on the other folds gains on the fold that is left out. That gain "
        "decides; the one above judges, since it is measured on folds that took no part in deciding either.",
    )


def _found_words(name: str, found: ThresholdTables) -> str:
    if name == "regions":
        shares = ", ".join(f"{region} {value:g}" for region, value in zip(REGIONS, found.regions, strict=True))
        return "as it is" if set(found.regions) == {0.5} else shares
    thresholds = found.overall
    if name.startswith("subtypes"):
        own = found.subtypes[int(name.rpartition(" ")[2])]
        return "as it is" if found.use == "global" or own == found.overall else _threshold_words(own)
    if name == "components":
        return _threshold_words(dataclasses.replace(thresholds, et_wt_ratio=0.0))
    return "as it is" if not thresholds.et_wt_ratio else f"ET/WT ≥ {thresholds.et_wt_ratio:g}"


def _threshold_words(thresholds: Thresholds) -> str:
    words = [f"{label} ≥ {size:g} mm³" for label, size in thresholds.smallest_component_mm3.items() if size]
    words += [f"ET/WT ≥ {thresholds.et_wt_ratio:g}"] if thresholds.et_wt_ratio else []
    return ", ".join(words) or "as it is"


def _ruling_table(tuning: Mapping[str, Mapping[str, object]], clusters: int) -> Table:
    tables = parse_thresholds(tuning["thresholds"], "tuning.json", clusters)
    of = tuning["subtypes"]["of"]
    assert isinstance(of, dict)
    counts = [list(of.values()).count(cluster) for cluster in range(clusters)]
    every = [(f"all copies ({len(of)})", tables.overall, "")]
    each = [
        (
            f"cluster {c} ({counts[c]})",
            tables.subtypes[c],
            "own" if tables.subtypes[c] != tables.overall else "those of all",
        )
        for c in range(clusters)
    ]
    labels = [label.name for label in TUMOUR_LABELS]
    rows = [
        [
            name,
            *(f"{value:g}" for value in tables.regions),
            *(f"{thresholds.smallest_component_mm3[label]:g}" for label in labels),
            f"{thresholds.et_wt_ratio:g}",
            whose,
        ]
        for name, thresholds, whose in [*every, *each]
    ]
    header = ["tumours", *(f"{r} above" for r in REGIONS), *(f"{x} mm³" for x in labels), "ET/WT", "thresholds"]
    note = "Region thresholds are probabilities; components smaller than mm³ are removed; 0 leaves everything alone."
    return Table("What rules in the bundle", header, rows, note)


def _group_title(name: str) -> str:
    if name.startswith("subtypes "):
        return f"own thresholds of cluster {name.rpartition(' ')[2]}"
    return {"regions": "region thresholds", "components": "component removal", "ratio": "relabelling"}[name]


def weights_section(config: RunConfig, work: Path) -> Section:
    """All ways to weigh the models, side by side with the paper's."""
    tuning = json.loads((work / "tuning.json").read_text(encoding="utf-8"))
    names = [model.name for model in config.models]
    rows = []
    for way, choice in tuning["weight_choices"].items():
        cells = [f"{choice['weights'][name]:.4f}" for name in names]
        rows.append([way, *cells, f"{choice['score']:.4f}", "rules" if way == config.tuning.weights else ""])
    published = ", ".join(f"{name} {value:.4f}" for name, value in PAPER_WEIGHTS.items())
    note = (
        f"The paper's: {published} (17/36 and 19/36). Scores: mean lesion-wise Dice {config.tuning.metric} of the "
        "plain ensemble, each copy under the weights that the other folds give."
    )
    header = ["way", *(model_title(name) for name in names), "score out of fold", ""]
    return Section("weights", "Ensemble weights", (Table("Weights by every way", header, rows, note),))


# --- folds and trainings --------------------------------------------------------------------------------------------


def strata_section(config: RunConfig, work: Path) -> Section:
    """Folds and clusters."""
    content = json.loads((work / "folds.json").read_text(encoding="utf-8"))
    folds, clusters = content["folds"], content["clusters"]
    points = content.get("components") or _components(config, work)
    pictures = [
        figure(
            figures.clusters(points, clusters, folds),
            "svg+xml",
            "Cases in their first two principal components, by cluster and fold",
            "Reference tumours by their radiomic features: colour is the cluster, shape the fold.",
        )
    ]
    if values := {int(count): value for count, value in content["silhouettes"].items()}:
        picture = figures.silhouettes(values)
        alt = "Mean silhouette by number of clusters"
        pictures.append(
            figure(picture, "svg+xml", alt, "The number of clusters with the largest mean silhouette is taken.")
        )
    kinds = sorted(set(clusters.values()))
    rows = []
    for fold in sorted(set(folds.values())):
        inside = [case for case, own in folds.items() if own == fold]
        each = [str(sum(clusters[case] == kind for case in inside)) for kind in kinds]
        rows.append([f"fold {fold}", str(len(inside)), str(len({content["patients"][c] for c in inside})), *each])
    table = Table("Cases per fold", ["", "cases", "patients", *(f"cluster {kind}" for kind in kinds)], rows)
    return Section("folds", "Folds and clusters", (gallery(pictures), table))


def _components(config: RunConfig, work: Path) -> dict[str, list[float]]:
    """The same from the scans, for a `folds.json` without them."""
    entries = [entry for entry in read_cases(work / "cases.json") if entry.in_folds]
    features = reference_features(config, entries)
    model = subtype_model(load_subtypes(work / "fold_subtypes.json"))
    return dict(zip(features, first_components(model, np.stack(list(features.values()))).tolist(), strict=True))


def curves_section(trainings: Sequence[Curve]) -> Section:
    """Curves of every training, and how long each took."""

    def key(curve: Curve) -> tuple[str, str]:
        return curve.stage, curve.model

    pictures, rows = [], []
    for (stage, model), group in groupby(trainings, key=key):
        curves = list(group)
        title = f"{model_title(model)}, {stage}"
        pictures.append(figure(figures.curves(curves), "svg+xml", f"Training curves of {title}", title))
        rows += [
            [
                f"{title}, fold {curve.fold}",
                str(curve.epochs) if curve.finished else f"{curve.epochs}, not finished",
                *(
                    f"{line[-1]:.3f}" if line else "–"
                    for line in (curve.train_loss, curve.validation_loss, curve.pseudo_dice)
                ),
                f"{curve.seconds / 60:.1f}",
            ]
            for curve in curves
        ]
    if not rows:
        return Section("curves", "Trainings", (paragraph("No training has written a checkpoint.", "hint"),))
    header = ["training", "epochs", "last loss", "held out", "pseudo Dice", "minutes"]
    table = Table("Trainings", header, rows, "Losses and pseudo Dice are nnU-Net's, on patches: they draw the curve.")
    return Section("curves", "Trainings", (gallery(pictures), folded("Every training in numbers", table)))


# --- cases and provenance -------------------------------------------------------------------------------------------


def hardest(scores: Sequence[CaseScores], arm: Arm, version: Version) -> list[tuple[float, CaseScores]]:
    """The cases with the lowest lesion-wise Dice (mean over regions), the lowest first."""
    values = [
        (float(np.mean([entry.scores[arm.name][version][region]["lesionwise_dice"] for region in REGIONS])), entry)
        for entry in scores
    ]
    return sorted(values, key=lambda pair: pair[0])[:HARDEST]


def hardest_section(
    config: RunConfig, work: Path, plan: Plan, scores: Sequence[CaseScores], version: Version
) -> Section:
    """The cases that went worst, in pictures."""
    arm = plan.arms[-1]
    cases = {entry.id: (entry, fold) for entry, fold in scored_cases(config, work).items()}
    pictures = []
    for value, entry in hardest(scores, arm, version):
        loaded = load_predictions(cases[entry.case], plan.models, config, work)
        data, reference = load_case(cases[entry.case][0], config)
        box = tuple(slice(at, at + n) for at, n in zip(loaded.corner, loaded.reference.shape, strict=True))
        predicted = np.zeros_like(reference)
        predicted[box] = dict(label_maps(loaded, plan))[arm.name]
        per_region = ", ".join(
            f"{region} {entry.scores[arm.name][version][region]['lesionwise_dice']:.3f}" for region in REGIONS
        )
        caption = f"{entry.case}, fold {entry.fold}: {value:.3f} ({per_region})"
        alt = f"{entry.case}: prediction and reference in the slice with most errors"
        pictures.append(figure(draw_pair(data, reference, predicted), "webp", alt, caption))
    keys = "".join(
        f'<span class="key"><i style="background:{colour}"></i>{label.name} {LABEL_NAMES[label]}</span> '
        for label, colour in reversed(list(LABEL_COLOURS.items()))
    )
    text = f"The lowest lesion-wise Dice {version} of the last arm ({arm.title}), in the axial slice with most errors."
    return Section("hardest", "Hardest cases", (paragraph(text, "hint"), f"<p>{keys}</p>", gallery(pictures)))


def provenance_section(config: RunConfig, work: Path, revision: str) -> Section:
    """What the run was made from."""
    entries = read_cases(work / "cases.json")
    made = provenance(config, entries, revision)
    rows = []
    for source in config.sources:
        own = [entry for entry in entries if entry.source == source.name]
        rows.append(
            [
                source.name,
                str(len(own)),
                str(sum(entry.in_folds for entry in own)),
                "phantoms" if source.phantoms else "scans",
                ", ".join(stage for stage in config.stages if source.name in config.dataset(stage).sources) or "none",
                source.licence or "not stated",
                source.doi or "–",
            ]
        )
    header = ["source", "cases", "in folds", "kind", "used in", "licence", "DOI"]
    facts = {
        "Bundle": f"{config.bundle.name} {config.bundle.version}",
        "Intended use": config.bundle.intended_use,
        "Limits": config.bundle.limits,
        "Licence of the weights": config.bundle.licence,
        "Revision of the code": revision,
        "Libraries": ", ".join(f"{name} {version}" for name, version in made.libraries.items()),
    }
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    settings = escape(json.dumps(made.config, indent=1, ensure_ascii=False))
    pre = f'<pre tabindex="0" aria-label="Configuration">{settings}</pre>'
    return Section(
        "provenance",
        "What this was made from",
        (f"<dl>{listed}</dl>", Table("Data", header, rows), folded("Configuration", pre)),
    )


def comparison_table(found: Sequence[Verdict]) -> Table:
    """The verdicts in numbers."""
    rows = [
        [
            f"{v.difference.system} − {v.difference.against}",
            f"{v.difference.mean:+.3f}",
            f"{v.difference.low:+.3f} to {v.difference.high:+.3f}",
            f"{v.difference.p_value:.3f}",
            "yes" if v.shown else "no",
        ]
        for v in found
    ]
    header = ["difference", f"Dice, {MEAN}", "95 % interval", "p", "excludes zero"]
    return Table("The same in numbers", header, rows)


def render(section: Section) -> Iterator[str]:
    """HTML of a section."""
    yield f'<section id="{section.anchor}">'
    yield f'<h2>{escape(section.title)} <a href="#top" aria-label="back to the top">↑</a></h2>'
    for part in section.parts:
        yield part if isinstance(part, str) else part.html if isinstance(part, Folded) else part.as_html()
    yield "</section>"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
