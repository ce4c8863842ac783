"""Records of shards made one: nothing is lost, counted twice or taken from a run that did not end."""

from __future__ import annotations

import json
import os

import pytest

from inference.cli import main
from inference.errors import UsageError
from inference.report.merging import merge_records, summary_line
from inference.report.record import BundleIdentity, CaseRecord, Record, RunRecord, read_record, render_record


def run(**facts):
    values = {
        "command": ("infer",),
        "bundle": BundleIdentity("tiny", "1", "abc"),
        "profile": "fast",
        "engine": "torch",
        "device": "cpu",
        "threads": 1,
        "on_error": "skip",
        "versions": {},
        "started": "2026-01-01T00:00:00+00:00",
        "start_seconds": 0.5,
        "seconds": 2.5,
        "exit_status": 0,
    }
    return RunRecord(**(values | facts))


def case(identity, status="ok", **facts):
    return CaseRecord(identity, status, **({"output": f"/out/{identity}.nii.gz"} | facts))


def record(*cases, **facts):
    return Record(run(**facts), cases)


def write(path, record):
    path.write_bytes(render_record(record.run, record.cases))


def test_cases_of_all_shards_by_id_and_one_run():
    shards = {
        "1": record(case("a"), case("c"), started="2026-01-01T00:00:09+00:00"),
        "2": record(case("b", "failed"), exit_status=1),
    }
    merged = merge_records(shards)
    assert [entry.id for entry in merged.cases] == ["a", "b", "c"]
    assert merged.run.started == "2026-01-01T00:00:00+00:00"
    assert merged.run.seconds == 5
    assert merged.run.exit_status == 1
    assert [shard.exit_status for shard in merged.run.shards] == [0, 1]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (record(case("b"), interrupted="SIGTERM", exit_status=1), "2: the run was ended by SIGTERM"),
        (record(case("b"), exit_status=None), "2: the run did not come to its end"),
        (record(case("a")), "case a: found in 1 and in 2"),
        (record(case("b"), profile="paper"), "2: not by the same bundle and profile as 1"),
        (record(case("b"), bundle=BundleIdentity("tiny", "1", "other")), "2: not by the same bundle and profile as 1"),
    ],
)
def test_what_is_no_shard_of_the_cohort_is_refused(other, words):
    with pytest.raises(UsageError, match=words):
        merge_records({"1": record(case("a")), "2": other})


def test_a_resumed_case_is_remembered_from_the_newest_run_that_made_it():
    last = record(case("a", resumed=True), case("b", resumed=True), case("c"))
    earlier = [
        record(case("a", "repaired", repairs=("new",)), started="2025-12-02T00:00:00+00:00"),
        record(case("a", "repaired", repairs=("old",)), started="2025-12-01T00:00:00+00:00"),
        record(case("b", "repaired"), profile="paper"),
        record(case("c", "repaired")),
    ]
    cases = merge_records({"1": last}, earlier).cases
    assert cases[0] == case("a", "repaired", repairs=("new",), resumed=True)
    assert cases[1:] == last.cases[1:]


def test_a_resumed_case_written_elsewhere_is_another():
    last = record(case("a", resumed=True, output="/elsewhere/a.nii.gz"))
    assert merge_records({"1": last}, [record(case("a", "repaired"))]).cases == last.cases


def test_the_line_counts_and_names():
    cases = [case("a"), case("b", "repaired"), *(case(f"f{index:02d}", "failed") for index in range(22))]
    line = summary_line(cases)
    assert line.startswith("24 cases: 1 ok, 1 repaired, 22 failed: f00, f01,")
    assert line.endswith("f19 and 2 more")
    assert summary_line([case("a"), case("b", "empty")]) == "2 cases: 1 ok, 0 repaired, 1 empty, 0 failed"


@pytest.mark.parametrize(("status", "expected"), [("ok", 0), ("failed", 1)])
def test_the_verb_writes_one_record(tmp_path, capsys, status, expected):
    for name, shard in (("1", record(case("a"))), ("2", record(case("b", status)))):
        write(tmp_path / f"{name}.json", shard)
    words = [
        "merge",
        str(tmp_path / "1.json"),
        str(tmp_path / "2.json"),
        "--output",
        str(tmp_path / "out" / "all.json"),
    ]
    assert main(words) == expected
    merged = read_record(tmp_path / "out" / "all.json")
    assert [entry.id for entry in merged.cases] == ["a", "b"]
    assert merged.run.shards == (run(), run())
    assert "shards" not in json.loads((tmp_path / "1.json").read_bytes())["run"]
    assert capsys.readouterr().out.startswith("2 cases: ")


def test_the_verb_refuses_what_is_no_record(tmp_path, capsys):
    (tmp_path / "1.json").write_text("{}")
    assert main(["merge", str(tmp_path / "1.json"), "--output", str(tmp_path / "all.json")]) == 2
    assert "1.json: run: found nothing, expected an object" in capsys.readouterr().err
    assert not (tmp_path / "all.json").exists()


def test_the_one_record_takes_the_place_of_none_that_is_read(tmp_path, capsys):
    path = tmp_path / "1.json"
    write(path, record(case("a")))
    assert main(["merge", str(path), "--output", str(path)]) == 2
    assert "is read by this run" in capsys.readouterr().err
    assert read_record(path) == record(case("a"))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("verb", ["explain", "merge"])
def test_a_pipe_is_not_waited_for(tmp_path, capsys, verb):
    os.mkfifo(tmp_path / "pipe")
    words = ["--output", str(tmp_path / "merged.json")] if verb == "merge" else []
    assert main([verb, str(tmp_path / "pipe"), *words]) == 2
    assert "not a regular file" in capsys.readouterr().err
