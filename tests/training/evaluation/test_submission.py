"""What a challenge would not take is found before it is handed in, with the line that mends it."""

from __future__ import annotations

import csv
import gzip
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from training.cli import main
from training.evaluation.submission import check_submission

from .scenes import ED, ET, NCR, save, with_boxes

SHAPE = (20, 21, 22)
LABELS = with_boxes((ED, (4, 4, 4), (9, 9, 9)), (ET, (6, 6, 6), (5, 5, 5)), (NCR, (8, 8, 8), (1, 1, 1)), shape=SHAPE)
CASES = ("BraTS-SSA-00001-000", "BraTS-SSA-00002-000")
LPS = np.diag([-1.0, -1, 1, 1])


@pytest.fixture
def folders(tmp_path):
    """A submission that would be taken, and its scans."""
    out, scans = tmp_path / "out", tmp_path / "scans"
    for case in CASES:
        save(LABELS, out / f"{case}.nii.gz", LPS)
        for sequence in ("t1n", "t1c", "t2w", "t2f"):
            save(np.ones(SHAPE, np.int16), scans / case / f"{case}-{sequence}.nii.gz", LPS)
    return out, scans


def command(*arguments):
    return main(["check-submission", *(str(argument) for argument in arguments)])


def test_what_would_be_taken_is_ok(folders, capsys):
    assert command("--prediction", folders[0], "--reference-scans", folders[1]) == 0
    assert capsys.readouterr().out.count("| ok |") == 6
    assert command("--prediction", folders[0]) == 0
    assert "| geometry | not checked |" in capsys.readouterr().out


def renamed(name):
    def spoil(path):
        (path.parent / name).parent.mkdir(exist_ok=True)
        path.rename(path.parent / name)

    return spoil


def saved(labels=LABELS, affine=LPS, name=None):
    return lambda path: save(labels, path.parent / (name or path.name), affine)


def uncompressed(path):
    save(LABELS.astype(np.int16), path, LPS)
    path.write_bytes(gzip.decompress(path.read_bytes()))


SPOILT = {
    "a word": (renamed(f"{CASES[0]}-seg.nii.gz"), "names", "another name", "mv "),
    "a folder": (renamed(f"{CASES[0]}/{CASES[0]}.nii.gz"), "names", "or folder", "mv "),
    "its cohort": (renamed("00001-000.nii.gz"), "names", "another name", "mv "),
    "a stray file": (lambda path: (path.parent / "log.txt").touch(), "names", "no label map", "mv "),
    "a hidden file": (lambda path: (path.parent / ".DS_Store").touch(), "names", "no label map", "mv "),
    "one too few": (lambda path: path.unlink(), "count", "no label map", f"predict it, as {CASES[0]}.nii.gz"),
    "one too many": (saved(name="BraTS-SSA-00009-000.nii.gz"), "count", "no scan of this case", "mv "),
    "damaged": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "labels", "truncated", "write it again"),
    "label 4": (saved(np.where(LABELS == ET, np.uint8(4), LABELS)), "labels", "label 4", "= 3"),
    "label 5": (saved(np.where(LABELS == ET, np.uint8(5), LABELS)), "labels", "labels (found 5", "write it again"),
    "float": (saved(LABELS.astype(np.float32)), "dtype", "float32", "uint8"),
    "too large": (uncompressed, "size", "MB", ".nii.gz"),
    "shape": (saved(LABELS[1:]), "geometry", "another shape", "nearest"),
    "place": (saved(affine=LPS + 70 * np.eye(4, k=3)), "geometry", "another place", "nearest"),
    "axes": (saved(LABELS[::-1], np.array([[1, 0, 0, -19], [0, -1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])),
             "geometry", "stored as RPS, its t1n as LPS", "reoriented"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPOILT)
def test_what_would_not_be_taken_is_named_with_the_line_to_mend_it(folders, tmp_path, capsys, kind):
    spoil, rule, found, mend = SPOILT[kind]
    spoil(folders[0] / f"{CASES[0]}.nii.gz")
    table = tmp_path / "findings.csv"
    assert command("--prediction", folders[0], "--reference-scans", folders[1], "--table", table) == 1
    (row,) = (row for row in csv.DictReader(table.open()) if "(note)" not in row["rule"])
    assert row["rule"] == rule
    assert found in row["found"]
    assert mend in row["to mend it"]
    assert f"| {rule} | 1 to mend |" in capsys.readouterr().out


@pytest.mark.parametrize("name", [f"{CASES[0]}-seg.nii.gz", f"x/{CASES[0]}.nii.gz", "00001-000.nii", "a b.nii.gz"])
def test_the_line_mends_it(folders, name):
    """A name without any ID has no such line: nobody knows whose it is."""
    path = folders[0] / f"{CASES[0]}.nii.gz"
    (folders[0] / name).parent.mkdir(exist_ok=True)
    nib.save(nib.load(path), folders[0] / name)
    path.unlink()
    for finding in check_submission(*folders):
        if finding.mend.startswith(("mv", "gzip")) and "elsewhere" not in finding.mend:
            subprocess.run(["sh", "-c", finding.mend], check=True)
    left = [finding.rule for finding in check_submission(*folders) if finding.file != "x"]
    assert left == ([] if "00001" in name else ["names", "count", "count"])


def test_two_label_maps_of_a_case_are_told(folders):
    save(LABELS, folders[0] / "00001-000.nii.gz", LPS)
    told = [finding.file for finding in check_submission(*folders) if finding.rule == "count"]
    assert told == ["00001-000.nii.gz"]
    save(LABELS, folders[0] / f"{CASES[0]}-seg.nii.gz", LPS)
    assert [f.rule for f in check_submission(folders[0])].count("count") == 2


def test_what_is_odd_but_taken_is_a_note(folders, capsys):
    path = folders[0] / f"{CASES[0]}.nii.gz"
    save(np.zeros(SHAPE, np.int16), path, LPS)
    assert command("--prediction", folders[0], "--reference-scans", folders[1]) == 0
    out = capsys.readouterr().out
    assert "| labels (note) | no tumour at all |" in out
    assert "| dtype (note) | int16" in out


def test_nothing_to_check(tmp_path, caplog):
    assert command("--prediction", tmp_path / "nowhere") == 2
    assert "no folder" in caplog.text


def test_it_loads_no_networks():
    text = "import sys, training.cli; print(*{'torch', 'openvino', 'nnunetv2', 'scipy.stats'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
