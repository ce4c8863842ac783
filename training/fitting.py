"""Training of one network: one model, one stage, one fold. Resumes where it was stopped."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inference.errors import UsageError
from inference.labels import REGIONS, region_mask
from training.config import STAGES, TRAININGS, ModelConfig, RunConfig
from training.datasets import copies_of, dataset_name, read_cases, read_folds
from training.folds import check_no_leak, splits_of
from training.planning import CONFIGURATION, set_nnunet_folders

if TYPE_CHECKING:
    from training.trainers import RegionTrainer


def stage_of(training: str) -> str:
    """The stage whose data set and schedule a kind of training (one of TRAININGS) uses."""
    return "finetuning" if training == "scratch" else training


def network_name(model: str, training: str) -> str:
    """What a model is called as the result of a kind of training: nnunet, or nnunet-scratch."""
    return f"{model}-scratch" if training == "scratch" else model


def training_folder(config: RunConfig, work: Path, training: str, model: str, fold: int) -> Path:
    """Where nnU-Net keeps one training: by data set, then by trainer, network's name and configuration."""
    trainer = "MedNeXtRegionTrainer" if config.model(model).architecture == "MedNeXt" else "NnUNetRegionTrainer"
    name = f"{trainer}__{network_name(model, training)}__{CONFIGURATION}"
    return work / "nnunet" / "trainings" / dataset_name(stage_of(training)) / name / f"fold_{fold}"


def checkpoint_path(config: RunConfig, work: Path, training: str, model: str, fold: int) -> Path:
    """The last checkpoint of a finished training."""
    return training_folder(config, work, training, model, fold) / "checkpoint_final.pth"


def write_splits(work: Path) -> None:
    """nnU-Net's `splits_final.json` of both stages, from the one case → fold map; phantoms train in every fold.

    Raises LeakError where a patient would be on both sides.
    """
    folds = read_folds(work / "folds.json")
    entries = {entry.id: entry for entry in read_cases(work / "cases.json")}
    patients = {case: entries[case].patient for case in folds}
    for stage in STAGES:
        copies = copies_of(work, stage)
        sources = {copy: case for copy, case in copies.items() if entries[case].in_folds}
        phantoms = [copy for copy, case in copies.items() if not entries[case].in_folds]
        splits = splits_of(folds, sources, phantoms)
        check_no_leak(folds, patients, sources, splits, phantoms)
        target = work / "nnunet" / "preprocessed" / dataset_name(stage) / "splits_final.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(splits, indent=1) + "\n", encoding="utf-8")


def region_weights(model: ModelConfig, stage: str, fold: int, work: Path) -> list[float]:
    """Loss weights of WT, TC, ET as the configuration names them, from the fold's training cases alone."""
    if model.loss_weights == "uniform":
        return [1.0] * len(REGIONS)
    if model.loss_weights != "inverse_frequency":
        raise UsageError(f"loss weights {model.loss_weights!r}: expected uniform or inverse_frequency")
    import nibabel

    from training.trainers import inverse_frequency

    splits = work / "nnunet" / "preprocessed" / dataset_name(stage) / "splits_final.json"
    training = json.loads(splits.read_text(encoding="utf-8"))[fold]["train"]
    voxels = dict.fromkeys(REGIONS, 0)
    for copy in training:
        path = work / "nnunet" / "raw" / dataset_name(stage) / "labelsTr" / f"{copy}.nii.gz"
        labels = np.asarray(nibabel.load(path).dataobj)
        for region in REGIONS:
            voxels[region] += int(region_mask(labels, region).sum())
    return inverse_frequency(voxels)


def train(
    config: RunConfig, work: Path, training: str, model_name: str, fold: int, *, device: str = "auto", threads: int = 0
) -> Path:
    """Train one network and return its last checkpoint; a finished one is left alone, a started one goes on.

    Fine-tuning starts from the first stage's network of the same model and fold, and refuses other plans.
    """
    import torch

    finished = checkpoint_path(config, work, training, model_name, fold)
    if finished.is_file():
        return finished
    set_nnunet_folders(work)
    # nnU-Net reads its own spelling.
    os.environ.setdefault("nnUNet_n_proc_DA", "0")
    os.environ.setdefault("nnUNet_compile", "False")
    if threads:
        torch.set_num_threads(threads)
    model = config.model(model_name)
    trainer = _make_trainer(config, work, training, model, fold, device=device)
    latest = finished.with_name("checkpoint_latest.pth")
    if latest.is_file():
        trainer.load_checkpoint(str(latest))
    else:
        _seed(config.seed + 100 * TRAININGS.index(training) + fold)
        trainer.initialize()
        if training == "finetuning":
            start = checkpoint_path(config, work, "pretraining", model_name, fold)
            _check_same_plans(work, model_name)
            weights = torch.load(start, map_location="cpu", weights_only=False)["network_weights"]
            trainer.network.load_state_dict(weights, strict=True)
    trainer.run_training()
    return finished


def _make_trainer(
    config: RunConfig, work: Path, training: str, model: ModelConfig, fold: int, *, device: str
) -> RegionTrainer:
    import torch

    from training.trainers import trainer_class

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    stage = stage_of(training)
    folder = work / "nnunet" / "preprocessed" / dataset_name(stage)
    plans = json.loads((folder / f"{model.name}.json").read_text(encoding="utf-8"))
    description = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    plans["plans_name"] = network_name(model.name, training)  # names the folder of the training
    resuming = (training_folder(config, work, training, model.name, fold) / "checkpoint_latest.pth").is_file()
    plans["continue_training"] = resuming  # nnU-Net's trainer takes it out again
    trainer = trainer_class(model.architecture)(plans, CONFIGURATION, fold, description, torch.device(device))
    settings = model.pretraining if stage == "pretraining" else model.finetuning
    trainer.configure(model, settings, region_weights(model, stage, fold, work))
    return trainer


def _check_same_plans(work: Path, model: str) -> None:
    first, second = (
        json.loads((work / "nnunet" / "preprocessed" / dataset_name(stage) / f"{model}.json").read_text("utf-8"))
        for stage in STAGES
    )
    if first["configurations"] != second["configurations"]:
        raise UsageError(f"{model}: the plans of fine-tuning differ from those of pretraining")


def _seed(seed: int) -> None:
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - nnU-Net's loaders draw from the global generator
    torch.manual_seed(seed)
