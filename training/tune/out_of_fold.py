"""Out-of-fold predictions: every case as the networks see it that were not trained on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.boxes import bounding_box
from inference.errors import UsageError
from training.config import RunConfig
from training.data.datasets import CaseEntry, load_labels
from training.evaluation.scores import RegionScore
from training.fit.predict import prediction_path


@dataclass(frozen=True)
class OutOfFold:
    """A case with its out-of-fold predictions, cropped to where there is anything."""

    case: str
    """ID of the case."""
    fold: int
    """Its fold."""
    patient: str
    """Its patient."""
    reference: NDArray[np.uint8]
    """Reference labels (X, Y, Z)."""
    probabilities: Mapping[str, NDArray[np.float32]]
    """Per model, region probabilities (3, X, Y, Z)."""
    corner: tuple[int, int, int] = (0, 0, 0)
    """Where the crop begins in the scan."""


def mean_dice(scores: Mapping[str, RegionScore]) -> float:
    """Mean over regions of the lesion-wise Dice."""
    return float(np.mean([score.lesionwise_dice for score in scores.values()]))


def load_predictions(scored: tuple[CaseEntry, int], models: Sequence[str], config: RunConfig, work: Path) -> OutOfFold:
    """The out-of-fold predictions of a case, given with its fold, by some models; UsageError where one lacks."""
    entry, fold = scored
    reference = load_labels(entry, config)
    probabilities = {}
    for model in models:
        path = prediction_path(work, model, entry.id)
        if not path.is_file():
            raise UsageError(f"{entry.id} has no out-of-fold prediction of {model}: {path} is missing")
        with np.load(path) as stored:
            probabilities[model] = stored["probabilities"].astype(np.float32)
    # Whatever may become tumour: a weighted mean of probabilities up to 0.1 is below any threshold that is tried.
    anything = np.logical_or.reduce([reference > 0, *((array > 0.1).any(axis=0) for array in probabilities.values())])
    box = bounding_box(anything) if anything.any() else (slice(0, 1),) * 3
    cropped = {name: np.ascontiguousarray(array[:, *box]) for name, array in probabilities.items()}
    x, y, z = (int(side.start) for side in box)
    return OutOfFold(entry.id, fold, entry.patient, np.ascontiguousarray(reference[box]), cropped, (x, y, z))


def ensemble(probabilities: Mapping[str, NDArray[np.float32]], weights: Mapping[str, float]) -> NDArray[np.float32]:
    """Weighted sum of the models' probabilities (3, X, Y, Z)."""
    mixed = np.zeros_like(next(iter(probabilities.values())))
    for name, weight in weights.items():
        mixed += np.float32(weight) * probabilities[name]
    return mixed
