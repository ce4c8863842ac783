"""Checkpoints of nnU-Net v2 and of MedNeXt v1 as a bundle: nothing in them is run, every tensor is checked by name."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from inference.bundle.manifest import DECISIONS, ORIENTATIONS, ModelEntry, Provenance
from inference.bundle.store import Bundle, Model, load_bundle
from inference.bundle.tables import FloatArray, Thresholds, ThresholdTables
from inference.bundle.writing import NewBundle, contents_of, write_bundle
from inference.errors import BundleError, ExitStatus, UsageError
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
"""What nnU-Net v2 calls the checkpoint of a finished training."""
MEDNEXT_FILE: Final = "model_final_checkpoint.model"
"""What nnU-Net v1, and so mednextv1, calls it."""
_EVERY_AXIS: Final = (0, 1, 2)
_OUTPUTS: Final = (tuple(REGIONS), ("NCR", "ED", "ET"))
"""What heads give: regions, or labels after the background."""
_DEFAULT_PLANS: Final = OldPlans((), (128, 128, 128), (1.0, 1.0, 1.0), (True,) * len(SEQUENCES))
"""What the reference's MedNeXt trainers fix, and nnU-Net does to brains."""
LEAVE_ALONE: Final = ThresholdTables(
    (0.5, 0.5, 0.5), Thresholds({label.name: 0.0 for label in TUMOUR_LABELS}, 0.0), {}, "global"
)
"""Nothing is removed or relabelled: what a bundle does whose thresholds were never fitted."""


