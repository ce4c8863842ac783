"""Which files are of one case, whatever their names, and reading them as they are stored."""

from __future__ import annotations

import numpy as np
import pytest

from inference.errors import CaseError, FolderError, UsageError
from training.evaluation.files import check_geometry, find_label_maps, match, read_one

from .scenes import ED, NCR, save, with_boxes

LABELS = with_boxes((ED, (2, 2, 2), (4, 5, 6)), (NCR, (3, 3, 3), (1, 1, 1)), shape=(9, 10, 11))
SSA, GLI = "BraTS-SSA-00001-000", "BraTS-GLI-00001-000"


def matched(tmp_path, references, predictions):
    """IDs with the predictions that they are given, and those of the predictions that are left."""
    for side, names in (("r", references), ("p", predictions)):
        (tmp_path / side).mkdir()
        for name in names:
            path = tmp_path / side / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    found = match(tmp_path / "r", tmp_path / "p")
    ending = len(".nii.gz")
    given = {
        pair.case: [str(path.relative_to(tmp_path / "p"))[:-ending] for path in pair.prediction] for pair in found.pairs
    }
    return given, list(found.extra)


@pytest.mark.parametrize(
    ("reference", "prediction", "case"),
    [
        (f"{SSA}-seg", SSA, SSA),
        (f"{SSA}-seg", f"{SSA}-seg", SSA),
        (f"{SSA}_seg", SSA, SSA),
        (f"{SSA}-seg", f"{SSA}_pred", SSA),
        (f"{SSA}-seg", f"{SSA}.label", SSA),
        (f"{SSA}-seg", "00001-000", SSA),
        (f"{SSA}-seg", "fold0_BraTS-SSA-00001-000", SSA),
        (f"{SSA}-seg", "BraTS_SSA_00001-000", SSA),
        (f"{SSA}-seg", "brats-ssa-00001-000", SSA),
        (f"{SSA}-seg", "SEG-00001-000", SSA),
        (f"{SSA}-seg", "submission_00001-000", SSA),
        (f"{SSA}-seg", "BraTS2024-SSA-00001-000", SSA),
        (f"{SSA}/{SSA}-seg", SSA, SSA),
        (f"{SSA}/{SSA}-seg", f"{SSA}/{SSA}", SSA),
        (f"{SSA}/{SSA}-seg", f"{SSA}/segmentation", SSA),
        (f"{SSA}/{SSA}-seg", f"{SSA}/final", SSA),
        (f"{SSA}/seg", SSA, SSA),
        (f"{SSA}-seg", f"team/{SSA}/output", SSA),
        (SSA, "00001-000-pred", SSA),
        ("00001-000", SSA, "00001-000"),
        ("BraTS-GLI-00217-000-seg", "SEG-00217-000", "BraTS-GLI-00217-000"),
        ("BraTS-SSA-00132-000-seg", "submission_00132-000", "BraTS-SSA-00132-000"),
        ("BraTS-MET-01325-000-seg", "BraTS-MET_01325-000", "BraTS-MET-01325-000"),
        (f"{GLI}-seg", f"{GLI}-pred", GLI),
        ("BraTS2021_00006_seg", "BraTS2021_00006", "BraTS2021_00006"),
        ("BraTS2021_00006/BraTS2021_00006_seg", "BraTS2021_00006_seg", "BraTS2021_00006"),
        ("BraTS20_Training_001_seg", "BraTS20_Training_001", "BraTS20_Training_001"),
        ("Brats18_TCIA05_396_1_seg", "Brats18_TCIA05_396_1", "Brats18_TCIA05_396_1"),
        ("site_pred-seg", "site_pred", "site_pred"),
        ("site_pred", "site_pred", "site"),
        ("a.label", "a.label", "a"),
        ("a.label-seg", "a.label", "a.label"),
        ("a", "a.label", "a"),
        ("pat_T2-seg", "pat_T2", "pat_T2"),
        ("pat_T2", "pat_T2", "pat_T2"),
        ("pat_T2", "pat_T2-pred", "pat_T2"),
        ("a.patient", "a.patient", "a.patient"),
        ("patient7/seg", "patient7", "patient7"),
        ("patient7/seg", "patient7/pred", "patient7"),
        ("patient7/mask", "patient7/mask", "mask"),
        ("patient_0001", "patient_0001_seg", "patient_0001"),
        ("P-00001-000", "P-00001-000", "P-00001-000"),
        ("Øre 3-seg", "Øre 3", "Øre 3"),
        ("patient7/tumour", "patient7", "tumour"),
    ],
)
def test_names_of_one_case(tmp_path, reference, prediction, case):
    assert matched(tmp_path, [reference], [prediction]) == ({case: [prediction]}, [])


@pytest.mark.parametrize(
    ("reference", "prediction"),
    [
        (SSA, GLI),
        (SSA, "BraTS-SSA-00001-001"),
        (SSA, "900001-000"),
        ("pat_1", "pat_10"),
        ("pat1", "pat"),
        ("BraTS2021_00006", "BraTS2020_00006"),
        (f"{SSA}/seg", f"{GLI}/seg"),
    ],
)
def test_names_of_two_cases(tmp_path, reference, prediction):
    with pytest.raises(FolderError, match=r"no prediction has the name of a reference: found 1 in .* and 1 in .*"):
        matched(tmp_path, [reference], [prediction])


