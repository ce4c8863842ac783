"""Records of the shards of a cohort made one, and a line that sums up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from inference.errors import UsageError
from inference.report.record import CaseRecord, Record, RunRecord

# How many failed cases the line names: a cohort can fail as a whole, and a line stays a line.
_NAMED: Final = 20


def merge_records(records: Mapping[str, Record], earlier: Sequence[Record] = ()) -> Record:
    """One record of the runs of a cohort's shards, its cases by ID.

    `records` are those of the last run of each shard by the name of their file. All of one cohort is by one bundle in
    one profile, every case is in one shard, and every run came to its end: else UsageError. A case that was resumed
    says little of itself: it is taken from the newest of the `earlier` records in which the same bundle and profile
    made it.

    The run's facts are those of the first shard; it starts with the earliest, `seconds` is the sum over all, and
    `shards` holds the facts of each.
    """
    if not records:
        raise UsageError("no records to merge")
    first, run = next((name, record.run) for name, record in records.items())
    status = 0
    owners: dict[str, str] = {}
    cases: dict[str, CaseRecord] = {}
    for name, record in records.items():
        if record.run.interrupted:
            raise UsageError(f"{name}: the run was ended by {record.run.interrupted} before its last case")
        if record.run.exit_status is None:
            raise UsageError(f"{name}: the run did not come to its end")
        if _maker(record.run) != _maker(run):
            raise UsageError(f"{name}: not by the same bundle and profile as {first}")
        status = max(status, record.run.exit_status)
        for case in record.cases:
            if owners.setdefault(case.id, name) != name:
                raise UsageError(f"case {case.id}: found in {owners[case.id]} and in {name}, expected in one shard")
            cases[case.id] = case
    made = _made_before(earlier, _maker(run))
    runs = [record.run for record in records.values()]
    merged = replace(
        run,
        started=min(each.started for each in runs),
        # Shards may run beside each other: what the cohort cost, not how long it took.
        seconds=round(sum(each.seconds or 0.0 for each in runs), 3),
        exit_status=status,
        shards=tuple(runs),
    )
    return Record(merged, tuple(_remembered(cases[identity], made.get(identity)) for identity in sorted(cases)))


def summary_line(cases: Sequence[CaseRecord]) -> str:
    """How many cases there are by status, and which of them failed."""
    counted = {status: sum(case.status == status for case in cases) for status in ("ok", "repaired", "empty")}
    failed = [case.id for case in cases if case.status == "failed"]
    counts = [f"{count} {status}" for status, count in counted.items() if count or status != "empty"]
    more = f" and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
    names = f": {', '.join(failed[:_NAMED])}{more}" if failed else ""
    return f"{len(cases)} case{'s' * (len(cases) != 1)}: {', '.join(counts)}, {len(failed)} failed{names}"


def _made_before(earlier: Sequence[Record], maker: tuple[str, str]) -> dict[str, CaseRecord]:
    """By ID, the newest entry of each case that was made, and not resumed, by the same bundle and profile."""
    made: dict[str, CaseRecord] = {}
    for record in sorted(earlier, key=lambda record: record.run.started):
        if _maker(record.run) == maker:
            made |= {case.id: case for case in record.cases if case.status in ("ok", "repaired") and not case.resumed}
    return made


def _remembered(case: CaseRecord, before: CaseRecord | None) -> CaseRecord:
    if not case.resumed or before is None or before.output != case.output:
        return case
    return replace(before, resumed=True)


def _maker(run: RunRecord) -> tuple[str, str]:
    """Key of a run: two runs with the same one make the same of a case."""
    return run.bundle.sha256, run.profile
