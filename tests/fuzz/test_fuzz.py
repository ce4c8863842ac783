"""Twenty thousand inputs, guided by coverage, through intake."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def fuzz(inputs: int, folder: Path) -> str:
    """The fuzzer's words of so many inputs, none of which may end in an unnamed error, take 10 s or half a GB."""
    pytest.importorskip("atheris")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.fuzz_nifti", f"-runs={inputs}", f"-artifact_prefix={folder}/"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert list(folder.iterdir()) == []
    ended = re.search(r"^Done (\d+) runs", done.stderr, re.MULTILINE)
    assert ended
    assert int(ended[1]) >= inputs  # the fuzzer looks at the count between batches of mutations
    return done.stderr


def test_some_inputs_reach_every_kind_of_end(tmp_path: Path) -> None:
    counts = re.search(r"^500 inputs passed: (.*)$", fuzz(500, tmp_path), re.MULTILINE)
    assert counts
    kinds = {what: int(number) for number, what in re.findall(r"(\d+) ([a-z ]+)", counts[1])}
    assert kinds["files"] + kinds["lists of names"] == 500
    assert set(kinds) >= {"images read", "images refused", "cases found", "cases refused by name"}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_thousand_inputs_are_read_or_refused_by_name(tmp_path: Path) -> None:
    assert "\n20000 inputs passed: " in fuzz(20_000, tmp_path)
