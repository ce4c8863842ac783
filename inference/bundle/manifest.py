"""`manifest.json`: what a bundle says about itself, read strictly and written so that no byte can change unseen."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from msgspec import Meta

from inference.errors import BundleError
from inference.labels import REGIONS, SEQUENCES, Label
from inference.schema import SIZE_LIMIT, Count, Mismatch, Name, Text, convert, mismatch, one_of, parse_json

MANIFEST: Final = "manifest.json"
"""Name of the manifest's file."""
SCHEMA: Final = 1
"""Version of the manifest that this program reads and writes."""
FAMILIES: Final = ("PlainConvUNet", "ResidualEncoderUNet", "MedNeXt")
"""Architectures that a model can have."""
DECISIONS: Final = ("regions", "argmax")
"""How probabilities become labels: by region thresholds, or by the most probable label."""
ORIENTATIONS: Final = ("RAS", "LPS")
"""Orientations that the arrays which networks see can have; what is trained here is RAS."""
AXES: Final = "zyx"
"""Axis order of the arrays that networks see; this program knows no other."""
# Stated in every bundle, so that networks whose regions mean something else are never read by this rule.
LABEL_RULE: Final[Mapping[str, object]] = {
    "regions": list(REGIONS),
    "labels": [int(Label.ED), int(Label.NCR), int(Label.ET)],
    "comparison": "greater",
}
"""The rule from regions to labels (:func:`inference.labels.labels_from_regions`); this program knows no other."""

# The seal is the hash of the whole file with zeros in its place, so that what it stands for are bytes, not values: two
# programs may write the same values differently.
_SEAL = re.compile(rb'"seal": "([0-9a-f]{64})"')
_BLANK = b"0" * 64


@dataclass(frozen=True)
class DataSet:
    """One collection of cases that the bundle learnt from."""

    name: Text
    """Its name and release."""
    cases: Count
    """How many of its cases were used."""
    use: Text
    """Their use: pretraining, finetuning; and their terms."""


@dataclass(frozen=True)
class Provenance:
    """Where a bundle comes from."""

    data_sets: tuple[DataSet, ...]
    """Everything that any of its parts was fitted on."""
    config: Mapping[str, object]
    """The configuration that made it, as free JSON."""
    code_revision: Text
    """Revision of the code that made it."""
    libraries: Mapping[str, Text]
    """Versions of the libraries that made it."""
    ancestry: tuple[Text, ...]
    """Bundles and checkpoints that its weights started from, oldest first; empty if from scratch."""


@dataclass(frozen=True)
class ModelEntry:
    """One model: networks of one architecture, one per fold."""

    name: Name
    """Name of its folder in the bundle."""
    architecture: Annotated[str, one_of(FAMILIES)]
    """Its family; the details are in the plans."""
    heads: Annotated[str, one_of(("regions", "labels"))]
    """Its output channels: sigmoids of WT, TC, ET, or a softmax over background, NCR, ED, ET."""
    format: Annotated[str, one_of(("safetensors", "openvino"))]
    """How its networks are stored."""
    folds: tuple[Count, ...]
    """Folds that have a network."""
    weight: Annotated[float, Meta(gt=0, le=1, description="a number above 0 and up to 1")]
    """Its share of the ensemble; positive, and the shares of all models add up to 1."""
    averaging: Annotated[str, one_of(("logits", "probabilities"))] = "logits"
    """As what tiles and mirrorings are averaged: by nnU-Net v2, and by v1. Bundles before 0.4 mean logits."""


@dataclass(frozen=True)
class FileEntry:
    """Size and hash that a file of the bundle must have."""

    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z", description="64 hexadecimal digits")]
    """SHA-256 of its bytes, in hexadecimal."""
    size: Count
    """Its length in bytes."""


@dataclass(frozen=True)
class Manifest:
    """All of `manifest.json` but its seal; the fields are its keys."""

    schema: Literal[1]
    """Always :data:`SCHEMA`."""
    name: Name
    """Short name of the bundle."""
    version: Name
    """Version of the bundle."""
    created: Text
    """When it was frozen, ISO 8601 with time zone."""
    intended_use: Text
    """Its intended use."""
    limits: Text
    """Its limits: uses it is not made for, and where it is known to fail."""
    licence: Text
    """Licence of the weights, which is not that of the code."""
    provenance: Provenance
    """Where it comes from."""
    orientation: Annotated[str, one_of(ORIENTATIONS)]
    """That of the arrays that all its networks see."""
    axes: Literal["zyx"]
    """Always :data:`AXES`."""
    sequences: tuple[str, ...]
    """Order of the networks' input channels, always :data:`inference.labels.SEQUENCES`."""
    labels_from_regions: Mapping[str, object]
    """Always :data:`LABEL_RULE`."""
    models: tuple[ModelEntry, ...]
    """The ensemble."""
    files: Mapping[str, FileEntry]
    """Every other file of the bundle, by its path with forward slashes."""
    scores: Mapping[str, object]
    """How good it is, as free JSON."""
    decision: Annotated[str, one_of(DECISIONS)] = "regions"
    """How labels are decided; bundles of before 0.4 do not say, and mean region thresholds."""


def network_files(model: ModelEntry, fold: int) -> tuple[str, ...]:
    """The file or files of one network, relative to the bundle; the first is the one to open."""
    stem = f"{model.name}/fold_{fold}"
    return (f"{stem}.safetensors",) if model.format == "safetensors" else (f"{stem}.xml", f"{stem}.bin")


TEXTS: Final = ("LICENSE", "MODEL_CARD.md")
"""Texts that a bundle may carry."""
_ALONE = ("folds.json", *TEXTS)
_TOGETHER = (("subtypes.json", "subtypes.safetensors"), ("fold_subtypes.json", "fold_subtypes.safetensors"))


