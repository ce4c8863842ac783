"""Cases and nnU-Net's raw data sets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from inference.errors import UsageError
from training.config import DatasetConfig, SourceConfig, load_config
from training.data.datasets import (
    dataset_description,
    labels_of,
    list_cases,
    load_case,
    patient_of,
    write_dataset,
)
from training.data.phantoms import make_phantom, write_phantom

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
