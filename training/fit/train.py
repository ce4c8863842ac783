"""Training of one network: one model, one stage, one fold. Resumes where it was stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import random
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inference.errors import BundleError, UsageError
from inference.files import prepare_folder
from inference.intake.cases import digest_files
from inference.intake.label_map import read_stamp
from inference.labels import REGIONS, TUMOUR_LABELS
from inference.schema import read_json
from training.config import SCRATCH, STAGES, TRAININGS, ModelConfig, RunConfig, StageConfig, Tree
from training.data.datasets import cases_of, read_cases, read_folds, write_json
from training.data.folds import Split, check_no_leak, splits_of
from training.fit.planning import (
    AUGMENTING,
    CONFIGURATION,
    ancestor_model,
    data_stage,
    nnunet_folder,
    set_nnunet_folders,
)
from training.locks import alone

if TYPE_CHECKING:
    from torch import nn

    from training.fit.trainers import RegionTrainer

log = logging.getLogger("training")


def network_name(model: str, stage: str) -> str:
    """Name of a model's networks of a stage among predictions."""
    return {"pretraining": f"{model}-pretrained", SCRATCH: f"{model}-{SCRATCH}"}.get(stage, model)


def plans_name(model: str, stage: str) -> str:
    """Name of the plans of a training; both stages of a model share theirs."""
    # nnU-Net's folders are called by data set and plans: from scratch has fine-tuning's cases and needs its own.
    return network_name(model, SCRATCH) if stage == SCRATCH else model


def training_folder(config: RunConfig, work: Path, stage: str, model: str, fold: int) -> Path:
    """Where nnU-Net keeps one training."""
    # The name of the trainer's class, in words: importing it takes seconds, and the graph asks for every path.
    trainer = "MedNeXtRegionTrainer" if config.model(model).architecture == "MedNeXt" else "NnUNetRegionTrainer"
    name = f"{trainer}__{plans_name(model, stage)}__{CONFIGURATION}"
    return nnunet_folder(work, "trainings", stage) / name / f"fold_{fold}"


def checkpoint_path(config: RunConfig, work: Path, stage: str, model: str, fold: int) -> Path:
    """The last checkpoint of a finished training."""
    return training_folder(config, work, stage, model, fold) / "checkpoint_final.pth"


def write_splits(config: RunConfig, work: Path) -> None:
    """nnU-Net's `splits_final.json` of every stage, from the one case → fold map.

    Raises LeakError where a patient would be on both sides, and UsageError for a fold without a case.
    """
    folds = read_folds(work / "folds.json")
    patients = {entry.id: entry.patient for entry in read_cases(work / "cases.json")}
    for stage in config.stages:
        cases = cases_of(work, stage)
        splits = splits_of(folds, cases)
        check_no_leak(folds, patients, cases, splits)
        # Folds after the last one that has a case are not among the splits.
        held_out = [len(split["val"]) for split in splits] + [0] * (config.folds - len(splits))
        if 0 in held_out and not config.is_shared(stage):
            raise UsageError(f"{stage}: fold {held_out.index(0)} has no case, expected one at least: use fewer `folds`")
        folder = nnunet_folder(work, "preprocessed", stage)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(splits, folder / "splits_final.json")


def training_cases(work: Path, stage: str, fold: int) -> list[str]:
    """Cases that a training of this fold learns from."""
    splits = nnunet_folder(work, "preprocessed", stage) / "splits_final.json"
    return read_json(splits, list[Split], UsageError)[fold]["train"]


def loss_weights(model: ModelConfig, stage: str, fold: int, work: Path) -> list[float]:
    """Loss weights of WT, TC, ET, or of NCR, ED, ET for label heads, from the fold's training cases alone."""
    if model.loss_weights == "uniform":
        return [1.0] * len(REGIONS)
    import nibabel

    from training.fit.losses import inverse_frequency

    parts = REGIONS if model.heads == "regions" else {label.name: (label,) for label in TUMOUR_LABELS}
    voxels = dict.fromkeys(parts, 0)
    for case in training_cases(work, stage, fold):
        labels = np.asarray(nibabel.load(nnunet_folder(work, "raw", stage) / "labelsTr" / f"{case}.nii.gz").dataobj)
        for part, inside in parts.items():
            voxels[part] += int(np.isin(labels, inside).sum())
    return inverse_frequency(voxels)


