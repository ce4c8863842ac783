"""Damaged label maps, and what else may lie in the place of a prediction: named, and worth what a missing one is."""

from __future__ import annotations

import gzip
import os
import struct

import nibabel as nib
import numpy as np
import pytest

from .scenes import ET, save
from .test_evaluate import GOOD, command, evaluated, folders  # noqa: F401 (a fixture)

# The fixture and its uses have one name.
# ruff: noqa: F811


def image(labels=GOOD, affine=None, **fields):
    """The bytes of a NIfTI file with some fields of its header set to whatever is wanted."""
    made = nib.Nifti1Image(labels, np.eye(4) if affine is None else affine)
    header = bytearray(made.to_bytes())
    for at, value in fields.values():
        header[at : at + len(value)] = value
    return bytes(header)


def short(*numbers):
    return struct.pack(f"<{len(numbers)}h", *numbers)


def odd(value, dtype=np.float32):
    labels = GOOD.astype(dtype)
    labels[0, 0, 0] = value
    return labels


WHOLE = gzip.compress(image())
DAMAGED = {
    "empty": (b"", "empty"),
    "text": (b"not an image", "not a NIfTI file"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
    "header cut": (image()[:200], "truncated"),
    "voxels cut": (image()[:-500], "truncated"),
    "gzip cut": (WHOLE[: len(WHOLE) // 2], "truncated"),
    "gzip checksum": (WHOLE[:-8] + bytes(4) + WHOLE[-4:], "corrupt"),
    "gzip flipped": (WHOLE[:60] + bytes(40) + WHOLE[100:], "found"),
    "gzip twice": (gzip.compress(WHOLE), "gzip inside gzip"),
    "a bomb": (gzip.compress(image() + bytes(10**6)), "more data than its header declares"),
    "no magic": (image(magic=(344, b"abc")), "magic"),
    "dimensions": (image(dim=(40, short(0))), "number of dimensions"),
    "negative side": (image(dim=(42, short(-30))), "dimensions"),
    "huge side": (image(dim=(42, short(30000))), "too large"),
    "complex numbers": (image(datatype=(70, short(32))), "data type"),
    "other type": (image(datatype=(70, short(64))), "truncated"),
    "no affine": (image(rows=(280, bytes(48))), "no inverse"),
    "NaN": (image(odd(np.nan)), "labels"),
    "half": (image(odd(0.5)), "labels"),
    "negative label": (image(odd(-1)), "labels"),
    "label 7": (image(odd(7, np.uint8)), "labels"),
    "both 3 and 4": (image(odd(4, np.uint8)), "both 3 and 4"),
    "other shape": (image(GOOD[:-1]), "another shape"),
    "flat": (image(GOOD[0]), "3-D"),
    "several volumes": (image(np.stack([GOOD] * 2, -1)), "3-D"),
    "mirrored": (image(affine=np.diag([-1.0, 1, 1, 1])), "another place"),
    "70 mm away": (image(affine=np.eye(4) + 70 * np.eye(4, k=3)), "another place"),
    "other voxels": (image(affine=np.diag([1.0, 1, 1.5, 1])), "another place"),
}


@pytest.mark.parametrize(("content", "complaint"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_prediction_is_named_and_counts_as_a_missing_one(folders, tmp_path, caplog, content, complaint):
    path = folders[1] / "BraTS-SSA-00001-000.nii.gz"
    path.unlink()
    _, missing = evaluated(folders, tmp_path)
    path.write_bytes(content)
    status, document = evaluated(folders, tmp_path)
    assert status == 1
    assert list(document["damaged"]) == ["BraTS-SSA-00001-000"]
    assert complaint in document["damaged"]["BraTS-SSA-00001-000"]
    assert f"BraTS-SSA-00001-000: {path.name}" in caplog.text
    assert (document["cases"], document["mean"], document["missing"]) == (
        missing["cases"],
        missing["mean"],
        ["BraTS-SSA-00003-000"],
    )


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "two files"])
def test_what_is_no_file_counts_as_damaged_or_missing(folders, tmp_path, kind):
    path = folders[1] / "BraTS-SSA-00001-000.nii.gz"
    if kind == "two files":
        save(GOOD, folders[1] / "BraTS-SSA-00001-000-seg.nii.gz")
    else:
        path.unlink()
        path.mkdir() if kind == "a folder" else os.mkfifo(path)
    status, document = evaluated(folders, tmp_path)
    assert (status, len(document["missing"])) == ((0, 2) if kind == "a folder" else (1, 1))
    assert document["cases"]["BraTS-SSA-00001-000"]["WT"]["lesionwise_dice"] == 0


def test_nearly_whole_labels_are_labels(folders, tmp_path):
    """A slope in float32 leaves such values."""
    _, sound = evaluated(folders, tmp_path)
    values = GOOD.astype(np.float64)
    save(np.where(values == ET, 2.9999999993, values), folders[1] / "BraTS-SSA-00001-000.nii.gz")
    assert evaluated(folders, tmp_path) == (0, sound)


def test_one_pair_of_files(folders, tmp_path):
    _, all_cases = evaluated(folders, tmp_path)
    case = "BraTS-SSA-00001-000"
    files = folders[0] / case / f"{case}-seg.nii.gz", folders[1] / f"{case}.nii.gz"
    status, document = evaluated(files, tmp_path)
    assert (status, document["cases"]) == (0, {case: all_cases["cases"][case]})


def test_nothing_in_common_attempts_nothing(folders, tmp_path, caplog):
    save(GOOD, tmp_path / "other" / "BraTS-GLI-00001-000.nii.gz")
    assert command("--reference", folders[0], "--prediction", tmp_path / "other", "--version", 2024) == 2
    assert "found 3 in" in caplog.text
    assert "BraTS-GLI-00001-000.nii.gz" in caplog.text


@pytest.mark.parametrize("pixdim", [np.nan, 0, -1])
def test_a_header_without_a_voxel_size_leaves_it_to_the_affine(folders, tmp_path, pixdim):
    path = folders[1] / "BraTS-SSA-00001-000.nii.gz"
    _, sound = evaluated(folders, tmp_path, version=2023)
    path.write_bytes(image(pixdim=(80, struct.pack("<f", pixdim))))
    status, document = evaluated(folders, tmp_path, version=2023)
    assert (status, document["cases"]) == (0, sound["cases"])
