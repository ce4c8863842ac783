"""Label maps are read by one rule: damaged, foreign and far-away ones are refused by name."""

from __future__ import annotations

import gzip
import os
import zlib

import nibabel as nib
import numpy as np
import pytest

from inference.errors import CaseError
from inference.intake.geometry import atlas_geometry, geometry_on
from inference.intake.label_map import (
    holds_fractions,
    read_label_map,
    read_labels,
    read_stamp,
    write_fractions,
    write_labels,
)
from tests.inference.intake.samples import LPS, Header, brain, header_for, nifti, put


@pytest.mark.parametrize(
    ("stored", "read"),
    [([0, 1, 2, 4], [0, 1, 2, 3]), ([0, 1, 2, 3], [0, 1, 2, 3]), ([0, 4], [0, 3]), ([0, 0], [0, 0]), ([1, 2], [1, 2])],
)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64"])
def test_enhancing_tumour_is_three_or_four(tmp_path, stored, read, dtype):
    array = np.resize(np.array(stored, dtype), (8, 8, 8))
    labels, _ = read_labels(put(tmp_path / "a-seg.nii.gz", nifti(array)))
    assert labels.dtype == np.uint8
    assert labels.flags.c_contiguous
    np.testing.assert_array_equal(labels, np.resize(np.array(read, np.uint8), (8, 8, 8))[::-1, ::-1])


@pytest.mark.parametrize(
    "stored", [[0, 3, 4], [0, 5], [0, -1], [0, 256], [0, 0.5], [0, 2.999], [0, np.nan], [0, np.inf], [0, 1e20]]
)
def test_other_labels_are_refused(tmp_path, stored):
    path = put(tmp_path / "a-seg.nii.gz", nifti(np.resize(np.array(stored, "float32"), (8, 8, 8))))
    with pytest.raises(CaseError, match=r"a-seg\.nii\.gz: labels \(found"):
        read_labels(path)


@pytest.mark.parametrize("channels", [(), (3,)])
def test_fractions_come_back_to_within_half_a_step(tmp_path, channels):
    geometry = geometry_on((8, 9, 10), LPS)
    path = tmp_path / "p.nii.gz"
    fractions = np.random.default_rng(0).random((*geometry.canonical_shape, *channels), np.float32)
    write_fractions(fractions, geometry, path)
    image = nib.load(path)
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(image.affine, geometry.affine)
    canonical = nib.as_closest_canonical(image)
    np.testing.assert_allclose(canonical.get_fdata(), fractions, atol=0.5 / 255 + 1e-6)


def test_an_array_of_another_shape_is_a_mistake_of_the_caller(tmp_path):
    with pytest.raises(ValueError, match="for an image of"):
        write_labels(np.zeros((3, 3, 3), np.uint8), atlas_geometry(), tmp_path / "a.nii.gz")


