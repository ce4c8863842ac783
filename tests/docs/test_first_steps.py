"""What somebody new does wrong first is told in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT


def call(words: list[str]) -> tuple[int, list[str]]:
    """Exit status and lines on standard error of this Python with these words, in the repository's folder."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize("words", [["inference", "info"], ["inference", "check"], ["training", "--help"]])
def test_a_python_without_the_libraries_is_told_which_to_use(words: list[str]) -> None:
    # Without `site`, no installed library is found, as in the Python of a system.
    found, lines = call(["-S", "-m", *words])
    assert found == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: no module ")
    assert "run it with .venv/bin/python, which ./build.sh setup makes" in lines[0]


def test_no_arguments_outside_of_the_image_say_how_to_name_the_cases() -> None:
    if Path("/input").exists():
        pytest.skip("there is an /input here, as in the image")
    found, lines = call(["-m", "inference"])
    assert found == 2
    why = "cannot be read (No such file or directory)"
    assert lines == [f"error: /input: {why}; --data_path names the folder of the cases (see --help)"]


def test_a_report_of_a_run_that_was_not_begun_is_one_line(tmp_path: Path) -> None:
    found, lines = call(
        ["-m", "training", "report", "--config", "training/configs/smoke.yaml", "--work", str(tmp_path / "run")]
    )
    assert found == 2
    assert lines[-1].startswith(f"error: {tmp_path / 'run' / 'cases.json'}: not there, since nothing has been run")
    assert not any(line.startswith("Traceback") for line in lines)