def _check_file_list(files: Mapping[str, FileEntry], models: tuple[ModelEntry, ...]) -> None:
    """Refuse a list that lacks a file that the models need or that names one that nothing reads."""
    # What nothing reads nobody has looked at, and it would travel with the weights under their hashes.
    needed = {"thresholds.json"} | {f"{model.name}/plans.json" for model in models}
    needed |= {name for model in models for fold in model.folds for name in network_files(model, fold)}
    for pair in _TOGETHER:
        if any(name in files for name in pair):
            needed |= set(pair)
    for name in sorted(needed - set(files)):
        raise Mismatch(f"files.{name}", None, "its hash and size")
    for name in sorted(set(files) - needed - set(_ALONE)):
        raise Mismatch(f"files.{name}", "a file that nothing reads", "only files of these models")


def _check(manifest: Manifest) -> None:
    """Refuse what the types cannot say (Mismatch)."""
    try:
        zone = datetime.fromisoformat(manifest.created).tzinfo
    except ValueError:
        zone = None
    if zone is None:  # which of two bundles is newer has one answer on any machine
        raise Mismatch("created", manifest.created, "a date and time with time zone (ISO 8601)")
    if manifest.sequences != SEQUENCES:
        raise Mismatch("sequences", list(manifest.sequences), ", ".join(SEQUENCES))
    if manifest.labels_from_regions != LABEL_RULE:
        raise Mismatch("labels_from_regions", manifest.labels_from_regions, json.dumps(LABEL_RULE))
    for index, model in enumerate(manifest.models):
        if not model.folds or len(set(model.folds)) != len(model.folds):
            found = list(model.folds)
            raise Mismatch(f"models[{index}].folds", found, "a list of different whole numbers of at least 0")
    names, weights = [model.name for model in manifest.models], [model.weight for model in manifest.models]
    # Names are those of folders, which some file systems do not tell apart by capitals.
    if not names or len({name.casefold() for name in names}) != len(names):
        raise Mismatch("models", names, "one or more models of different names")
    if abs(sum(weights) - 1) > 1e-3:  # weights may be rounded to a few digits, as the paper's are
        raise Mismatch("models", weights, "weights that add up to 1")
    if manifest.decision == "argmax" and any(model.heads != "labels" for model in manifest.models):
        raise Mismatch("decision", manifest.decision, "regions, since not all models have label heads")
    _check_file_list(manifest.files, manifest.models)


def _check_schema(value: Mapping[str, object]) -> None:
    """Checked before anything else, since every other key depends on it."""
    schema = value.get("schema")
    if type(schema) is not int:  # True is an int of value 1
        raise mismatch(MANIFEST, "schema", schema, "a whole number", BundleError)
    if schema > SCHEMA:
        raise BundleError(
            f"{MANIFEST}: schema: found {schema}, expected {SCHEMA}: made by a newer version, update this one"
        )
    if schema != SCHEMA:
        raise mismatch(MANIFEST, "schema", schema, str(SCHEMA), BundleError)


def parse_manifest(value: Mapping[str, object]) -> Manifest:
    """The manifest in a JSON value, every key but the seal checked; BundleError names the first that is off."""
    _check_schema(value)
    unsealed = {key: entry for key, entry in value.items() if key != "seal"}
    manifest = convert(unsealed, Manifest, BundleError, MANIFEST)
    try:
        _check(manifest)
    except Mismatch as problem:
        raise mismatch(MANIFEST, problem.key, problem.found, problem.expected, BundleError) from None
    return manifest


def render_manifest(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`, sealed: `seal` is the SHA-256 of the file with 64 zeros in the seal's place."""
    models = [asdict(model) for model in manifest.models]
    value = {"schema": manifest.schema, "seal": _BLANK.decode()} | asdict(manifest) | {"models": models}
    # Left out where they are the default, so that programs before 0.4 can read what they understand.
    if value["decision"] == "regions":
        del value["decision"]
    for model in models:
        if model["averaging"] == "logits":
            del model["averaging"]
    raw = (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    return raw.replace(_BLANK, hashlib.sha256(raw).hexdigest().encode(), 1)


def read_manifest(bundle: Path) -> tuple[Manifest, str]:
    """The manifest of the bundle in a folder and the SHA-256 of its file, which stands for the whole bundle.

    Only the manifest is read; BundleError where there is none or it is not exactly as it was written.
    """
    path = bundle / MANIFEST
    try:
        if not bundle.is_dir():
            raise BundleError(f"{bundle}: no bundle here: the folder does not exist")
        if path.is_symlink() or not path.is_file():  # a pipe would be waited for, a link may be changed
            raise BundleError(f"{bundle}: no bundle here: {MANIFEST} is missing or not a plain file")
        if path.stat().st_size > SIZE_LIMIT:
            raise BundleError(f"{MANIFEST}: found {path.stat().st_size} bytes, expected at most {SIZE_LIMIT}")
        raw = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{bundle}: the bundle cannot be read ({error.strerror or error})") from error
    value = parse_json(raw, dict[str, object], BundleError, MANIFEST)
    # Asked first, so that a bundle of another schema is told so even if it is sealed otherwise.
    _check_schema(value)
    seal = _SEAL.search(raw)
    if seal is None:
        raise mismatch(MANIFEST, "seal", None, "64 hexadecimal digits", BundleError)
    unsealed = raw[: seal.start(1)] + _BLANK + raw[seal.end(1) :]
    if hashlib.sha256(unsealed).hexdigest().encode() != seal[1]:
        raise BundleError(f"{MANIFEST}: seal: the file is not as it was written (altered or damaged)")
    return parse_manifest(value), hashlib.sha256(raw).hexdigest()
