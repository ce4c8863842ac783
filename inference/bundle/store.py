"""A bundle on disk: verified before anything is used, and written. Nothing here unpickles or imports by name."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

import msgspec
import numpy as np
from numpy.typing import NDArray

from inference.bundle.manifest import (
    AXES,
    LABEL_RULE,
    MANIFEST,
    SCHEMA,
    TEXTS,
    FileEntry,
    Manifest,
    ModelEntry,
    Provenance,
    network_files,
    read_manifest,
    render_manifest,
)
from inference.bundle.tables import (
    FloatArray,
    SubtypeTables,
    ThresholdTables,
    parse_subtypes,
    parse_thresholds,
    stored_thresholds,
    subtypes_to_json,
)
from inference.errors import BundleError
from inference.labels import SEQUENCES
from inference.schema import convert, mismatch, read_json, to_json


class _Stored(TypedDict):
    dtype: str
    shape: list[int]
    data: bytes


_DTYPES: Mapping[str, str] = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


@dataclass(frozen=True, eq=False)
class Model:
    """One model of an ensemble: what a manifest says of it, its plans, and a network for each fold."""

    entry: ModelEntry
    """What the manifest says of it."""
    plans: Mapping[str, object]
    """`plans.json`, as nnU-Net wrote it; (Z, Y, X) order throughout."""
    networks: Mapping[int, Mapping[str, FloatArray] | Path] = field(repr=False)
    """Per fold its tensors by state-dict name (float16 or float32), or the file that holds them: `.safetensors`, or the
    `.xml` of an OpenVINO pair."""

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.entry.name

    @property
    def heads(self) -> str:
        """`regions` (sigmoids of WT, TC, ET) or `labels` (softmax over background, NCR, ED, ET)."""
        return self.entry.heads

    @property
    def format(self) -> str:
        """`safetensors` or `openvino`."""
        return self.entry.format

    @property
    def folds(self) -> tuple[int, ...]:
        """Folds that have a network."""
        return self.entry.folds

    @property
    def weight(self) -> float:
        """Share of the ensemble; the shares of a bundle's models add up to 1."""
        return self.entry.weight

    @property
    def averaging(self) -> str:
        """Averaged over tiles and mirrorings: `logits` (nnU-Net v2) or `probabilities` (nnU-Net v1)."""
        return self.entry.averaging

    @property
    def architecture(self) -> Mapping[str, object]:
        """The plans' architecture section of `3d_fullres`: what builds the network; BundleError where it lacks."""
        return convert(self.plans, _Plans, BundleError, f"{self.name}/plans.json").configurations.fullres.architecture

    def of_folds(self, *folds: int) -> Model:
        """The same model with these folds alone."""
        return replace(self, entry=replace(self.entry, folds=folds))

    def network_file(self, fold: int) -> Path:
        """The file of one fold's network: `.safetensors`, or the `.xml` of an OpenVINO pair."""
        network = self._network(fold)
        if not isinstance(network, Path):
            raise BundleError(f"{self.name}: its networks are in memory, not in files")
        return network

    def stored(self, fold: int) -> Mapping[str, FloatArray]:
        """The weights of one fold's network by state-dict name, in the precision that they are stored in."""
        if self.format != "safetensors":
            raise BundleError(f"{self.name}: its networks are stored as {self.format}, not as tensors")
        network = self._network(fold)
        return read_tensors(network, f"{self.name}/{network.name}") if isinstance(network, Path) else network

    def tensors(self, fold: int) -> dict[str, NDArray[np.float32]]:
        """The same as float32."""
        return {name: array.astype(np.float32, copy=False) for name, array in self.stored(fold).items()}

    def _network(self, fold: int) -> Mapping[str, FloatArray] | Path:
        if fold not in self.folds:
            raise BundleError(f"{self.name}: no fold {fold}, only {', '.join(map(str, self.folds))}")
        return self.networks[fold]


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every file is what its manifest says."""

    path: Path
    """Its folder."""
    manifest: Manifest
    """What it says about itself."""
    digest: str
    """SHA-256 of the manifest, which holds those of all other files: stands for the whole bundle."""
    models: tuple[Model, ...]
    """The ensemble."""
    thresholds: ThresholdTables
    """`thresholds.json`."""
    subtypes: SubtypeTables | None
    """Refinement's subtype model; None where the bundle has none."""

    @property
    def orientation(self) -> str:
        """Orientation of the arrays that its networks see: `RAS` or `LPS`."""
        return self.manifest.orientation

    @property
    def decision(self) -> str:
        """How probabilities become labels: `regions` or `argmax`."""
        return self.manifest.decision

    @property
    def region_thresholds(self) -> tuple[float, float, float]:
        """Probabilities of WT, TC and ET above which a voxel belongs to the region."""
        return self.thresholds.regions


