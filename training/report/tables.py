"""The tables of the report, from numbers; each once, for the page, the Markdown file and the JSON beside it."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inference.bundle.tables import Thresholds, ThresholdTables
from inference.labels import REGIONS, TUMOUR_LABELS
from training.config import RunConfig
from training.data.datasets import CaseEntry
from training.data.folds import FoldMap
from training.evaluation.scores import Version
from training.evaluation.systems import Systems
from training.evaluation.tables import markdown
from training.report.arms import MEAN, Arms, CaseScores, Claim, model_title, models_alone
from training.report.curves import Curve
from training.tune.ensemble_weights import PAPER_WEIGHTS
from training.tune.thresholds import LEAST_GAIN
from training.tune.tuning import Tuning


@dataclass(frozen=True)
class Table:
    """Cells as they are to be read."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    """The first cell of a row names it."""
    note: str = ""
    """A note on how to read it."""
    folded: bool = False
    """Whether the page shows it on demand only."""

    @property
    def markdown(self) -> str:
        """Header and rows as Markdown."""
        return markdown(self.header, self.rows)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± standard deviation of a sample, as `evaluate` gives it; a dash for no values."""
    if not values:
        return "–"
    # Of a sample (n - 1), as the challenge's tables have it.
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} ± {deviation:.{digits}f}"


def claims_table(found: Sequence[Claim]) -> Table:
    """The paired differences behind the claims."""
    rows = [
        [
            f"{d.system} − {d.against}",
            f"{d.mean:+.3f}",
            f"{d.low:+.3f} to {d.high:+.3f}",
            f"{d.p_value:.3f}",
            "yes" if d.low > 0 or d.high < 0 else "no",
        ]
        for d in (claim.difference for claim in found)
    ]
    header = ["difference", f"Dice, {MEAN}", "95 % interval", "p", "excludes zero"]
    return Table("The same in numbers", header, rows, folded=True)


def lesionwise_table(systems: Systems, caption: str, *, folded: bool = False) -> Table:
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
    return Table(caption, header, rows, note, folded)


def whole_volume_table(scores: Sequence[CaseScores], arms: Arms) -> Table:
    """Dice of whole volumes, over the cases whose reference has the region."""
    # Of the edition 2023 whatever rules: that of 2024 leaves out small predicted lesions.
    rows = []
    for arm, title in arms.items():
        of_regions = ([e.scores[arm][2023][r]["dice"] for e in scores if r in e.present] for r in REGIONS)
        rows.append([title, *map(spread, of_regions)])
    counts = ", ".join(f"{region} {sum(region in entry.present for entry in scores)}" for region in REGIONS)
    note = f"Mean ± standard deviation over the cases whose reference has the region: {counts}."
    return Table("Table 2: Dice of whole volumes", ["arm", *REGIONS], rows, note)


def fold_table(scores: Sequence[CaseScores], arms: Arms, version: Version) -> Table:
    """Lesion-wise Dice of the models alone, fold by fold."""
    folds = sorted({entry.fold for entry in scores})
    rows = []
    for arm in models_alone(arms):
        for region in REGIONS:
            values = [(e.fold, e.scores[arm][version][region]["lesionwise_dice"]) for e in scores]
            means = [f"{np.mean([value for own, value in values if own == fold]):.3f}" for fold in folds]
            rows.append([f"{arms[arm]}, {region}", *means, spread([value for _, value in values])])
    header = ["model, region", *(f"fold {fold}" for fold in folds), "all cases"]
    return Table(f"Table 1: lesion-wise Dice {version} by fold", header, rows, folded=True)


def found_table(tuning: Tuning, clusters: int) -> Table:
    """Finding of the search for each group of thresholds, and whether it was kept."""
    rows = []
    for name, stored in tuning.found.items():
        # "Rejected" is a finding too: something looked better on all cases and did not hold.
        gain, found = tuning.nested_gain[name], _found_words(name, stored.tables("tuning.json", clusters))
        verdict = "kept" if gain > LEAST_GAIN else "nothing found" if found == "as it is" else "rejected"
        rows.append([group_title(name), found, f"{gain:+.4f}", verdict])
    note = (
        f"A group is kept only where choosing it on other patients gains more than {LEAST_GAIN:g} on those left out. "
        "That gain decides; the one above judges, since it is measured on folds that took no part in deciding either."
    )
    header = ["group", "found", "nested gain", "verdict"]
    return Table("What the search on all cases found, and what was kept", header, rows, note)


def _found_words(name: str, found: ThresholdTables) -> str:
    if name == "regions":
        shares = ", ".join(f"{region} {value:g}" for region, value in zip(REGIONS, found.regions, strict=True))
        return "as it is" if set(found.regions) == {0.5} else shares
    if name == "confidence":
        return f"≥ {found.confidence:g} of the largest lesion's" if found.confidence else "as it is"
    thresholds = found.overall
    if name.startswith("subtypes"):
        own = found.subtypes[int(name.rpartition(" ")[2])]
        return "as it is" if found.use == "global" or own == thresholds else _threshold_words(own)
    if name == "components":
        return _threshold_words(dataclasses.replace(thresholds, et_wt_ratio=0.0))
    return "as it is" if not thresholds.et_wt_ratio else f"ET/WT ≥ {thresholds.et_wt_ratio:g}"


