"""A bundle on disk, verified before anything of it is used. Nothing here unpickles or imports by name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from inference.bundle.manifest import MANIFEST, FileEntry, Manifest, ModelEntry, network_files, read_manifest
from inference.bundle.tables import FloatArray, StoredThresholds, SubtypeTables, ThresholdTables, parse_subtypes
from inference.errors import BundleError
from inference.schema import convert, mismatch, read_json


@dataclass(frozen=True, eq=False)
class Model:
    """One model of an ensemble: what a manifest says of it, its plans, and a network for each fold."""

    entry: ModelEntry
    """Its entry in the manifest."""
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
    """Its manifest."""
    digest: str
    """SHA-256 of the manifest, which holds those of all other files: stands for the whole bundle."""
    models: tuple[Model, ...]
    """The ensemble."""
    thresholds: ThresholdTables
    """`thresholds.json`."""
    subtypes: SubtypeTables | None
    """Refinement's subtype model; None where the bundle has none."""


def read_tensors(path: Path, file: str) -> dict[str, FloatArray]:
    """The arrays of a safetensors file, called `file` in errors.

    BundleError where the file cannot be read or holds anything but floating-point numbers that numpy knows.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    expected = "float16, float32 or float64"
    try:
        arrays: dict[str, FloatArray] = load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{file}: not a readable safetensors file ({error})") from error
    except KeyError as error:  # the name of a type, such as BF16
        raise BundleError(f"{file}: found tensors of type {error.args[0]}, expected {expected}") from None
    for name, array in arrays.items():
        if array.dtype.kind != "f":  # of floating-point numbers the format has these and BF16 only
            raise mismatch(file, name, array.dtype.name, expected, BundleError)
    return arrays


def files_on_disk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file under a bundle with its path inside it; links and anything else that is no file are refused."""

    def refuse(error: OSError) -> None:  # os.walk passes over folders that it cannot read
        raise BundleError(f"{error.filename}: cannot be read ({error.strerror})") from error

    for place, folders, files in os.walk(folder, onerror=refuse):
        for name in (*folders, *files):
            path = Path(place, name)
            inside = path.relative_to(folder).as_posix()
            if path.is_symlink():  # what it leads to may change after the hash is taken
                raise BundleError(f"{inside}: found a symbolic link, expected a file of the bundle itself")
            if name in files:
                if not path.is_file():
                    raise BundleError(f"{inside}: found neither file nor folder, expected a file of the bundle")
                yield inside, path


def _verify_files(folder: Path, files: Mapping[str, FileEntry]) -> None:
    """Refuse a folder that does not hold exactly the listed files with their sizes and hashes."""
    present = dict(files_on_disk(folder))
    for name in files:
        if name not in present:
            raise BundleError(f"{name}: missing, expected by {MANIFEST}")
    for name in present:
        if name not in files and name != MANIFEST:
            raise BundleError(f"{name}: found a file that {MANIFEST} does not list")
    # All sizes before any hash: a truncated download is found at once.
    for name, entry in files.items():
        found = present[name].stat().st_size
        if found != entry.size:
            raise BundleError(f"{name}: found {found} bytes, expected {entry.size} (truncated or replaced)")
    for name, entry in files.items():
        digest = file_sha256(present[name], name)
        if digest != entry.sha256:
            raise BundleError(
                f"{name}: found SHA-256 {digest[:12]}…, expected {entry.sha256[:12]}… (altered or damaged)"
            )


def file_sha256(path: Path, name: str) -> str:
    """SHA-256 of a file in hexadecimal; BundleError, which calls it `name`, where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{name}: cannot be read ({error.strerror or error})") from error


# Of nnU-Net's plans only what builds the network is relied on; all else is kept as it is.
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
    # The plans name a class to import, which nothing here does; its last word must be the architecture all the same.
    found = section.get("network_class_name")
    if str(found).rpartition(".")[2] != entry.architecture:
        key = "configurations.3d_fullres.architecture.network_class_name"
        raise mismatch(file, key, found, entry.architecture, BundleError)
    return Model(entry, plans, {fold: folder / network_files(entry, fold)[0] for fold in entry.folds})


def load_subtypes(folder: Path, manifest: Manifest, stem: str) -> SubtypeTables | None:
    """The subtype model called `subtypes` or `fold_subtypes` in a bundle; None where it has none (BundleError)."""
    file = f"{stem}.json"
    if file not in manifest.files:
        return None
    arrays = read_tensors(folder / f"{stem}.safetensors", f"{stem}.safetensors")
    return parse_subtypes(read_json(folder / file, dict[str, object], BundleError, file), arrays, file)


def load_bundle(path: Path) -> Bundle:
    """The bundle in a folder, once everything that can be checked without building its networks is right.

    Manifest and tables key by key, then the set of files, their sizes and SHA-256; BundleError names what is off.
    Weights are read later, by :meth:`Model.tensors`.
    """
    # The manifest and its seal first, then all files by its hashes, and only then what they say.
    manifest, digest = read_manifest(path)
    _verify_files(path, manifest.files)
    subtypes = load_subtypes(path, manifest, "subtypes")
    # The model that made the folds is not used here, but a bundle with a broken one is a broken bundle.
    load_subtypes(path, manifest, "fold_subtypes")
    file = "thresholds.json"
    stored = read_json(path / file, StoredThresholds, BundleError, file)
    return Bundle(
        path=path,
        manifest=manifest,
        digest=digest,
        models=tuple(_load_model(path, entry) for entry in manifest.models),
        thresholds=stored.tables(file, subtypes.clusters if subtypes else None),
        subtypes=subtypes,
    )
