"""What a run is told about its machine before its first case: one line a thing, and plain words where one is off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from inference.machine import Machine

LITTLE_MEMORY_GIB: Final = 3.0
"""Below this a scan of the usual size may not fit."""


class Line(NamedTuple):
    """One line of the log."""

    off: bool
    """Whether it is a warning."""
    text: str
    """What it says."""


def preflight(machine: Machine, device: str, threads: int, places: Mapping[str, Path]) -> Iterator[Line]:
    """The lines about device, memory, threads and the `places` that are written to, by what is written there.

    `device` is where the networks run (`cpu`, `cuda:0`), `threads` how many cores they may use. That the places can be
    written to has been tried by then; nothing falls back here.
    """
    yield _device(machine, device)
    yield _memory(machine)
    yield _threads(machine, threads)
    yield Line(False, "writes: " + ", ".join(f"{what} to {place}" for what, place in places.items()))
    if machine.scratch is None:
        yield Line(True, "no folder for temporary files (TMPDIR, /tmp) can be written to: pictures may not come about")


def _device(machine: Machine, device: str) -> Line:
    gpus = ", ".join(machine.gpus)
    if device != "cpu":
        return Line(False, f"device: {device} of {gpus or 'the GPUs'}, driver {machine.driver or 'unknown'}")
    if machine.gpus:
        return Line(True, f"runs on the CPU although there is a GPU ({gpus}, driver {machine.driver})")
    return Line(False, "device: the CPU, no GPU is seen")


def _memory(machine: Machine) -> Line:
    if machine.memory_gib is None:
        return Line(False, "memory: unknown")
    limited = machine.machine_memory_gib is not None and machine.memory_gib < machine.machine_memory_gib
    whose = f" of the machine's {machine.machine_memory_gib}, by the container's limit" * limited
    if machine.memory_gib < LITTLE_MEMORY_GIB:
        return Line(True, f"only {machine.memory_gib} GiB of memory may be used{whose}, which may not do")
    return Line(False, f"memory: {machine.memory_gib} GiB{whose}")


def _threads(machine: Machine, threads: int) -> Line:
    if threads > machine.threads:
        return Line(True, f"{threads} threads where {machine.threads} cores may be used: they will wait for each other")
    return Line(False, f"threads: {threads} on {machine.cores} cores")
