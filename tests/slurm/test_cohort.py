"""A cohort in shards through a real Slurm, one of its jobs cancelled on the way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from inference.cli import main as infer
from inference.report.record import read_record
from tests.slurm.conftest import wait_until
from training.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SNAKEFILE = Path(__file__).resolve().parents[2] / "inference" / "Snakefile"
EXECUTOR = ["--executor", "slurm", "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "3"]


def test_a_cohort_of_twelve_in_four_shards(cluster, tmp_path):
    cohort, alone, together, work = (tmp_path / name for name in ("in", "alone", "together", "work"))
    assert main(["phantoms", "--count", "12", "--shape", "64", "64", "48", "--output", str(cohort)]) == 0
    settings = [f"input={cohort}", f"output={together}", f"work={work}", "shards=4", "threads=1"]
    (tmp_path / "here").mkdir()
    command = [sys.executable, "-m", "snakemake", "-s", SNAKEFILE, *EXECUTOR, "--jobs", "2", "--keep-going", "--config"]
    with (tmp_path / "snakemake.log").open("w") as log:
        running = subprocess.Popen(
            [*command, *settings], cwd=tmp_path / "here", env=cluster.environment, stdout=log, stderr=log
        )
        # One shard is cancelled when it has written a case.
        wait_until(lambda: together.is_dir() and any(together.iterdir()) and cluster.jobs("RUNNING"), 600)
        first = min(cluster.jobs("RUNNING"), key=int)
        cluster.ask("scancel", first)
        status = running.wait(timeout=2400)
    told = (tmp_path / "snakemake.log").read_text()
    assert status == 0, told
    assert f"SLURM-job '{first}' failed" in told
    assert "CANCELLED" in told
    assert "12 cases: 12 ok, 0 repaired, 0 failed" in told
    record = read_record(work / "record.json")
    assert len(record.cases) == 12
    assert len(record.run.shards) == 4
    assert infer(["infer", "-i", str(cohort), "-o", str(alone), "--threads", "1"]) == 0
    assert sorted(path.name for path in together.iterdir()) == sorted(path.name for path in alone.iterdir())
    for path in alone.iterdir():
        label_maps = [nibabel.load(folder / path.name) for folder in (alone, together)]
        assert np.array_equal(*(np.asarray(image.dataobj) for image in label_maps))
        assert label_maps[0].header.binaryblock == label_maps[1].header.binaryblock
