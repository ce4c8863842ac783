"""The Python interface gives what the command line gives, whatever a sequence comes as."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from inference import Segmenter
from inference.errors import BundleError, CaseError, UsageError
from inference.intake.cases import find_cases
from inference.labels import SEQUENCES


@pytest.fixture(scope="module")
def segmenter(tiny_bundle: Path) -> Segmenter:
    return Segmenter.load(tiny_bundle, engine="torch", device="cpu", threads=1)


@pytest.fixture
def files(phantom_folder: Path) -> dict[str, Path]:
    return dict(find_cases(phantom_folder).cases[1].paths)


def test_paths_images_and_arrays_give_the_same(segmenter: Segmenter, files: dict[str, Path], tmp_path: Path) -> None:
    images = {name: nib.load(path) for name, path in files.items()}
    arrays = {name: (np.asarray(image.dataobj), image.affine) for name, image in images.items()}
    by_path = segmenter.segment(**files)
    assert by_path.labels.any()
    assert by_path.labels.shape == images["t1n"].shape
    assert by_path.record.status == "ok"
    np.testing.assert_array_equal(by_path.affine, images["t1n"].affine)
    np.testing.assert_array_equal(by_path.image.affine, images["t1n"].affine)
    for given in (images, arrays, {name: str(path) for name, path in files.items()}):
        result = segmenter.segment(**given)
        np.testing.assert_array_equal(result.labels, by_path.labels)
        np.testing.assert_allclose(result.affine, by_path.affine)
    by_path.save(tmp_path / "labels.nii.gz")
    saved = nib.load(tmp_path / "labels.nii.gz")
    np.testing.assert_array_equal(np.asarray(saved.dataobj), by_path.labels)
    assert saved.get_data_dtype() == np.uint8
    assert saved.header["qform_code"] == images["t1n"].header["qform_code"]


def test_what_is_no_sequence_is_refused(segmenter: Segmenter, files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="t1c: an array needs its affine"):
        segmenter.segment(**(files | {"t1c": np.zeros((32, 40, 32))}))
    with pytest.raises(UsageError, match="t2f: expected a pair"):
        segmenter.segment(**(files | {"t2f": (np.zeros((32, 40, 32)), np.eye(3))}))
    (tmp_path / "broken.nii.gz").write_bytes(b"x")
    with pytest.raises(CaseError, match=r"patient: .*broken"):
        segmenter.segment(**(files | {"t2w": tmp_path / "broken.nii.gz"}), case="patient")
    with pytest.raises(TypeError):
        segmenter.segment(**{name: files[name] for name in SEQUENCES[1:]})


@pytest.mark.parametrize("name", ["../../victim", "/tmp/absolute", "Doe/Jane", "", "..", "a\nb", "x" * 300])
def test_a_case_that_is_no_name_is_refused(segmenter: Segmenter, files: dict[str, Path], name: str) -> None:
    with pytest.raises(UsageError, match="case: "):
        segmenter.segment(**files, case=name)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_threads_take_turns(tiny_bundle: Path, files: dict[str, Path], engine: str) -> None:
    shared = Segmenter.load(tiny_bundle, engine=engine, device="cpu", threads=1)
    expected = shared.segment(**files).labels
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: shared.segment(**files).labels, range(12)):
            np.testing.assert_array_equal(found, expected)


def test_a_bundle_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle here"):
        Segmenter.load(tmp_path)


def test_the_package_has_no_other_names() -> None:
    import inference

    with pytest.raises(AttributeError, match="no attribute 'Missing'"):
        _ = inference.Missing
