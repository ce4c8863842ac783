"""Checkpoints of nnU-Net v2 and of MedNeXt v1 as a bundle: nothing in them is run, every tensor is checked by name."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

from inference.bundle.manifest import DECISIONS, ORIENTATIONS, Provenance
from inference.bundle.store import Model, load_bundle
from inference.bundle.tables import Thresholds, ThresholdTables
from inference.bundle.writing import NewBundle, contents_of, write_bundle
from inference.errors import ExitStatus, UsageError
from inference.labels import TUMOUR_LABELS
from training.bundles.trained_folders import Imported, import_mednext, import_nnunet

# A bundle whose thresholds were never fitted removes and relabels nothing.
_LEAVE_ALONE: Final = ThresholdTables(
    (0.5, 0.5, 0.5), Thresholds({label.name: 0.0 for label in TUMOUR_LABELS}, 0.0), {}, "global"
)


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
    add_bundle_arguments(parser, "imported", "not known: ask those who trained these networks")


def add_bundle_arguments(parser: argparse.ArgumentParser, name: str, licence: str) -> None:
    """Declare what a bundle says about itself, `name` and `licence` unless told."""
    add = parser.add_argument
    add("--name", default=name, help="name of the bundle (default: %(default)s)")
    add("--version", default="1", help="its version (default: %(default)s)")
    add("--licence", default=licence, help="licence of the weights (default: %(default)s)")
    add("--revision", default="unknown", help="revision of the code, for the provenance")


def run(given: argparse.Namespace) -> int:
    """Write the bundle that the arguments ask for.

    Raises UsageError or BundleError, naming file, key or tensor, found and expected, for what is not as it must be.
    """
    told = {"patch": given.mednext_patch, "spacing": given.mednext_spacing, "outputs": given.mednext_outputs}
    imported = _numbered("nnunet", [import_nnunet(folder, given.folds, given.orientation) for folder in given.nnunet])
    imported |= _numbered("mednext", [import_mednext(folder, given.folds, **told) for folder in given.mednext])
    if not imported:
        raise UsageError("import-checkpoints: found neither --nnunet nor --mednext, expected one or both")
    weights = given.weights or [1.0] * len(imported)
    if len(weights) != len(imported) or min(weights) <= 0:
        raise UsageError(f"--weights {weights}: expected {len(imported)} numbers above 0, one of each model")
    refinement = contents_of(load_bundle(given.refinement)) if given.refinement else None
    origins = {
        "imported": {name: dict(one.origin) for name, one in imported.items()},
        "refinement": refinement.name if refinement else None,
    }
    write_bundle(
        given.output,
        NewBundle(
            name=given.name,
            version=given.version,
            intended_use="what its networks were trained for, by those who trained them; research only",
            limits="imported: not evaluated here" + "; nothing is refined" * (refinement is None),
            licence=given.licence,
            provenance=provenance(
                origins, [line for one in imported.values() for line in one.ancestry], given.revision
            ),
            models=[
                in_ensemble(one.model, name, share / sum(weights))
                for (name, one), share in zip(imported.items(), weights, strict=True)
            ],
            thresholds=refinement.thresholds if refinement else _LEAVE_ALONE,
            scores={},
            subtypes=refinement.subtypes if refinement else None,
            fold_subtypes=refinement.fold_subtypes if refinement else None,
            orientation=given.orientation,
            decision=given.decision,
        ),
    )
    return ExitStatus.OK


def provenance(config: Mapping[str, object], ancestry: Sequence[str], revision: str) -> Provenance:
    """Provenance of networks from outside: what they were trained on is not known here."""
    libraries = {name: version(name) for name in ("torch", "numpy")}
    return Provenance((), config, revision, libraries, tuple(ancestry))


def in_ensemble(model: Model, name: str, weight: float) -> Model:
    """The same model with a name, and its share of the ensemble."""
    return dataclasses.replace(model, entry=dataclasses.replace(model.entry, name=name, weight=weight))


def _numbered(name: str, models: Sequence[Imported]) -> dict[str, Imported]:
    """Models of one family by name: the name itself, then with 2, 3 and so on."""
    return {f"{name}{number if number > 1 else ''}": model for number, model in enumerate(models, 1)}