def test_the_same_labels_give_the_same_bytes(tmp_path):
    labels = np.random.default_rng(0).integers(0, 4, (8, 9, 10), np.uint8)
    for name in ("a", "b"):
        write_labels(labels, geometry_on((8, 9, 10), LPS), tmp_path / f"{name}.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_stamp_comes_back_and_changes_nothing_else(tmp_path):
    geometry = geometry_on((8, 9, 10), LPS)
    labels = np.random.default_rng(0).integers(0, 4, (8, 9, 10), np.uint8)
    write_labels(labels, geometry, tmp_path / "a.nii.gz", stamp="embedded 1.0, fast")
    assert read_stamp(tmp_path / "a.nii.gz") == "embedded 1.0, fast"
    read, found = read_labels(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read, labels)
    assert found.same_as(geometry)


def test_bytes_that_are_no_text_are_still_read(tmp_path):
    def spoil(header: Header) -> None:
        header["descrip"] = b"\xff\xfe\x80"

    assert set(read_stamp(put(tmp_path / "a.nii.gz", nifti(brain(0), edit=spoil)))) == {"\ufffd"}


@pytest.mark.parametrize("value", [2.9999999993, 3.00002, np.float32(1 / 85) * 255])
def test_labels_may_be_off_by_a_rounding(tmp_path, value):
    array = np.resize(np.array([0, 1, value]), (8, 8, 8))
    assert set(np.unique(read_label_map(put(tmp_path / "a.nii.gz", nifti(array))).labels)) == {0, 1, 3}


def test_a_label_map_is_kept_as_stored_and_may_be_small(tmp_path):
    array = np.arange(4, dtype="uint8").reshape(4, 1, 1)
    label_map = read_label_map(put(tmp_path / "a.nii.gz", nifti(array)))
    np.testing.assert_array_equal(label_map.labels, array)
    np.testing.assert_array_equal(label_map.canonical, array[::-1])
    assert not label_map.relabelled
    array[array == 3] = 4
    assert read_label_map(put(tmp_path / "b.nii.gz", nifti(array))).relabelled


def test_voxel_sizes_are_those_of_the_affine(tmp_path):
    def lie(header: Header) -> None:
        header["pixdim"][1:4] = 5

    array = np.zeros((8, 8, 8), "uint8")
    label_map = read_label_map(put(tmp_path / "a.nii.gz", nifti(array, header_for(array, codes=(0, 1)), edit=lie)))
    assert label_map.geometry.spacing == (1, 1, 1)
    assert "pixdim states voxels of 5 × 5 × 5 mm" in label_map.notes.warnings[0]


def broken_checksum(contents: bytes) -> bytes:
    return contents[:-8] + bytes(byte ^ 0xFF for byte in contents[-8:-4]) + contents[-4:]


DAMAGED = {
    "truncated": lambda contents: contents[: len(contents) // 2],
    "flipped": lambda contents: contents[:40] + bytes([contents[40] ^ 1]) + contents[41:],
    "checksum": broken_checksum,
    "length": lambda contents: contents[:-4] + b"1234",
    "empty": lambda _: b"",
    "text": lambda _: b"<html>",
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_label_map_is_refused_by_case_and_file(tmp_path, damage):
    path = tmp_path / "P-1-seg.nii.gz"
    labels = np.random.default_rng(0).integers(0, 4, (16, 16, 16), "uint8")
    path.write_bytes(damage(gzip.compress(nifti(labels))))
    with pytest.raises(CaseError, match=r"^P-1: P-1-seg\.nii\.gz: ") as error:
        read_label_map(path, "P-1")
    assert str(error.value).isprintable()


def test_a_label_map_far_away_is_refused(tmp_path):
    array = np.zeros((8, 8, 8), "uint8")
    away = LPS.copy()
    away[2, 3] += 70
    label_map = read_label_map(put(tmp_path / "a.nii.gz", nifti(array, header_for(array, away))))
    with pytest.raises(CaseError, match=r"corners up to 70 mm from those of the scan"):
        label_map.check_place(geometry_on((8, 8, 8), LPS), "the scan")
    with pytest.raises(CaseError, match="another shape"):
        label_map.check_place(geometry_on((8, 8, 9), LPS), "the scan")
    label_map.check_place(geometry_on((8, 8, 8), away), "the scan")


def test_earlier_fractions_are_not_trusted(tmp_path):
    geometry = geometry_on((8, 9, 10), LPS)
    path = tmp_path / "p.nii.gz"
    assert not holds_fractions(path, geometry, 3, stamp="s")
    write_fractions(np.zeros((8, 9, 10, 3), np.float32), geometry, path, stamp="s")
    assert holds_fractions(path, geometry, 3, stamp="s")
    assert not holds_fractions(path, geometry, 2, stamp="s")
    assert not holds_fractions(path, geometry, 3, stamp="another")
    path.write_bytes(broken_checksum(path.read_bytes()))
    assert not holds_fractions(path, geometry, 3, stamp="s")
    path.unlink()
    os.mkfifo(path)  # does not wait for a writer
    assert not holds_fractions(path, geometry, 3, stamp="s")


def test_a_bomb_is_not_inflated(tmp_path, monkeypatch):
    path = tmp_path / "p.nii.gz"
    path.write_bytes(gzip.compress(bytes(2**28)))
    taken = []
    real = zlib.decompressobj

    class Counted:
        def __init__(self, *arguments):
            self.stream = real(*arguments)

        def decompress(self, raw, most):
            taken.append(most)
            return self.stream.decompress(raw, most)

        def __getattr__(self, name):
            return getattr(self.stream, name)

    monkeypatch.setattr(zlib, "decompressobj", Counted)
    assert not holds_fractions(path, geometry_on((8, 9, 10), LPS), 3, stamp="s")
    assert taken
    assert max(taken) < 10_000
