"""The smoke configuration's graph through a real Slurm, one of its trainings killed on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from inference.bundle.store import load_bundle
from tests.slurm.conftest import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

CONFIG = Path(__file__).resolve().parents[2] / "training" / "configs" / "smoke.yaml"
OPTIONS = ["--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "3"]


def trainings(work: Path) -> list[int]:
    """The processes that train a network of a run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if words[1:4] == ["-m", "training", "train"] and str(work) in words:
                found.append(int(entry.name))
    return found


def test_the_smoke_graph_ends_in_a_bundle(cluster, tmp_path):
    work = tmp_path / "run"
    command = [sys.executable, "-m", "training", "run", "--config", str(CONFIG), "--work", str(work), "--slurm", "2"]
    with (tmp_path / "snakemake.log").open("w") as log:

        def start():
            return subprocess.Popen([*command, "--", *OPTIONS], env=cluster.environment, stdout=log, stderr=log)

        running = start()
        wait_until(lambda: trainings(work), 1500)
        os.kill(trainings(work)[0], signal.SIGKILL)
        status = running.wait(timeout=3000)
        if status != 0:  # without retries, the same command goes on
            status = start().wait(timeout=3000)
    told = (tmp_path / "snakemake.log").read_text()
    assert status == 0, told[-4000:]
    assert "SLURM-job" in told
    assert "failed" in told
    bundle = load_bundle(work / "bundle")
    assert [(model.name, model.folds) for model in bundle.models] == [("nnunet", (0, 1)), ("mednext", (0, 1))]
