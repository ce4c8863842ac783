"""The first mistakes of somebody new are told in one line."""

from __future__ import annotations

import os
import shutil
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


def test_the_demo_needs_nothing_but_the_cpu_lock(tmp_path: Path) -> None:
    # Packages of the training lock only, made impossible to import.
    absent = ("torch", "nnunetv2", "dynamic_network_architectures", "batchgenerators", "snakemake", "sklearn", "yaml")
    steps = (
        "phantoms --seed 7 --shape 48 52 44 --output in --labels truth",
        "evaluate --reference truth --prediction truth --version 2023 --output scores.json --table scores.md",
        "picture --input in --reference truth --prediction truth --output case.png",
    )
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in {absent}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
from training.cli import main
sys.exit(any(main(step.split()) for step in {steps}))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, timeout=300, check=True)
    assert (tmp_path / "scores.md").stat().st_size > 0
    assert (tmp_path / "case.png").stat().st_size > 0


def test_what_the_demo_lacks_is_said_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "cmp", "dirname", "grep"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or tool)
    (tmp_path / "bin" / "python3.11").write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    (tmp_path / "bin" / "python3.11").chmod(0o755)
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "cpu.txt").write_text("pyradiomics==3.0.1 \\\n")
    shutil.copy(ROOT / "build.sh", tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        ["bash", "build.sh", "demo"],
        cwd=tmp_path,
        env={"PATH": str(tmp_path / "bin")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.endswith("apt-get install gcc libc6-dev python3-dev\n")
    assert sorted(tmp_path.rglob("*")) == before
