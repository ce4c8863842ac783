from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from training.cli import main
from training.evaluation.lesionwise import score_case

from .scenes import ED, ET, ISOTROPIC, NCR, save, with_boxes

SHAPE = (30, 30, 30)
REFERENCE = with_boxes((ED, (4, 4, 4), (9, 9, 9)), (ET, (6, 6, 6), (5, 5, 5)), (NCR, (8, 8, 8), (1, 1, 1)), shape=SHAPE)
GOOD = with_boxes((ED, (5, 4, 4), (9, 9, 9)), (ET, (6, 6, 6), (5, 5, 5)), shape=SHAPE)
POOR = with_boxes((ED, (6, 6, 4), (9, 9, 9)), (ED, (22, 22, 22), (6, 6, 6)), shape=SHAPE)

NAMES = {
    "lesionwise_dice", "lesionwise_hd95", "dice", "hd95", "sensitivity", "specificity",
    "voxel_sensitivity", "voxel_specificity", "tp", "fp", "fn",
}  # fmt: skip
SURFACE = {"nsd_0.5", "nsd_1.0", "lesionwise_nsd_0.5", "lesionwise_nsd_1.0"}


@pytest.fixture
def folders(tmp_path):
    """Three cases, of which two have predictions under other file names."""
    reference, prediction = tmp_path / "reference", tmp_path / "prediction"
    for number in (1, 2, 3):
        case = f"BraTS-SSA-0000{number}-000"
        save(REFERENCE, reference / case / f"{case}-seg.nii.gz")
        save(REFERENCE, reference / case / f"{case}-t1n.nii.gz")
    save(GOOD, prediction / "BraTS-SSA-00001-000.nii.gz")
    save(POOR, prediction / "BraTS-SSA-00002-000.nii.gz")
    return reference, prediction


def command(*arguments):
    return main(["evaluate", *(str(argument) for argument in arguments)])


def evaluated(folders, tmp_path, *further, version=2024):
    reference, prediction = folders
    output = tmp_path / "out" / "scores.json"
    arguments = ("--reference", reference, "--prediction", prediction, "--version", version, "--output", output)
    status = command(*arguments, *further)
    return status, json.loads(output.read_text())


@pytest.mark.parametrize(("version", "names"), [(2023, NAMES), (2024, NAMES | SURFACE)])
def test_json_holds_the_scores_of_every_case(folders, tmp_path, version, names):
    status, document = evaluated(folders, tmp_path, version=version)
    assert (status, document["version"]) == (0, version)
    for number, prediction in ((1, GOOD), (2, POOR)):
        expected = score_case(REFERENCE, prediction, ISOTROPIC, version)
        found = document["cases"][f"BraTS-SSA-0000{number}-000"]
        assert list(found) == ["WT", "TC", "ET"]
        for region, score in expected.items():
            assert set(found[region]) == names
            assert found[region] == score.named()


def test_statistics_are_over_cases_and_std_is_of_a_sample(folders, tmp_path):
    _, document = evaluated(folders, tmp_path)
    for region in ("WT", "TC", "ET"):
        for name in NAMES | SURFACE:
            values = [case[region][name] for case in document["cases"].values()]
            assert len(values) == 3
            assert document["mean"][region][name] == pytest.approx(np.mean(values))
            assert document["median"][region][name] == pytest.approx(np.median(values))
            assert document["std"][region][name] == pytest.approx(np.std(values, ddof=1))
            assert document["count"][region][name] == 3


def test_a_missing_prediction_is_named_and_scored_as_the_worst(folders, tmp_path, caplog):
    status, document = evaluated(folders, tmp_path)
    assert (status, document["missing"]) == (0, ["BraTS-SSA-00003-000"])
    assert "BraTS-SSA-00003-000: no prediction" in caplog.text
    whole = document["cases"]["BraTS-SSA-00003-000"]["WT"]
    assert (whole["lesionwise_dice"], whole["lesionwise_hd95"], whole["hd95"], whole["fn"]) == (0, 374, 374, 1)
    assert whole["specificity"] == whole["nsd_1.0"] == 0