def case_shares(config: RunConfig, work: Path, stage: str) -> dict[str, float]:
    """How likely a patch is cut from each case that a training has, by shares of sources that need not sum to 1."""
    shares = config.dataset(stage).shares
    if stage == SCRATCH and config.comparison.scratch_shares:
        shares = config.comparison.scratch_shares
    sources = {entry.id: entry.source for entry in read_cases(work / "cases.json")}
    cases = cases_of(work, data_stage(stage))
    sizes = Counter(sources[case] for case in cases)
    return {case: shares.get(sources[case], 0) / sizes[sources[case]] if shares else 1.0 for case in cases}


def train(
    config: RunConfig, work: Path, stage: str, model_name: str, fold: int, *, device: str = "auto", threads: int = 0
) -> Path:
    """Train one network and return its last checkpoint; a finished one is left alone, a started one goes on.

    One that has learnt from other cases, plans or weights than there are now begins anew, which is told.
    The second stage starts from the first stage's network of the same model and fold, or from the ancestor's, and
    refuses other plans. `stage` may also be :data:`training.config.SCRATCH`. Where a killed run has left another
    process at the same training, this one waits for it.
    """
    finished = checkpoint_path(config, work, stage, model_name, fold)
    claim = work / "locks" / f"train.{stage}.{model_name}.{fold}"
    with alone(claim, f"training {model_name}, fold {fold}", wait=True):
        _forget_what_changed(config, work, stage, model_name, fold)
        if not finished.is_file():
            _train(config, work, stage, config.model(model_name), fold, device=device, threads=threads)
    return finished


def sources_of(config: RunConfig, work: Path, stage: str, model: str, fold: int) -> dict[str, str]:
    """Sources of a training: digests of its cases, its plans and the weights that it starts from."""
    labels = nnunet_folder(work, "raw", stage) / "labelsTr"
    stamps = {case: read_stamp(labels / f"{case}.nii.gz") for case in training_cases(work, stage, fold)}
    found = {"plans": digest_files(model, [nnunet_folder(work, "preprocessed", stage) / f"{model}.json"])}
    if all(stamps.values()):  # label maps of older data sets carry no stamp
        found["cases"] = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]
    if stage == "finetuning":
        if config.ancestor:  # its manifest holds the hash of every file, and a few kB are read in no time
            start = Path(config.ancestor, "manifest.json")
        else:
            start = checkpoint_path(config, work, "pretraining", model, config.start_fold(fold))
        found["weights"] = digest_files(model, [start])
    return found


def _forget_what_changed(config: RunConfig, work: Path, stage: str, model: str, fold: int) -> None:
    """Remove the checkpoints of a training that learnt from something else, as far as it says what it learnt from."""
    folder = training_folder(config, work, stage, model, fold)
    record, now = folder / "sources.json", sources_of(config, work, stage, model, fold)
    before = read_json(record, dict[str, str], UsageError) if record.is_file() else now
    if changed := [key for key in now if before.get(key, now[key]) != now[key]]:
        log.warning("%s of %s, fold %d, begins anew: its %s changed", stage, model, fold, " and ".join(changed))
        for checkpoint in folder.glob("checkpoint_*.pth"):
            checkpoint.unlink()
    prepare_folder(folder)
    write_json(now, record)


def _train(
    config: RunConfig, work: Path, stage: str, model: ModelConfig, fold: int, *, device: str, threads: int
) -> None:
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    set_nnunet_folders(work)
    # Beside a GPU other processes augment; on a CPU they would be in the way.
    os.environ.setdefault(AUGMENTING, str(max(threads - 1, 1)) if device == "cuda" else "0")
    # Compiling needs a C++ compiler, which the image does not have. nnU-Net reads just this spelling.
    os.environ.setdefault("nnUNet_compile", "False")
    if threads:
        torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True  # patches are all of one size
    trainer = make_trainer(config, work, stage, model, fold, device=device)
    latest = training_folder(config, work, stage, model.name, fold) / "checkpoint_latest.pth"
    if latest.is_file():
        trainer.load_checkpoint(str(latest))
        log.info("%s of %s, fold %d, goes on at epoch %d", stage, model.name, fold, trainer.current_epoch)
    else:
        # Another seed for each training, so that the networks of an ensemble do not begin alike.
        seed = (config.seed + 100 * TRAININGS.index(stage) + fold) % 2**32
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - nnU-Net's loaders draw from the global generator
        torch.manual_seed(seed)
        trainer.initialize()
        if stage == "finetuning":
            _start_weights(config, work, trainer, fold)
    trainer.run_training()


