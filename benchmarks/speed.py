"""Seconds and memory of whole cases, as `infer` goes through them.

`--cases N` repeats the cases of the folder until there are N of them, and shows whether time, memory, open files and
threads grow with their number. `--against nnunet` times nnU-Net's own predictor instead, as it comes, on the same
weights and tiles in one process with ours. `--operators N` says where the time of prediction goes instead.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Final

from inference.bundle.store import load_bundle
from inference.errors import ExitStatus, FolderError, UsageError
from inference.intake.cases import Case, CaseListing, find_cases
from inference.machine import available_threads, give_memory_back, library_versions
from inference.pipeline import Destination, FolderSettings, System, prepare_system, segment_folder
from inference.report.record import CaseRecord
from inference.settings import EMBEDDED, ENGINES, PROFILES

_LOG = logging.getLogger(__name__)
_GB: Final = 1e9
TILES: Final = (1, 2, 4, 8)
"""How many tiles a comparison can be limited to."""


@dataclass(frozen=True)
class CaseMeasure:
    """One case, and what the process held when it was over."""

    id: str
    status: str
    over_at: float
    """Seconds after start-up at which its label map was there."""
    seconds: Mapping[str, float]
    """Seconds by step."""
    rss_gb: float
    """Resident memory at that moment, in 10⁹ bytes."""
    open_files: int
    threads: int


@dataclass(frozen=True)
class Measures:
    """What `speed` writes as JSON; memory in 10⁹ bytes."""

    bundle: str
    profile: str
    engine: str
    threads: int
    networks: int
    """Networks of the ensemble that ran."""
    start_seconds: float
    """From the start of the process until the first case was begun."""
    first_file_seconds: float
    """From the start of the process until the first label map was there."""
    seconds_per_case: float
    """Wall time after start-up, by the number of cases; reading and refining overlap with prediction."""
    later_predict_seconds: float | None
    """Mean of a case's prediction after the first, which warms things up; None where there is no other."""
    processor_seconds_per_case: float
    """Seconds of all threads after start-up, by the number of cases: says more than wall time on a busy machine."""
    wall_by_prediction: float
    """Wall time after start-up, by the sum of all cases' prediction."""
    peak_rss_gb: float
    peak_gpu_gb: float | None
    """Of the networks, arrays and workspaces on it; None where no GPU was used."""
    reserved_gpu_gb: float | None
    """What torch took of the GPU for them; CUDA itself takes some hundred MB more."""
    steps: Mapping[str, float]
    """Mean seconds of a case, by step."""
    growth: Mapping[str, Sequence[float]]
    """Means over the first and the second half of the cases, the very first left out."""
    cases: Sequence[CaseMeasure]
    versions: Mapping[str, str]


def since_start() -> float:
    """Seconds since this process was started (Linux)."""
    ticks = int(Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def limited_system(arguments: argparse.Namespace, threads: int) -> System:
    """The bundle's networks made ready, the first `--networks` of each model where that is given."""
    bundle = load_bundle(arguments.bundle)
    if arguments.networks is not None:
        models = tuple(replace(model, folds=model.folds[: arguments.networks]) for model in bundle.models)
        bundle = replace(bundle, models=models)
    return prepare_system(
        bundle, profile=arguments.profile, engine=arguments.engine, device=arguments.device, threads=threads
    )


def repeated(listing: CaseListing, count: int | None) -> CaseListing:
    """A listing whose cases are repeated under other IDs until there are `count`."""
    if not listing.cases:
        raise FolderError("no complete case to measure with")
    if count is None:
        return replace(listing, problems=())
    copies = enumerate(islice(cycle(listing.cases), count))
    return CaseListing(tuple(Case(f"{number:03d}-{case.id}", case.paths) for number, case in copies), ())


def measure(system: System, listing: CaseListing, threads: int) -> Measures:
    """Segment all cases into a folder that is thrown away; call it at the end of the start."""
    started, begin, processor = since_start(), time.perf_counter(), time.process_time()
    cases: list[CaseMeasure] = []

    def tell(record: CaseRecord) -> None:
        cases.append(_held(record, time.perf_counter() - begin))
        _LOG.info(
            "%s: %s, %s", record.id, record.status, ", ".join(f"{k} {v:.2f} s" for k, v in record.seconds.items())
        )

    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        settings = FolderSettings(Destination(Path(scratch)), "stop")
        outcome = segment_folder(listing, system, settings, tell)
    if outcome.interrupted or not cases:
        raise UsageError(f"not measured: ended by {outcome.interrupted}")
    wall, processor = cases[-1].over_at, time.process_time() - processor
    later = [case.seconds["predict"] for case in cases[1:]]
    peak_gpu, reserved_gpu = _peak_gpu(system.engine.device)
    steps = {step: round(_mean([case.seconds[step] for case in cases]), 3) for step in cases[0].seconds}
    return Measures(
        bundle=f"{system.bundle.manifest.name} {system.bundle.manifest.version}",
        profile=system.profile.value,
        engine=system.engine.description,
        threads=threads,
        networks=sum(len(model.folds) for model in system.bundle.models),
        start_seconds=round(started, 2),
        first_file_seconds=round(started + cases[0].over_at, 2),
        seconds_per_case=round(wall / len(cases), 2),
        later_predict_seconds=round(_mean(later), 3) if later else None,
        processor_seconds_per_case=round(processor / len(cases), 2),
        wall_by_prediction=round(wall / sum(case.seconds["predict"] for case in cases), 3),
        peak_rss_gb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GB, 3),
        peak_gpu_gb=peak_gpu,
        reserved_gpu_gb=reserved_gpu,
        steps=steps,
        growth=_growth(cases),
        cases=cases,
        versions=library_versions(),
    )