def test_an_extra_prediction_is_named_and_not_scored(folders, tmp_path, caplog):
    save(GOOD, folders[1] / "BraTS-SSA-00009-000.nii.gz")
    status, document = evaluated(folders, tmp_path)
    assert (status, document["extra"]) == (0, ["BraTS-SSA-00009-000"])
    assert "BraTS-SSA-00009-000: no reference" in caplog.text
    assert len(document["cases"]) == 3


BAD = [
    ((GOOD[:-1], np.eye(4)), "another shape"),
    ((GOOD, np.diag([-1.0, 1, 1, 1])), "another place"),
    ((GOOD + np.uint8(5), np.eye(4)), "labels (found 5, 7, 8"),
]


@pytest.mark.parametrize("version", [2023, 2024, 2025, 2026])
@pytest.mark.parametrize("damage", BAD, ids=[complaint for _, complaint in BAD])
def test_a_damaged_prediction_counts_as_a_missing_one(folders, tmp_path, caplog, damage, version):
    bad, complaint = damage
    save(bad[0], folders[1] / "BraTS-SSA-00001-000.nii.gz", bad[1])
    status, document = evaluated(folders, tmp_path, version=version)
    assert status == 1
    assert list(document["damaged"]) == ["BraTS-SSA-00001-000"]
    assert complaint in document["damaged"]["BraTS-SSA-00001-000"]
    assert complaint in caplog.text
    assert document["failed"] == {}
    # Of the same reference, case 3 has no prediction at all.
    assert document["cases"]["BraTS-SSA-00001-000"] == document["cases"]["BraTS-SSA-00003-000"]
    assert document["cases"]["BraTS-SSA-00002-000"]["WT"]["dice"] > 0


def test_a_damaged_reference_leaves_its_case_out_and_no_other(folders, tmp_path, caplog):
    case = "BraTS-SSA-00001-000"
    (folders[0] / case / f"{case}-seg.nii.gz").write_bytes(b"nothing")
    status, document = evaluated(folders, tmp_path)
    assert (status, list(document["failed"])) == (1, [case])
    assert list(document["cases"]) == ["BraTS-SSA-00002-000", "BraTS-SSA-00003-000"]
    assert f"{case}: " in caplog.text
    assert "left out" in caplog.text


def test_2025_is_the_program_of_2024(folders, tmp_path):
    first, second = (evaluated(folders, tmp_path, version=version)[1] for version in (2024, 2025))
    assert (first.pop("version"), second.pop("version")) == (2024, 2025)
    assert first == second


def test_2026_stores_what_is_infinite_or_undefined_and_counts_the_rest(folders, tmp_path):
    save(np.zeros_like(REFERENCE), folders[0] / "BraTS-SSA-00004-000" / "BraTS-SSA-00004-000-seg.nii.gz")
    save(np.zeros_like(REFERENCE), folders[1] / "BraTS-SSA-00004-000.nii.gz")
    status, document = evaluated(folders, tmp_path, version=2026)
    assert status == 0
    assert document["cases"]["BraTS-SSA-00003-000"]["WT"]["lesionwise_hd95"] == "inf"
    assert document["cases"]["BraTS-SSA-00004-000"]["WT"]["lesionwise_dice"] is None
    assert document["count"]["WT"]["lesionwise_dice"] == 3
    assert document["count"]["WT"]["lesionwise_hd95"] == 2
    finite = [document["cases"][f"BraTS-SSA-0000{n}-000"]["WT"]["lesionwise_hd95"] for n in (1, 2)]
    assert document["mean"]["WT"]["lesionwise_hd95"] == pytest.approx(np.mean(finite))


def test_label_four_of_a_prediction_is_in_no_region_unless_asked_for(folders, tmp_path, caplog):
    case = "BraTS-SSA-00001-000"
    save(np.where(GOOD == ET, np.uint8(4), GOOD), folders[1] / f"{case}.nii.gz")
    _, document = evaluated(folders, tmp_path)
    left = np.where(GOOD == ET, np.uint8(0), GOOD)
    assert document["cases"][case]["WT"] == score_case(REFERENCE, left, ISOTROPIC, 2024)["WT"].named()
    assert (document["dropped"], document["relabelled"]) == ([case], [])
    assert "--label-4-is-et" in caplog.text
    _, document = evaluated(folders, tmp_path, "--label-4-is-et")
    assert document["cases"][case]["ET"] == score_case(REFERENCE, GOOD, ISOTROPIC, 2024)["ET"].named()
    assert (document["dropped"], document["relabelled"]) == ([], [case])


