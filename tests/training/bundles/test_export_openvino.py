"""Bundles of OpenVINO IR: what they carry over, what they run without, and what is refused."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from inference.bundle.manifest import MANIFEST, ModelEntry, read_manifest, render_manifest
from inference.bundle.store import Model, load_bundle
from inference.bundle.tables import Thresholds, ThresholdTables
from inference.bundle.writing import contents_of, file_entries, write_bundle
from inference.cli import main as inference
from inference.errors import BundleError
from inference.predict.networks import build_network, deployed_weights
from tests.inference.predict.networks.test_networks import RESIDUAL
from tests.inference.tiny import describe, plans, random_subtypes
from training.cli import main as training

ROOT = Path(__file__).resolve().parents[3]
ABSENT = ("torch", "nnunetv2", "dynamic_network_architectures", "monai", "batchgenerators", "sklearn", "training")
"""What a CPU does without."""


@pytest.fixture(scope="module")
def exported(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("exported") / "tiny"
    assert training(["export-openvino", "--bundle", str(tiny_bundle), "--output", str(target)]) == 0
    return target


@pytest.fixture
def altered(exported: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(exported, tmp_path / "altered"))


def reseal(bundle: Path) -> None:
    """List the files anew: what a hostile author of a bundle would do."""
    manifest, _ = read_manifest(bundle)
    (bundle / MANIFEST).rename(bundle.parent / MANIFEST)
    files = file_entries(bundle)
    (bundle / MANIFEST).write_bytes(render_manifest(replace(manifest, files=files)))


def segment_without_torch(bundle: Path, cases: Path, output: Path) -> dict[str, np.ndarray]:
    """Label maps of a process in which importing torch, or anything of training, fails."""
    blocker = output.parent / "blocker"
    blocker.mkdir(parents=True, exist_ok=True)
    (blocker / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "real = PathFinder.find_spec\n"
        "def find_spec(cls, name, path=None, target=None):\n"
        f"    return None if name.partition('.')[0] in {ABSENT!r} else real(name, path, target)\n"
        "PathFinder.find_spec = classmethod(find_spec)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{blocker}:{ROOT}"}
    proof = subprocess.run([sys.executable, "-c", "import torch"], env=environment, capture_output=True, check=False)
    assert b"No module named 'torch'" in proof.stderr
    command = [sys.executable, "-m", "inference", "infer", "--bundle", bundle, "--data_path", cases]
    ran = subprocess.run(
        [*map(str, command), "--output_path", str(output)],
        env=environment, cwd=output.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "openvino" in ran.stderr
    return {path.name: np.asarray(nibabel.load(path).dataobj) for path in sorted(output.iterdir())}


def test_a_cpu_without_torch_runs_tensors_and_ir_alike(
    tiny_bundle: Path, exported: Path, phantom_folder: Path, tmp_path: Path
) -> None:
    tensors = segment_without_torch(tiny_bundle, phantom_folder, tmp_path / "tensors")
    stored = segment_without_torch(exported, phantom_folder, tmp_path / "stored")
    assert len(tensors) == 3
    for name, labels in tensors.items():
        assert 0 < np.count_nonzero(labels) < labels.size
        np.testing.assert_array_equal(stored[name], labels)


def test_all_but_the_networks_is_carried_over(tiny_bundle: Path, tmp_path: Path) -> None:
    none, some = (
        Thresholds({"NCR": 0.0, "ED": 0.0, "ET": 0.0}, 0.0),
        Thresholds({"NCR": 25.0, "ED": 0.5, "ET": 50.0}, 0.05),
    )
    full = replace(
        contents_of(load_bundle(tiny_bundle)),
        subtypes=random_subtypes(),
        fold_subtypes=replace(random_subtypes(), scaling="l2", arrays={
            name: array for name, array in random_subtypes().arrays.items() if name not in ("mean", "scale")
        }),
        thresholds=ThresholdTables((0.5, 0.6, 0.7), none, {0: none, 1: some}, "subtypes"),
        texts={"LICENSE": "none", "MODEL_CARD.md": "# Tiny\n"},
        orientation="LPS",
    )  # fmt: skip
    source = write_bundle(tmp_path / "full", full)
    assert training(["export-openvino", "--bundle", str(source.path), "--output", str(tmp_path / "ir")]) == 0
    bundle = load_bundle(tmp_path / "ir")
    before, after = source.manifest, bundle.manifest
    assert [model.format for model in after.models] == ["openvino"] * 2
    assert tuple(replace(model, format="safetensors") for model in after.models) == before.models
    assert after.provenance.ancestry == (f"tiny 0.0.1 sha256 {source.digest}",)
    assert set(after.provenance.libraries) == {"torch", "openvino"}
    provenance = replace(after.provenance, ancestry=(), libraries=before.provenance.libraries)
    files = {name: entry for name, entry in after.files.items() if "fold_" not in name or "/" not in name}
    assert files.items() <= before.files.items(), "byte for byte"
    assert replace(
        after, created=before.created, models=before.models, files=before.files, provenance=provenance
    ) == before  # fmt: skip
    assert bundle.thresholds == source.thresholds
    assert len(after.files) == len(before.files) + 4


def test_half_precision_weights_take_half_the_space_and_stay_what_they_are(tiny_bundle: Path, tmp_path: Path) -> None:
    contents = contents_of(load_bundle(tiny_bundle))
    rounded = tuple(
        replace(model, networks={
            fold: {name: array.astype(np.float16) for name, array in model.tensors(fold).items()}
            for fold in model.folds
        })
        for model in contents.models
    )  # fmt: skip
    half = write_bundle(tmp_path / "half", replace(contents, models=rounded, scores={"half_precision": {}}))
    sizes = []
    for name, source in (("a", tiny_bundle), ("b", half.path)):
        assert training(["export-openvino", "--bundle", str(source), "--output", str(tmp_path / name)]) == 0
        sizes.append((tmp_path / name / "nnunet" / "fold_0.bin").stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]


@pytest.mark.parametrize("name", ["nnunet/fold_0.xml", "mednext/fold_1.bin"])
def test_an_altered_network_is_refused_by_name(altered: Path, name: str) -> None:
    raw = bytearray((altered / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (altered / name).write_bytes(raw)
    with pytest.raises(BundleError, match=re.escape(name)):
        load_bundle(altered)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('type="MVN"', 'type="NonZero"', "nnunet, fold 0: fold_0.xml"),
        ('version="opset6"', 'version="opset99"', "nnunet, fold 0: fold_0.xml cannot be read by OpenVINO"),
        ('<net name="PlainConvUNet" version="11">', '<net name="PlainConvUNet" version="12">', "cannot be read by"),
        ('type="Add"', 'type="Maximum"', "found the operations Maximum, which are in no network here"),
        ("<net", '<!DOCTYPE net [<!ENTITY a SYSTEM "file:///etc/passwd">]><net &a;', "cannot be read by OpenVINO"),
        ('offset="0"', 'offset="999999999999"', "cannot be read by OpenVINO"),
        ('size="', 'size="99', "cannot be read by OpenVINO"),
    ],
)
def test_a_foreign_network_is_refused_in_one_line(
    altered: Path, old: str, new: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = altered / "nnunet" / "fold_0.xml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    reseal(altered)
    assert inference(["check", "--bundle", str(altered)]) == 2
    line = capsys.readouterr().err.strip()
    assert complaint in line
    assert "\n" not in line


def test_a_network_of_other_heads_is_refused(altered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest, _ = read_manifest(altered)
    models = tuple(replace(model, heads="labels") for model in manifest.models)
    (altered / MANIFEST).write_bytes(render_manifest(replace(manifest, models=models)))
    assert inference(["check", "--bundle", str(altered)]) == 2
    assert "found input and output" in capsys.readouterr().err


def test_torch_says_that_it_cannot_run_ir(
    exported: Path, phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["infer", "--bundle", str(exported), "--data_path", str(phantom_folder), "--engine", "torch"]
    assert inference([*words, "--output_path", str(tmp_path / "out")]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert "stored for OpenVINO" in errors[0]
    assert "--engine openvino" in errors[0]


def test_what_cannot_be_exported_is_said_in_one_line(
    tiny_bundle: Path, exported: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def export(source: Path, target: Path) -> str:
        caplog.clear()
        assert training(["export-openvino", "--bundle", str(source), "--output", str(target)]) == 2
        assert "\n" not in caplog.messages[-1]
        return caplog.messages[-1]

    assert "OpenVINO's format already" in export(exported, tmp_path / "twice")
    assert "the bundle itself" in export(tiny_bundle, tiny_bundle)
    assert "no bundle here" in export(tmp_path, tmp_path / "nothing")
    network = build_network(RESIDUAL, 4, 3)
    entry = ModelEntry("nnunet", "ResidualEncoderUNet", "regions", "safetensors", (0,), 1.0)
    model = Model(entry, plans(RESIDUAL), {0: deployed_weights(network, network.state_dict())})
    write_bundle(tmp_path / "residual", describe((model,)))
    assert "runs on torch alone" in export(tmp_path / "residual", tmp_path / "never")
    assert not (tmp_path / "never").exists()
