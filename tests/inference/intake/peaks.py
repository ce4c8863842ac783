"""Peak memory and seconds of every kind of the catalogue, each in a process of its own.

`python -m tests.inference.intake.peaks FOLDER` writes a line of JSON for each, and first five for the sound case. The
images are half an atlas along each axis, so that a needless copy shows. One kind after the other is spoilt in FOLDER,
and read by a fork of this process that has read a sound case before.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from inference.errors import CaseError, FolderError
from inference.intake.cases import find_cases
from inference.intake.scan import read_scan
from inference.machine import give_memory_back
from tests.inference.intake import samples

HALF_AN_ATLAS = (120, 120, 78)
MOST_SECONDS = 60.0
SOUND, SOUND_TIMES = "sound", 5


def read(folder: Path) -> str:
    """Find and read the cases of a folder; the worst of what became of them."""
    try:
        listing = find_cases(folder)
    except FolderError:
        return "refused"
    outcome = "refused" if listing.problems else "read"
    for case in listing.cases:
        try:
            read_scan(case)
        except CaseError:
            outcome = "refused"
    return outcome


def memory(key: str) -> int:
    """kB of this process: `VmRSS`, in use, or `VmHWM`, in use at most."""
    return int(Path("/proc/self/status").read_text().partition(f"{key}:")[2].split()[0])


def measure(warm: Path, folder: Path) -> dict[str, object]:
    """What it takes to read the cases of a folder, beyond what the process holds that has read those of another."""
    read(warm)
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark falls to what is in use
    before, begun = memory("VmRSS"), time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            outcome = read(folder)
    except BaseException as error:
        outcome = f"unnamed: {error!r}"
    return {"outcome": outcome, "seconds": time.monotonic() - begun, "kb": memory("VmHWM") - before}


def in_a_fork(work: Callable[[], dict[str, object]]) -> dict[str, object]:
    """The result of some work in a fork of this process, which is killed if it takes too long."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(theirs, json.dumps(work()).encode())
        os._exit(0)
    os.close(theirs)
    finished = bool(select.select([ours], [], [], MOST_SECONDS)[0])
    if not finished:
        os.kill(child, signal.SIGKILL)
    answer = os.read(ours, 2**16)
    os.close(ours)
    os.waitpid(child, 0)
    return json.loads(answer) if answer else {"outcome": "died" if finished else "hung"}


def main(scratch: Path) -> None:
    give_memory_back()
    samples.SHAPE, samples.brain.__defaults__ = HALF_AN_ATLAS, (HALF_AN_ATLAS, "int16")
    from tests.inference.intake.test_catalogue import CATALOGUE

    sound, spoilt = scratch / "sound", scratch / "spoilt"
    samples.put_case(sound)
    for _ in range(SOUND_TIMES):
        sys.stdout.write(json.dumps({"name": SOUND, **in_a_fork(lambda: measure(sound, sound))}) + "\n")
    for entry in CATALOGUE:
        shutil.copytree(sound, spoilt)
        entry.spoil(spoilt)
        sys.stdout.write(json.dumps({"name": entry.name, **in_a_fork(lambda: measure(sound, spoilt))}) + "\n")
        sys.stdout.flush()
        shutil.rmtree(spoilt)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
