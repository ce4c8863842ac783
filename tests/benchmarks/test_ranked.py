"""The original and the imported system side by side, with a stand-in for the original's container."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from benchmarks.__main__ import main
from tests.inference.conftest import phantom_folder, tiny_bundle  # noqa: F401 (fixtures)

STAND_IN = """
import sys, pathlib, nibabel, numpy
from inference.cli import main
cases, labels, bundle = sys.argv[3], sys.argv[4], sys.argv[2]
status = main(["-i", cases, "-o", labels, "--bundle", bundle, "--profile", "fast"])
path = sorted(pathlib.Path(labels).glob("*.nii.gz"))[0]
image = nibabel.load(path)
changed = numpy.array(image.dataobj)
changed.flat[:7] = (changed.flat[:7] + 1) % 4
nibabel.save(nibabel.Nifti1Image(changed, image.affine, image.header), path)
sys.exit(status)
"""


def test_differences_are_told_by_case(
    tiny_bundle: Path,  # noqa: F811
    phantom_folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The stand-in is our own program, which changes seven voxels of its first case."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    program = shlex.join([sys.executable, str(tmp_path / "stand_in.py"), "--bundle", str(tiny_bundle)])
    words = ["ranked", "--input", str(phantom_folder), "--bundle", str(tiny_bundle), "--profile", "fast"]
    words += ["--output", str(tmp_path / "out"), "--json", str(tmp_path / "result.json")]
    assert main([*words, "--program", program]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert [case["differing_voxels"] for case in result["cases"].values()] == [7, 0, 0]
    assert [case["dice_WT"] == 1 for case in result["cases"].values()] == [False, True, True]
    assert set(result["seconds_per_case"]) == {"original", "imported"}
    assert main([*words, "--original", str(tmp_path / "out" / "original")]) == 0
    assert json.loads((tmp_path / "result.json").read_text())["cases"] == result["cases"]


def test_what_cannot_be_compared_is_one_line(
    tiny_bundle: Path,  # noqa: F811
    phantom_folder: Path,  # noqa: F811
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = ["ranked", "--input", str(phantom_folder), "--bundle", str(tiny_bundle), "--output", str(tmp_path / "out")]
    assert main([*words, "--program", "false"]) == 2
    assert "exit status 1, expected 0" in caplog.messages[-1]
    assert main([*words, "--program", str(tmp_path / "no-program")]) == 2
    assert "cannot be run" in caplog.messages[-1]
    (tmp_path / "theirs").mkdir()
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "theirs" / "X.nii.gz")
    assert main([*words, "--profile", "fast", "--original", str(tmp_path / "theirs")]) == 2
    assert "no prediction has the name of a reference" in caplog.messages[-1]
    shutil.copytree(tmp_path / "out" / "imported", tmp_path / "theirs", dirs_exist_ok=True)
    assert main([*words, "--profile", "fast", "--original", str(tmp_path / "theirs")]) == 2
    assert "X: found a label map of one system only" in caplog.messages[-1]