def _start_weights(config: RunConfig, work: Path, trainer: RegionTrainer, fold: int) -> None:
    """Give the network the weights that fine-tuning of this fold starts from, all of them or an error."""
    import torch

    model = trainer.model.name
    if config.ancestor:
        load_ancestor(trainer.network, config.ancestor, model, fold)
        return
    first, second = (
        read_json(nnunet_folder(work, "preprocessed", stage) / f"{model}.json", Tree, UsageError) for stage in STAGES
    )
    # Weights of another architecture would fail to load, those of another patch or grid would not and be worth little.
    if first["configurations"] != second["configurations"]:
        raise UsageError(f"{model}: the plans of fine-tuning differ from those of pretraining")
    start = checkpoint_path(config, work, "pretraining", model, config.start_fold(fold))
    weights = torch.load(start, map_location="cpu", weights_only=False)["network_weights"]
    trainer.network.load_state_dict(weights, strict=True)


def load_ancestor(network: nn.Module, bundle: str, model_name: str, fold: int) -> None:
    """Put the weights of a bundle's network into `network`, in place.

    A bundle has no heads of deep supervision: those alone keep the weights they have. Raises BundleError for a bundle
    that is off or whose tensors are not those of `network`, UsageError where it lacks the model or the fold.
    """
    import torch

    model = ancestor_model(bundle, model_name)
    if fold not in model.folds:
        raise UsageError(f"{bundle}: {model_name} has no fold {fold} to start from, only {model.folds}")
    state = {name: torch.from_numpy(array) for name, array in model.tensors(fold).items()}
    # Not strict, since the heads of deep supervision are lacking; what else lacks is looked for below.
    try:
        unexpected = network.load_state_dict(state, strict=False).unexpected_keys
    except RuntimeError as error:
        raise BundleError(f"{bundle}: {model_name} does not fit the network: {' '.join(str(error).split())}") from None
    lacking = [name for name, _ in network.named_parameters() if name not in state and not _is_extra_head(name)]
    if unexpected or lacking:
        raise BundleError(f"{bundle}: {model_name} does not fit the network: {[*unexpected, *lacking][:4]}")


def _is_extra_head(name: str) -> bool:
    return ".seg_layers." in name or name.startswith(("out_1.", "out_2.", "out_3.", "out_4."))


def make_trainer(
    config: RunConfig, work: Path, stage: str, model: ModelConfig, fold: int, *, device: str
) -> RegionTrainer:
    """nnU-Net's trainer of one network with all that the configuration says of it, not yet initialised."""
    import torch

    from training.fit.trainers import trainer_class

    folder = nnunet_folder(work, "preprocessed", stage)
    plans = read_json(folder / f"{model.name}.json", Tree, UsageError)
    plans["plans_name"] = plans_name(model.name, stage)
    description = read_json(folder / "dataset.json", Tree, UsageError)
    resuming = (training_folder(config, work, stage, model.name, fold) / "checkpoint_latest.pth").is_file()
    plans["continue_training"] = resuming  # nnU-Net's trainer takes it out again
    trainer = trainer_class(model.architecture)(plans, CONFIGURATION, fold, description, torch.device(device))
    trainer.configure(
        model,
        stage_settings(model, stage),
        loss_weights(model, stage, fold, work),
        case_shares(config, work, stage),
    )
    return trainer


def stage_settings(model: ModelConfig, stage: str) -> StageConfig:
    """How a model trains in a stage; from scratch, if nothing else is said, as in fine-tuning but with all weights."""
    if stage == SCRATCH:
        return model.scratch or dataclasses.replace(model.finetuning, trainable="all")
    return model.pretraining if stage == "pretraining" else model.finetuning