@pytest.mark.parametrize(("version", "spacing"), [(2023, (1, 1, 1)), (2024, (2, 2, 2))])
def test_each_edition_takes_the_voxel_size_where_its_program_does(folders, tmp_path, caplog, version, spacing):
    case = "BraTS-SSA-00001-000"
    for path in (folders[0] / case / f"{case}-seg.nii.gz", folders[1] / f"{case}.nii.gz"):
        image = nib.Nifti1Image(REFERENCE if "seg" in path.name else POOR, np.diag([2.0, 2, 2, 1]))
        image.header["pixdim"][1:4] = 1
        image.to_filename(path)
        stored = bytearray(gzip.decompress(path.read_bytes()))
        stored[80:92] = np.ones(3, "<f4").tobytes()  # pixdim, which nibabel sets to what the affine says
        path.write_bytes(gzip.compress(bytes(stored)))
    _, document = evaluated(folders, tmp_path, version=version)
    assert document["cases"][case]["WT"] == score_case(REFERENCE, POOR, spacing, version)["WT"].named()
    assert f"{case}: voxels of" in caplog.text


@pytest.mark.parametrize(
    "field",
    [(80, 1, "voxels of (1.0, 1.0, 1.0) mm by the affine"), (116, 0, "scl_inter is nan: taken as 0")],
    ids=["pixdim", "scl_inter"],
)
def test_what_the_reader_mends_is_told(folders, tmp_path, caplog, field):
    place, before, words = field
    case = "BraTS-SSA-00001-000"
    path = folders[1] / f"{case}.nii.gz"
    stored = bytearray(gzip.decompress(path.read_bytes()))
    assert np.frombuffer(stored, "<f4", 1, place)[0] == before
    stored[place : place + 4] = np.array(np.nan, "<f4").tobytes()
    path.write_bytes(gzip.compress(bytes(stored)))
    status, document = evaluated(folders, tmp_path)
    assert status == 0
    assert document["cases"][case]["WT"] == score_case(REFERENCE, GOOD, ISOTROPIC, 2024)["WT"].named()
    assert f"{case}: " in caplog.text
    assert words in caplog.text


def test_lesions_have_a_row_each(folders, tmp_path):
    table = tmp_path / "lesions.csv"
    _, document = evaluated(folders, tmp_path, "--lesions", table)
    rows = list(csv.DictReader(table.open()))
    poor = [row for row in rows if row["case"] == "BraTS-SSA-00002-000" and row["region"] == "WT"]
    assert [(row["side"], row["matched"]) for row in poor] == [("reference", "yes"), ("prediction", "no")]
    assert [float(row["volume_mm3"]) for row in poor] == [729, 216]
    assert [(row["x"], row["y"], row["z"]) for row in poor] == [("8.0",) * 3, ("24.5",) * 3]
    mean = document["cases"]["BraTS-SSA-00002-000"]["WT"]["lesionwise_dice"]
    assert np.mean([float(row["dice"]) for row in poor]) == pytest.approx(mean)


def test_a_table_for_readers_leaves_out_what_the_program_of_2024_computes_on_lesion_numbers(folders, tmp_path, capsys):
    table = tmp_path / "scores.md"
    for version, expected in ((2023, True), (2024, False)):
        evaluated(folders, tmp_path, "--table", table, version=version)
        assert (" sensitivity " in table.read_text()) == expected
    assert "BraTS 2024, 3 cases, 1 missing: lesion-wise Dice WT " in capsys.readouterr().out


