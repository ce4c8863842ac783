"""The command line: `infer` (the default), `info`, `check`, `explain`, `merge`; verbs import what takes time."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
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
from inference.console import Console, say
from inference.errors import ExitStatus, FolderError, UsageError, no_module, reason
from inference.machine import check_limits, describe_machine, give_memory_back, library_versions, look_around
from inference.signals import Signals

if TYPE_CHECKING:
    from inference.bundle.manifest import Manifest
    from inference.case import System
    from inference.cohort import Outcome
    from inference.intake.cases import CaseListing
    from inference.machine import Machine
    from inference.report.record import CaseRecord, RunRecord

log = logging.getLogger(__name__)


def main(words: Sequence[str] | None = None) -> int:
    """Do what the words of the command line say; returns the exit status (:class:`inference.errors.ExitStatus`).

    Without `words` this is a program: its own words are taken, and its process ends with the exit status.
    """
    begin = time.perf_counter()
    signals, is_program = Signals(), words is None
    if is_program:
        _open_closed_streams()
    words = sys.argv[1:] if words is None else words
    with Console.attached() as console:
        try:
            arguments = parse_arguments(words)
            if not isinstance(arguments, InferArguments):
                return _answer(arguments)
            with signals.answered(last=is_program):
                return _infer(arguments, tuple(words), console, signals, begin)
        except BrokenPipeError:
            log.debug("the reader of standard output has gone")
        except KeyboardInterrupt as stop:
            log.error("error: ended by %s before the first case", str(stop) or "SIGINT")
        except ModuleNotFoundError as error:
            log.debug("no module", exc_info=True)
            log.error("error: %s", no_module(error))
        except Exception as error:
            log.debug("failed", exc_info=True)
            log.error("error: %s", reason(error, ""))
        return ExitStatus.NOTHING_ATTEMPTED


def _open_closed_streams() -> None:
    """Have nothing where a standard stream is closed: else the next file would take its number, and get its lines."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _answer(arguments: Arguments) -> int:
    if isinstance(arguments, InfoArguments):
        return _info(arguments)
    if isinstance(arguments, CheckArguments):
        return _check(arguments)
    if isinstance(arguments, MergeArguments):
        return _merge(arguments)
    assert isinstance(arguments, ExplainArguments)
    return _explain(arguments)


def _infer(arguments: InferArguments, words: tuple[str, ...], console: Console, signals: Signals, begin: float) -> int:
    """Look at everything that can be wrong before a case is read, the cheapest first; then segment the folder."""
    if arguments.ignored:
        log.warning("ignored: unknown options %s", ", ".join(map(repr, arguments.ignored)))
    give_memory_back()  # before any library allocates
    machine = look_around()
    threads = arguments.threads or machine.threads
    check_limits(threads)
    # Read by the libraries when they are loaded, which is later.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    listing = _prepare_folders(arguments)
    from inference.case import open_system
    from inference.cohort import segment_folder, shard_of
    from inference.report.recorder import RecordFile
    from inference.results import CohortSettings

    recorder = RecordFile(arguments.record)  # before the networks load: a place that takes no file is told at once
    system = open_system(
        arguments.bundle, profile=arguments.profile, engine=arguments.engine, device=arguments.device, threads=threads
    )
    settings = CohortSettings(
        labels=arguments.output_path,
        report=arguments.report,
        probabilities=arguments.probabilities,
        uncertainty=arguments.uncertainty,
        on_error=arguments.on_error,
        resume=arguments.resume,
        shard=arguments.shard,
    )
    recorder.begin(_describe_run(arguments, words, system, threads, time.perf_counter() - begin))
    _say_what_runs(machine, system, threads, arguments)

    def report(case: CaseRecord) -> None:
        recorder.add(case)
        console.case_done(case)

    # From here on signals are noted, and the run comes to its end in good order.
    signals.at_once = False
    if name := signals.first():
        raise KeyboardInterrupt(name)
    with console.progress(len(shard_of([*listing.cases, *listing.problems], arguments.shard))):
        outcome = segment_folder(
            listing,
            system,
            settings,
            report,
            progress=console.advance,
            begins=console.begins,
            ended_by=signals.first,
        )
    status = _sum_up(outcome)
    recorder.end(outcome.cases, outcome.interrupted, status, time.perf_counter() - begin)
    if arguments.report:
        recorder.write_page(arguments.report)
    labels = arguments.output_path if any(case.written for case in outcome.cases) else None
    page = arguments.report / "index.html" if arguments.report else None
    for what, place in (("label maps", labels), ("record", arguments.record), ("page", page)):
        if place is not None:
            log.info("%s: %s", what, place)
    return status


