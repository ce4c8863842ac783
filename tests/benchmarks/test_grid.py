"""The cost of a grid: nothing where it is the scan's, thin rims first where it is coarse."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.grid import grid_dice
from inference.labels import SEQUENCES


@pytest.fixture
def labels() -> np.ndarray:
    """A ball of oedema around a shell of enhancing tumour, one voxel thick, around necrosis."""
    distance = np.linalg.norm(np.indices((40, 40, 40)) - 19.7, axis=0)
    return np.select([distance < 6, distance < 7, distance < 14], [1, 3, 2], 0).astype(np.uint8)


def test_the_scans_own_grid_costs_nothing(labels: np.ndarray) -> None:
    assert grid_dice(labels, (1, 1, 1), (1, 1, 1)) == {"WT": 1, "TC": 1, "ET": 1}


def test_a_coarser_grid_costs_more_and_thin_rims_most(labels: np.ndarray) -> None:
    fine, coarse = (grid_dice(labels, (1, 1, 1), (mm,) * 3) for mm in (2, 4))
    assert 1 > fine["WT"] > 0.95
    assert fine["ET"] < 0.8
    assert coarse["WT"] < fine["WT"]
    assert coarse["TC"] < fine["TC"]


def test_regions_that_a_case_does_not_have_do_not_count(labels: np.ndarray) -> None:
    assert set(grid_dice(np.where(labels == 3, 2, labels), (1, 1, 1), (2, 2, 2))) == {"WT", "TC"}


def test_a_folder_becomes_a_table(labels: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    for name in (*SEQUENCES, "seg"):
        nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "a" / f"a-{name}.nii.gz")
    assert main(["grid", "--cases", str(tmp_path), "--spacing", "1", "--spacing", "2"]) == 0
    _, _, own, coarse = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in own.strip("|").split("|")] == ["1 mm", "1.000", "1.000", "1.000"]
    assert "2 mm" in coarse


@pytest.mark.parametrize("spacing", ["0", "nan", "inf"])
def test_a_spacing_that_is_none_is_refused(tmp_path: Path, spacing: str) -> None:
    assert main(["grid", "--cases", str(tmp_path), "--spacing", spacing]) == 2


def test_a_folder_without_references_is_refused(
    labels: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a").mkdir()
    for name in SEQUENCES:
        nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "a" / f"a-{name}.nii.gz")
    assert main(["grid", "--cases", str(tmp_path), "--spacing", "2"]) == 2
    assert "no case with a reference" in caplog.text
