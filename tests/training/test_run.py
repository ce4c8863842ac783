"""What `training run` hands to Snakemake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from training.cli import main

CONFIG = Path(__file__).resolve().parents[2] / "training" / "configs" / "smoke.yaml"


@pytest.fixture
def handed(monkeypatch):
    """The words that Snakemake was called with."""
    cli = pytest.importorskip("snakemake.cli")
    words: list[str] = []
    monkeypatch.setattr(cli, "main", words.extend)
    return words


def test_on_one_machine_its_cores_and_gpus_are_the_limit(tmp_path, handed):
    words = ["run", "--config", str(CONFIG), "--work", str(tmp_path), "--cores", "3", "--gpus", "2"]
    assert main(words) == 0
    assert handed[handed.index("--cores") + 1] == "3"
    assert handed[handed.index("--resources") + 1] == "gpu=2"
    assert "--executor" not in handed


def test_on_slurm_the_cores_of_this_machine_limit_nothing(tmp_path, handed):
    words = ["run", "--config", str(CONFIG), "--work", str(tmp_path), "--slurm", "7", "--program", "run in.sif"]
    assert main([*words, "--", "--slurm-status-command", "squeue"]) == 0
    assert handed[handed.index("--executor") + 1] == "slurm"
    assert handed[handed.index("--jobs") + 1] == "7"
    assert handed[handed.index("--slurm-status-command") + 1] == "squeue"
    assert handed.index("--slurm-status-command") < handed.index("--config") < handed.index('program=["run in.sif"]')
    assert not {"--cores", "--resources"} & set(handed)


def test_a_path_with_escapes_does_not_command_the_terminal(tmp_path):
    words = [
        "evaluate",
        "--reference",
        str(tmp_path / "a\x1b[31mb"),
        "--prediction",
        str(tmp_path),
        "--version",
        "2023",
    ]
    done = subprocess.run([sys.executable, "-m", "training", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "a\\x1b[31mb" in done.stderr
    assert "\x1b" not in done.stderr
