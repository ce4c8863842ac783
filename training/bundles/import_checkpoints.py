"""Checkpoints of nnU-Net v2 and of MedNeXt v1 as a bundle: nothing in them is run, every tensor is checked by name."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from inference.bundle.fields import read_json
from inference.bundle.manifest import ORIENTATIONS, ModelEntry, Provenance
from inference.bundle.store import Bundle, NewBundle, NewModel, contents_of, load_bundle, write_bundle
from inference.bundle.tables import FloatArray, Thresholds, ThresholdTables
from inference.errors import BundleError, ExitStatus, UsageError
from inference.labels import SEQUENCES, TUMOUR_LABELS
from inference.predict.networks import architecture_name
from inference.predict.preprocess import read_plan
from training.bundles.checkpoints import Checkpoint, deployed_tensors, mednext_architecture, read_checkpoint
from training.bundles.foreign import Conventions, in_our_order, read_conventions, read_foreign_plans
from training.fit.planning import CONFIGURATION

NNUNET_FILE: Final = "checkpoint_final.pth"
"""What nnU-Net v2 calls the checkpoint of a finished training."""
MEDNEXT_FILE: Final = "model_final_checkpoint.model"
"""What nnU-Net v1, and so mednextv1, calls it."""
_EVERY_AXIS: Final = (0, 1, 2)
LEAVE_ALONE: Final = ThresholdTables(
    (0.5, 0.5, 0.5), Thresholds({label.name: 0.0 for label in TUMOUR_LABELS}, 0.0), {}, "global"
)
"""Nothing is removed or relabelled: what a bundle does whose thresholds were never fitted."""


@dataclass(frozen=True)
class Imported:
    """One model that came from outside."""

    model: NewModel
    """Its plans and weights, in the order of channels and heads that bundles have; its weight is 1."""
    origin: Mapping[str, object]
    """Where it came from, as JSON."""
    ancestry: tuple[str, ...]
    """Its checkpoints, with their SHA-256."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `import-checkpoints`."""
    add = parser.add_argument
    add("--nnunet", type=Path, metavar="DIR", help="nnU-Net v2: dataset.json, plans.json, fold_X/checkpoint_final.pth")
    add("--mednext", type=Path, metavar="DIR", help="mednextv1: dataset.json, fold_X/model_final_checkpoint.model")
    add(
        "--orientation", choices=ORIENTATIONS, required=True,
        help="how the scans of the training were stored, which nnU-Net reads as they lie: BraTS's own files are LPS",
    )  # fmt: skip
    add("--output", type=Path, required=True, metavar="DIR", help="bundle to write")
    add("--folds", type=int, nargs="+", metavar="N", help="folds to take (default: all that are there)")
    add("--weights", type=float, nargs=2, metavar=("NNUNET", "MEDNEXT"), help="shares of the two (default: equal)")
    add(
        "--mednext-patch", type=int, nargs=3, default=(128, 128, 128), metavar=("Z", "Y", "X"),
        help="training patch of the MedNeXts (default: 128 128 128, which the reference's trainers fix)",
    )  # fmt: skip
    add(
        "--mednext-spacing", type=float, nargs=3, default=(1.0, 1.0, 1.0), metavar=("Z", "Y", "X"),
        help="voxel size in mm that they were trained at (default: 1 1 1)",
    )  # fmt: skip
    add("--refinement", type=Path, metavar="DIR", help="bundle to take thresholds and subtypes from (default: none)")
    add("--name", default="imported", help="name of the bundle (default: imported)")
    add("--version", default="1", help="its version (default: 1)")
    add("--licence", default="not known: ask those who trained these networks", help="licence of the weights")
    add("--revision", default="unknown", help="revision of the code, for the provenance")


def run(arguments: argparse.Namespace) -> int:
    """Write the bundle."""
    import_checkpoints(arguments)
    return ExitStatus.OK


