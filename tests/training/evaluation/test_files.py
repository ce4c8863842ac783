from __future__ import annotations

import gzip

import numpy as np
import pytest

from inference.errors import CaseError, FolderError
from training.evaluation.files import check_geometry, find_label_maps, read_label_map, unmatched

from .scenes import ED, ET, NCR, save, with_boxes

LABELS = with_boxes((ED, (2, 2, 2), (4, 5, 6)), (NCR, (3, 3, 3), (1, 1, 1)), shape=(9, 10, 11))


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("BraTS-SSA-00001-000.nii.gz", "BraTS-SSA-00001-000"),
        ("BraTS-SSA-00001-000.nii", "BraTS-SSA-00001-000"),
        ("BraTS-SSA-00001-000-seg.nii.gz", "BraTS-SSA-00001-000"),
        ("BraTS-SSA-00001-000_seg.nii.gz", "BraTS-SSA-00001-000"),
        ("BraTS-SSA-00001-000/BraTS-SSA-00001-000-seg.nii.gz", "BraTS-SSA-00001-000"),
        ("fold0_BraTS-SSA-00001-000.nii.gz", "BraTS-SSA-00001-000"),
        ("BraTS2021_01477/BraTS2021_01477_seg.nii.gz", "BraTS2021_01477"),
        ("patient7/seg.nii.gz", "patient7"),
        ("a.patient.nii.gz", "a.patient"),
    ],
)
def test_the_id_does_not_depend_on_the_naming(tmp_path, name, case):
    path = save(LABELS, tmp_path / name)
    assert find_label_maps(tmp_path) == {case: (path,)}


def test_sequences_and_hidden_files_are_passed_over(tmp_path):
    folder = tmp_path / "BraTS-SSA-00001-000"
    path = save(LABELS, folder / "BraTS-SSA-00001-000-seg.nii.gz")
    for name in ("BraTS-SSA-00001-000-t1n", "BraTS-SSA-00001-000_t1ce", "BraTS-SSA-00001-000-t2f", "._x", "flair"):
        save(LABELS, folder / f"{name}.nii.gz")
    save(LABELS, tmp_path / ".trash" / "x.nii.gz")
    (tmp_path / "notes.txt").touch()
    assert find_label_maps(tmp_path) == {"BraTS-SSA-00001-000": (path,)}


@pytest.mark.parametrize("name", ["absent", "."])
def test_a_folder_without_label_maps_is_refused(tmp_path, name):
    with pytest.raises(FolderError, match=r"no folder|no label map"):
        find_label_maps(tmp_path / name)


def test_two_files_for_one_case_are_ambiguous(tmp_path):
    paths = (save(LABELS, tmp_path / "a.nii.gz"), save(LABELS, tmp_path / "a-seg.nii.gz"))
    found = find_label_maps(tmp_path)
    assert set(found["a"]) == set(paths)
    with pytest.raises(CaseError, match=r"a: more than one label map .*a-seg\.nii\.gz"):
        read_label_map(found["a"], "a")


def test_voxels_are_read_as_stored(tmp_path):
    """No turning to RAS: the scores of 2024 depend on the order in the file."""
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    read = read_label_map((save(LABELS, tmp_path / "a.nii.gz", affine),), "a")
    np.testing.assert_array_equal(read.labels, LABELS)
    np.testing.assert_array_equal(read.affine, affine)
    assert (read.labels.dtype, read.spacing, read.relabelled) == (np.uint8, (1, 1, 2), False)


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_any_type_of_number_and_a_trailing_axis_will_do(tmp_path, dtype):
    read = read_label_map((save(LABELS.astype(dtype)[..., None], tmp_path / "a.nii.gz"),), "a")
    np.testing.assert_array_equal(read.labels, LABELS)


def test_label_four_is_read_as_three_where_there_is_no_three(tmp_path):
    old = LABELS.copy()
    old[7, 7, 7] = 4
    read = read_label_map((save(old, tmp_path / "a.nii.gz"),), "a")
    assert read.relabelled
    assert read.labels[7, 7, 7] == ET
    assert np.count_nonzero(read.labels != LABELS) == 1


@pytest.mark.parametrize("values", [(3, 4), (5,), (0.5,), (-1,)])
def test_other_values_are_refused(tmp_path, values):
    odd = LABELS.astype(np.float32)
    odd[0, 0, : len(values)] = values
    with pytest.raises(CaseError, match=r"a: .*a\.nii\.gz holds other values than labels"):
        read_label_map((save(odd, tmp_path / "a.nii.gz"),), "a")


def test_files_that_cannot_be_read_are_named(tmp_path):
    whole = save(LABELS, tmp_path / "a.nii.gz")
    path = tmp_path / "b.nii.gz"
    for content in (b"", b"no image", whole.read_bytes()[:60], gzip.compress(b"short")):
        path.write_bytes(content)
        with pytest.raises(CaseError, match=r"b: .*b\.nii\.gz cannot be read"):
            read_label_map((path,), "b")
    with pytest.raises(CaseError, match="is no volume"):
        read_label_map((save(LABELS[0], tmp_path / "c.nii.gz"),), "c")


def test_geometry_has_to_agree(tmp_path):
    def read(name, labels=LABELS, shift=0.0):
        affine = np.eye(4)
        affine[0, 3] = shift
        return read_label_map((save(labels, tmp_path / name, affine),), "a")

    reference = read("a.nii.gz")
    check_geometry(reference, read("b.nii.gz", shift=0.0009), "a")
    with pytest.raises(CaseError, match="a: affines differ"):
        check_geometry(reference, read("c.nii.gz", shift=0.0011), "a")
    with pytest.raises(CaseError, match=r"a: shapes differ \(found \(9, 10, 10\), expected \(9, 10, 11\)"):
        check_geometry(reference, read("d.nii.gz", LABELS[..., :-1]), "a")


def test_unmatched():
    assert unmatched({"b": 0, "a": 0, "c": 0}, {"c": 0, "e": 0, "d": 0}) == (["a", "b"], ["d", "e"])
