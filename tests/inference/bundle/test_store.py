"""A bundle on disk: what is written comes back, and what is off is refused by name."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from inference.bundle.manifest import MANIFEST, ModelEntry, read_manifest, render_manifest
from inference.bundle.store import Model, load_bundle, read_tensors
from inference.bundle.tables import Thresholds, ThresholdTables
from inference.bundle.writing import file_entries, write_bundle
from inference.errors import BundleError
from tests.inference.tiny import UNET, describe, plans, random_subtypes

Models = tuple[Model, ...]

NONE = Thresholds({"NCR": 0.0, "ED": 0.0, "ET": 0.0}, 0.0)
SOME = Thresholds({"NCR": 25.0, "ED": 0.0, "ET": 50.0}, 0.05)


@pytest.fixture
def bundle(tmp_path: Path, plain_models: Models) -> Path:
    contents = describe(
        plain_models,
        subtypes=random_subtypes(),
        fold_subtypes=random_subtypes(),
        thresholds=ThresholdTables((0.5, 0.6, 0.7), NONE, {0: NONE, 1: SOME}, "subtypes", 0.9),
        texts={"LICENSE": "none"},
    )
    return write_bundle(tmp_path / "bundle", contents).path


def reseal(bundle: Path) -> None:
    """List the bundle's files anew, so that only their contents can be refused."""
    manifest, _ = read_manifest(bundle)
    (bundle / MANIFEST).rename(bundle.parent / MANIFEST)
    files = file_entries(bundle)
    (bundle / MANIFEST).write_bytes(render_manifest(replace(manifest, files=files)))


def test_what_is_written_comes_back(bundle: Path, plain_models: Models) -> None:
    loaded = load_bundle(bundle)
    assert loaded.thresholds.regions == (0.5, 0.6, 0.7)
    assert loaded.thresholds.subtypes[1] == SOME
    assert loaded.thresholds.use == "subtypes"
    assert loaded.thresholds.confidence == 0.9
    assert [model.name for model in loaded.models] == ["nnunet", "mednext"]
    for model, new in zip(loaded.models, plain_models, strict=True):
        assert model.plans == new.plans
        assert model.architecture == new.plans["configurations"]["3d_fullres"]["architecture"]
        for fold in model.folds:
            np.testing.assert_array_equal(model.tensors(fold)["weight"], new.networks[fold]["weight"])
            assert model.network_file(fold) == bundle / model.name / f"fold_{fold}.safetensors"
    assert loaded.subtypes is not None
    for name, array in random_subtypes().arrays.items():
        np.testing.assert_array_equal(loaded.subtypes.arrays[name], array)
    with pytest.raises(BundleError, match="no fold 7"):
        loaded.models[0].network_file(7)


def test_bundles_from_before_lesions_in_doubt_leave_none_out(
    bundle: Path, tmp_path: Path, plain_models: Models
) -> None:
    json_edit("thresholds.json", lambda value: value.pop("confidence"))(bundle)
    reseal(bundle)
    assert load_bundle(bundle).thresholds.confidence == 0
    # Nor does a bundle without the rule name it, so that programs from before it can read it.
    plain = write_bundle(tmp_path / "plain", describe(plain_models))
    assert "confidence" not in json.loads((plain.path / "thresholds.json").read_text())


def test_half_precision_is_read_as_float32_and_has_to_be_accounted_for(tmp_path: Path, plain_models: Models) -> None:
    weights = {"weight": np.linspace(-1, 1, 6, dtype=np.float16).reshape(2, 3)}
    models = tuple(replace(model, networks=dict.fromkeys(model.entry.folds, weights)) for model in plain_models)
    with pytest.raises(BundleError, match="half_precision"):
        write_bundle(tmp_path / "half", describe(models))
    bundle = write_bundle(tmp_path / "half", describe(models, scores={"half_precision": {"dice": 1.0}}))
    tensor = bundle.models[0].tensors(0)["weight"]
    assert tensor.dtype == np.float32
    np.testing.assert_array_equal(tensor, weights["weight"].astype(np.float32))


