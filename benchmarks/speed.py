"""Seconds and memory of whole cases, as `infer` goes through them.

`--cases N` repeats the cases of the folder until there are N of them, and shows whether time, memory, open files and
threads grow with their number. benchmarks/README.md says what each number is.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from statistics import mean

from benchmarks.measuring import GB, add_system_arguments, cases_in, open_limited, positive, report
from inference.case import System
from inference.cohort import segment_folder
from inference.errors import ExitStatus, UsageError
from inference.intake.cases import Case, CaseListing
from inference.machine import library_versions
from inference.report.record import CaseRecord
from inference.results import CohortSettings

_LOG = logging.getLogger(__name__)


def since_start() -> float:
    """Seconds since this process was started (Linux)."""
    # Field 22 of proc(5): the start in clock ticks after boot. The name before it may have blanks, but ends with ")".
    ticks = int(Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def repeated(listing: CaseListing, count: int) -> CaseListing:
    """A listing whose cases are repeated under other IDs until there are `count`."""
    copies = enumerate(islice(cycle(listing.cases), count))
    return CaseListing(tuple(Case(f"{number:03d}-{case.id}", case.paths) for number, case in copies), ())


def measure(system: System, listing: CaseListing, threads: int) -> dict[str, object]:
    """Segment all cases into a folder that is thrown away; call it at the end of the start."""
    started, begin, processor = since_start(), time.perf_counter(), time.process_time()
    cases: list[CaseRecord] = []
    ends: list[float] = []
    held: list[dict[str, float]] = []

    def finish(record: CaseRecord) -> None:
        ends.append(round(time.perf_counter() - begin, 2))
        cases.append(record)
        held.append({"predict_seconds": record.seconds["predict"], **_held()})
        times = ", ".join(f"{step} {seconds:.2f} s" for step, seconds in record.seconds.items())
        _LOG.info("%s: %s, %s", record.id, record.status, times)

    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        # A case that failed would count as a fast one.
        outcome = segment_folder(listing, system, CohortSettings(Path(scratch), on_error="stop"), finish)
    if outcome.interrupted or not cases:
        raise UsageError(f"not measured: ended by {outcome.interrupted}")
    wall, processor = ends[-1], time.process_time() - processor
    steps = [case.seconds for case in cases]
    predictions = [each["predict"] for each in steps]
    return {
        "bundle": f"{system.bundle.manifest.name} {system.bundle.manifest.version}",
        "profile": system.profile.value,
        "engine": system.engine.description,
        "threads": threads,
        "networks": sum(len(model.folds) for model in system.bundle.models),
        "start_seconds": round(started, 2),
        "first_file_seconds": round(started + ends[0], 2),
        "seconds_per_case": round(wall / len(cases), 2),
        "later_predict_seconds": round(mean(predictions[1:]), 3) if predictions[1:] else None,
        "processor_seconds_per_case": round(processor / len(cases), 2),
        "wall_by_prediction": round(wall / sum(predictions), 3),
        # The kernel's high-water mark, in KiB on Linux.
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB, 3),
        **_peak_gpu(system.engine.device),
        "steps": {step: round(mean(each[step] for each in steps), 3) for step in steps[0]},
        # Without the first, in which networks prepare themselves for a size and a GPU loads its kernels.
        "growth": _growth(held[1:]),
        "cases": [
            {"id": case.id, "status": case.status, "over_at": end, "seconds": case.seconds, **after}
            for case, end, after in zip(cases, ends, held, strict=True)
        ],
        "versions": library_versions(),
    }


def _held() -> dict[str, float]:
    """Resident memory, open files and threads of this process."""
    # Field 2 of proc(5)'s statm: resident pages.
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return {
        "rss_gb": round(pages * os.sysconf("SC_PAGE_SIZE") / GB, 3),
        "open_files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": len(list(Path("/proc/self/task").iterdir())),
    }


def _growth(held: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Means over the first and the second half of some cases."""
    halves = held[: len(held) // 2], held[len(held) // 2 :]
    if not halves[0]:
        return {}
    return {name: [round(mean(each[name] for each in half), 3) for half in halves] for name in held[0]}


def _peak_gpu(device: str) -> dict[str, float | None]:
    """Most memory in use and most memory reserved by torch since the process began; CUDA takes some hundred MB more."""
    if device == "cpu":
        return {"peak_gpu_gb": None, "reserved_gpu_gb": None}
    import torch

    in_use, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return {"peak_gpu_gb": round(in_use / GB, 3), "reserved_gpu_gb": round(reserved / GB, 3)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `speed`."""
    add_system_arguments(parser)
    parser.add_argument("--cases", type=positive, metavar="N", help="repeat the cases until there are N")


def run(arguments: argparse.Namespace) -> int:
    """Measure start, seconds per case and memory."""
    listing = cases_in(arguments.input)
    if arguments.cases:
        listing = repeated(listing, arguments.cases)
    report(measure(open_limited(arguments), listing, arguments.threads), arguments.json)
    return ExitStatus.OK