def _prepare_folders(arguments: InferArguments) -> CaseListing:
    """Find the cases, and make the folders of the results; UsageError or FolderError where one is out of place."""
    from inference.files import check_outputs, is_inside, prepare_folder
    from inference.intake.cases import find_cases

    cases, labels = arguments.data_path, arguments.output_path
    further = {f"--{option}": getattr(arguments, option) for option in ("report", "probabilities", "uncertainty")}
    further = {option: folder for option, folder in further.items() if folder is not None}
    record = {"--record": arguments.record} if arguments.record else {}
    for option, folder in (further | {option: path.parent for option, path in record.items()}).items():
        if is_inside(folder, labels):  # organisers read all of it
            raise UsageError(f"{option}: {folder} lies in the folder of the label maps, expected one outside of it")
    try:
        everything = find_cases(cases)
    except FolderError as error:
        if os.path.isdir(cases):  # noqa: PTH112 (never raises)
            raise
        # Whoever called without arguments, or misspelt the folder, learns how to name it.
        raise FolderError(f"{error}; --data_path names the folder of the cases (see --help)") from error
    sequences = (*(case.paths for case in everything.cases), *everything.found.values())
    # A label map in a folder within that of the cases may be named like a sequence of another case: P_t1.nii.gz.
    own = {f"{case.id}.nii.gz" for case in everything.cases}
    scans = [path for paths in sequences for path in paths.values() if path.name not in own]
    check_outputs({"--output_path": labels, **further, **record}, [cases, *scans])
    for folder in (labels, *further.values()):
        prepare_folder(folder)
    return find_cases(cases, ignored=(labels, *further.values()))


def _sum_up(outcome: Outcome) -> ExitStatus:
    """The exit status, and one line that sums up."""
    written = sum(case.written for case in outcome.cases)
    is_whole = written == len(outcome.cases) and not outcome.interrupted
    ended = f"ended by {outcome.interrupted}: " if outcome.interrupted else ""
    log.log(logging.INFO if is_whole else logging.ERROR, "%s%d of %d cases written", ended, written, len(outcome.cases))
    return ExitStatus.OK if is_whole else ExitStatus.CASE_FAILED


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
        region_thresholds=dict(zip(REGIONS, system.bundle.thresholds.regions, strict=True)),
        confidence=system.bundle.thresholds.confidence,
    )


def _say_what_runs(machine: Machine, system: System, threads: int, arguments: InferArguments) -> None:
    """One line about what runs, and one for each thing that it runs on."""
    manifest = system.bundle.manifest
    description = f"profile {system.profile.value}, {system.engine.description}"
    log.info("bundle %s %s, %s", manifest.name, manifest.version, description)
    places = {
        "label maps": arguments.output_path,
        "record": arguments.record,
        "report": arguments.report,
        "probabilities": arguments.probabilities,
        "uncertainty": arguments.uncertainty,
    }
    wanted = {what: place for what, place in places.items() if place is not None}
    for level, text in describe_machine(machine, system.engine.device, threads, wanted):
        log.log(level, "%s%s", "warning: " * (level == logging.WARNING), text)


def _info(arguments: InfoArguments) -> int:
    from inference.bundle.manifest import read_manifest

    manifest, digest = read_manifest(arguments.bundle)
    if arguments.card:
        from inference.bundle.card import model_card

        say(model_card(manifest, digest))
        return ExitStatus.OK
    machine = look_around()
    if arguments.json:
        bundle = {"path": str(arguments.bundle), "sha256": digest, **asdict(manifest)}
        say(json.dumps({"bundle": bundle, "machine": asdict(machine)}, indent=1) + "\n")
    else:
        say("\n".join(_info_lines(arguments.bundle, manifest, digest, machine)) + "\n")
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
    check_limits(look_around().threads)
    from inference.case import open_system

    # On a CPU, which every machine has: a bundle is sound or not, whatever is free on a GPU.
    system = open_system(arguments.bundle, device="cpu")
    manifest = system.bundle.manifest
    networks = sum(len(model.folds) for model in manifest.models)
    say(f"ok: bundle {manifest.name} {manifest.version}: {networks} networks load\n")
    return ExitStatus.OK


def _explain(arguments: ExplainArguments) -> int:
    from inference.files import check_readable
    from inference.report.explain import explain
    from inference.report.record import read_record

    check_readable(arguments.record)
    say(explain(read_record(arguments.record), arguments.case))
    return ExitStatus.OK


def _merge(arguments: MergeArguments) -> int:
    from inference.files import check_outputs, check_readable, prepare_folder, write_whole
    from inference.report.merging import merge_records, summary_line
    from inference.report.record import read_record, render_record

    for path in (*arguments.records, *arguments.earlier):
        check_readable(path)
    records = {str(path): read_record(path) for path in arguments.records}
    merged = merge_records(records, [read_record(path) for path in arguments.earlier])
    check_outputs({"--output": arguments.output}, [*arguments.records, *arguments.earlier])
    prepare_folder(arguments.output.parent)
    write_whole(arguments.output, render_record(merged.run, merged.cases))
    say(summary_line(merged.cases) + "\n")
    return ExitStatus.OK if all(case.written for case in merged.cases) else ExitStatus.CASE_FAILED