def test_a_transposed_array_is_stored_as_it_reads(tmp_path: Path, plain_models: Models) -> None:
    weights = {"weight": np.arange(6, dtype=np.float32).reshape(3, 2).T}
    models = tuple(replace(model, networks=dict.fromkeys(model.entry.folds, weights)) for model in plain_models)
    bundle = write_bundle(tmp_path / "bundle", describe(models))
    np.testing.assert_array_equal(bundle.models[0].tensors(0)["weight"], weights["weight"])


def test_a_type_that_numpy_lacks_is_named(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}).encode()
    path = tmp_path / "bf16.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(BundleError, match=r"bf16: found tensors of type BF16, expected float16, float32 or float64"):
        read_tensors(path, "bf16")


def test_openvino_networks_are_pairs_of_files(tmp_path: Path) -> None:
    (tmp_path / "net.xml").write_text("<net/>")
    (tmp_path / "net.bin").write_bytes(b"\0\1")
    entry = ModelEntry("nnunet", "PlainConvUNet", "regions", "openvino", (0,), 1.0)
    model = Model(entry, plans(UNET), {0: tmp_path / "net.xml"})
    bundle = write_bundle(tmp_path / "bundle", describe((model,)))
    assert bundle.models[0].network_file(0).read_text() == "<net/>"
    assert bundle.models[0].network_file(0).with_suffix(".bin").read_bytes() == b"\0\1"
    with pytest.raises(BundleError, match="stored as openvino"):
        bundle.models[0].tensors(0)


def test_a_flipped_byte_in_any_file_is_refused_by_name(bundle: Path) -> None:
    files = [path for path in bundle.rglob("*") if path.is_file()]
    assert len(files) == 14
    for path in files:
        raw = path.read_bytes()
        for position in (0, len(raw) // 2, len(raw) - 1):
            path.write_bytes(raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :])
            with pytest.raises(BundleError, match=re.escape(path.relative_to(bundle).as_posix())):
                load_bundle(bundle)
        path.write_bytes(raw)
    load_bundle(bundle)


def truncate(bundle: Path) -> None:
    path = bundle / "mednext/fold_1.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def link_file(bundle: Path) -> None:
    path = bundle / "folds.json"
    path.rename(bundle.parent / "folds.json")
    path.symlink_to(bundle.parent / "folds.json")


def link_folder(bundle: Path) -> None:
    path = bundle / "nnunet"
    path.rename(bundle.parent / "nnunet")
    path.symlink_to(bundle.parent / "nnunet")


def add_pickle(bundle: Path) -> None:
    (bundle / "nnunet/extra.pkl").write_bytes(pickle.dumps([1]))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (truncate, r"mednext/fold_1\.safetensors: found \d+ bytes, expected \d+"),
        (lambda bundle: (bundle / "thresholds.json").unlink(), r"thresholds\.json: missing"),
        (lambda bundle: (bundle / "mednext/plans.json").unlink(), r"mednext/plans\.json: missing"),
        (add_pickle, r"nnunet/extra\.pkl: found a file that manifest\.json does not list"),
        (link_file, r"folds\.json: found a symbolic link"),
        (link_folder, r"nnunet: found a symbolic link"),
        (lambda bundle: os.mkfifo(bundle / "pipe"), r"pipe: found neither file nor folder"),
        (lambda bundle: (bundle / MANIFEST).unlink(), r"manifest\.json is missing"),
    ],
)
def test_a_damaged_folder_is_refused_by_name(bundle: Path, damage: Callable[[Path], object], complaint: str) -> None:
    damage(bundle)
    with pytest.raises(BundleError, match=complaint) as caught:
        load_bundle(bundle)
    assert "\n" not in str(caught.value)