def test_an_output_that_cannot_be_written_is_found_before_the_scoring(folders, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("training.evaluation.evaluate.evaluate_folders", None)
    (tmp_path / "a").touch()
    for place, words in ((tmp_path / "a" / "x.json", "not a folder"), (tmp_path, "it is a folder")):
        arguments = ("--reference", folders[0], "--prediction", folders[1], "--version", 2024, "--output", place)
        assert command(*arguments) == 2
        assert words in caplog.text


def test_the_command_loads_no_networks(folders):
    heavy = ("torch", "nnunetv2", "openvino", "skimage", "sklearn", "matplotlib")
    words = ["evaluate", "--reference", str(folders[0]), "--prediction", str(folders[1]), "--version", "2024"]
    code = (
        f"import sys; from training.cli import main; main({words!r}); print([m for m in {heavy!r} if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert answer.splitlines()[-1] == "[]"


def test_label_four_is_read_as_three_and_said(folders, tmp_path, caplog):
    old = np.where(REFERENCE == ET, np.uint8(4), REFERENCE)
    save(old, folders[0] / "BraTS-SSA-00001-000" / "BraTS-SSA-00001-000-seg.nii.gz")
    _, document = evaluated(folders, tmp_path)
    assert document["relabelled"] == ["BraTS-SSA-00001-000"]
    assert "BraTS-SSA-00001-000: label 4 was read as 3" in caplog.text
    expected = score_case(REFERENCE, GOOD, ISOTROPIC, 2024)["ET"].named()
    assert document["cases"]["BraTS-SSA-00001-000"]["ET"] == expected


def test_jobs_change_nothing(folders, tmp_path):
    assert evaluated(folders, tmp_path, "--jobs", 2) == evaluated(folders, tmp_path)


def test_spacing_is_that_of_the_files(folders, tmp_path):
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    case = "BraTS-SSA-00001-000"
    save(REFERENCE, folders[0] / case / f"{case}-seg.nii.gz", affine)
    save(POOR, folders[1] / f"{case}.nii.gz", affine)
    _, document = evaluated(folders, tmp_path)
    assert document["cases"][case]["WT"] == score_case(REFERENCE, POOR, (1.0, 1.0, 3.0), 2024)["WT"].named()


def test_csv_has_a_row_for_each_case_and_region_and_statistic(folders, tmp_path):
    table = tmp_path / "scores.csv"
    _, document = evaluated(folders, tmp_path, "--table", table)
    rows = list(csv.DictReader(table.open()))
    assert [(row["case"], row["region"]) for row in rows] == [
        (case, region) for case in (*document["cases"], "mean", "median", "std") for region in ("WT", "TC", "ET")
    ]
    assert float(rows[0]["lesionwise_dice"]) == document["cases"]["BraTS-SSA-00001-000"]["WT"]["lesionwise_dice"]
    assert float(rows[-1]["hd95"]) == document["std"]["ET"]["hd95"]


def test_markdown_table(folders, tmp_path):
    table = tmp_path / "scores.md"
    _, document = evaluated(folders, tmp_path, "--table", table)
    lines = table.read_text().splitlines()
    assert lines[0].startswith("| case | region | lesionwise_dice |")
    assert len(lines) == 2 + 3 * (3 + 3)
    assert f"{document['mean']['WT']['lesionwise_dice']:.4f}" in lines[11]


def test_means_go_to_the_standard_output_where_no_file_is_asked_for(folders, capsys):
    assert command("--reference", folders[0], "--prediction", folders[1], "--version", 2023) == 0
    assert capsys.readouterr().out.startswith("| metric | WT | TC | ET |\n")


@pytest.mark.parametrize(
    ("further", "complaint"),
    [
        (("--table", "scores.xlsx"), "a table ends in"),
        (("--jobs", "0"), "at least one"),
        (("--reference", "nowhere"), "no folder nowhere"),
    ],
)
def test_what_cannot_be_carried_out_attempts_nothing(folders, tmp_path, caplog, further, complaint):
    output = tmp_path / "scores.json"
    arguments = ("--reference", folders[0], "--prediction", folders[1], "--version", 2024, "--output", output)
    assert command(*arguments, *further) == 2
    assert complaint in caplog.text
    assert not output.exists()
