"""Cases and nnU-Net's raw data sets."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from inference.errors import CaseError, SeveralErrors, UsageError
from training.config import DatasetConfig, SourceConfig
from training.config_file import load_config
from training.data.datasets import (
    dataset_description,
    follow_changes,
    labels_of,
    list_cases,
    load_case,
    patient_of,
    read_cases,
    with_contents,
    write_dataset,
    write_json,
)
from training.data.phantoms import make_phantom, write_phantom
from training.data.stratify import reference_features

SMOKE = Path(__file__).resolve().parents[3] / "training" / "configs" / "smoke.yaml"
SHAPE = (48, 56, 40)


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(5, SHAPE)


@pytest.fixture
def config(tmp_path, phantom):
    """Two real cases, stored otherwise, of one patient, and a phantom."""
    folder = tmp_path / "cases"
    write_phantom(folder, "BraTS-SSA-00001-000", phantom, "RAS", with_labels=True)
    write_phantom(folder, "BraTS-SSA-00001-001", phantom, "LPS", with_labels=True)
    sources = (SourceConfig("real", folder=str(folder)), SourceConfig("phantom", phantoms=1, size=SHAPE))
    dataset = DatasetConfig(("real", "phantom"))
    return replace(load_config(SMOKE), sources=sources, pretraining=dataset, finetuning=dataset)


@pytest.mark.parametrize(
    ("case", "patient"),
    [
        ("BraTS-GLI-00012-001", "BraTS-GLI-00012"),
        ("BraTS-SSA-00012-000", "BraTS-SSA-00012"),
        ("P-00001-001", "P-00001"),
        ("BraTS2021_01477", "BraTS2021_01477"),
        ("TCGA-DU-7294", "TCGA-DU-7294"),
    ],
)
def test_time_points_share_their_patient(case, patient):
    assert patient_of(case) == patient


def test_phantoms_always_train(config):
    entries = {entry.id: entry for entry in list_cases(config)}
    assert not entries["phantom-00000-000"].in_folds
    assert entries["BraTS-SSA-00001-000"].in_folds
    assert entries["BraTS-SSA-00001-001"].patient == "BraTS-SSA-00001"


def test_orientation_of_the_files_does_not_matter(config):
    first, second, _ = list_cases(config)
    one, two = (load_case(entry, config) for entry in (first, second))
    assert np.array_equal(one[1], two[1])
    assert np.allclose(one[0], two[0])


def test_a_source_names_patients_and_may_always_train(config):
    source = replace(config.sources[0], patients={"BraTS-SSA-00001-001": "somebody"}, in_folds=False)
    entries = {entry.id: entry for entry in list_cases(replace(config, sources=(source, config.sources[1])))}
    assert entries["BraTS-SSA-00001-001"].patient == "somebody"
    assert entries["BraTS-SSA-00001-000"].patient == "BraTS-SSA-00001"
    assert not any(entry.in_folds for entry in entries.values())


def test_patients_of_cases_that_are_not_there_are_refused(config):
    source = replace(config.sources[0], patients={"BraTS-SSA-00009-000": "somebody"})
    with pytest.raises(UsageError, match="patients names BraTS-SSA-00009-000"):
        list_cases(replace(config, sources=(source,)))


def test_the_raw_data_set_is_what_nnunet_expects(config, tmp_path):
    folder = write_dataset(config, "finetuning", list_cases(config), tmp_path / "raw")
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (folder / "labelsTr").iterdir())
    assert cases == ["BraTS-SSA-00001-000", "BraTS-SSA-00001-001", "phantom-00000-000"]
    for case in cases:
        for channel in range(4):
            assert nibabel.load(folder / "imagesTr" / f"{case}_{channel:04d}.nii.gz").shape == SHAPE
    description = json.loads((folder / "dataset.json").read_text())
    assert description["numTraining"] == 3
    assert list(description["channel_names"].values()) == ["t1n", "t1c", "t2w", "t2f"]


def test_heads_are_in_the_order_of_the_regions():
    assert list(dataset_description(1)["labels"]) == ["background", "WT", "TC", "ET"]


def test_a_case_without_labels_is_named(config):
    folder = Path(config.source("real").folder) / "BraTS-SSA-00001-001"
    (folder / "BraTS-SSA-00001-001-seg.nii.gz").unlink()
    with pytest.raises(UsageError, match="BraTS-SSA-00001-001: no label map"):
        list_cases(config)


@pytest.mark.parametrize(
    ("zoom", "words"),
    [
        ((1, 1, 3), "voxels of 1 × 1 × 3 mm, expected 1 × 1 × 1 mm"),
        ((1, 1, 1), "labels up to 5 mm from the scan"),
        (None, "labels of .* voxels, expected .* as the scan has"),
    ],
)
def test_a_grid_that_nothing_here_expects_is_named(config, zoom, words):
    folder = Path(config.source("real").folder) / "BraTS-SSA-00001-001"
    for path in folder.iterdir():
        image = nibabel.load(path)
        if zoom == (1, 1, 1) and "-seg" in path.name:
            affine = image.affine.copy()
            affine[2, 3] += 5
            image = nibabel.Nifti1Image(np.asarray(image.dataobj), affine)
        elif zoom:
            image = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine @ np.diag((*zoom, 1)))
        elif "-seg" in path.name:
            image = nibabel.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine)
        nibabel.save(image, path)
    entry = next(entry for entry in list_cases(config) if entry.id == "BraTS-SSA-00001-001")
    with pytest.raises(UsageError, match=f"^BraTS-SSA-00001-001: found {words}"):
        load_case(entry, config)


def test_labels_are_found_under_every_name(tmp_path):
    for ending in ("-seg.nii.gz", "_seg.nii", ".nii.gz"):
        path = tmp_path / f"x{ending}"
        path.touch()
        assert labels_of("x", tmp_path) == path
        path.unlink()


def test_an_id_in_two_sources_is_refused(config):
    twice = replace(config, sources=(*config.sources, replace(config.sources[0], name="again")))
    with pytest.raises(UsageError, match="more than one source: BraTS-SSA-00001-000"):
        list_cases(twice)


FIRST, SECOND = "BraTS-SSA-00001-000", "BraTS-SSA-00001-001"


def scan(config, case, name="t1c"):
    return Path(config.source("real").folder) / case / f"{case}-{name}.nii.gz"


def correct(config, case):
    """Other labels of the same size, written at the same second."""
    path = scan(config, case, "seg")
    before, image = path.stat(), nibabel.load(path)
    labels = np.asarray(image.dataobj).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(np.where(labels == 1, 2, labels).astype(np.uint8), image.affine), path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("jobs", [1, 2])
def test_bad_cases_are_all_named_and_the_others_written(config, tmp_path, jobs):
    entries = list_cases(config)
    scan(config, FIRST).write_bytes(b"")
    scan(config, SECOND, "seg").write_bytes(b"<html>")
    with pytest.raises(SeveralErrors) as caught:
        write_dataset(config, "finetuning", entries, tmp_path / "raw", jobs=jobs)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{FIRST}: {FIRST}-t1c.nii.gz: empty (found 0 bytes")
    assert second.startswith(f"{SECOND}: {SECOND}-seg.nii.gz: not a NIfTI file (found")
    labels = tmp_path / "raw" / "Dataset002_finetuning" / "labelsTr"
    assert [path.name for path in labels.iterdir()] == ["phantom-00000-000.nii.gz"]


def test_a_bad_case_is_named_when_tumours_are_described(config):
    entries = list_cases(config)
    scan(config, SECOND).write_bytes(b"")
    with pytest.raises(CaseError, match=f"^{SECOND}: {SECOND}-t1c.nii.gz: empty"):
        reference_features(config, [entry for entry in entries if entry.in_folds], jobs=2)


def test_everything_that_keeps_cases_from_being_listed_is_told(config):
    scan(config, FIRST).unlink()
    scan(config, SECOND, "seg").unlink()
    with pytest.raises(SeveralErrors) as caught:
        list_cases(config)
    first, second = str(caught.value).splitlines()
    assert f"{FIRST}: missing t1c" in first
    assert f"{SECOND}: no label map" in second


def test_a_case_is_made_anew_when_its_scans_or_labels_have_changed(config, tmp_path, caplog):
    folder = write_dataset(config, "finetuning", list_cases(config), tmp_path)
    paths = sorted(folder.glob("*Tr/*"))
    kept = {path: path.stat().st_mtime_ns for path in paths}
    write_dataset(config, "finetuning", list_cases(config), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in paths} == kept
    assert not caplog.messages

    correct(config, FIRST)
    write_dataset(config, "finetuning", list_cases(config), tmp_path)
    assert caplog.messages == [f"finetuning: {FIRST}: made anew, since its scans or labels have changed"]
    written = np.asarray(nibabel.load(folder / "labelsTr" / f"{FIRST}.nii.gz").dataobj)
    assert (written == 2).any()
    assert not (written == 1).any()
    changed = {path.name[: len(FIRST)] for path in paths if path.stat().st_mtime_ns != kept[path]}
    assert changed == {FIRST}

    (folder / "imagesTr" / f"{SECOND}_0002.nii.gz").unlink()
    (folder / "labelsTr" / "phantom-00000-000.nii.gz").write_bytes(b"broken")
    write_dataset(config, "finetuning", list_cases(config), tmp_path)
    assert sorted(folder.glob("*Tr/*")) == paths
    assert len(caplog.messages) == 3


def test_a_case_that_the_stage_no_longer_has_is_removed(config, tmp_path, caplog):
    folder = write_dataset(config, "finetuning", list_cases(config), tmp_path)
    write_dataset(config, "finetuning", list_cases(config)[1:], tmp_path)
    left = [path.name for path in folder.glob("*Tr/*")]
    assert len(left) == 2 * 5
    assert not any(name.startswith(FIRST) for name in left)
    assert f"{FIRST}: removed from" in caplog.text


def test_a_run_follows_what_its_cases_have_become(config, tmp_path, caplog):
    path = tmp_path / "cases.json"
    follow_changes(config, path)
    assert not path.exists()
    write_json(list_cases(config), path)  # as before contents were recorded
    os.utime(path, ns=(1, 1))
    follow_changes(config, path)
    assert all(entry.made_from for entry in read_cases(path))
    assert read_cases(path) == with_contents(list_cases(config), config)
    assert path.stat().st_mtime_ns == 1
    assert not caplog.messages

    correct(config, SECOND)
    follow_changes(config, path)
    assert caplog.messages == [f"{SECOND}: changed since the run began; what comes of it is made anew"]
    assert path.stat().st_mtime_ns > 1
    assert read_cases(path) == with_contents(list_cases(config), config)


def test_cases_that_came_are_told_and_those_that_went_are_refused(config, tmp_path, caplog):
    path = tmp_path / "cases.json"
    write_json(with_contents(list_cases(config)[1:], config), path)
    follow_changes(config, path)
    assert f"{FIRST}: added since the run began" in caplog.text
    for file in scan(config, SECOND).parent.iterdir():
        file.unlink()
    scan(config, SECOND).parent.rmdir()
    with pytest.raises(UsageError, match=f"^{SECOND}: in no source any more"):
        follow_changes(config, path)