def test_two_cohorts_with_one_number_are_two_cases(tmp_path):
    assert matched(tmp_path, [f"{SSA}-seg", f"{GLI}-seg"], [GLI, SSA, "00001-000"]) == (
        {SSA: [SSA], GLI: [GLI]},
        ["00001-000"],
    )


def test_the_longer_name_is_the_surer(tmp_path):
    given, extra = matched(tmp_path, ["site-seg", "site_pred-seg", "site_2-seg"], ["site_2", "site_pred", "site"])
    assert (given, extra) == ({"site": ["site"], "site_pred": ["site_pred"], "site_2": ["site_2"]}, [])


def test_what_is_missing_and_what_is_left_is_told(tmp_path):
    given, extra = matched(tmp_path, [SSA, "BraTS-SSA-00002-000"], ["00001-000", "BraTS-SSA-00003-000"])
    assert (given, extra) == ({SSA: ["00001-000"], "BraTS-SSA-00002-000": []}, ["BraTS-SSA-00003-000"])


def test_scans_masks_and_probabilities_beside_label_maps_are_passed_over(tmp_path):
    words = ("t1n", "t1c", "t2w", "t2f", "brain_mask", "0000", "mask", "t1n_reg")
    references = [f"{SSA}/{SSA}-{word}" for word in ("seg", *words)] + [f"{SSA}/brain_mask", f"{SSA}/notes"]
    references += ["p/seg", "p/t1", "p/flair", "p/mask", "._x", ".trash/x"]
    predictions = [SSA, f"{SSA}_probabilities", f"{SSA}_probability", "p", "p_softmax", "p_t1", "p_t1ce"]
    assert matched(tmp_path, references, predictions) == ({SSA: [SSA], "p": ["p"]}, [])


def test_what_only_has_the_ending_within_its_name_is_no_image(tmp_path):
    save(LABELS, tmp_path / f"{SSA}.nii.gz")
    for name in (f"{SSA}.nii.gz.part", f"{SSA}.nii.gz.md5", f"{SSA}.nii.json", "other.nii~"):
        (tmp_path / name).write_text("no image")
    assert [image.case for image in find_label_maps(tmp_path)] == [SSA]


def test_a_link_to_a_folder_is_followed_once(tmp_path):
    save(LABELS, tmp_path / "real" / f"{SSA}-seg.nii.gz")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / SSA).symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "links")
    assert [image.case for image in find_label_maps(tmp_path / "links")] == [SSA]


def test_two_files_are_one_case_whatever_their_names(tmp_path):
    files = save(LABELS, tmp_path / "truth-seg.nii.gz"), save(LABELS, tmp_path / "mine.nii")
    (pair,) = match(*files).pairs
    assert (pair.case, pair.reference, pair.prediction) == ("truth", files[:1], files[1:])
    with pytest.raises(UsageError, match="found a file and a folder"):
        match(files[0], tmp_path)


@pytest.mark.parametrize("name", ["absent", "."])
def test_a_folder_without_label_maps_is_refused(tmp_path, name):
    with pytest.raises(FolderError, match=r"no folder|no label map"):
        find_label_maps(tmp_path / name)


@pytest.mark.parametrize("names", [("a", "a-seg"), ("x/a", "y/a"), ("00001-000", "SEG-00001-000")])
def test_two_files_for_one_case_are_ambiguous(tmp_path, names):
    given, _ = matched(tmp_path, ["a", SSA], names)
    assert sorted(names) in given.values() or sorted(names) in [sorted(paths) for paths in given.values()]
    (pair,) = (pair for pair in match(tmp_path / "r", tmp_path / "p").pairs if pair.prediction)
    with pytest.raises(CaseError, match=r"more than one label map"):
        read_one(pair.prediction, pair.case)


def test_ten_thousand_cases_are_matched_in_a_moment(tmp_path):
    """Each by its number alone, the slowest way; it grows with the count, not with its square."""
    names = [f"{number:05d}-000" for number in range(10_000)]
    given, extra = matched(tmp_path, [f"BraTS-SSA-{name}-seg" for name in names[:3000]], names[:3000])
    assert (len(given), extra) == (3000, [])


def test_voxels_are_read_as_stored(tmp_path):
    """No turning to RAS: the scores of 2024 depend on the order in the file."""
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    read = read_one([save(LABELS, tmp_path / "a.nii.gz", affine)], "a")
    np.testing.assert_array_equal(read.labels, LABELS)


def test_geometry_has_to_agree(tmp_path):
    def read(name, labels=LABELS, shift=0.0, sign=1.0):
        affine = np.diag([sign, 1, 1, 1])
        affine[0, 3] = shift
        return read_one([save(labels, tmp_path / f"{name}.nii.gz", affine)], "a")

    reference = read("a")
    check_geometry(read("b", shift=0.09), reference)
    with pytest.raises(CaseError, match=r"a: c\.nii\.gz: another place"):
        check_geometry(read("c", shift=0.11), reference)
    with pytest.raises(CaseError, match=r"another shape \(found 9×10×10, expected 9×10×11 as the reference"):
        check_geometry(read("d", LABELS[..., :-1]), reference)
    with pytest.raises(CaseError, match=r"other axes \(found LAS, expected RAS as the reference"):
        check_geometry(read("e", LABELS[::-1], 8.0, -1.0), reference)
