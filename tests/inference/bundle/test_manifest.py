"""The manifest: every key checked, every byte sealed."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from inference.bundle.manifest import MANIFEST, SCHEMA, parse_manifest, read_manifest, render_manifest
from inference.bundle.store import Model
from inference.bundle.writing import write_bundle
from inference.errors import BundleError
from tests.inference.tiny import describe

Json = dict[str, object]


@pytest.fixture
def bundle(tmp_path: Path, plain_models: tuple[Model, ...]) -> Path:
    return write_bundle(tmp_path / "bundle", describe(plain_models)).path


@pytest.fixture
def value(bundle: Path) -> Json:
    return json.loads((bundle / MANIFEST).read_bytes())


def changed(value: Json, path: str, new: object) -> Json:
    """A copy with the value at a dotted path replaced, or removed where `new` is Ellipsis."""
    result = copy.deepcopy(value)
    *parents, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    place = result
    for key in parents:
        place = place[key]
    if new is ...:
        del place[last]
    else:
        place[last] = new
    return result


def test_what_is_written_is_read_back(bundle: Path) -> None:
    manifest, digest = read_manifest(bundle)
    assert digest == hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest()
    assert render_manifest(manifest) == (bundle / MANIFEST).read_bytes()
    assert [model.weight for model in manifest.models] == [0.4722, 0.5278]
    assert manifest.orientation == "RAS"
    assert manifest.axes == "zyx"


def test_decision_and_averaging_are_stated_where_they_are_not_the_default(bundle: Path) -> None:
    manifest, _ = read_manifest(bundle)
    assert b"averaging" not in (bundle / MANIFEST).read_bytes()
    models = tuple(replace(model, heads="labels", averaging="probabilities") for model in manifest.models)
    stated = render_manifest(replace(manifest, models=models, decision="argmax"))
    found = parse_manifest(json.loads(stated))
    assert (found.decision, {model.averaging for model in found.models}) == ("argmax", {"probabilities"})


@pytest.mark.parametrize(
    ("path", "new", "complaint"),
    [
        ("schema", "1", 'schema: found "1", expected a whole number'),
        ("schema", 0, "schema: found 0, expected 1"),
        ("schema", SCHEMA + 1, "newer version"),
        ("name", "../elsewhere", 'name: found "../elsewhere"'),
        ("version", "", 'version: found ""'),
        ("created", "yesterday", 'created: found "yesterday", expected a date'),
        ("created", "2025-01-01T00:00:00", "time zone"),
        ("intended_use", "  ", "intended_use"),
        ("licence", ..., "licence: found nothing, expected a text"),
        ("orientation", "LAS", 'orientation: found "LAS", expected one of RAS, LPS'),
        ("axes", "xyz", 'axes: found "xyz", expected "zyx"'),
        ("sequences", ["t1c", "t1n", "t2w", "t2f"], "sequences: found"),
        ("labels_from_regions/labels", [1, 2, 3], "labels_from_regions: found"),
        ("provenance/data_sets/0/cases", -1, "provenance.data_sets[0].cases: found -1"),
        ("provenance/data_sets/0/extra", 1, "provenance.data_sets[0].extra: found an unknown key"),
        ("provenance/config", [], "provenance.config: found [], expected an object"),
        ("provenance/libraries/torch", 2, "provenance.libraries.torch: found 2"),
        ("provenance/ancestry", "me", "provenance.ancestry"),
        ("models", [], "models: found []"),
        ("models", {}, "models: found {}, expected a list"),
        ("models/0", 7, "models[0]: found 7, expected an object"),
        ("models/0/name", "..", 'models[0].name: found ".."'),
        ("models/1/name", "nnunet", "models of different names"),
        ("models/0/architecture", "os.system", "models[0].architecture: found"),
        ("models/0/heads", "sigmoids", "models[0].heads: found"),
        ("models/0/format", "pickle", 'models[0].format: found "pickle", expected one of safetensors, openvino'),
        ("models/0/averaging", "votes", "models[0].averaging: found"),
        ("decision", "votes", 'decision: found "votes", expected one of regions, argmax'),
        ("decision", "argmax", "not all models have label heads"),
        ("models/0/folds", [0, 0], "models[0].folds: found [0, 0], expected a list of different"),
        ("models/0/folds", [], "models[0].folds"),
        ("models/0/folds", [True], "models[0].folds"),
        ("models/0/weight", 0, "models[0].weight: found 0, expected a number above 0"),
        ("models/0/weight", -0.5, "models[0].weight: found -0.5"),
        ("models/0/weight", 0.9, "weights that add up to 1"),
        ("models/0/folds", [0, 1, 2], "files.nnunet/fold_2.safetensors: found nothing"),
        ("files/thresholds.json", ..., "files.thresholds.json: found nothing"),
        ("files/../../passwd", {"sha256": "0" * 64, "size": 1}, "files."),
        ("files/subtypes.json", {"sha256": "0" * 64, "size": 1}, "files.subtypes.safetensors: found nothing"),
        ("files/thresholds.json", {"sha256": "0", "size": 1}, "files.thresholds.json.sha256"),
        ("files/thresholds.json", {"sha256": "0" * 64, "size": "1"}, "files.thresholds.json.size"),
        ("scores", None, "scores: found nothing"),
        ("surprise", 1, "surprise: found an unknown key"),
    ],
)
def test_a_wrong_key_is_named(value: Json, path: str, new: object, complaint: str) -> None:
    if path.startswith("files/.."):
        value["files"]["../../passwd"] = new
    else:
        value = changed(value, path, new)
    with pytest.raises(BundleError) as caught:
        parse_manifest(value)
    assert complaint in str(caught.value)
    assert str(caught.value).startswith(MANIFEST)
    assert "\n" not in str(caught.value)


def test_every_flipped_byte_is_seen(bundle: Path) -> None:
    path = bundle / MANIFEST
    raw = path.read_bytes()
    for position in range(0, len(raw), 7):
        for flip in (0x01, 0x20, 0xFF):
            path.write_bytes(raw[:position] + bytes([raw[position] ^ flip]) + raw[position + 1 :])
            with pytest.raises(BundleError):
                read_manifest(bundle)


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "the whole file: found [1], expected an object"),
        (b'{"schema": 1, "schema": 1}', "schema: found twice"),
        (b'{"schema": NaN}', "NaN"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"schema": 1}', "seal: found nothing"),
        (b'{"schema": 2, "seal": 5}', "newer version"),
        (b'{"schema": 1' + b"0" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, raw: bytes, complaint: str) -> None:
    (tmp_path / MANIFEST).write_bytes(raw)
    with pytest.raises(BundleError, match=MANIFEST) as caught:
        read_manifest(tmp_path)
    assert complaint in str(caught.value)


def test_no_bundle_is_said(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="is missing"):
        read_manifest(tmp_path)
