"""Folders of trained models, as nnU-Net v2 and mednextv1 leave them, as models of a bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inference.bundle.manifest import ModelEntry
from inference.bundle.store import Model
from inference.bundle.tables import FloatArray
from inference.errors import BundleError, UsageError
from inference.labels import REGIONS, SEQUENCES, TUMOUR_LABELS
from inference.predict.networks import architecture_name
from inference.predict.preprocess import plan_section, read_plan
from inference.schema import read_json
from training.bundles.checkpoints import Checkpoint, deployed_tensors, mednext_architecture, read_checkpoint
from training.bundles.foreign import (
    Conventions,
    OldPlans,
    channel_order,
    in_our_order,
    read_conventions,
    read_foreign_plans,
    read_old_plans,
)
from training.fit.planning import CONFIGURATION

NNUNET_FILE: Final = "checkpoint_final.pth"
"""nnU-Net v2's name for the checkpoint of a finished training."""
MEDNEXT_FILE: Final = "model_final_checkpoint.model"
"""nnU-Net v1's name for it, and so mednextv1's."""
# Patch and spacing of the MedNeXt paper, for every data set. nnU-Net standardises brains over the brain alone.
_DEFAULT_PLANS: Final = OldPlans((), (128, 128, 128), (1.0, 1.0, 1.0), (True,) * len(SEQUENCES))


@dataclass(frozen=True)
class Imported:
    """One model that came from outside, in the order of channels and heads that bundles have."""

    model: Model
    """It, under its architecture's name and as the whole of an ensemble."""
    origin: Mapping[str, object]
    """Where it came from, as JSON."""
    ancestry: tuple[str, ...]
    """Its checkpoints, with their SHA-256."""


def import_nnunet(folder: Path, folds: Sequence[str] | None, orientation: str) -> Imported:
    """A trained-model folder of nnU-Net v2: `dataset.json`, `plans.json` and `fold_X/checkpoint_final.pth`.

    Plans and configuration must be those in every checkpoint, and the training must have mirrored every axis, since the
    profile `paper` does. Raises UsageError or BundleError.
    """
    files = _find_folds(folder, folds, NNUNET_FILE)
    conventions = read_conventions(folder / "dataset.json")
    checkpoints = {fold: read_checkpoint(path) for fold, path in files.items()}
    trained = [_init_arguments(checkpoint) for checkpoint in checkpoints.values()]
    configurations = sorted({str(arguments.get("configuration")) for arguments in trained})
    if len(configurations) > 1:
        raise UsageError(f"found folds of the configurations {', '.join(configurations)}, expected one")
    batch_norm = any(name.endswith("running_mean") for name in next(iter(checkpoints.values())).tensors)
    file = folder / "plans.json"
    plans = read_foreign_plans(file, configurations[0], conventions, orientation, batch_norm=batch_norm)
    stored = read_json(file, dict[str, object], BundleError, "plans.json")
    for path, arguments in zip(files.values(), trained, strict=True):
        own = arguments.get("plans")
        # Not the whole plans: the data set's name changes where a model is passed on.
        if not isinstance(own, Mapping) or own.get("configurations") != stored.get("configurations"):
            raise UsageError(f"{path}: found other plans in the checkpoint than in plans.json")
    # nnU-Net v2 averages logits over tiles and mirrorings, v1 probabilities.
    return _imported(folder, plans, conventions, checkpoints, "logits")


def import_mednext(
    folder: Path,
    folds: Sequence[str] | None,
    *,
    patch: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
    outputs: Sequence[str] | None = None,
) -> Imported:
    """A trained-model folder of mednextv1: `fold_X/model_final_checkpoint.model`, and `plans.pkl` or `dataset.json`.

    Variant, sizes and kernel follow from the tensors' names and shapes. Patch and spacing (Z, Y, X) are those given, or
    stand in the plans. Channels and heads stand in a `dataset.json` of nnU-Net v2's form; without one, channels stand
    in the plans, and `outputs` says what the heads are. What nnU-Net v1 does to brain MRI is assumed for the rest: crop
    to nonzero, z-score, splines. Raises UsageError or BundleError.
    """
    files = _find_folds(folder, folds, MEDNEXT_FILE)
    old = read_old_plans(folder / "plans.pkl") if (folder / "plans.pkl").is_file() else _DEFAULT_PLANS
    if (folder / "dataset.json").is_file() or not old.channel_names:
        conventions = read_conventions(folder / "dataset.json")
    else:
        conventions = _told_conventions(old.channel_names, outputs or (), folder)
    checkpoints = {fold: read_checkpoint(path) for fold, path in files.items()}
    architectures = [mednext_architecture(checkpoint) for checkpoint in checkpoints.values()]
    if any(other != architectures[0] for other in architectures):
        raise UsageError(f"{folder}: found networks of different sizes in its folds, expected one")
    masks = [old.masks[channel] for channel in conventions.channels]
    plans = _mednext_plans(architectures[0], patch or old.patch, spacing or old.spacing, masks)
    return _imported(folder, plans, conventions, checkpoints, "probabilities")