def import_checkpoints(given: argparse.Namespace) -> Bundle:
    """The bundle that the arguments of `import-checkpoints` ask for, written to `given.output`.

    Raises UsageError or BundleError, naming file, key or tensor, found and expected, for what is not as it must be.
    """
    imported = []
    if given.nnunet:
        imported.append(import_nnunet(given.nnunet, given.folds, given.orientation))
    if given.mednext:
        patch, spacing = given.mednext_patch, given.mednext_spacing
        imported.append(import_mednext(given.mednext, given.folds, patch=patch, spacing=spacing))
    if not imported:
        raise UsageError("import-checkpoints: found neither --nnunet nor --mednext, expected one or both")
    refinement = contents_of(load_bundle(given.refinement)) if given.refinement else None
    origins: dict[str, object] = {one.model.entry.name: dict(one.origin) for one in imported}
    return write_bundle(
        given.output,
        NewBundle(
            name=given.name,
            version=given.version,
            intended_use="what its networks were trained for, by those who trained them; research only",
            limits="imported: not evaluated here" + "; nothing is refined" * (refinement is None),
            licence=given.licence,
            provenance=Provenance(
                data_sets=(),
                config={"imported": origins, "refinement": refinement.name if refinement else None},
                code_revision=given.revision,
                libraries={name: version(name) for name in ("torch", "numpy")},
                ancestry=tuple(line for one in imported for line in one.ancestry),
            ),
            models=_weighted([one.model for one in imported], given.weights),
            thresholds=refinement.thresholds if refinement else LEAVE_ALONE,
            scores={},
            subtypes=refinement.subtypes if refinement else None,
            fold_subtypes=refinement.fold_subtypes if refinement else None,
            orientation=given.orientation,
        ),
    )


def _weighted(models: list[NewModel], weights: Sequence[float] | None) -> list[NewModel]:
    if weights is not None and (len(models) != 2 or min(weights) <= 0):
        raise UsageError(f"--weights {list(weights)}: expected two numbers above 0, with --nnunet and --mednext")
    shares = list(weights or [1.0] * len(models))
    return [
        NewModel(
            ModelEntry(
                name=model.entry.name,
                architecture=model.entry.architecture,
                heads=model.entry.heads,
                format=model.entry.format,
                folds=model.entry.folds,
                weight=share / sum(shares),
            ),
            model.plans,
            model.networks,
        )
        for model, share in zip(models, shares, strict=True)
    ]


def import_nnunet(folder: Path, folds: Sequence[int] | None, orientation: str) -> Imported:
    """A trained-model folder of nnU-Net v2: `dataset.json`, `plans.json` and `fold_X/checkpoint_final.pth`.

    Plans and configuration must be those in every checkpoint, and the training must have mirrored every axis, since the
    profile `paper` does. Raises UsageError or BundleError.
    """
    files = find_folds(folder, folds, NNUNET_FILE)
    conventions = read_conventions(folder / "dataset.json")
    checkpoints = {fold: read_checkpoint(path) for fold, path in files.items()}
    configuration = _common_configuration(checkpoints)
    plans = read_foreign_plans(folder / "plans.json", configuration, conventions, orientation)
    stored = read_json(folder / "plans.json", "plans.json")
    for checkpoint in checkpoints.values():
        _check_training(checkpoint, stored)
    return _imported("nnunet", folder, plans, conventions, checkpoints)


def import_mednext(
    folder: Path, folds: Sequence[int] | None, *, patch: Sequence[int], spacing: Sequence[float]
) -> Imported:
    """A trained-model folder of mednextv1: `fold_X/model_final_checkpoint.model`, and a `dataset.json` beside.

    Its plans are pickles, which are never opened: variant, sizes and kernel follow from the tensors' names and shapes,
    patch and spacing (Z, Y, X) are given, channels and heads stand in a `dataset.json` of nnU-Net v2's form. What
    nnU-Net v1 does to brain MRI is assumed for the rest: crop to nonzero, z-score over the brain, splines.
    Raises UsageError or BundleError.
    """
    files = find_folds(folder, folds, MEDNEXT_FILE)
    conventions = read_conventions(folder / "dataset.json")
    checkpoints = {fold: read_checkpoint(path) for fold, path in files.items()}
    architectures = [mednext_architecture(checkpoint) for checkpoint in checkpoints.values()]
    if any(other != architectures[0] for other in architectures):
        raise UsageError(f"{folder}: found networks of different sizes in its folds, expected one")
    plans = _mednext_plans(architectures[0], patch, spacing)
    return _imported("mednext", folder, plans, conventions, checkpoints)