@dataclass(frozen=True)
class Imported:
    """One model that came from outside, in the order of channels and heads that bundles have."""

    family: str
    """Its architecture's name."""
    heads: str
    """`regions` or `labels`."""
    averaging: str
    """`logits` for nnU-Net v2, `probabilities` for v1: what its predictor averages over tiles and mirrorings."""
    plans: Mapping[str, object]
    """Plans as bundles have them."""
    networks: Mapping[int, Mapping[str, FloatArray]]
    """The weights of each fold."""
    origin: Mapping[str, object]
    """Where it came from, as JSON."""
    ancestry: tuple[str, ...]
    """Its checkpoints, with their SHA-256."""

    def model(self, name: str, weight: float) -> Model:
        """It as a bundle's model, with its share of the ensemble."""
        folds = tuple(self.networks)
        entry = ModelEntry(name, self.family, self.heads, "safetensors", folds, weight, self.averaging)
        return Model(entry, self.plans, self.networks)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `import-checkpoints`."""
    add = parser.add_argument
    add(
        "--nnunet", type=Path, action="append", default=[], metavar="DIR",
        help="nnU-Net v2: dataset.json, plans.json, fold_X/checkpoint_final.pth; again for each further model",
    )  # fmt: skip
    add(
        "--mednext", type=Path, action="append", default=[], metavar="DIR",
        help="mednextv1: fold_X/model_final_checkpoint.model, dataset.json or plans.pkl; again for each further model",
    )  # fmt: skip
    add(
        "--orientation", choices=ORIENTATIONS, required=True,
        help="how the scans of the training were stored, which nnU-Net reads as they lie: BraTS's own files are LPS",
    )  # fmt: skip
    add("--output", type=Path, required=True, metavar="DIR", help="bundle to write")
    add("--folds", nargs="+", metavar="N", help="folds to take, such as 0 1 2 or all (default: what is there)")
    add("--weights", type=float, nargs="+", metavar="SHARE", help="shares, nnU-Nets first (default: equal)")
    add(
        "--decision", choices=DECISIONS, default="regions",
        help="from probabilities to labels: region thresholds, or the most probable label (default: %(default)s)",
    )  # fmt: skip
    add(
        "--mednext-patch", type=int, nargs=3, metavar=("Z", "Y", "X"),
        help="training patch of the MedNeXts (default: that of plans.pkl, or 128 128 128 as the reference's trainers)",
    )  # fmt: skip
    add(
        "--mednext-spacing", type=float, nargs=3, metavar=("Z", "Y", "X"),
        help="voxel size in mm that they were trained at (default: that of plans.pkl, or 1 1 1)",
    )  # fmt: skip
    add(
        "--mednext-outputs", nargs=3, metavar="NAME",
        help="without a dataset.json: what their outputs are, NCR ED ET after the background, or WT TC ET, in order",
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
    imported = _numbered("nnunet", [import_nnunet(folder, given.folds, given.orientation) for folder in given.nnunet])
    imported |= _numbered("mednext", [_given_mednext(folder, given) for folder in given.mednext])
    if not imported:
        raise UsageError("import-checkpoints: found neither --nnunet nor --mednext, expected one or both")
    weights = given.weights or [1.0] * len(imported)
    if len(weights) != len(imported) or min(weights) <= 0:
        raise UsageError(f"--weights {weights}: expected {len(imported)} numbers above 0, one of each model")
    refinement = contents_of(load_bundle(given.refinement)) if given.refinement else None
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
                config={
                    "imported": {name: dict(one.origin) for name, one in imported.items()},
                    "refinement": refinement.name if refinement else None,
                },
                code_revision=given.revision,
                libraries={name: version(name) for name in ("torch", "numpy")},
                ancestry=tuple(line for one in imported.values() for line in one.ancestry),
            ),
            models=[
                one.model(name, share / sum(weights))
                for (name, one), share in zip(imported.items(), weights, strict=True)
            ],
            thresholds=refinement.thresholds if refinement else LEAVE_ALONE,
            scores={},
            subtypes=refinement.subtypes if refinement else None,
            fold_subtypes=refinement.fold_subtypes if refinement else None,
            orientation=given.orientation,
            decision=given.decision,
        ),
    )


def _numbered(name: str, models: Sequence[Imported]) -> dict[str, Imported]:
    """Models of one family by name: the name itself, then with 2, 3 and so on."""
    return {f"{name}{number if number > 1 else ''}": model for number, model in enumerate(models, 1)}


def _given_mednext(folder: Path, given: argparse.Namespace) -> Imported:
    return import_mednext(
        folder, given.folds, patch=given.mednext_patch, spacing=given.mednext_spacing, outputs=given.mednext_outputs
    )


def import_nnunet(folder: Path, folds: Sequence[str] | None, orientation: str) -> Imported:
    """A trained-model folder of nnU-Net v2: `dataset.json`, `plans.json` and `fold_X/checkpoint_final.pth`.

    Plans and configuration must be those in every checkpoint, and the training must have mirrored every axis, since the
    profile `paper` does. Raises UsageError or BundleError.
    """
    files = find_folds(folder, folds, NNUNET_FILE)
    conventions = read_conventions(folder / "dataset.json")
    checkpoints = {fold: read_checkpoint(path) for fold, path in files.items()}
    configuration = _common_configuration(checkpoints)
    batch_norm = any(name.endswith("running_mean") for name in next(iter(checkpoints.values())).tensors)
    plans = read_foreign_plans(folder / "plans.json", configuration, conventions, orientation, batch_norm=batch_norm)
    stored = read_json(folder / "plans.json", dict[str, object], BundleError, "plans.json")
    for checkpoint in checkpoints.values():
        _check_training(checkpoint, stored)
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
    files = find_folds(folder, folds, MEDNEXT_FILE)
    old = read_old_plans(folder / "plans.pkl") if (folder / "plans.pkl").is_file() else _DEFAULT_PLANS
    if (folder / "dataset.json").is_file() or not old.channel_names:
        conventions = read_conventions(folder / "dataset.json")
    elif outputs is None or tuple(sorted(outputs)) not in [tuple(sorted(heads)) for heads in _OUTPUTS]:
        raise UsageError(f"{folder}: found no dataset.json, expected --mednext-outputs with NCR ED ET or WT TC ET")
    else:
        conventions = _conventions(old.channel_names, outputs, folder / "plans.pkl")
    checkpoints = {fold: read_checkpoint(path) for fold, path in files.items()}
    architectures = [mednext_architecture(checkpoint) for checkpoint in checkpoints.values()]
    if any(other != architectures[0] for other in architectures):
        raise UsageError(f"{folder}: found networks of different sizes in its folds, expected one")
    masks = [old.masks[channel] for channel in conventions.channels]
    plans = _mednext_plans(architectures[0], patch or old.patch, spacing or old.spacing, masks)
    return _imported(folder, plans, conventions, checkpoints, "probabilities")


def _conventions(names: Sequence[str], outputs: Sequence[str], path: Path) -> Conventions:
    """A network's channels by their names, and its heads by theirs: regions, or labels after background."""
    regions = set(outputs) == set(REGIONS)
    given = list(outputs) if regions else ["background", *outputs]
    ours = list(REGIONS) if regions else ["background", *_OUTPUTS[1]]
    order = tuple(given.index(name) for name in ours)
    heads = "regions" if regions else "labels"
    return Conventions(tuple(names), channel_order(names, path), heads, tuple(given), order)


def find_folds(folder: Path, folds: Sequence[str] | None, file: str) -> dict[str, Path]:
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


def _common_configuration(checkpoints: Mapping[str, Checkpoint]) -> str:
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
    family = architecture_name(architecture)
    return Imported(family, conventions.heads, averaging, plans, networks, origin, tuple(ancestry))


def _mednext_plans(
    architecture: Mapping[str, object], patch: Sequence[int], spacing: Sequence[float], masks: Sequence[bool]
) -> dict[str, object]:
    """Plans as nnU-Net v2 writes them, for what nnU-Net v1 does."""
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