def _told_conventions(channels: Sequence[str], outputs: Sequence[str], folder: Path) -> Conventions:
    """A network's channels by their names, and its heads by theirs: regions, or labels after background."""
    labels = [label.name for label in TUMOUR_LABELS]
    if sorted(outputs) not in (sorted(REGIONS), sorted(labels)):
        raise UsageError(f"{folder}: found no dataset.json, expected --mednext-outputs with NCR ED ET or WT TC ET")
    heads = "regions" if "WT" in outputs else "labels"
    # A softmax has an output for the background, which nobody names.
    first = ["background"] if heads == "labels" else []
    given = [*first, *outputs]
    order = tuple(given.index(name) for name in [*first, *(labels if first else REGIONS)])
    return Conventions(tuple(channels), channel_order(channels, folder / "plans.pkl"), heads, tuple(given), order)


def _find_folds(folder: Path, folds: Sequence[str] | None, file: str) -> dict[str, Path]:
    """The checkpoints of the folds asked for, or of all that are there, by `0`, `1` and so on, or `all`.

    A network that was trained on all cases is taken where it is asked for, or there is no other. Raises UsageError
    naming what is missing.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: found no folder, expected a trained model's")
    there = sorted(path.name for path in folder.glob("fold_*") if path.is_dir())
    numbers = sorted((name[5:] for name in there if name[5:].isdecimal()), key=int)
    chosen = folds or numbers or ["all"] * ("fold_all" in there)
    if not chosen:
        raise UsageError(
            f"{folder}: found {', '.join(there) or 'no fold'}, expected fold_0, fold_1 … or fold_all, each with {file}"
        )
    paths = {fold: folder / f"fold_{fold}" / file for fold in dict.fromkeys(chosen)}
    for fold, path in paths.items():
        if not (fold == "all" or fold.isdecimal()) or not path.is_file():
            raise UsageError(f"{path}: is missing; in {folder} are {', '.join(there)}")
    return paths


def _init_arguments(checkpoint: Checkpoint) -> Mapping[str, object]:
    """Arguments of nnU-Net's trainer. Refuses a training that did not mirror every axis (UsageError)."""
    mirrored = checkpoint.contents.get("inference_allowed_mirroring_axes")
    if not isinstance(mirrored, (list, tuple)) or sorted(mirrored) != [0, 1, 2]:
        raise UsageError(
            f"{checkpoint.path}: inference_allowed_mirroring_axes: found {mirrored}, expected (0, 1, 2): "
            "bundles are predicted with all mirrorings"
        )
    arguments = checkpoint.contents.get("init_args")
    if not isinstance(arguments, Mapping):
        raise UsageError(f"{checkpoint.path}: init_args: found nothing, expected what nnU-Net v2 writes there")
    return arguments


def _imported(
    folder: Path,
    plans: Mapping[str, object],
    conventions: Conventions,
    checkpoints: Mapping[str, Checkpoint],
    averaging: str,
) -> Imported:
    """A model from its checked checkpoints; `plans` are already in the bundle's form."""
    try:
        read_plan(plans)
    except BundleError as error:
        raise UsageError(f"{folder}: {error}") from error
    architecture = plan_section(plans, CONFIGURATION)["architecture"]
    assert isinstance(architecture, Mapping)
    networks: dict[int, Mapping[str, FloatArray]] = {}
    files, ancestry = [], []
    for fold, checkpoint in checkpoints.items():
        tensors = deployed_tensors(checkpoint, architecture, conventions.outputs)
        # A network of all cases has no number, and a bundle's folds are numbers.
        networks[0 if fold == "all" else int(fold)] = in_our_order(tensors, architecture, conventions)
        with checkpoint.path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        file = f"fold_{fold}/{checkpoint.path.name}"
        # nnU-Net v2 and v1 call it differently.
        epoch = checkpoint.contents.get("current_epoch", checkpoint.contents.get("epoch"))
        files.append({"file": file, "sha256": digest, "epochs": epoch if isinstance(epoch, int) else None})
        ancestry.append(f"{folder.name}/{file} sha256 {digest}")
    origin = {
        "folder": folder.name,
        "trainer": str(next(iter(checkpoints.values())).contents.get("trainer_name", "not said")),
        "channels": list(conventions.channel_names),
        "outputs": list(conventions.output_names),
        "checkpoints": files,
    }
    name = architecture_name(architecture)
    entry = ModelEntry(name, name, conventions.heads, "safetensors", tuple(networks), 1.0, averaging)
    return Imported(Model(entry, plans, networks), origin, tuple(ancestry))


def _mednext_plans(
    architecture: Mapping[str, object], patch: Sequence[int], spacing: Sequence[float], masks: Sequence[bool]
) -> dict[str, object]:
    """Plans as nnU-Net v2 writes them, for what nnU-Net v1 does."""
    # A MedNeXt halves its grid four times.
    if any(size <= 0 or size % 16 for size in patch) or min(spacing) <= 0:
        raise UsageError(f"found patch {list(patch)} and spacing {list(spacing)}, expected multiples of 16, mm above 0")
    function = "resample_data_or_seg_to_shape"
    common = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    return {
        "dataset_name": "imported",
        "plans_name": "mednext",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            CONFIGURATION: {
                "patch_size": list(patch),
                "spacing": list(spacing),
                "normalization_schemes": ["ZScoreNormalization"] * len(SEQUENCES),
                "use_mask_for_norm": list(masks),
                "resampling_fn_data": function,
                "resampling_fn_data_kwargs": {**common, "order": 3},
                "resampling_fn_probabilities": function,
                "resampling_fn_probabilities_kwargs": {**common, "order": 1},
                "architecture": dict(architecture),
            }
        },
    }
