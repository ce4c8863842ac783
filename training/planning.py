"""Plans: nnU-Net's planner on the first stage's data, then what the configuration replaces; both stages share them."""

from __future__ import annotations

import json
import os
from copy import deepcopy
from pathlib import Path

from inference.errors import UsageError
from training.config import ModelConfig, RunConfig
from training.datasets import DATASET_IDS, dataset_name

CONFIGURATION = "3d_fullres"
"""nnU-Net's name of the full-resolution network, the only one that the method uses."""


def set_nnunet_folders(work: Path) -> None:
    """Tell nnU-Net, which reads them from the environment, where a run keeps its files."""
    for variable, name in (("raw", "raw"), ("preprocessed", "preprocessed"), ("results", "trainings")):
        folder = work / "nnunet" / name
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{variable}"] = str(folder)


def plan(config: RunConfig, work: Path) -> None:
    """Fingerprint and plan the first stage's data; write `plans/<model>.json` for every model."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprint_dataset,
        plan_experiment_dataset,
    )

    set_nnunet_folders(work)
    number = DATASET_IDS["pretraining"]
    extract_fingerprint_dataset(number, num_processes=2)
    plan_experiment_dataset(number)
    planned = work / "nnunet" / "preprocessed" / dataset_name("pretraining") / "nnUNetPlans.json"
    base = json.loads(planned.read_text(encoding="utf-8"))
    (work / "plans").mkdir(exist_ok=True)
    for model in config.models:
        text = json.dumps(model_plans(base, model), indent=1)
        (work / "plans" / f"{model.name}.json").write_text(text + "\n", encoding="utf-8")


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
        chosen |= _linear_resampling()
    elif model.resampling != "default":
        raise UsageError(f"model {model.name}: resampling {model.resampling!r}, expected default or linear")
    chosen["architecture"] = _architecture(chosen["architecture"], model)
    return plans


def _linear_resampling() -> dict[str, object]:
    name = "resample_torch_fornnunet"
    common = {"force_separate_z": False, "memefficient_seg_resampling": False}
    return {
        "resampling_fn_data": name,
        "resampling_fn_data_kwargs": {"is_seg": False, **common},
        "resampling_fn_seg": name,
        "resampling_fn_seg_kwargs": {"is_seg": True, **common},
        "resampling_fn_probabilities": name,
        "resampling_fn_probabilities_kwargs": {"is_seg": False, **common},
    }


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


def preprocess(model: ModelConfig, stage: str, work: Path) -> None:
    """nnU-Net's preprocessing of one stage's data for one model, with the plans of the first stage."""
    import shutil

    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset

    set_nnunet_folders(work)
    folder = work / "nnunet" / "preprocessed" / dataset_name(stage)
    folder.mkdir(parents=True, exist_ok=True)
    plans = json.loads((work / "plans" / f"{model.name}.json").read_text(encoding="utf-8"))
    plans["dataset_name"] = dataset_name(stage)
    (folder / f"{model.name}.json").write_text(json.dumps(plans, indent=1) + "\n", encoding="utf-8")
    first = work / "nnunet" / "preprocessed" / dataset_name("pretraining") / "dataset_fingerprint.json"
    if stage != "pretraining":
        shutil.copyfile(first, folder / first.name)
    shutil.copyfile(work / "nnunet" / "raw" / dataset_name(stage) / "dataset.json", folder / "dataset.json")
    preprocess_dataset(
        DATASET_IDS[stage], plans_identifier=model.name, configurations=(CONFIGURATION,), num_processes=(2,)
    )