def read_tensors(path: Path, file: str) -> dict[str, FloatArray]:
    """The arrays of a safetensors file, called `file` in errors; bfloat16, which numpy lacks, comes as float32.

    BundleError where the file cannot be read or holds anything but floating-point numbers.
    """
    from safetensors import SafetensorError, deserialize

    try:
        entries: list[tuple[str, _Stored]] = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{file}: not a readable safetensors file ({error})") from error
    arrays: dict[str, FloatArray] = {}
    for name, tensor in entries:
        dtype, shape, data = tensor["dtype"], tensor["shape"], tensor["data"]
        if dtype == "BF16":
            # bfloat16 is the upper half of a float32.
            upper = np.frombuffer(data, "<u2").astype(np.uint32) << 16
            arrays[name] = upper.view(np.float32).reshape(shape)
        elif dtype in _DTYPES:
            arrays[name] = np.frombuffer(data, _DTYPES[dtype]).reshape(shape)
        else:
            raise mismatch(file, name, dtype, "F16, BF16, F32 or F64", BundleError)
    return arrays


def _files_on_disk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file under a bundle with its path inside it; links and anything else that is no file are refused."""
    for place, folders, files in os.walk(folder, onerror=_refuse_unreadable):
        for name in (*folders, *files):
            path = Path(place, name)
            inside = path.relative_to(folder).as_posix()
            if path.is_symlink():
                raise BundleError(f"{inside}: found a symbolic link, expected a file of the bundle itself")
            if name in files:
                if not path.is_file():
                    raise BundleError(f"{inside}: found neither file nor folder, expected a file of the bundle")
                yield inside, path


def _refuse_unreadable(error: OSError) -> None:
    raise BundleError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _verify_files(folder: Path, files: Mapping[str, FileEntry]) -> None:
    """Refuse a folder that does not hold exactly the listed files with their sizes and hashes."""
    present = dict(_files_on_disk(folder))
    for name in files:
        if name not in present:
            raise BundleError(f"{name}: missing, expected by {MANIFEST}")
    for name in present:
        if name not in files and name != MANIFEST:
            raise BundleError(f"{name}: found a file that {MANIFEST} does not list")
    for name, entry in files.items():
        found = present[name].stat().st_size
        if found != entry.size:
            raise BundleError(f"{name}: found {found} bytes, expected {entry.size} (truncated or replaced)")
    for name, entry in files.items():
        digest = _sha256(present[name], name)
        if digest != entry.sha256:
            raise BundleError(
                f"{name}: found SHA-256 {digest[:12]}…, expected {entry.sha256[:12]}… (altered or damaged)"
            )


def _sha256(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{name}: cannot be read ({error.strerror or error})") from error


class _Configuration(msgspec.Struct):
    architecture: dict[str, object]


class _Configurations(msgspec.Struct):
    fullres: _Configuration = msgspec.field(name="3d_fullres")


class _Plans(msgspec.Struct):
    """nnU-Net's plans, as far as a bundle relies on them."""

    configurations: _Configurations


def _load_model(folder: Path, entry: ModelEntry) -> Model:
    file = f"{entry.name}/plans.json"
    plans = read_json(folder / file, dict[str, object], BundleError, file)
    section = convert(plans, _Plans, BundleError, file).configurations.fullres.architecture
    found = section.get("network_class_name")
    if str(found).rpartition(".")[2] != entry.architecture:
        key = "configurations.3d_fullres.architecture.network_class_name"
        raise mismatch(file, key, found, entry.architecture, BundleError)
    return Model(entry, plans, {fold: folder / network_files(entry, fold)[0] for fold in entry.folds})


def _load_subtypes(folder: Path, manifest: Manifest, stem: str) -> SubtypeTables | None:
    if f"{stem}.json" not in manifest.files:
        return None
    arrays = read_tensors(folder / f"{stem}.safetensors", f"{stem}.safetensors")
    return parse_subtypes(
        read_json(folder / f"{stem}.json", dict[str, object], BundleError, f"{stem}.json"), arrays, f"{stem}.json"
    )