def find_folds(folder: Path, folds: Sequence[int] | None, file: str) -> dict[int, Path]:
    """The checkpoints of the folds asked for, or of all that are there. Raises UsageError naming what is missing."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: found no folder, expected a trained model's")
    there = sorted(path.name for path in folder.glob("fold_*") if path.is_dir())
    numbers = sorted(int(name[5:]) for name in there if name[5:].isdecimal())
    if not numbers:
        raise UsageError(
            f"{folder}: found {', '.join(there) or 'no fold'}, expected fold_0, fold_1 …, each with {file}"
        )
    paths = {fold: folder / f"fold_{fold}" / file for fold in sorted(set(numbers if folds is None else folds))}
    for path in paths.values():
        if not path.is_file():
            raise UsageError(f"{path}: is missing; in {folder} are {', '.join(there)}")
    return paths


def _common_configuration(checkpoints: Mapping[int, Checkpoint]) -> str:
    """nnU-Net's configuration, which must be the same in all folds."""
    found = {str(_init_arguments(checkpoint).get("configuration")) for checkpoint in checkpoints.values()}
    if len(found) > 1:
        raise UsageError(f"found folds of the configurations {', '.join(sorted(found))}, expected one")
    return found.pop()


def _init_arguments(checkpoint: Checkpoint) -> Mapping[str, object]:
    arguments = checkpoint.contents.get("init_args")
    if not isinstance(arguments, Mapping):
        raise UsageError(f"{checkpoint.path}: init_args: found nothing, expected what nnU-Net v2 writes there")
    return arguments


def _check_training(checkpoint: Checkpoint, stored: object) -> None:
    """Refuse a checkpoint of other plans, and one whose training did not mirror."""
    mirrored = checkpoint.contents.get("inference_allowed_mirroring_axes")
    if not isinstance(mirrored, (list, tuple)) or tuple(sorted(mirrored)) != _EVERY_AXIS:
        raise UsageError(
            f"{checkpoint.path}: inference_allowed_mirroring_axes: found {mirrored}, expected (0, 1, 2): "
            "bundles are predicted with all mirrorings"
        )
    trained = _init_arguments(checkpoint).get("plans")
    if not isinstance(trained, Mapping) or not isinstance(stored, Mapping):
        raise UsageError(f"{checkpoint.path}: init_args.plans: found none, expected those of plans.json")
    if trained.get("configurations") != stored.get("configurations"):
        raise UsageError(f"{checkpoint.path}: found other plans in the checkpoint than in plans.json")


def _imported(
    name: str,
    folder: Path,
    plans: Mapping[str, object],
    conventions: Conventions,
    checkpoints: Mapping[int, Checkpoint],
) -> Imported:
    """A model from its checked checkpoints; `plans` are already in the bundle's form."""
    configurations = plans["configurations"]
    assert isinstance(configurations, Mapping)
    architecture = configurations[CONFIGURATION]["architecture"]
    try:
        read_plan(plans)
    except BundleError as error:
        raise UsageError(f"{folder}: {error}") from error
    networks: dict[int, Mapping[str, FloatArray]] = {}
    files, ancestry = [], []
    for fold, checkpoint in checkpoints.items():
        tensors = deployed_tensors(checkpoint, architecture, conventions.outputs)
        networks[fold] = in_our_order(tensors, architecture, conventions)
        digest = hashlib.sha256(checkpoint.path.read_bytes()).hexdigest()
        file = f"fold_{fold}/{checkpoint.path.name}"
        epoch = checkpoint.contents.get("current_epoch", checkpoint.contents.get("epoch"))
        files.append({"file": file, "sha256": digest, "epochs": epoch if isinstance(epoch, int) else None})
        ancestry.append(f"{folder.name}/{file} sha256 {digest}")
    family = architecture_name(architecture)
    entry = ModelEntry(name, family, conventions.heads, "safetensors", tuple(checkpoints), 1.0)
    origin = {
        "folder": folder.name,
        "trainer": str(next(iter(checkpoints.values())).contents.get("trainer_name", "not said")),
        "channels": list(conventions.channel_names),
        "outputs": list(conventions.output_names),
        "checkpoints": files,
    }
    return Imported(NewModel(entry, plans, networks), origin, tuple(ancestry))


def _mednext_plans(
    architecture: Mapping[str, object], patch: Sequence[int], spacing: Sequence[float]
) -> dict[str, object]:
    """Plans as nnU-Net v2 writes them, for what nnU-Net v1 does."""
    if any(size <= 0 or size % 16 for size in patch) or min(spacing) <= 0:
        raise UsageError(
            f"--mednext-patch {list(patch)}, --mednext-spacing {list(spacing)}: expected multiples of 16, mm above 0"
        )
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
                "use_mask_for_norm": [True] * len(SEQUENCES),
                "resampling_fn_data": function,
                "resampling_fn_data_kwargs": {**common, "order": 3},
                "resampling_fn_probabilities": function,
                "resampling_fn_probabilities_kwargs": {**common, "order": 1},
                "architecture": dict(architecture),
            }
        },
    }
