"""Plans: nnU-Net's planner on the first stage's data, then what the configuration replaces; both stages share them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from inference.errors import UsageError
from inference.files import write_whole
from inference.schema import read_json
from training.config import SCRATCH, ModelConfig, RunConfig, Tree
from training.data.datasets import DATASET_IDS, cases_of, dataset_name, write_json

if TYPE_CHECKING:
    from inference.bundle.store import Model

CONFIGURATION = "3d_fullres"
"""nnU-Net's name of the full-resolution network, the only one that the method uses."""

AUGMENTING = "nnUNet_n_proc_DA"
"""The environment's number of processes that augment, as nnU-Net calls it."""


def data_stage(stage: str) -> str:
    """The stage whose data a training learns from: fine-tuning's, where it starts from scratch."""
    return "finetuning" if stage == SCRATCH else stage


def nnunet_folder(work: Path, kind: Literal["raw", "preprocessed", "trainings"], stage: str) -> Path:
    """Where nnU-Net keeps a training's data set or networks."""
    return work / "nnunet" / kind / dataset_name(data_stage(stage))


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
    # To nnU-Net's trainer 0 means this very process, but its planner sets so many threads, and fails.
    if os.environ.get(AUGMENTING) == "0":
        del os.environ[AUGMENTING]
    first = config.stages[0]
    cases_of(work, first)  # FolderError where there are none yet
    extract_fingerprint_dataset(DATASET_IDS[first], num_processes=jobs)
    planned: dict[str, object] = {}
    if not config.ancestor:
        plan_experiment_dataset(DATASET_IDS[first])
        planned = read_json(nnunet_folder(work, "preprocessed", first) / "nnUNetPlans.json", Tree, UsageError)
    (work / "plans").mkdir(exist_ok=True)
    for model in config.models:
        plans = ancestor_plans(config.ancestor, model) if config.ancestor else model_plans(planned, model)
        write_json(plans, work / "plans" / f"{model.name}.json")


def ancestor_model(bundle: str, name: str) -> Model:
    """The model called `name` of a bundle; BundleError for a bundle that is off, UsageError where it has no such model.

    Networks stored as graphs of another engine have no tensors to start from and are refused too.
    """
    from inference.bundle.store import load_bundle

    loaded = load_bundle(Path(bundle))
    if (seen := loaded.manifest.orientation) != "RAS":
        raise UsageError(f"{bundle}: its networks see {seen} arrays; fine-tuning starts from RAS")
    models = {model.name: model for model in loaded.models}
    if name not in models:
        raise UsageError(f"{bundle}: no model {name!r}, only {', '.join(models)}")
    if (stored := models[name].format) != "safetensors":
        raise UsageError(f"{bundle}: {name} is stored as {stored}; fine-tuning starts from safetensors")
    return models[name]


def ancestor_plans(bundle: str, model: ModelConfig) -> dict[str, object]:
    """The plans of a bundle's model with the batch that `model` sets; UsageError for another architecture."""
    ancestor = ancestor_model(bundle, model.name)
    found = str(ancestor.architecture["network_class_name"]).rpartition(".")[2]
    if found != model.architecture:
        raise UsageError(f"{bundle}: {model.name} is a {found}, the configuration says {model.architecture}")
    if ancestor.heads != model.heads:
        raise UsageError(f"{bundle}: {model.name} has heads for {ancestor.heads}, the configuration: {model.heads}")
    plans, chosen = _named_plans(ancestor.plans, model)
    chosen["batch_size"] = model.batch
    return plans


def model_plans(base: dict[str, object], model: ModelConfig) -> dict[str, object]:
    """nnU-Net's plans `base` with what `model` sets: patch, batch, grid, resampling and architecture."""
    plans, chosen = _named_plans(base, model)
    # The Dice of each patch by itself, as the losses here compute it.
    chosen |= {"patch_size": list(model.patch), "batch_size": model.batch, "batch_dice": False}
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


def _named_plans(base: Mapping[str, object], model: ModelConfig) -> tuple[dict[str, object], dict[str, object]]:
    """A copy of plans under the model's name, with the full-resolution configuration alone, and that one."""
    configurations = base["configurations"]
    assert isinstance(configurations, Mapping)
    # Models share a preprocessed data set's folder: without its own identifier one would overwrite the other's cases.
    chosen = deepcopy(configurations[CONFIGURATION]) | {"data_identifier": f"{model.name}_{CONFIGURATION}"}
    return {**base, "plans_name": model.name, "configurations": {CONFIGURATION: chosen}}, chosen


def _architecture(planned: object, model: ModelConfig) -> dict[str, object]:
    if model.architecture == "MedNeXt":
        return {"network_class_name": "MedNeXt", "arch_kwargs": dict(model.size), "_kw_requires_import": []}
    assert isinstance(planned, dict)
    name = str(planned["network_class_name"])
    if name.rpartition(".")[2] != model.architecture:
        raise UsageError(f"model {model.name}: architecture {model.architecture!r}, the planner made {name}")
    return {**planned, "arch_kwargs": {**planned["arch_kwargs"], **model.size}}


def preprocess(config: RunConfig, work: Path, stage: str, model_name: str, *, jobs: int = 2) -> None:
    """nnU-Net's preprocessing of one stage's data for one model, with the plans of the first stage."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset

    set_nnunet_folders(work)
    folder = nnunet_folder(work, "preprocessed", stage)
    folder.mkdir(parents=True, exist_ok=True)
    plans = read_json(work / "plans" / f"{model_name}.json", Tree, UsageError)
    write_json(plans | {"dataset_name": dataset_name(stage)}, folder / f"{model_name}.json")
    # nnU-Net's trainer wants both beside the cases; there is one fingerprint, since both stages share their plans.
    files = [nnunet_folder(work, "raw", stage) / "dataset.json"]
    if stage != config.stages[0]:
        files.append(nnunet_folder(work, "preprocessed", config.stages[0]) / "dataset_fingerprint.json")
    for file in files:
        write_whole(folder / file.name, file.read_bytes())
    preprocess_dataset(
        DATASET_IDS[stage], plans_identifier=model_name, configurations=(CONFIGURATION,), num_processes=(jobs,)
    )