def load_bundle(path: Path) -> Bundle:
    """The bundle in a folder, once everything that can be checked without building its networks is right.

    Manifest and tables key by key, then the set of files, their sizes and SHA-256; BundleError names what is off.
    Weights are read later, by :meth:`Model.tensors`.
    """
    path = Path(path)
    manifest, digest = read_manifest(path)
    _verify_files(path, manifest.files)
    subtypes = _load_subtypes(path, manifest, "subtypes")
    # The model that made the folds is not used here, but a bundle with a broken one is a broken bundle.
    _load_subtypes(path, manifest, "fold_subtypes")
    file = "thresholds.json"
    return Bundle(
        path=path,
        manifest=manifest,
        digest=digest,
        models=tuple(_load_model(path, entry) for entry in manifest.models),
        thresholds=parse_thresholds(
            read_json(path / file, dict[str, object], BundleError, file), file, subtypes.clusters if subtypes else None
        ),
        subtypes=subtypes,
    )


@dataclass(frozen=True)
class NewBundle:
    """All that a bundle is made of."""

    name: str
    """Short name."""
    version: str
    """Version of the bundle."""
    intended_use: str
    """What it is for."""
    limits: str
    """What it is not for, and where it is known to fail."""
    licence: str
    """Licence of the weights."""
    provenance: Provenance
    """Where it comes from."""
    models: Sequence[Model]
    """The ensemble."""
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
    """When it was frozen, ISO 8601 with time zone; now, if empty."""
    orientation: str = "RAS"
    """Orientation of the arrays that its networks see: `RAS` or `LPS`."""
    decision: str = "regions"
    """How probabilities become labels: `regions` or `argmax`."""


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
        fold_subtypes=_load_subtypes(folder, manifest, "fold_subtypes"),
        folds=folds,
        texts={name: (folder / name).read_text(encoding="utf-8") for name in TEXTS if name in manifest.files},
        orientation=manifest.orientation,
        decision=manifest.decision,
    )


def write_bundle(folder: Path, new: NewBundle) -> Bundle:
    """Write a bundle to `folder`, which must not exist or be a bundle (it is replaced), and load it back.

    The files are written beside it first: whatever goes wrong (BundleError, OSError), `folder` is as it was.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not _is_bundle(folder):
        raise BundleError(f"{folder}: found a folder that is no bundle, expected none or a bundle to replace")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        fresh = Path(scratch, "new")
        fresh.mkdir()
        _write_contents(fresh, new)
        (fresh / MANIFEST).write_bytes(render_manifest(_describe(fresh, new)))
        load_bundle(fresh)
        _replace(folder, fresh, Path(scratch, "old"))
    return load_bundle(folder)


def _is_bundle(folder: Path) -> bool:
    """Whether a folder has a bundle's manifest, and not merely a file of its name."""
    try:
        read_manifest(folder)
    except BundleError:
        return False
    return True


def _replace(folder: Path, fresh: Path, old: Path) -> None:
    """Put the folder `fresh` in the place of `folder`, which goes to `old`, or comes back if that fails."""
    if not folder.exists():
        fresh.rename(folder)
        return
    folder.rename(old)
    try:
        fresh.rename(folder)
    except BaseException:
        old.rename(folder)
        raise


def _describe(folder: Path, new: NewBundle) -> Manifest:
    """The manifest of the files that are in `folder`."""
    files = {name: FileEntry(_sha256(path, name), path.stat().st_size) for name, path in sorted(_files_on_disk(folder))}
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
        if set(model.networks) != set(model.entry.folds):
            raise BundleError(
                f"{model.entry.name}: found networks of folds {sorted(model.networks)}, expected those listed"
            )
        (folder / model.entry.name).mkdir()
        (folder / model.entry.name / "plans.json").write_bytes(to_json(model.plans))
        for fold in model.folds:
            _write_network(folder, model, fold, "half_precision" in new.scores)
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
        for name in files:
            target = folder / name
            shutil.copyfile(model.network_file(fold).with_suffix(target.suffix), target)
        return
    tensors = model.stored(fold)
    if not half_allowed and any(array.dtype == np.float16 for array in tensors.values()):
        raise BundleError(
            f"{model.name}: fold {fold} holds float16, but scores.half_precision does not say how well it agrees"
        )
    _write_tensors(folder / files[0], tensors)


def _write_tensors(path: Path, tensors: Mapping[str, FloatArray]) -> None:
    from safetensors.numpy import save

    # safetensors stores memory as it lies: a transposed array would be stored wrongly.
    path.write_bytes(save({name: np.ascontiguousarray(array) for name, array in tensors.items()}))
