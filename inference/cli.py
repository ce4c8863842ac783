"""The command line: `infer` (the default), `info`, `check`, `explain`, `merge`; verbs import what takes time."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import signal
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from inference.arguments import (
    Arguments,
    CheckArguments,
    ExplainArguments,
    InferArguments,
    InfoArguments,
    MergeArguments,
    parse_arguments,
)
from inference.console import Console
from inference.errors import ExitStatus, FolderError, GliomaError, no_module
from inference.machine import Machine, give_memory_back, library_versions, look_around
from inference.preflight import preflight

if TYPE_CHECKING:
    from inference.bundle.manifest import Manifest
    from inference.intake.cases import CaseListing
    from inference.pipeline import FolderOutcome, System
    from inference.report.record import CaseRecord, RunRecord

log = logging.getLogger(__name__)


def main(words: Sequence[str] | None = None) -> int:
    """Do what the words of the command line say; returns the exit status (:class:`inference.errors.ExitStatus`)."""
    begin = time.perf_counter()
    words = sys.argv[1:] if words is None else words
    with Console.attached() as console:
        try:
            return _dispatch(parse_arguments(words), tuple(words), console, begin)
        except GliomaError as error:
            log.error("error: %s", error)
        except KeyboardInterrupt as stop:
            log.error("error: ended by %s before the first case", str(stop) or "SIGINT")
        except BrokenPipeError:
            # Who reads standard output has gone; what is left in its buffer must not be tried again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except ModuleNotFoundError as error:
            log.debug("no module", exc_info=True)
            log.error("error: %s", no_module(error))
        except Exception as error:
            log.debug("unexpected", exc_info=True)
            log.error("error: unexpected %s: %s", type(error).__name__, " ".join(str(error).split())[:300])
        return ExitStatus.NOTHING_ATTEMPTED


def _dispatch(arguments: Arguments, words: tuple[str, ...], console: Console, begin: float) -> int:
    if isinstance(arguments, InferArguments):
        with _terminable():
            return _infer(arguments, words, console, begin)
    if isinstance(arguments, InfoArguments):
        return _info(arguments)
    if isinstance(arguments, CheckArguments):
        return _check(arguments)
    if isinstance(arguments, MergeArguments):
        return _merge(arguments)
    return _explain(arguments)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Within, SIGTERM is a KeyboardInterrupt that says so, once; where signals cannot be handled, nothing changes."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt("SIGTERM")

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _infer(arguments: InferArguments, words: tuple[str, ...], console: Console, begin: float) -> int:
    """Everything that can be wrong before a case is read is looked at first, the cheapest first."""
    if arguments.ignored:
        log.warning("ignored: unknown options %s", ", ".join(map(repr, arguments.ignored)))
    give_memory_back()
    machine = look_around()
    threads = arguments.threads or machine.threads
    # Read by the libraries when they are loaded, which is later.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    from inference.folders import RecordFile, keep_apart, keep_out, prepare_folder

    further = {
        "report": arguments.report,
        "probabilities": arguments.probabilities,
        "uncertainty": arguments.uncertainty,
    }
    wanted = {f"--{option}": folder for option, folder in further.items() if folder is not None}
    keep_apart(wanted, {"cases": arguments.data_path})
    keep_out(wanted | ({"--record": arguments.record.parent} if arguments.record else {}), arguments.output_path)
    listing = _list_cases(arguments.data_path, (arguments.output_path, *wanted.values()))
    for folder in (arguments.output_path, *wanted.values()):
        prepare_folder(folder)
    recorder = RecordFile(arguments.record)
    from inference.pipeline import Destination, FolderSettings, open_system, segment_folder, shard_of

    system = open_system(
        arguments.bundle,
        profile=arguments.profile,
        engine=arguments.engine,
        device=arguments.device,
        threads=threads,
    )
    recorder.begin(_describe_run(arguments, words, system, threads, time.perf_counter() - begin))
    _preflight(machine, system, threads, {"label maps": arguments.output_path, "record": arguments.record, **further})
    into = Destination(arguments.output_path, **further)
    settings = FolderSettings(into, arguments.on_error, arguments.resume, arguments.shard)
    total = len(shard_of([*listing.cases, *listing.problems], arguments.shard))

    def tell(case: CaseRecord) -> None:
        recorder.add(case)
        console.case_done(case)

    with console.progress(total) as advance:
        outcome = segment_folder(listing, system, settings, tell, advance)
    status = _conclude(outcome)
    try:
        recorder.end(outcome, status, time.perf_counter() - begin)
        if arguments.report:
            recorder.write_page(arguments.report)
    except KeyboardInterrupt as stop:
        log.error("ended by %s after the last case: record and page may not be up to date", str(stop) or "SIGINT")
    return status


def _list_cases(folder: Path, ignored: Collection[Path]) -> CaseListing:
    """The cases of the input folder; FolderError, which names the option where there is no such folder."""
    from inference.intake.cases import find_cases

    try:
        return find_cases(folder, ignored=ignored)
    except FolderError as error:
        if os.path.isdir(folder):  # noqa: PTH112 (never raises)
            raise
        # Whoever called without arguments, or misspelt the folder, learns how to name it.
        raise FolderError(f"{error}; --data_path names the folder of the cases (see --help)") from error


def _conclude(outcome: FolderOutcome) -> ExitStatus:
    """The exit status, and one line that sums up."""
    written = sum(case.written for case in outcome.cases)
    text = f"{written} of {len(outcome.cases)} cases written"
    if outcome.interrupted:
        log.error("ended by %s: %s", outcome.interrupted, text)
        return ExitStatus.CASE_FAILED
    if written < len(outcome.cases):
        log.error("%s", text)
        return ExitStatus.CASE_FAILED
    log.info("%s", text)
    return ExitStatus.OK


def _describe_run(
    arguments: InferArguments, words: tuple[str, ...], system: System, threads: int, start_seconds: float
) -> RunRecord:
    from inference.labels import REGIONS
    from inference.report.record import BundleIdentity, RunRecord

    manifest = system.bundle.manifest
    return RunRecord(
        command=words,
        bundle=BundleIdentity(manifest.name, manifest.version, system.bundle.digest),
        profile=system.profile.value,
        engine=system.engine.description,
        device=system.engine.device,
        threads=threads,
        on_error=arguments.on_error,
        versions={"python": platform.python_version(), **library_versions()},
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        start_seconds=round(start_seconds, 3),
        region_thresholds=dict(zip(REGIONS, system.bundle.region_thresholds, strict=True)),
    )


def _preflight(machine: Machine, system: System, threads: int, places: Mapping[str, Path | None]) -> None:
    """One line about what runs, and one for each thing that it runs on."""
    manifest = system.bundle.manifest
    log.info(
        "bundle %s %s, profile %s, %s",
        manifest.name, manifest.version, system.profile.value, system.engine.description,
    )  # fmt: skip
    wanted = {what: place for what, place in places.items() if place is not None}
    for line in preflight(machine, system.engine.device, threads, wanted):
        log.log(logging.WARNING if line.off else logging.INFO, "%s%s", "warning: " * line.off, line.text)


def _info(arguments: InfoArguments) -> int:
    from inference.bundle.manifest import read_manifest

    manifest, digest = read_manifest(arguments.bundle)
    if arguments.card:
        from inference.bundle.card import model_card

        sys.stdout.write(model_card(manifest, digest))
        sys.stdout.flush()
        return ExitStatus.OK
    machine = look_around()
    if arguments.json:
        bundle = {"path": str(arguments.bundle), "sha256": digest, **asdict(manifest)}
        sys.stdout.write(
            json.dumps({"bundle": bundle, "machine": asdict(machine)}, indent=1, ensure_ascii=False) + "\n"
        )
    else:
        sys.stdout.write("\n".join(_info_lines(arguments.bundle, manifest, digest, machine)) + "\n")
    sys.stdout.flush()
    return ExitStatus.OK


def _info_lines(bundle: Path, manifest: Manifest, digest: str, machine: Machine) -> Iterator[str]:
    from inference.bundle.card import score_lines

    provenance = manifest.provenance
    yield f"bundle        {manifest.name} {manifest.version}, made {manifest.created}"
    size = sum(file.size for file in manifest.files.values())
    yield f"in            {bundle} (sha256 {digest[:16]}…, {size / 2**20:.1f} MiB)"
    for model in manifest.models:
        yield f"model         {model.name}: {model.architecture} × {len(model.folds)} folds, weight {model.weight:g}"
    for data in provenance.data_sets:
        yield f"learnt from   {data.name}: {data.cases} cases, {data.use}"
    yield f"intended use  {manifest.intended_use}"
    yield f"limits        {manifest.limits}"
    yield f"licence       {manifest.licence}"
    yield from (f"scores        {line.rstrip()}" for line in score_lines(manifest.scores) if line)
    engines = ", ".join(machine.engines) or "none"
    yield f"this machine  {machine.threads} threads, {machine.memory_gib} GiB memory, engines: {engines}"
    yield f"GPU           {', '.join(machine.gpus) or 'none'}" + f", driver {machine.driver}" * bool(machine.driver)


def _check(arguments: CheckArguments) -> int:
    from inference.pipeline import open_system

    system = open_system(arguments.bundle, device="cpu")
    manifest = system.bundle.manifest
    networks = sum(len(model.folds) for model in manifest.models)
    sys.stdout.write(f"ok: bundle {manifest.name} {manifest.version}: {networks} networks load\n")
    sys.stdout.flush()
    return ExitStatus.OK


def _explain(arguments: ExplainArguments) -> int:
    from inference.report.explain import explain
    from inference.report.record import read_record

    sys.stdout.write(explain(read_record(arguments.record), arguments.case))
    sys.stdout.flush()
    return ExitStatus.OK


def _merge(arguments: MergeArguments) -> int:
    from inference.files import write_whole
    from inference.folders import prepare_folder
    from inference.report.merging import all_written, merge_records, summary_line
    from inference.report.record import read_record, render_value

    records = {str(path): read_record(path) for path in arguments.records}
    merged = merge_records(records, [read_record(path) for path in arguments.earlier])
    prepare_folder(arguments.output.parent)
    write_whole(arguments.output, render_value(merged))
    sys.stdout.write(summary_line(merged) + "\n")
    sys.stdout.flush()
    return ExitStatus.OK if all_written(merged) else ExitStatus.CASE_FAILED