def json_edit(file: str, edit: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def damage(bundle: Path) -> None:
        value = json.loads((bundle / file).read_text())
        edit(value)
        (bundle / file).write_text(json.dumps(value))

    return damage


def pickled_weights(bundle: Path) -> None:
    (bundle / "subtypes.safetensors").write_bytes(pickle.dumps({"a": 1}))


def short_array(bundle: Path) -> None:
    arrays = dict(random_subtypes().arrays, centroids=np.zeros((3, 2)))
    (bundle / "subtypes.safetensors").write_bytes(save(arrays))


def not_finite(bundle: Path) -> None:
    arrays = dict(random_subtypes().arrays, pca_mean=np.full(3, np.nan))
    (bundle / "subtypes.safetensors").write_bytes(save(arrays))


def whole_numbers(bundle: Path) -> None:
    (bundle / "fold_subtypes.safetensors").write_bytes(save({"mean": np.arange(3)}))


def evil_class(plans: dict[str, object]) -> None:
    plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "os.system"


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (json_edit("thresholds.json", lambda v: v["regions"].update(WT=2)), r"thresholds\.json: regions\.WT: found 2"),
        (json_edit("thresholds.json", lambda v: v.update(confidence=2)), r"thresholds\.json: confidence: found 2"),
        (json_edit("thresholds.json", lambda v: v["regions"].pop("ET")), r"regions\.ET: found nothing"),
        (json_edit("thresholds.json", lambda v: v.update(use="both")), r'use: found "both", expected one of global'),
        (json_edit("thresholds.json", lambda v: v["subtypes"].pop("1")), r"subtypes: found \[\"0\"\]"),
        (json_edit("thresholds.json", lambda v: v.update(subtypes={})), r"use: found \"subtypes\", expected global"),
        (json_edit("thresholds.json", lambda v: v["global"].update(et_wt_ratio=-1)), r"global\.et_wt_ratio: found -1"),
        (json_edit("thresholds.json", lambda v: v["global"].update(more=1)), r"global\.more: found an unknown key"),
        (json_edit("subtypes.json", lambda v: v.update(features=["a", "a", "c"])), r"subtypes\.json: features"),
        (json_edit("subtypes.json", lambda v: v.update(features=["a", "b"])), r"subtypes\.safetensors: pca_mean"),
        (json_edit("subtypes.json", lambda v: v.update(scaling="none")), r"subtypes\.safetensors: its arrays"),
        (json_edit("nnunet/plans.json", lambda v: v.clear()), r"nnunet/plans\.json: configurations: found nothing"),
        (
            json_edit("nnunet/plans.json", evil_class),
            r"network_class_name: found \"os\.system\", expected PlainConvUNet",
        ),
        (pickled_weights, r"subtypes\.safetensors: not a readable safetensors file"),
        (short_array, r"subtypes\.safetensors: centroids: found \[3, 2\], expected shape \[2, 2\]"),
        (not_finite, r"subtypes\.safetensors: pca_mean: found numbers that are not finite"),
        (whole_numbers, r"fold_subtypes\.safetensors: mean: found \"int64\""),
    ],
)
def test_contents_that_do_not_fit_are_refused_by_name(
    bundle: Path, damage: Callable[[Path], None], complaint: str
) -> None:
    damage(bundle)
    reseal(bundle)
    with pytest.raises(BundleError, match=complaint) as caught:
        load_bundle(bundle)
    assert "\n" not in str(caught.value)


def test_writing_replaces_a_bundle_whole_or_not_at_all(bundle: Path, plain_models: Models) -> None:
    before = load_bundle(bundle).digest
    with pytest.raises(BundleError, match="weights that add up to 1"):
        write_bundle(bundle, describe(plain_models[:1]))
    assert load_bundle(bundle).digest == before
    assert write_bundle(bundle, describe(plain_models, version="2")).manifest.version == "2"
    assert not (bundle / "subtypes.json").exists()
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_a_folder_that_is_no_bundle_is_not_replaced(tmp_path: Path, plain_models: Models) -> None:
    (tmp_path / "precious.txt").write_text("keep")
    with pytest.raises(BundleError, match="no bundle"):
        write_bundle(tmp_path, describe(plain_models))
    (tmp_path / "manifest.json").write_text("{}")  # somebody else's
    with pytest.raises(BundleError, match="no bundle"):
        write_bundle(tmp_path, describe(plain_models))
    assert (tmp_path / "precious.txt").read_text() == "keep"


def test_an_interrupted_replacement_leaves_the_old_bundle(
    bundle: Path, plain_models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_bundle(bundle).digest
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(bundle, describe(plain_models, version="2"))
    assert load_bundle(bundle).digest == before