def _threshold_words(thresholds: Thresholds) -> str:
    words = [f"{label} ≥ {size:g} mm³" for label, size in thresholds.smallest_component_mm3.items() if size]
    words += [f"ET/WT ≥ {thresholds.et_wt_ratio:g}"] if thresholds.et_wt_ratio else []
    return ", ".join(words) or "as it is"


def group_title(name: str) -> str:
    """Name of a group of thresholds where people read."""
    if name.startswith("subtypes "):
        return f"own thresholds of cluster {name.rpartition(' ')[2]}"
    return {
        "regions": "region thresholds",
        "confidence": "lesions in doubt",
        "components": "component removal",
        "ratio": "relabelling",
    }[name]


def ruling_table(tuning: Tuning, clusters: int) -> Table:
    """The thresholds of the bundle, for all tumours and for each subtype."""
    tables, of = tuning.thresholds.tables("tuning.json", clusters), tuning.subtypes.of
    ruled = [(f"all cases ({len(of)})", tables.overall, "")]
    for cluster, own in tables.subtypes.items():
        count = list(of.values()).count(cluster)
        ruled.append((f"cluster {cluster} ({count})", own, "own" if own != tables.overall else "those of all"))
    labels = [label.name for label in TUMOUR_LABELS]
    rows = []
    for name, thresholds, whose in ruled:
        sizes = [thresholds.smallest_component_mm3[label] for label in labels]
        values = (*tables.regions, tables.confidence, *sizes, thresholds.et_wt_ratio)
        rows.append([name, *(f"{value:g}" for value in values), whose])
    above, sizes_of = (f"{region} above" for region in REGIONS), (f"{label} mm³" for label in labels)
    header = ["tumours", *above, "confidence", *sizes_of, "ET/WT", "thresholds"]
    note = (
        "A voxel belongs to a region above a probability; a lesion stays with this share of the confidence in the "
        "largest; components smaller than mm³ are removed; 0 leaves everything alone."
    )
    return Table("What rules in the bundle", header, rows, note)


def weights_table(config: RunConfig, tuning: Tuning) -> Table:
    """All ways to weigh the models, side by side with the paper's."""
    names = [model.name for model in config.models]
    rows = []
    for way, choice in tuning.weight_choices.items():
        cells = [f"{choice.weights[name]:.4f}" for name in names]
        rows.append([way, *cells, f"{choice.score:.4f}", "rules" if way == config.tuning.weights else ""])
    published = ", ".join(f"{name} {value:.4f}" for name, value in PAPER_WEIGHTS.items())
    note = (
        f"The paper's: {published} (17/36 and 19/36). Scores: mean lesion-wise Dice {config.tuning.metric} of the "
        "plain ensemble, each case under the weights that the other folds give."
    )
    return Table("Weights by every way", ["way", *map(model_title, names), "score out of fold", ""], rows, note)


def strata_table(strata: FoldMap) -> Table:
    """Cases, patients and subtypes of each fold."""
    # As the clustering numbers them; a fold without one of them shows a 0.
    kinds = sorted(set(strata.clusters.values()))
    rows = []
    for fold in sorted(set(strata.folds.values())):
        inside = [case for case, own in strata.folds.items() if own == fold]
        patients = {strata.patients.get(case, case) for case in inside}
        each = [str(sum(strata.clusters.get(case) == kind for case in inside)) for kind in kinds]
        rows.append([f"fold {fold}", str(len(inside)), str(len(patients)), *each])
    return Table("Cases per fold", ["", "cases", "patients", *(f"cluster {kind}" for kind in kinds)], rows)


def trainings_table(curves: Sequence[Curve]) -> Table:
    """How far every training came, and how long it took."""
    rows = []
    for curve in curves:
        lines = (curve.train_loss, curve.validation_loss, curve.pseudo_dice)
        last = [f"{line[-1]:.3f}" if line else "–" for line in lines]
        epochs = f"{len(curve.train_loss)}{'' if curve.finished else ', not finished'}"
        name = f"{model_title(curve.model)}, {curve.stage}, fold {curve.fold}"
        rows.append([name, epochs, *last, f"{curve.seconds / 60:.1f}"])
    header = ["training", "epochs", "last loss", "held out", "pseudo Dice", "minutes"]
    note = "Losses and pseudo Dice are nnU-Net's, on patches: they draw the curve."
    return Table("Trainings", header, rows, note, folded=True)


def sources_table(config: RunConfig, entries: Sequence[CaseEntry]) -> Table:
    """The data of a run, by source."""
    rows = []
    for source in config.sources:
        own = [entry for entry in entries if entry.source == source.name]
        used = [stage for stage in config.stages if source.name in config.dataset(stage).sources]
        counts = [str(len(own)), str(sum(entry.in_folds for entry in own))]
        kind = "phantoms" if source.phantoms else "scans"
        licence, doi = source.licence or "not stated", source.doi or "–"
        rows.append([source.name, *counts, kind, ", ".join(used) or "none", licence, doi])
    return Table("Data", ["source", "cases", "in folds", "kind", "used in", "licence", "DOI"], rows)
