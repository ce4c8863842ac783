"""The record of a run, kept up to date."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inference.errors import FolderError
from inference.report import recorder
from inference.report.record import BundleIdentity, CaseRecord, RunRecord
from inference.report.recorder import RecordFile

RUN = RunRecord(
    (), BundleIdentity("b", "1", "0"), "fast", "torch", "cpu", 1, "skip", {}, "2025-01-01T00:00:00+00:00", 0.5
)


def test_the_record_is_whole_after_every_case(tmp_path: Path) -> None:
    path = tmp_path / "made" / "record.json"
    record = RecordFile(path)
    record.begin(RUN)
    assert json.loads(path.read_bytes())["cases"] == []
    record.add(CaseRecord("B", "ok"))
    assert [case["id"] for case in json.loads(path.read_bytes())["cases"]] == ["B"]
    assert json.loads(path.read_bytes())["run"]["exit_status"] is None
    record.end((CaseRecord("A", "failed"), CaseRecord("B", "ok")), "SIGTERM", 1, 2.0)
    value = json.loads(path.read_bytes())
    assert [case["id"] for case in value["cases"]] == ["A", "B"]
    assert (value["run"]["interrupted"], value["run"]["exit_status"], value["run"]["seconds"]) == ("SIGTERM", 1, 2.0)
    assert [entry.name for entry in path.parent.iterdir()] == ["record.json"]


def test_no_record_is_written_unless_asked_for() -> None:
    record = RecordFile(None)
    record.begin(RUN)
    record.add(CaseRecord("B", "ok"))
    record.end((), None, 0, 1.0)


def test_a_record_that_cannot_be_written_is_refused_first_and_no_reason_to_stop_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(FolderError, match="it is a folder"):
        RecordFile(tmp_path)
    record = RecordFile(tmp_path / "record.json")
    record.begin(RUN)

    def full(*_: object) -> None:
        raise FolderError("no space")

    monkeypatch.setattr(recorder, "write_whole", full)
    record.add(CaseRecord("B", "ok"))
    assert "no space" in caplog.text
    with pytest.raises(FolderError):
        record.begin(RUN)
