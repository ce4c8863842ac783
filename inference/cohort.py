"""A folder of cases: while one is predicted, the next is read and the last is refined and written."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import TypeVar, TypeVarTuple

import numpy as np

from inference.case import EMPTY_TUMOUR, System, describe, label_regions, predict_regions
from inference.errors import CaseError, GliomaError, reason
from inference.intake.cases import Case, CaseListing, digest_scans
from inference.intake.label_map import holds_fractions, write_labels
from inference.intake.scan import Scan, any_geometry, read_scan
from inference.labels import REGIONS
from inference.memory import FINISHING, PLENTY, check_fits, fits, need_to_predict, need_to_read
from inference.predict.ensemble import Progress, RegionProbabilities
from inference.report.record import CaseRecord, volumes_ml
from inference.results import CohortSettings, draw, is_drawn, read_result, stamp_of, write_maps

log = logging.getLogger(__name__)
_Item = TypeVar("_Item")
_Given = TypeVarTuple("_Given")


@dataclass(frozen=True)
class Outcome:
    """The end of a cohort: its records and its exit status."""

    cases: tuple[CaseRecord, ...]
    """Every case of the shard once, by ID, those that were not attempted included."""
    interrupted: str | None
    """The signal or failed case that ended the run before its last case; None where it was not ended."""


@dataclass(eq=False)
class _Task:
    """One case, or what is known of one that cannot be attempted."""

    case: Case
    problem: CaseError | None = None
    replaceable: bool = True
    """Whether an empty file may be written under its ID."""
    scans: str = ""
    """Digest of the files, once they are read."""
    seconds: dict[str, float] = field(default_factory=dict)
    begins: Callable[[str, str], None] | None = None
    """Called with the ID and the step that begins, in the thread that does it."""

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        if self.begins is not None:
            self.begins(self.case.id, step)
        begin = time.perf_counter()
        yield
        self.seconds[step] = round(self.seconds.get(step, 0) + time.perf_counter() - begin, 3)


def segment_folder(
    listing: CaseListing,
    system: System,
    settings: CohortSettings,
    report: Callable[[CaseRecord], None],
    *,
    progress: Progress | None = None,
    begins: Callable[[str, str], None] | None = None,
    ended_by: Callable[[], str | None] = lambda: None,
) -> Outcome:
    """Segment the cases of a listing, each for itself: what goes wrong with one is its record, and the others go on.

    `report` is called with the record of each case when it is over, `progress` with the forward passes of the case in
    hand, done and in all, and `begins` with the ID of a case and the step that begins for it, in that step's thread.
    Prediction runs in this thread; one thread reads ahead, and one finishes. `ended_by` is asked before every case and
    after every forward pass. Once it names a signal, the case in prediction is dropped, and the one that is being
    written is finished; so does a KeyboardInterrupt.
    """
    tasks = [replace(task, begins=begins) for task in shard_of(_tasks(listing), settings.shard)]
    records: dict[_Task, CaseRecord] = {}

    def settle(task: _Task, record: CaseRecord) -> None:
        records[task] = record
        report(record)
        if settings.on_error == "stop" and record.status == "failed":
            raise _Ended(f"the failure of {record.id}")

    def check() -> None:
        if name := ended_by():
            raise _Ended(name)

    def advance(done: int, total: int) -> None:
        check()
        if progress is not None:
            progress(done, total)

    interrupted = None
    try:
        _overlap(tasks, system, settings, settle=settle, check=check, advance=advance)
    except KeyboardInterrupt as end:
        interrupted = str(end) or "SIGINT"
    for task in tasks:
        if task not in records:
            records[task] = CaseRecord(task.case.id, "failed", error=f"dropped after {interrupted}")
    return Outcome(tuple(records[task] for task in tasks), interrupted)


class _Ended(KeyboardInterrupt):
    """The run ends before its last case; the text says by what."""


def _overlap(
    tasks: Sequence[_Task],
    system: System,
    settings: CohortSettings,
    *,
    settle: Callable[[_Task, CaseRecord], None],
    check: Callable[[], None],
    advance: Progress,
) -> None:
    """Read, predict and finish all tasks in turn, at most three at a time, and settle each in this thread."""
    # Threads, not processes: all three steps spend their time in libraries that release the interpreter's lock, and a
    # process would have to be sent each scan.
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "finish") as finisher:
        reading: list[Future[Scan | CaseRecord]] = []
        finishing: list[tuple[_Task, Future[CaseRecord]]] = []

        def read(task: _Task) -> None:
            reading.append(reader.submit(_attempt, _read, task, system, settings))

        def settle_last() -> None:
            while finishing:
                task, finished = finishing.pop()
                settle(task, finished.result())

        try:
            for task, following in zip_longest(tasks, tasks[1:]):
                check()
                if not reading:
                    settle_last()
                    read(task)
                scan = reading.pop().result()
                if not _fit_beside(following, scan, system):
                    settle_last()  # and the next is read when this one is through
                elif following is not None:
                    read(following)
                if isinstance(scan, CaseRecord):
                    settle_last()  # cases are reported in their order
                    settle(task, scan)
                    continue
                regions = _attempt(_predict, task, system, settings, scan, advance)
                settle_last()
                if isinstance(regions, CaseRecord):
                    settle(task, regions)
                else:
                    finishing.append((task, finisher.submit(_attempt, _finish, task, system, settings, scan, regions)))
                # Nothing of this case may stay in memory while the next one is predicted.
                del scan, regions
        finally:
            # A case that is being written is finished whatever ends the run; one that is only read is dropped.
            settle_last()
            reader.shutdown(cancel_futures=True)


def _fit_beside(following: _Task | None, scan: Scan | CaseRecord, system: System) -> bool:
    """Whether a case can be read while a scan is predicted and the one before is finished: else one after the other."""
    if isinstance(scan, CaseRecord) or fits(PLENTY):
        return True
    reading = need_to_read(following.case) if following is not None and not following.problem else 0
    return fits(reading + need_to_predict(scan, system) + scan.data[0].size * FINISHING)


def shard_of(items: Sequence[_Item], shard: tuple[int, int]) -> list[_Item]:
    """Every N-th item, from the I-th, of a shard (I, N) that counts from 1."""
    first, step = shard
    return list(items[first - 1 :: step])


def _tasks(listing: CaseListing) -> list[_Task]:
    """One task for each case and each problem of a listing, by ID."""
    whole = {case.id for case in listing.cases}
    tasks = [_Task(case) for case in listing.cases]
    for problem in listing.problems:
        # A problem may carry the ID of a case that is whole, whose result must stay.
        case = Case(problem.case, listing.found.get(problem.case, {}))
        tasks.append(_Task(case, problem, replaceable=problem.case not in whole))
    return sorted(tasks, key=lambda task: task.case.id)


def _attempt(
    step: Callable[[_Task, System, CohortSettings, *_Given], _Item],
    task: _Task,
    system: System,
    settings: CohortSettings,
    *given: *_Given,
) -> _Item | CaseRecord:
    """Result of a step of a case, or the record of a failed case where anything goes wrong in it."""
    try:
        return step(task, system, settings, *given)
    except Exception as error:  # whatever a library raises is the end of this case, and of no other
        log.debug("%s failed", task.case.id, exc_info=True)
        return _failed(task, system, settings, reason(error, task.case.id))


def _read(task: _Task, system: System, settings: CohortSettings) -> Scan | CaseRecord:
    """The scan of a case, or its record where nothing is left to do."""
    if task.problem:
        raise task.problem
    with task.timed("read"):
        task.scans = digest_scans(task.case)
    if settings.resume and (record := _earlier_result(task, system, settings)):
        return record
    with task.timed("read"):
        check_fits(task.case.id, "read", lambda: need_to_read(task.case))
        return read_scan(task.case)


def _predict(
    task: _Task, system: System, settings: CohortSettings, scan: Scan, progress: Progress
) -> RegionProbabilities:
    compare = settings.report is not None or settings.uncertainty is not None
    with task.timed("predict"):
        check_fits(scan.case, "predict", lambda: need_to_predict(scan, system))
        return predict_regions(scan, system, progress=progress, compare=compare)


def _finish(
    task: _Task, system: System, settings: CohortSettings, scan: Scan, regions: RegionProbabilities
) -> CaseRecord:
    """Refine, write and draw a case."""
    path = settings.label_map(scan.case)
    with task.timed("refine"):
        result = label_regions(scan, regions, system)
    record = describe(scan, result)
    warnings = list(record.warnings)
    with task.timed("write"):
        stamp = system.stamp(task.scans, noted=scan.is_noted)
        write_labels(result.labels, scan.geometry, path, stamp=stamp)
        maps, unwritten = write_maps(scan, regions, settings, stamp)
        warnings += unwritten
    with task.timed("draw"):
        warnings += draw(scan, result.labels, maps, warnings, settings.report)
    return replace(record, output=str(path), seconds=task.seconds, warnings=tuple(warnings))


def _earlier_result(task: _Task, system: System, settings: CohortSettings) -> CaseRecord | None:
    """The record of a case whose results of an earlier run are there, made from the same scans by the same system.

    A picture that is missing is drawn now. What there is to say about the scan is found out again.
    """
    case, path = task.case, settings.label_map(task.case.id)
    # The stamp names bundle, profile and scans: where one of them is another, the result is not the one asked for.
    stamp = stamp_of(path)
    noted = stamp == system.stamp(task.scans, noted=True)
    if stamp is None or not (noted or stamp == system.stamp(task.scans)):
        return None
    geometry = any_geometry(case.paths)
    labels = read_result(path, geometry)
    maps = settings.maps(case.id).values()
    if labels is None or not all(holds_fractions(map_, geometry, len(REGIONS), stamp=stamp) for map_ in maps):
        return None
    record = CaseRecord(
        id=case.id,
        status="ok",
        output=str(path),
        resumed=True,
        warnings=() if labels.any() else (EMPTY_TUMOUR,),
        volumes_ml=volumes_ml(labels, geometry.spacing),
    )
    drawn = settings.report is None or is_drawn(case.id, path, settings.report)
    if drawn and not noted:
        return record
    with task.timed("read"):
        scan = read_scan(case)
    warnings = [*scan.warnings, *record.warnings]
    if not drawn:
        with task.timed("draw"):
            warnings += draw(scan, labels, {}, warnings, settings.report)
    return replace(
        record,
        status="repaired" if scan.repairs else "ok",
        seconds=task.seconds,
        repairs=scan.repairs,
        warnings=tuple(warnings),
    )


def _failed(task: _Task, system: System, settings: CohortSettings, error: str) -> CaseRecord:
    """The record of a failed case, with an all-background file in its place where that is wanted.

    The file has the geometry of the first of the case's scans that has one. It never takes the place of a result that
    is, or may be, there.
    """
    case, path = task.case, settings.label_map(task.case.id)
    failed = CaseRecord(case.id, "failed", error=error)
    if settings.on_error != "empty" or not task.replaceable:
        return failed
    try:
        made = (stamp_of(path) or "").startswith(system.made_by)
        kept = settings.resume and made and read_result(path, any_geometry(case.paths)) is not None
    except (OSError, MemoryError):
        kept = path.exists()  # what cannot be looked at may be a result
    if kept:
        return replace(failed, error=f"{error}; the label map of an earlier run is kept")
    try:
        geometry = any_geometry(case.paths)
        write_labels(
            np.zeros(geometry.canonical_shape, np.uint8), geometry, path, stamp="all background: the case failed"
        )
    except (GliomaError, OSError, MemoryError) as no_file:
        return replace(failed, error=f"{error}; and no empty file either: {reason(no_file, case.id)}")
    warning = "THE FILE IS EMPTY BECAUSE THE CASE FAILED, not because there is no tumour"
    return replace(failed, status="empty", output=str(path), warnings=(warning,))
