"""Out-of-fold predictions: every scored case by the networks that have not seen it."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.bundle.manifest import ModelEntry
from inference.bundle.store import Model
from inference.errors import UsageError
from inference.files import prepare_folder, whole_file
from inference.intake.cases import digest_files
from inference.labels import REGIONS, SEQUENCES
from inference.predict.engines import open_engine
from inference.predict.ensemble import predict
from inference.schema import read_json
from inference.settings import Profile
from training.config import RunConfig, Tree
from training.data.datasets import CaseEntry, digest_case, load_case, read_cases, read_folds
from training.data.stratify import SPACING
from training.fit.planning import CONFIGURATION, ancestor_model
from training.fit.train import checkpoint_path, network_name
from training.workers import Workers

log = logging.getLogger("training")


def stored_weights(
    checkpoint: Path, plans: Mapping[str, object], heads: str, *, half_precision: bool
) -> dict[str, NDArray[np.float16] | NDArray[np.float32]]:
    """A checkpoint's weights as a bundle stores them: what the deployed network needs, each tensor once."""
    import torch

    from inference.predict.networks import build_network, deployed_weights

    configurations = plans["configurations"]
    assert isinstance(configurations, dict)
    outputs = len(REGIONS) + (heads == "labels")
    # Without memory or numbers: only the names of its tensors are asked for.
    with torch.device("meta"):
        network = build_network(configurations[CONFIGURATION]["architecture"], len(SEQUENCES), outputs)
    state = torch.load(checkpoint, map_location="cpu", weights_only=False)["network_weights"]
    weights = deployed_weights(network, state)
    return {name: array.astype(np.float16) if half_precision else array for name, array in weights.items()}


def finished_checkpoint(config: RunConfig, work: Path, model: str, fold: int, stage: str = "finetuning") -> Path:
    """The checkpoint of one model and fold after a training; UsageError where it has not finished."""
    checkpoint = checkpoint_path(config, work, stage, model, fold)
    if not checkpoint.is_file():
        raise UsageError(f"{model} fold {fold} has not finished its training ({stage}): {checkpoint} is missing")
    return checkpoint


def trained_network(
    config: RunConfig, work: Path, model: str, fold: int, stage: str = "finetuning", *, half_precision: bool
) -> Model:
    """The network of one model and fold after a training; with `half_precision` rounded as the bundle rounds it."""
    plans = read_json(work / "plans" / f"{model}.json", Tree, UsageError)
    checkpoint = finished_checkpoint(config, work, model, fold, stage)
    settings = config.model(model)
    weights = stored_weights(checkpoint, plans, settings.heads, half_precision=half_precision)
    entry = ModelEntry(model, settings.architecture, settings.heads, "safetensors", (fold,), 1.0)
    return Model(entry, plans, {fold: weights})


def prediction_path(work: Path, model: str, case: str) -> Path:
    """Where one out-of-fold prediction is kept."""
    return work / "out_of_fold" / model / f"{case}.npz"


def scored_cases(config: RunConfig, work: Path) -> dict[CaseEntry, int]:
    """Case → fold of the cases that are predicted out of fold and scored: those that fine-tuning learns from."""
    folds = read_folds(work / "folds.json")
    entries = read_cases(work / "cases.json")
    return {
        entry: folds[entry.id] for entry in entries if entry.id in folds and entry.source in config.finetuning.sources
    }


def predict_fold(config: RunConfig, work: Path, model: str, fold: int, stage: str = "finetuning") -> None:
    """Predict the cases of one fold with that fold's network; write region probabilities (3, X, Y, Z) as float16.

    A prediction says what it was made from. One of the same scans and network is kept, another is made anew and told.
    """
    if stage == "pretraining" and config.ancestor:
        network = ancestor_model(config.ancestor, model).of_folds(fold)
        source = network.network_file(fold)
    else:
        trained = config.start_fold(fold) if stage == "pretraining" else fold
        network = trained_network(config, work, model, trained, stage, half_precision=config.bundle.half_precision)
        source = finished_checkpoint(config, work, model, trained, stage)
    engine = open_engine("torch", "auto")
    plans = hashlib.sha256(json.dumps(network.plans, sort_keys=True).encode()).hexdigest()[:16]
    weights = digest_files(f"{model} fold {fold}", [source])
    # All that changes a prediction beside the scans: weights, plans, rounding, and how patches are laid.
    system = f"{weights} {plans} {config.bundle.half_precision} {config.tuning.profile}"

    def predict_case(entry: CaseEntry) -> None:
        target = prediction_path(work, network_name(model, stage), entry.id)
        origin = f"{digest_case(entry, config, labels=False)} {system}"
        if target.is_file():
            if _origin(target) == origin:
                return
            log.warning("%s: predicted anew, since its scans or the network have changed", entry.id)
        data, _ = load_case(entry, config)
        regions = predict(data, SPACING, [network], engine, Profile(config.tuning.profile))
        prepare_folder(target.parent)
        # Half of float32's space, and steps of at most 0.0005 near 1: thresholds lie 0.1 apart.
        with whole_file(target) as unfinished:
            np.savez_compressed(unfinished, probabilities=regions.array.astype(np.float16), made_from=np.array(origin))

    held_out = [entry for entry, own in scored_cases(config, work).items() if own == fold]
    # In this process, where the network is; `map` goes on after a case that fails.
    list(Workers().map(predict_case, held_out, name=lambda entry: entry.id))


def _origin(path: Path) -> str:
    """The origin that a prediction states; empty where it does not, or is damaged."""
    try:
        with np.load(path) as stored:
            return str(stored["made_from"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return ""
