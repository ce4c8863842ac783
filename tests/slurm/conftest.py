"""A real Slurm of one node for as long as the tests run, beside whatever Slurm the machine may have."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAMS = ("slurmctld", "slurmd", "munged", "srun", "sbatch", "squeue", "scancel", "sinfo")

# No accounting, and no cgroups, which a container may not have. The node says to have the memory that jobs ask for.
CONFIGURATION = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=64000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Cluster:
    """Slurm as its users see it."""

    environment: dict[str, str]
    """In which its commands find it."""

    def ask(self, *words: str) -> str:
        """What a Slurm command answers."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout if done.returncode == 0 else ""

    def jobs(self, state: str) -> dict[str, str]:
        """The IDs of the jobs in a state, and the rule each was submitted for."""
        lines = self.ask("squeue", "--noheader", "--states", state, "--format", "%i|%k").splitlines()
        return dict(line.split("|", 1) for line in lines)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def cluster():
    """A Slurm of one node with two cores; skipped where its programs are missing or may not be started."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (Debian: apt-get install slurm-wlm munge)")
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons are started by root")
    # munged wants a short path that only its user may write to.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            host=socket.gethostname().split(".")[0],
            folder=folder,
            controller_port=free_port(),
            node_port=free_port(),
            cores=2,
        )
    )
    # Snakemake's job step hands SLURM_CONF to no srun.
    srun = folder / "bin" / "srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={configuration} exec {shutil.which("srun")} "$@"\n')
    srun.chmod(0o755)
    found = Cluster({**os.environ, "SLURM_CONF": str(configuration), "PATH": f"{folder}/bin:{os.environ['PATH']}"})
    munge = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("socket", "key-file", "pid-file", "log-file")]
    try:
        for command in (
            ["munged", "--force", *munge, f"--seed-file={folder}/munge.seed"],
            ["slurmctld", "-c"],
            ["slurmd"],
        ):
            subprocess.run(command, env=found.environment, check=True, timeout=60)
        wait_until(lambda: "idle" in found.ask("sinfo", "--noheader", "--format", "%T"), 60)
        yield found
    finally:
        found.ask("scancel", "--user", "root")
        for name in ("slurmd.pid", "slurmctld.pid", "munge.pid"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((folder / name).read_text()), 15)
        time.sleep(2)
        shutil.rmtree(folder, ignore_errors=True)


def wait_until(happened, seconds: float) -> None:
    """Wait for something to be true; AssertionError after so many seconds."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
