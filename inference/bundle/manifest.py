"""`manifest.json`: what a bundle says about itself, read strictly and written so that no byte can change unseen."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from inference.bundle.fields import JSON_LIMIT, Fields, parse_json, wrong
from inference.errors import BundleError
from inference.labels import REGIONS, SEQUENCES, Label

MANIFEST: Final = "manifest.json"
"""Name of the manifest's file."""
SCHEMA: Final = 1
"""Version of the manifest that this program reads and writes."""
FAMILIES: Final = ("PlainConvUNet", "ResidualEncoderUNet", "MedNeXt")
"""Architectures that a model can have."""
HEADS: Final = ("regions", "labels")
"""What a network's output channels are: sigmoids of WT, TC, ET or a softmax over background, NCR, ED, ET."""
AVERAGES: Final = ("logits", "probabilities")
"""What a network's answers are averaged as over tiles and mirrorings: nnU-Net v2's way, and nnU-Net v1's."""
DECISIONS: Final = ("regions", "argmax")
"""How probabilities become labels: by region thresholds, or by the most probable label."""
FORMATS: Final = ("safetensors", "openvino")
"""How networks are stored."""
ORIENTATIONS: Final = ("RAS", "LPS")
"""Orientations that the arrays which networks see can have; what is trained here is RAS."""
AXES: Final = "zyx"
"""Axis order of the arrays that networks see; this program knows no other."""
LABEL_RULE: Final[Mapping[str, object]] = {
    "regions": list(REGIONS),
    "labels": [int(Label.ED), int(Label.NCR), int(Label.ET)],
    "comparison": "greater",
}
"""The rule from regions to labels (:func:`inference.labels.labels_from_regions`); this program knows no other."""

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_SEAL = re.compile(rb'"seal": "([0-9a-f]{64})"')
_BLANK = b"0" * 64


@dataclass(frozen=True)
class DataSet:
    """One collection of cases that the bundle learnt from."""

    name: str
    """Its name and release."""
    cases: int
    """How many of its cases were used."""
    use: str
    """What they were used for."""


@dataclass(frozen=True)
class Provenance:
    """Where a bundle comes from."""

    data_sets: tuple[DataSet, ...]
    """Everything that any of its parts was fitted on."""
    config: Mapping[str, object]
    """The configuration that made it, as free JSON."""
    code_revision: str
    """Revision of the code that made it."""
    libraries: Mapping[str, str]
    """Versions of the libraries that made it."""
    ancestry: tuple[str, ...]
    """Bundles and checkpoints that its weights started from, oldest first; empty if from scratch."""


@dataclass(frozen=True)
class ModelEntry:
    """One model: networks of one architecture, one per fold."""

    name: str
    """Name of its folder in the bundle."""
    architecture: str
    """One of :data:`FAMILIES`; the details are in the plans."""
    heads: str
    """One of :data:`HEADS`."""
    format: str
    """One of :data:`FORMATS`."""
    folds: tuple[int, ...]
    """Folds that have a network."""
    weight: float
    """Its share of the ensemble; positive, and the shares of all models add up to 1."""
    averaging: str = "logits"
    """One of :data:`AVERAGES`; bundles of before 0.4 do not say, and mean logits."""


@dataclass(frozen=True)
class FileEntry:
    """What a file of the bundle must be."""

    sha256: str
    """SHA-256 of its bytes, in hexadecimal."""
    size: int
    """Its length in bytes."""


@dataclass(frozen=True)
class Manifest:
    """All of `manifest.json` but its seal; the fields are its keys."""

    schema: int
    """Always :data:`SCHEMA`."""
    name: str
    """Short name of the bundle."""
    version: str
    """Version of the bundle."""
    created: str
    """When it was frozen, ISO 8601 with time zone."""
    intended_use: str
    """What it is for."""
    limits: str
    """What it is not for, and where it is known to fail."""
    licence: str
    """Licence of the weights, which is not that of the code."""
    provenance: Provenance
    """Where it comes from."""
    orientation: str
    """One of :data:`ORIENTATIONS`: that of the arrays that all its networks see."""
    axes: str
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
    decision: str = "regions"
    """One of :data:`DECISIONS`; bundles of before 0.4 do not say, and mean region thresholds."""


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
    needed = {"thresholds.json"} | {f"{model.name}/plans.json" for model in models}
    needed |= {name for model in models for fold in model.folds for name in network_files(model, fold)}
    for pair in _TOGETHER:
        if any(name in files for name in pair):
            needed |= set(pair)
    for name in sorted(needed - set(files)):
        raise wrong(MANIFEST, f"files.{name}", None, "its hash and size")
    for name in sorted(set(files) - needed - set(_ALONE)):
        raise BundleError(f"{MANIFEST}: files.{name}: found a file that is no part of a bundle of these models")


def _read_provenance(fields: Fields) -> Provenance:
    data_sets = []
    for entry in fields.list_of_fields("data_sets"):
        data_sets.append(DataSet(entry.text("name"), entry.count("cases"), entry.text("use")))
        entry.close()
    libraries = fields.fields("libraries")
    provenance = Provenance(
        data_sets=tuple(data_sets),
        config=fields.free("config"),
        code_revision=fields.text("code_revision"),
        libraries={name: libraries.text(name) for name in libraries.names()},
        ancestry=fields.texts("ancestry"),
    )
    fields.close()
    return provenance


