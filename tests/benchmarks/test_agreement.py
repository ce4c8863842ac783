"""Agreement beside Dice: the correlation, and phantoms from folder to table."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import stats

from benchmarks.__main__ import main
from benchmarks.agreement import dice, rows_of, spearman
from tests.inference.conftest import tiny_bundle  # noqa: F401 (a fixture)
from training.data.phantoms import make_phantom, write_phantom


def test_spearman_is_scipys() -> None:
    generator = np.random.default_rng(0)
    one = list(np.round(generator.random(11), 1))
    other = [value + generator.random() for value in one]
    expected = stats.spearmanr(one, other)
    found, p = spearman(list(zip(one, other, strict=True)))
    assert found == pytest.approx(expected.statistic)
    assert p == pytest.approx(expected.pvalue, abs=0.05)
    assert np.isnan(spearman([(1, 1), (2, 2)])[0])
    assert np.isnan(spearman([(1, 1), (1, 2), (1, 3)])[0])


def test_cases_without_the_region_do_not_count() -> None:
    judged = {
        str(n): {"WT": (n / 10, n / 9), "TC": (1 - n / 10, n / 9), "ET": (0.5, float("nan"))} for n in range(1, 8)
    }
    *_, correlation, _, counts = rows_of(judged)
    assert correlation[1] == pytest.approx(1)
    assert correlation[3] == pytest.approx(-1)
    assert np.isnan(correlation[5])
    assert counts == ("cases with the region", 7, "", 7, "", 0, "")


def test_dice_of_an_empty_reference_is_unknown() -> None:
    mask = np.array([True, True, False])
    assert dice(mask, np.array([True, False, True])) == 0.5
    assert np.isnan(dice(~mask & mask, mask))


def test_phantoms_from_folder_to_table(
    tiny_bundle: Path,  # noqa: F811 (the fixture)
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for seed in (1, 2):
        phantom = make_phantom(seed, (32, 36, 32))
        write_phantom(tmp_path, f"P-{seed:05d}-000", phantom, "RAS")
        labels = nib.Nifti1Image(phantom.labels, np.eye(4))
        if seed == 1:
            nib.save(labels, tmp_path / f"P-{seed:05d}-000" / f"P-{seed:05d}-000-seg.nii.gz")
    assert main(["agreement", "--cases", str(tmp_path), "--bundle", str(tiny_bundle), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines] == [
        "case", "---", "P-00001-000", "Spearman", "p", "cases with the region",
    ]  # fmt: skip
    assert 0 < float(lines[2].split("|")[2]) <= 1
    monkeypatch.setattr("benchmarks.agreement.read_folds", lambda _: {"P-00001-000": 1})
    assert main(["agreement", "--cases", str(tmp_path), "--bundle", str(tiny_bundle), "--own-fold"]) == 0
    own = capsys.readouterr().out.splitlines()
    assert own[2].startswith("| P-00001-000")
    assert own[2] != lines[2], "fewer networks say something else"
