"""Plans: nnU-Net's planner on the first stage's data, then what the configuration replaces; both stages share them."""

from __future__ import annotations

import json
import os
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

from inference.errors import UsageError
from training.config import ModelConfig, RunConfig
from training.data.datasets import DATASET_IDS, cases_of, dataset_name, write_json

if TYPE_CHECKING:
    from inference.bundle.store import Model

CONFIGURATION = "3d_fullres"
"""nnU-Net's name of the full-resolution network, the only one that the method uses."""

AUGMENTING = "nnUNet_n_proc_DA"
"""Processes that augment: 0 is this process to nnU-Net's trainer, but its planner sets so many threads and fails."""


def set_nnunet_folders(work: Path) -> None:
    """Tell nnU-Net, which reads them from the environment, where a run keeps its files."""
    for variable, name in (("raw", "raw"), ("preprocessed", "preprocessed"), ("results", "trainings")):
        folder = work / "nnunet" / name
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{variable}"] = str(folder)


def plan(config: RunConfig, work: Path, *, jobs: int = 2) -> None:
    """Fingerprint the first stage's data and write `plans/<model>.json` for every model.

    The plans are nnU-Net's for that data with what the configuration replaces, or those of the ancestor.
    """
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprint_dataset,
        plan_experiment_dataset,
    )

    set_nnunet_folders(work)
    if os.environ.get(AUGMENTING) == "0":
        del os.environ[AUGMENTING]
    first = config.stages[0]
    cases_of(work, first)  # FolderError where there are none yet
    extract_fingerprint_dataset(DATASET_IDS[first], num_processes=jobs)
    if not config.ancestor:
        plan_experiment_dataset(DATASET_IDS[first])
    (work / "plans").mkdir(exist_ok=True)
    for model in config.models:
        if config.ancestor:
            plans = ancestor_plans(config.ancestor, model)
        else:
            planned = work / "nnunet" / "preprocessed" / dataset_name(first) / "nnUNetPlans.json"
            plans = model_plans(json.loads(planned.read_text(encoding="utf-8")), model)
        write_json(plans, work / "plans" / f"{model.name}.json")


def ancestor_model(bundle: str, name: str) -> Model:
    """The model called `name` of a bundle; BundleError for a bundle that is off, UsageError where it has no such model.

    Networks stored as graphs of another engine have no tensors to start from and are refused too.
    """
    from inference.bundle.store import load_bundle

    loaded = load_bundle(Path(bundle))
    if loaded.manifest.orientation != "RAS":
        raise UsageError(
            f"{bundle}: its networks see {loaded.manifest.orientation} arrays; fine-tuning starts from RAS"
        )
    models = loaded.models
    for model in models:
        if model.name == name:
            if model.format != "safetensors":
                raise UsageError(f"{bundle}: {name} is stored as {model.format}; fine-tuning starts from safetensors")
            return model
    raise UsageError(f"{bundle}: no model {name!r}, only {', '.join(model.name for model in models)}")


def ancestor_plans(bundle: str, model: ModelConfig) -> dict[str, object]:
    """The plans of a bundle's model with the batch that `model` sets; UsageError for another architecture."""
    ancestor = ancestor_model(bundle, model.name)
    found = str(ancestor.architecture["network_class_name"]).rpartition(".")[2]
    if found != model.architecture:
        raise UsageError(f"{bundle}: {model.name} is a {found}, the configuration says {model.architecture}")
    if ancestor.heads != model.heads:
        raise UsageError(f"{bundle}: {model.name} has heads for {ancestor.heads}, the configuration: {model.heads}")
    plans: dict[str, object] = json.loads(json.dumps(ancestor.plans))
    configurations = plans["configurations"]
    assert isinstance(configurations, dict)
    chosen = configurations[CONFIGURATION] | {"batch_size": model.batch}
    chosen["data_identifier"] = f"{model.name}_{CONFIGURATION}"
    return plans | {"plans_name": model.name, "configurations": {CONFIGURATION: chosen}}


def model_plans(base: dict[str, object], model: ModelConfig) -> dict[str, object]:
    """nnU-Net's plans `base` with what `model` sets: patch, batch, grid, resampling and architecture."""
    plans = deepcopy(base)
    plans["plans_name"] = model.name
    configurations = plans["configurations"]
    assert isinstance(configurations, dict)
    chosen = configurations[CONFIGURATION]
    plans["configurations"] = {CONFIGURATION: chosen}
    chosen |= {"patch_size": list(model.patch), "batch_size": model.batch, "batch_dice": False}
    chosen["data_identifier"] = f"{model.name}_{CONFIGURATION}"
    if model.spacing is not None:
        chosen["spacing"] = list(model.spacing)
    if model.resampling == "linear":
        for what, is_seg in (("data", False), ("seg", True), ("probabilities", False)):
            chosen[f"resampling_fn_{what}"] = "resample_torch_fornnunet"
            chosen[f"resampling_fn_{what}_kwargs"] = {
                "is_seg": is_seg,
                "force_separate_z": False,
                "memefficient_seg_resampling": False,
            }
    chosen["architecture"] = _architecture(chosen["architecture"], model) | {"shuffle": model.shuffle}
    return plans


def _architecture(planned: dict[str, object], model: ModelConfig) -> dict[str, object]:
    if model.architecture == "MedNeXt":
        return {"network_class_name": "MedNeXt", "arch_kwargs": dict(model.size), "_kw_requires_import": []}
    name = planned["network_class_name"]
    assert isinstance(name, str)
    if name.rsplit(".", 1)[-1] != model.architecture:
        raise UsageError(f"model {model.name}: architecture {model.architecture!r}, the planner made {name}")
    arguments = planned["arch_kwargs"]
    assert isinstance(arguments, dict)
    return {**planned, "arch_kwargs": {**arguments, **model.size}}


def preprocess(config: RunConfig, work: Path, stage: str, model_name: str, *, jobs: int = 2) -> None:
    """nnU-Net's preprocessing of one stage's data for one model, with the plans of the first stage."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset

    set_nnunet_folders(work)
    folder = work / "nnunet" / "preprocessed" / dataset_name(stage)
    folder.mkdir(parents=True, exist_ok=True)
    plans = json.loads((work / "plans" / f"{model_name}.json").read_text(encoding="utf-8"))
    plans["dataset_name"] = dataset_name(stage)
    write_json(plans, folder / f"{model_name}.json")
    first = work / "nnunet" / "preprocessed" / dataset_name(config.stages[0]) / "dataset_fingerprint.json"
    if stage != config.stages[0]:
        write_json(json.loads(first.read_text(encoding="utf-8")), folder / first.name)
    description = work / "nnunet" / "raw" / dataset_name(stage) / "dataset.json"
    write_json(json.loads(description.read_text(encoding="utf-8")), folder / description.name)
    preprocess_dataset(
        DATASET_IDS[stage], plans_identifier=model_name, configurations=(CONFIGURATION,), num_processes=(jobs,)
    )
