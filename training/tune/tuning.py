"""`tuning.json` and `scores.json`: what tuning chose, and what each choice was worth, in types."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from inference.bundle.tables import StoredThresholds
from inference.errors import UsageError
from inference.schema import Count, Mismatch, Share, read_json, shown
from training.config import RunConfig
from training.tune.ensemble_weights import WeightChoice

Scores = dict[str, dict[str, dict[str, float]]]
"""`scores.json`: values by system, region and metric."""


class PredictedSubtypes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The subtypes of the predicted tumours."""

    silhouettes: dict[int, float]
    """Mean silhouette by number of subtypes that was tried."""
    of: dict[str, Count | None]
    """Case → subtype; None where its predicted tumour has no features."""


class Tuning(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`tuning.json`."""

    weights: dict[str, Share]
    """The ensemble's, by model."""
    thresholds: StoredThresholds
    """The thresholds that rule in the bundle."""
    nested_gain: dict[str, float]
    """By group of thresholds: mean gain in Dice on patients that it was chosen without; kept above `LEAST_GAIN`."""
    honest_gain: dict[str, float]
    """By group of thresholds: what it gains where choosing and keeping it never saw the scored fold."""
    metric: str
    """The metric that gains are of."""
    weight_choices: dict[str, WeightChoice]
    """Every way to weigh the models."""
    subtypes: PredictedSubtypes
    found: dict[str, StoredThresholds]
    """By group of thresholds: what the search on all cases found, kept or not."""
    by_fold: dict[int, dict[str, StoredThresholds]]
    """By fold and group of thresholds: what rules after the group, chosen and kept without that fold."""

    def __post_init__(self) -> None:
        parts: dict[str, Mapping[str, object]] = {"nested_gain": self.nested_gain, "honest_gain": self.honest_gain}
        parts |= {f"by_fold.{fold}": steps for fold, steps in self.by_fold.items()}
        for key, groups in parts.items():
            if list(groups) != list(self.found):
                raise Mismatch(key, list(groups), f"the groups of found, {shown(list(self.found))}")


def read_tuning(config: RunConfig, work: Path) -> Tuning:
    """The `tuning.json` of a run; UsageError where it is damaged, or of other models than the configuration's."""
    path = work / "tuning.json"
    tuning = read_json(path, Tuning, UsageError)
    # A report or a bundle of a configuration that has changed since would mix old weights with new models.
    models = [model.name for model in config.models]
    chosen = tuning.weight_choices.get(config.tuning.weights)
    weights: list[Mapping[str, float]] = [tuning.weights, *(chosen.by_fold.values() if chosen else ())]
    if chosen is None or any(set(each) != set(models) for each in weights):
        raise UsageError(
            f"{path}: expected weights of {', '.join(models)} by {config.tuning.weights}, as the configuration has "
            "them: run the step `tune` again"
        )
    return tuning
