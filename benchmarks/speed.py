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
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import mean

from benchmarks.measuring import GB, add_system_arguments, cases_in, open_limited, positive, tell
from inference.case import System
from inference.cohort import segment_folder
from inference.errors import ExitStatus, UsageError
from inference.intake.cases import Case, CaseListing
from inference.machine import library_versions
from inference.report.record import CaseRecord
from inference.results import CohortSettings

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaseMeasure:
    """One case, and what the process held when it was over."""

    id: str
    status: str
    over_at: float
    """Seconds after start-up at which its label map was there."""
    seconds: Mapping[str, float]
    """By step."""
    predict_seconds: float
    rss_gb: float
    """Resident memory."""
    open_files: int
    threads: int


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
    cases: list[CaseMeasure] = []

    def report(record: CaseRecord) -> None:
        cases.append(_held(record, time.perf_counter() - begin))
        steps = ", ".join(f"{step} {seconds:.2f} s" for step, seconds in record.seconds.items())
        _LOG.info("%s: %s, %s", record.id, record.status, steps)

    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        outcome = segment_folder(listing, system, CohortSettings(Path(scratch), on_error="stop"), report)
    if outcome.interrupted or not cases:
        raise UsageError(f"not measured: ended by {outcome.interrupted}")
    wall, processor = cases[-1].over_at, time.process_time() - processor
    predictions = [case.predict_seconds for case in cases]
    return {
        "bundle": f"{system.bundle.manifest.name} {system.bundle.manifest.version}",
        "profile": system.profile.value,
        "engine": system.engine.description,
        "threads": threads,
        "networks": sum(len(model.folds) for model in system.bundle.models),
        "start_seconds": round(started, 2),
        "first_file_seconds": round(started + cases[0].over_at, 2),
        "seconds_per_case": round(wall / len(cases), 2),
        "later_predict_seconds": round(mean(predictions[1:]), 3) if predictions[1:] else None,
        "processor_seconds_per_case": round(processor / len(cases), 2),
        "wall_by_prediction": round(wall / sum(predictions), 3),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB, 3),
        **_peak_gpu(system.engine.device),
        "steps": {step: round(mean(case.seconds[step] for case in cases), 3) for step in cases[0].seconds},
        "growth": _growth(cases[1:]),
        "cases": [asdict(case) for case in cases],
        "versions": library_versions(),
    }


def _held(record: CaseRecord, over_at: float) -> CaseMeasure:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return CaseMeasure(
        id=record.id,
        status=record.status,
        over_at=round(over_at, 2),
        seconds=record.seconds,
        predict_seconds=record.seconds["predict"],
        rss_gb=round(pages * os.sysconf("SC_PAGE_SIZE") / GB, 3),
        open_files=len(list(Path("/proc/self/fd").iterdir())),
        threads=len(list(Path("/proc/self/task").iterdir())),
    )


def _growth(cases: Sequence[CaseMeasure]) -> dict[str, list[float]]:
    """Means over the first and the second half of some cases."""
    halves = (cases[: len(cases) // 2], cases[len(cases) // 2 :])
    if not halves[0]:
        return {}
    names = ("predict_seconds", "rss_gb", "open_files", "threads")
    return {name: [round(mean(getattr(case, name) for case in half), 3) for half in halves] for name in names}


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
    tell(measure(open_limited(arguments), listing, arguments.threads), arguments.json)
    return ExitStatus.OK
