"""Records of the shards of a cohort made one, and a line that sums up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from inference.errors import UsageError

_NAMED: Final = 20
"""How many failed cases the line names."""

Record = Mapping[str, object]


def merge_records(records: Mapping[str, Record], earlier: Sequence[Record] = ()) -> dict[str, object]:
    """One record of the runs of a cohort's shards, its cases by ID.

    `records` are those of the last run of each shard by the name of their file, as
    :func:`inference.report.record.read_record` gives them. All of one cohort is by one bundle in one profile, every
    case is in one shard, and every run came to its end: else UsageError. A case that was resumed says little of itself:
    it is taken from the newest of the `earlier` records in which the same bundle and profile made it.

    The run's facts are those of the first shard; it starts with the earliest, `seconds` is the sum over all, and
    `shards` holds the facts of each.
    """
    runs = {name: _run(record) for name, record in records.items()}
    if not runs:
        raise UsageError("no records to merge")
    for name, run in runs.items():
        _require_end(name, run)
    first = next(iter(runs))
    for name, run in runs.items():
        if _maker(run) != _maker(runs[first]):
            raise UsageError(f"{name}: not by the same bundle and profile as {first}")
    cases = _gather(records)
    made = _made_before(earlier, _maker(runs[first]))
    run = {
        **runs[first],
        "started": min(str(run.get("started")) for run in runs.values()),
        "seconds": round(sum(_seconds(run) for run in runs.values()), 3),
        "exit_status": max(int(str(run["exit_status"])) for run in runs.values()),
        "shards": list(runs.values()),
    }
    return {"run": run, "cases": [_remembered(cases[case], made.get(case)) for case in sorted(cases)]}


def summary_line(record: Record) -> str:
    """How many cases a record has by status, and which of them failed."""
    cases = _cases(record)
    counted = {status: sum(case.get("status") == status for case in cases) for status in ("ok", "repaired", "empty")}
    failed = [str(case.get("id")) for case in cases if case.get("status") == "failed"]
    counts = [f"{count} {status}" for status, count in counted.items() if count or status != "empty"]
    more = f" and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
    names = f": {', '.join(failed[:_NAMED])}{more}" if failed else ""
    return f"{len(cases)} case{'s' * (len(cases) != 1)}: {', '.join(counts)}, {len(failed)} failed{names}"


def all_written(record: Record) -> bool:
    """Whether the output folder holds a file for every case of a record."""
    return all(case.get("status") != "failed" for case in _cases(record))


def _require_end(name: str, run: Record) -> None:
    if run.get("interrupted"):
        raise UsageError(f"{name}: the run was ended by {run['interrupted']} before its last case")
    if run.get("exit_status") is None:
        raise UsageError(f"{name}: the run did not come to its end")


def _gather(records: Mapping[str, Record]) -> dict[str, Record]:
    """Every case by its ID; UsageError where two records have the same."""
    owners: dict[str, str] = {}
    gathered: dict[str, Record] = {}
    for name, record in records.items():
        for case in _cases(record):
            identity = str(case.get("id"))
            if owners.setdefault(identity, name) != name:
                raise UsageError(f"case {identity}: found in {owners[identity]} and in {name}, expected in one shard")
            gathered[identity] = case
    return gathered


def _made_before(earlier: Sequence[Record], maker: tuple[str, str]) -> dict[str, Record]:
    """The newest entry, by ID, of each case that was made and not resumed."""
    made: dict[str, Record] = {}
    for record in sorted(earlier, key=lambda record: str(_run(record).get("started"))):
        if _maker(_run(record)) == maker:
            written = [case for case in _cases(record) if case.get("status") in ("ok", "repaired")]
            made |= {str(case["id"]): case for case in written if not case.get("resumed")}
    return made


def _remembered(case: Record, before: Record | None) -> Record:
    if not case.get("resumed") or before is None or before.get("output") != case.get("output"):
        return case
    return {**before, "resumed": True}


def _maker(run: Record) -> tuple[str, str]:
    """What decides whether two runs make the same of a case."""
    bundle = run.get("bundle")
    return str(bundle.get("sha256") if isinstance(bundle, Mapping) else None), str(run.get("profile"))


def _seconds(run: Record) -> float:
    seconds = run.get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else 0.0


def _run(record: Record) -> Record:
    run = record.get("run")
    return run if isinstance(run, Mapping) else {}


def _cases(record: Record) -> list[Record]:
    cases = record.get("cases")
    return [case for case in cases if isinstance(case, Mapping)] if isinstance(cases, list) else []
