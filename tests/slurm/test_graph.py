"""The smoke configuration's graph through a real Slurm, one of its trainings cancelled on the way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from inference.bundle.store import load_bundle
from tests.slurm.conftest import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]

CONFIG = Path(__file__).resolve().parents[2] / "training" / "configs" / "smoke.yaml"
SMALL_NODE = ["--max-threads", "2"]
EXECUTOR = ["--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "3"]


def test_the_smoke_graph_ends_in_a_bundle(cluster, tmp_path):
    work = tmp_path / "run"
    command = [sys.executable, "-m", "training", "run", "--config", str(CONFIG), "--work", str(work), "--slurm", "2"]
    with (tmp_path / "snakemake.log").open("w") as log:
        running = subprocess.Popen(
            [*command, "--", *SMALL_NODE, *EXECUTOR], env=cluster.environment, stdout=log, stderr=log
        )

        def trainings() -> list[str]:
            """Slurm's jobs whose training has begun."""
            begun = {path.stem for path in (work / "logs").glob("train*.log") if path.stat().st_size}
            jobs = cluster.jobs("RUNNING") if begun else {}
            return [job for job, rule in jobs.items() if "train" in rule]

        wait_until(lambda: trainings() or running.poll() is not None, 3000)
        assert running.poll() is None, (tmp_path / "snakemake.log").read_text()[-4000:]
        job = trainings()[0]
        cluster.ask("scancel", job)
        status = running.wait(timeout=5000)
    told = (tmp_path / "snakemake.log").read_text()
    assert status == 0, told[-4000:]
    assert f"SLURM-job '{job}' failed" in told
    assert "CANCELLED" in told
    bundle = load_bundle(work / "bundle")
    assert [(model.name, model.folds) for model in bundle.models] == [("nnunet", (0, 1)), ("mednext", (0, 1))]