def _read_models(fields: Fields) -> tuple[ModelEntry, ...]:
    models = []
    for entry in fields.list_of_fields("models"):
        weight = entry.number("weight", 0, 1)
        if weight == 0:
            raise entry.wrong("weight", "a number above 0")
        model = ModelEntry(
            name=entry.text("name", _NAME, "letters, digits, '.', '_' and '-'"),
            architecture=entry.choice("architecture", FAMILIES),
            heads=entry.choice("heads", HEADS),
            format=entry.choice("format", FORMATS),
            folds=entry.counts("folds"),
            weight=weight,
            averaging=entry.choice("averaging", AVERAGES) if "averaging" in entry.names() else "logits",
        )
        entry.close()
        models.append(model)
    if not models or len({model.name.casefold() for model in models}) != len(models):
        raise wrong(MANIFEST, "models", [model.name for model in models], "one or more models of different names")
    if abs(sum(model.weight for model in models) - 1) > 1e-3:
        raise wrong(MANIFEST, "models", [model.weight for model in models], "weights that add up to 1")
    return tuple(models)


def _read_files(fields: Fields) -> dict[str, FileEntry]:
    files = {}
    for name in fields.names():
        entry = fields.fields(name)
        files[name] = FileEntry(entry.text("sha256", "[0-9a-f]{64}", "64 hexadecimal digits"), entry.count("size"))
        entry.close()
    return files


def _read_created(fields: Fields) -> str:
    created = fields.text("created")
    try:
        zone = datetime.fromisoformat(created).tzinfo
    except ValueError:
        zone = None
    if zone is None:
        raise fields.wrong("created", "a date and time with time zone (ISO 8601)")
    return created


def _check_schema(fields: Fields) -> None:
    """Checked before anything else, since every other key depends on it."""
    schema = fields.count("schema")
    if schema > SCHEMA:
        raise BundleError(
            f"{MANIFEST}: schema: found {schema}, expected {SCHEMA}: made by a newer version, update this one"
        )
    fields.fixed("schema", SCHEMA)


def parse_manifest(value: object) -> Manifest:
    """The manifest in a JSON value, every key checked; BundleError names the first that is off."""
    fields = Fields(value, MANIFEST)
    _check_schema(fields)
    fields.value("seal")
    fields.fixed("axes", AXES)
    fields.fixed("sequences", list(SEQUENCES))
    fields.fixed("labels_from_regions", dict(LABEL_RULE))
    manifest = Manifest(
        schema=SCHEMA,
        name=fields.text("name", _NAME, "letters, digits, '.', '_' and '-'"),
        version=fields.text("version", _NAME, "letters, digits, '.', '_' and '-'"),
        created=_read_created(fields),
        intended_use=fields.text("intended_use"),
        limits=fields.text("limits"),
        licence=fields.text("licence"),
        provenance=_read_provenance(fields.fields("provenance")),
        orientation=fields.choice("orientation", ORIENTATIONS),
        axes=AXES,
        sequences=SEQUENCES,
        labels_from_regions=LABEL_RULE,
        models=_read_models(fields),
        files=_read_files(fields.fields("files")),
        scores=fields.free("scores"),
        decision=fields.choice("decision", DECISIONS) if "decision" in fields.names() else "regions",
    )
    fields.close()
    if manifest.decision == "argmax" and any(model.heads != "labels" for model in manifest.models):
        raise wrong(MANIFEST, "decision", manifest.decision, "regions, since not all models have label heads")
    _check_file_list(manifest.files, manifest.models)
    return manifest


def render_manifest(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`, sealed: `seal` is the SHA-256 of the file with 64 zeros in the seal's place."""
    models = [asdict(model) for model in manifest.models]
    value = {"schema": manifest.schema, "seal": _BLANK.decode()} | asdict(manifest) | {"models": models}
    # Left out where they are the default, so that older programs read what they understand.
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
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"{bundle}: no bundle here: {MANIFEST} is missing or not a plain file")
        if path.stat().st_size > JSON_LIMIT:
            raise BundleError(f"{MANIFEST}: found {path.stat().st_size} bytes, expected at most {JSON_LIMIT}")
        raw = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{bundle}: the bundle cannot be read ({error.strerror or error})") from error
    value = parse_json(raw, MANIFEST)
    # Asked first, so that a bundle of another schema is told so even if it is sealed otherwise.
    _check_schema(Fields(value, MANIFEST))
    seal = _SEAL.search(raw)
    if seal is None:
        raise wrong(MANIFEST, "seal", None, "64 hexadecimal digits")
    unsealed = raw[: seal.start(1)] + _BLANK + raw[seal.end(1) :]
    if hashlib.sha256(unsealed).hexdigest().encode() != seal[1]:
        raise BundleError(f"{MANIFEST}: seal: the file is not as it was written (altered or damaged)")
    return parse_manifest(value), hashlib.sha256(raw).hexdigest()
