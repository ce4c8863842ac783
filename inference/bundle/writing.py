"""Writing a bundle: whole or not at all, and only one that can be loaded again."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from inference.bundle.manifest import (
    AXES,
    LABEL_RULE,
    MANIFEST,
    SCHEMA,
    TEXTS,
    FileEntry,
    Manifest,
    Provenance,
    network_files,
    read_manifest,
    render_manifest,
)
from inference.bundle.store import Bundle, Model, file_sha256, files_on_disk, load_bundle, load_subtypes
from inference.bundle.tables import FloatArray, SubtypeTables, ThresholdTables, stored_thresholds, subtypes_to_json
from inference.errors import BundleError
from inference.labels import SEQUENCES
from inference.schema import read_json, to_json


@dataclass(frozen=True)
class NewBundle:
    """All that a bundle is made of; names without words are those of :class:`inference.bundle.manifest.Manifest`."""

    name: str
    version: str
    intended_use: str
    limits: str
    licence: str
    provenance: Provenance
    models: Sequence[Model]
    """The ensemble, with its networks."""
    thresholds: ThresholdTables
    """Region thresholds and refinement."""
    scores: Mapping[str, object]
    """How good it is; must hold `half_precision` (the agreement with float32) if tensors are stored as float16."""
    subtypes: SubtypeTables | None = None
    """Refinement's subtype model."""
    fold_subtypes: SubtypeTables | None = None
    """The subtype model that made the folds."""
    folds: Mapping[str, object] | None = None
    """The folds that it was trained on."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Texts to go with it: `LICENSE`, `MODEL_CARD.md`."""
    created: str = ""
    """Now, if empty."""
    orientation: str = "RAS"
    decision: str = "regions"


def contents_of(bundle: Bundle) -> NewBundle:
    """All that a bundle is made of, so that one like it can be written; its creation date is left open."""
    folder, manifest = bundle.path, bundle.manifest
    folds = None
    if "folds.json" in manifest.files:
        folds = read_json(folder / "folds.json", dict[str, object], BundleError, "folds.json")
    return NewBundle(
        name=manifest.name,
        version=manifest.version,
        intended_use=manifest.intended_use,
        limits=manifest.limits,
        licence=manifest.licence,
        provenance=manifest.provenance,
        models=bundle.models,
        thresholds=bundle.thresholds,
        scores=manifest.scores,
        subtypes=bundle.subtypes,
        fold_subtypes=load_subtypes(folder, manifest, "fold_subtypes"),
        folds=folds,
        texts={name: (folder / name).read_text(encoding="utf-8") for name in TEXTS if name in manifest.files},
        orientation=manifest.orientation,
        decision=manifest.decision,
    )


def write_bundle(folder: Path, new: NewBundle) -> Bundle:
    """Write a bundle to `folder`, which must not exist or be a bundle (it is replaced), and load it back.

    The files are written beside it first: whatever goes wrong (BundleError, OSError), `folder` is as it was.
    """
    if folder.exists() and any(folder.iterdir()):
        try:
            read_manifest(folder)
        except BundleError as error:
            raise BundleError(
                f"{folder}: found a folder that is no bundle, expected none or a bundle to replace"
            ) from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside it, on the same file system: a rename is then whole or not at all.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        fresh, old = Path(scratch, "new"), Path(scratch, "old")
        fresh.mkdir()
        _write_contents(fresh, new)
        (fresh / MANIFEST).write_bytes(render_manifest(_manifest(new, file_entries(fresh))))
        load_bundle(fresh)  # what is written must be what can be read
        try:
            if folder.exists():
                folder.rename(old)
            fresh.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
    return load_bundle(folder)


def file_entries(folder: Path) -> dict[str, FileEntry]:
    """Hash and size of every file in a folder, by its path inside it."""
    return {
        name: FileEntry(file_sha256(path, name), path.stat().st_size) for name, path in sorted(files_on_disk(folder))
    }


def _manifest(new: NewBundle, files: Mapping[str, FileEntry]) -> Manifest:
    return Manifest(
        schema=SCHEMA,
        name=new.name,
        version=new.version,
        created=new.created or datetime.now(UTC).isoformat(timespec="seconds"),
        intended_use=new.intended_use,
        limits=new.limits,
        licence=new.licence,
        provenance=new.provenance,
        orientation=new.orientation,
        axes=AXES,
        sequences=SEQUENCES,
        labels_from_regions=LABEL_RULE,
        models=tuple(model.entry for model in new.models),
        files=files,
        scores=new.scores,
        decision=new.decision,
    )


def _write_contents(folder: Path, new: NewBundle) -> None:
    for model in new.models:
        if set(model.networks) != set(model.folds):
            raise BundleError(f"{model.name}: found networks of folds {sorted(model.networks)}, expected those listed")
        (folder / model.name).mkdir()
        (folder / model.name / "plans.json").write_bytes(to_json(model.plans))
        for fold in model.folds:
            _write_network(folder, model, fold, "half_precision" in new.scores)
    # Plain writes: the folder gets its name when all of it is there and has been loaded.
    (folder / "thresholds.json").write_bytes(to_json(stored_thresholds(new.thresholds)))
    for stem, tables in (("subtypes", new.subtypes), ("fold_subtypes", new.fold_subtypes)):
        if tables is not None:
            (folder / f"{stem}.json").write_bytes(to_json(subtypes_to_json(tables)))
            _write_tensors(folder / f"{stem}.safetensors", tables.arrays)
    if new.folds is not None:
        (folder / "folds.json").write_bytes(to_json(new.folds))
    for name, text in new.texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _write_network(folder: Path, model: Model, fold: int, half_allowed: bool) -> None:
    files = network_files(model.entry, fold)
    if model.format == "openvino":
        for name in files:  # the .xml and the .bin beside it
            target = folder / name
            shutil.copyfile(model.network_file(fold).with_suffix(target.suffix), target)
        return
    tensors = model.stored(fold)
    # Half precision changes what networks say, so that a bundle has to state by how much.
    if not half_allowed and any(array.dtype == np.float16 for array in tensors.values()):
        raise BundleError(
            f"{model.name}: fold {fold} holds float16, but scores.half_precision does not say how well it agrees"
        )
    _write_tensors(folder / files[0], tensors)


def _write_tensors(path: Path, tensors: Mapping[str, FloatArray]) -> None:
    from safetensors.numpy import save

    # safetensors stores memory as it lies: a transposed array would be stored wrongly.
    path.write_bytes(save({name: np.ascontiguousarray(array) for name, array in tensors.items()}))
