"""What a run says about its machine before its first case."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from inference.machine import Machine
from inference.preflight import preflight

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
    lines = list(preflight(SOUND, "cpu", 4, PLACES))
    assert not any(line.off for line in lines)
    assert [line.text for line in lines] == [
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
    (line,) = [line for line in preflight(machine, device, threads, PLACES) if text in line.text]
    assert line.off == off