def _held(record: CaseRecord, over_at: float) -> CaseMeasure:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return CaseMeasure(
        id=record.id,
        status=record.status,
        over_at=round(over_at, 2),
        seconds=record.seconds,
        rss_gb=round(pages * os.sysconf("SC_PAGE_SIZE") / _GB, 3),
        open_files=len(os.listdir("/proc/self/fd")),  # noqa: PTH208 (names are not needed)
        threads=len(os.listdir("/proc/self/task")),  # noqa: PTH208
    )


def _growth(cases: Sequence[CaseMeasure]) -> dict[str, list[float]]:
    """What a case took and held in the first and in the second half, the first case aside, which warms things up."""
    rest = cases[1:]
    halves = (rest[: len(rest) // 2], rest[len(rest) // 2 :])
    if not halves[0]:
        return {}
    return {
        "predict_seconds": [round(_mean([case.seconds["predict"] for case in half]), 3) for half in halves],
        "rss_gb": [round(_mean([case.rss_gb for case in half]), 3) for half in halves],
        "open_files": [round(_mean([case.open_files for case in half]), 1) for half in halves],
        "threads": [round(_mean([case.threads for case in half]), 1) for half in halves],
    }


def _peak_gpu(device: str) -> tuple[float, float] | tuple[None, None]:
    """Most memory in use and most memory reserved since the process began, in 10⁹ bytes."""
    if device == "cpu":
        return None, None
    import torch

    in_use, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return round(in_use / _GB, 3), round(reserved / _GB, 3)


def _let_cudnn_search(device: str) -> None:
    """Let cuDNN try out its convolutions on every new size, which the engine does not ask for."""
    if device == "cpu":
        raise UsageError("--cudnn-search: needs a GPU")
    import torch

    torch.backends.cudnn.benchmark = True


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _lines(measures: Measures) -> list[str]:
    """What there is to say, for people."""
    what = f"{measures.bundle}, {measures.networks} networks, profile {measures.profile}, {measures.engine}"
    gpu = f", of the GPU {measures.peak_gpu_gb} GB, {measures.reserved_gpu_gb} GB reserved"
    later = f", prediction {measures.later_predict_seconds} s after the first" if len(measures.cases) > 1 else ""
    start = f"start {measures.start_seconds} s, first file at {measures.first_file_seconds} s"
    lines = [
        f"{what}, {measures.threads} threads, {len(measures.cases)} cases",
        f"{start}, then {measures.seconds_per_case} s a case, {measures.wall_by_prediction} × prediction{later}",
        f"processor {measures.processor_seconds_per_case} s a case",
        "steps " + ", ".join(f"{step} {seconds:.2f} s" for step, seconds in measures.steps.items()),
        f"peak memory {measures.peak_rss_gb} GB{gpu if measures.peak_gpu_gb is not None else ''}",
    ]
    lines += [f"first half, second half: {name} {halves[0]}, {halves[1]}" for name, halves in measures.growth.items()]
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `speed`."""
    parser.add_argument("--bundle", type=Path, default=EMBEDDED, metavar="DIR", help="(default: the embedded one)")
    parser.add_argument("--input", type=Path, required=True, metavar="DIR", help="folder of the cases")
    parser.add_argument("--profile", choices=PROFILES, default="auto")
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--threads", type=int, metavar="N", help="(default: all that may be used)")
    parser.add_argument("--networks", type=int, metavar="K", help="only the first K networks of each model")
    parser.add_argument("--cases", type=int, metavar="N", help="repeat the cases until there are N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measures to a file")
    parser.add_argument("--cudnn-search", action="store_true", help="let cuDNN try out its convolutions first (GPU)")
    parser.add_argument("--operators", type=int, metavar="N", help="tell the N slowest of torch's operators instead")
    parser.add_argument("--against", choices=["nnunet"], help="compare with nnU-Net's own predictor instead")
    parser.add_argument("--tiles", type=int, choices=TILES, help="compare on so many tiles only (default: all)")
    parser.add_argument("--one-forward", action="store_true", help="compare on one tile without mirroring")
    parser.add_argument("--model", metavar="NAME", help="compare this model's first network only (default: of all)")


def run(arguments: argparse.Namespace) -> int:
    """Measure start, seconds per case and memory."""
    give_memory_back()
    threads = arguments.threads or available_threads()
    # Read by the libraries when they are loaded, which is later.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    for name in ("networks", "cases", "operators"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise UsageError(f"--{name}: at least 1")
    listing = repeated(find_cases(arguments.input), arguments.cases)
    system = limited_system(arguments, threads)
    if arguments.cudnn_search:
        _let_cudnn_search(system.engine.device)
    if arguments.operators:
        from benchmarks.operators import where_time_goes

        result, lines = where_time_goes(system, listing.cases[0], arguments.operators)
    elif arguments.against:
        from benchmarks.against import compare_all

        result, lines = compare_all(
            system, listing.cases[0], threads, arguments.model, arguments.tiles, mirrored=not arguments.one_forward
        )
    else:
        measures = measure(system, listing, threads)
        result, lines = asdict(measures), _lines(measures)
    sys.stdout.write("\n".join(lines) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return ExitStatus.OK
