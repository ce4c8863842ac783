"""The sections of the report, each from what one step of the run left behind."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inference.labels import REGIONS
from inference.report.figures import CaseDrawing, draw_case
from training.config import RunConfig
from training.data.datasets import load_case
from training.data.folds import FoldMap
from training.data.stratify import SPACING
from training.evaluation.scores import Version
from training.evaluation.systems import Systems
from training.fit.predict import scored_cases
from training.report import figures, tables
from training.report.arms import Arms, CaseScores, Plan, label_maps, model_title
from training.report.curves import Curve
from training.report.tables import Table
from training.tune.out_of_fold import load_predictions
from training.tune.tuning import Tuning

HARDEST = 4
"""Cases that are shown in pictures."""
# Pixels: pictures are shrunk to this, so that a page of all cases and trainings stays a few MB.
_PICTURE_WIDTH = 1100


@dataclass(frozen=True)
class Figure:
    """A picture in the page."""

    alt: str
    """Its content in words, for those who do not see it."""
    caption: str
    source: str
    """A data URL."""


@dataclass(frozen=True)
class Section:
    """One part of the page."""

    anchor: str
    """For links."""
    title: str
    text: str = ""
    """A paragraph ahead of all else."""
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()


def _plot(alt: str, caption: str, svg: bytes) -> Figure:
    return Figure(alt, caption, f"data:image/svg+xml;base64,{b64encode(svg).decode()}")


def _picture(alt: str, caption: str, png: bytes) -> Figure:
    """A PNG shrunk to a WebP."""
    from PIL import Image

    file = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        small = image.convert("RGB")
        small.thumbnail((_PICTURE_WIDTH, 10 * _PICTURE_WIDTH))  # the height follows, whatever it is
        small.save(file, "WEBP", quality=82)
    return Figure(alt, caption, f"data:image/webp;base64,{b64encode(file.getvalue()).decode()}")


def arms_section(
    ruling: Version, scores: Sequence[CaseScores], arms: Arms, systems: Mapping[Version, Systems]
) -> Section:
    """The equivalents of the paper's tables, and every case's score; `ruling` is the edition that was tuned by."""
    # The other edition is folded away: thresholds were not chosen for it.
    other = next(version for version in systems if version != ruling)
    plot = figures.arms(systems[ruling], "lesionwise_dice", f"lesion-wise Dice {ruling}")
    return Section(
        "arms",
        "The arms compared",
        figures=[_plot("Lesion-wise Dice of every case and arm", "A dot is a case, a diamond the mean.", plot)],
        tables=[
            tables.lesionwise_table(systems[ruling], f"Table 3: lesion-wise, edition {ruling}"),
            tables.lesionwise_table(systems[other], f"Table 3: edition {other}", folded=True),
            tables.whole_volume_table(scores, arms),
            tables.fold_table(scores, arms, ruling),
        ],
    )


def refinement_section(version: Version, tuning: Tuning, clusters: int) -> Section:
    """Thresholds: what was found, what was kept, what rules, and the honest gain."""
    # Groups gain on top of each other, so that their sum is the gain of all.
    honest = tuning.honest_gain
    each = ", ".join(f"{tables.group_title(name)} {gain:+.4f}" for name, gain in honest.items())
    text = (
        f"Chosen and kept without the scored fold, refinement changes the mean lesion-wise Dice {version} by "
        f"{sum(honest.values()):+.4f}" + (f": {each}." if each else ".")
    )
    found = [tables.found_table(tuning, clusters), tables.ruling_table(tuning, clusters)]
    return Section("refinement", "Refinement", text, tables=found)


def strata_section(strata: FoldMap) -> Section:
    """Folds and clusters."""
    shown = []
    if strata.components:
        plot = figures.clusters(strata.components, strata.clusters, strata.folds)
        caption = "Reference tumours by their radiomic features: colour is the cluster, shape the fold."
        shown.append(_plot("Cases in their first two principal components, by cluster and fold", caption, plot))
    if strata.silhouettes:
        caption = "The number of clusters with the largest mean silhouette is taken."
        shown.append(_plot("Mean silhouette by number of clusters", caption, figures.silhouettes(strata.silhouettes)))
    return Section("folds", "Folds and clusters", figures=shown, tables=[tables.strata_table(strata)])


def curves_section(curves: Sequence[Curve]) -> Section:
    """nnU-Net's own picture of every training, and how long each took."""
    if not curves:
        return Section("curves", "Trainings", "No training has written a checkpoint.")
    shown = []
    for curve in curves:
        title = f"{model_title(curve.model)}, {curve.stage}, fold {curve.fold}"
        # nnU-Net's own picture, drawn after every epoch.
        picture = curve.folder / "progress.png"
        if picture.is_file():
            shown.append(_picture(f"nnU-Net's curves of {title}", title, picture.read_bytes()))
    return Section("curves", "Trainings", figures=shown, tables=[tables.trainings_table(curves)])


def hardest_section(
    config: RunConfig, work: Path, plan: Plan, scores: Sequence[CaseScores], version: Version
) -> Section:
    """The cases with the lowest lesion-wise Dice (mean over regions), in pictures, the lowest first."""
    arm, title = list(plan.arms.items())[-1]

    def dice_of(scored: CaseScores) -> list[float]:
        return [scored.scores[arm][version][region]["lesionwise_dice"] for region in REGIONS]

    cases = {entry.id: (entry, fold) for entry, fold in scored_cases(config, work).items()}
    shown = []
    for scored in sorted(scores, key=lambda scored: float(np.mean(dice_of(scored))))[:HARDEST]:
        loaded = load_predictions(cases[scored.case], plan.models, config, work)
        data, reference = load_case(cases[scored.case][0], config)
        # Predictions are cropped to the tumour; pictures show all of the scan.
        box = tuple(slice(at, at + n) for at, n in zip(loaded.corner, loaded.reference.shape, strict=True))
        predicted = np.zeros_like(reference)
        predicted[box] = dict(label_maps(loaded, plan))[arm]
        dice = dice_of(scored)
        each = ", ".join(f"{region} {value:.3f}" for region, value in zip(REGIONS, dice, strict=True))
        drawing = CaseDrawing(data, predicted, SPACING, scored.case, reference=reference)
        caption = f"{scored.case}, fold {scored.fold}: {np.mean(dice):.3f} ({each})"
        shown.append(_picture(f"{scored.case}: prediction, and outlines of the reference", caption, draw_case(drawing)))
    text = (
        f"The lowest lesion-wise Dice {version} of the last arm ({title}): the prediction in colours, the "
        "reference in dashed outlines."
    )
    return Section("hardest", "Hardest cases", text, shown)
