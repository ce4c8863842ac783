"""Cores and memory that a container leaves us, and what a run says about its machine."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from inference.machine import (
    Machine,
    available_memory,
    available_threads,
    describe_machine,
    look_around,
    scratch_folder,
)

MEMINFO = "MemTotal:       16384000 kB\nMemFree:  1 kB\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "9900000 100000\n"}, 8),
        ({"cpu.max": "nonsense"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
    ],
)
def test_threads_are_the_affinity_or_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    write(tmp_path / "sys/fs/cgroup", files)
    assert available_threads(tmp_path) == expected


@pytest.mark.parametrize(("wished", "expected"), [("3", 3), ("99", 8), ("0", 1), ("4,2", 8)])
def test_threads_are_no_more_than_the_environment_wishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wished: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    monkeypatch.setenv("OMP_NUM_THREADS", wished)
    assert available_threads(tmp_path) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 16384000 * 1024),
        ({"memory.max": "max"}, 16384000 * 1024),
        ({"memory.max": "1073741824"}, 2**30),
        ({"memory/memory.limit_in_bytes": "9223372036854771712"}, 16384000 * 1024),
        ({"memory/memory.limit_in_bytes": "2147483648"}, 2**31),
    ],
)
def test_memory_is_the_machines_or_the_limit(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    write(tmp_path, {"proc/meminfo": MEMINFO})
    write(tmp_path / "sys/fs/cgroup", files)
    assert available_memory(tmp_path) == expected


OWN = ["0::/user slice/of: mine\n", "4:memory,cpu:/docker/abc\n1:name=systemd:/x\n0::/\n", "nonsense\n\n:\n"]
LIMITS = {
    "user slice/of: mine/memory.max": "1000",
    "user slice/of: mine/cpu.max": "200000 100000",
    "memory/docker/abc/memory.limit_in_bytes": "2000",
    "cpu/docker/memory.max": "1",
    "cpu/docker/cpu.cfs_quota_us": "300000",
    "cpu/docker/cpu.cfs_period_us": "100000",
}


@pytest.mark.parametrize(
    ("own", "memory", "threads"), [(OWN[0], 1000, 2), (OWN[1], 2000, 3), (OWN[2], 16384000 * 1024, 8)]
)
def test_the_limits_of_its_own_group_and_of_those_above_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, memory: int, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    write(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/cgroup": own})
    write(tmp_path / "sys/fs/cgroup", LIMITS)
    assert available_memory(tmp_path) == memory
    assert available_threads(tmp_path) == threads


def test_temporary_files_go_where_they_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    assert scratch_folder([str(tmp_path / "nowhere"), str(tmp_path)]) == str(tmp_path)
    assert scratch_folder([str(tmp_path / "nowhere")]) is None
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "mine"))
    assert scratch_folder([str(tmp_path)]) == str(tmp_path / "mine")
    monkeypatch.setattr(os, "access", lambda folder, _: folder == str(tmp_path))
    assert scratch_folder([str(tmp_path)]) == str(tmp_path)


def test_memory_may_be_unknown(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None


def test_this_machine_has_what_the_project_needs() -> None:
    machine = look_around()
    assert machine.threads >= 1
    assert "numpy" in machine.libraries


def test_freed_arrays_go_back_to_the_system() -> None:
    # In a process of its own, for the setting is the process's. A small array on top keeps the heap from shrinking.
    program = """
import resource, numpy as np
from inference.machine import give_memory_back
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
give_memory_back()
np.ones(2**22)  # 32 MiB, after which glibc would keep smaller ones
before = resident()
arrays = [np.ones(2**19) for _ in range(32)]
keep = bytearray(2**16)
del arrays
print(resident() - before)
"""
    left = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(left) < 2**24


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


PLACES = {"label maps": Path("/output"), "record": Path("/records/run.json")}
SOUND = Machine(
    threads=4,
    cores=8,
    memory_gib=16.0,
    machine_memory_gib=16.0,
    scratch="/tmp",
    engines=("openvino",),
    gpus=(),
    driver=None,
    libraries={},
)


def test_a_sound_machine_is_four_lines_without_a_warning() -> None:
    lines = list(describe_machine(SOUND, "cpu", 4, PLACES))
    assert {level for level, _ in lines} == {logging.INFO}
    assert [line for _, line in lines] == [
        "device: the CPU, no GPU is seen",
        "memory: 16.0 GiB",
        "threads: 4 on 8 cores",
        "writes: label maps to /output, record to /records/run.json",
    ]


@pytest.mark.parametrize(
    ("changes", "device", "threads", "off", "text"),
    [
        ({"gpus": ("H200",), "driver": "550.1"}, "cuda:0", 4, False, "device: cuda:0 of H200, driver 550.1"),
        ({"driver": None}, "cuda:0", 4, False, "device: cuda:0 of the GPUs, driver unknown"),
        ({"gpus": ("H200",), "driver": "1.2"}, "cpu", 4, True, "runs on the CPU although there is a GPU (H200"),
        ({"memory_gib": None}, "cpu", 4, False, "memory: unknown"),
        ({"memory_gib": 8.0}, "cpu", 4, False, "memory: 8.0 GiB of the machine's 16.0, by the container's limit"),
        ({"memory_gib": 1.5}, "cpu", 4, True, "only 1.5 GiB of memory may be used of the machine's 16.0"),
        ({}, "cpu", 6, True, "6 threads where 4 cores may be used"),
        ({"scratch": None}, "cpu", 4, True, "no folder for temporary files (TMPDIR, /tmp) can be written to"),
    ],
)  # fmt: skip
def test_each_thing_is_said_in_plain_words(
    changes: dict[str, object], device: str, threads: int, off: bool, text: str
) -> None:
    machine = replace(SOUND, **changes)  # type: ignore[arg-type]
    (level,) = [level for level, line in describe_machine(machine, device, threads, PLACES) if text in line]
    assert level == (logging.WARNING if off else logging.INFO)
