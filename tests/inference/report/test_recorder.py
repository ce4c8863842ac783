"""The record of a run, kept up to date."""

from __future__ import annotations

import json
import os
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
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FolderError, match="pipe"):
        RecordFile(tmp_path / "pipe")
    path = tmp_path / "record.json"
    record = RecordFile(path)
    record.begin(RUN)
    real = os.pwrite

    def full(file: int, text: bytes, position: int) -> int:
        return real(file, text[:10], position) if len(text) > 10 else real(file, text, position)

    monkeypatch.setattr(os, "pwrite", full)
    record.add(CaseRecord("A", "ok"))
    assert "not up to date" in caplog.text
    assert json.loads(path.read_bytes())["cases"] == []
    monkeypatch.undo()
    record.add(CaseRecord("B", "ok"))
    assert [case["id"] for case in json.loads(path.read_bytes())["cases"]] == ["A", "B"]


def test_a_case_costs_as_much_after_thousands_as_after_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    record = RecordFile(path)
    record.begin(RUN)
    written = []
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, text, at: written.append(len(text)) or real(file, text, at))
    monkeypatch.setattr(recorder, "write_whole", None)
    for number in range(3000):
        record.add(CaseRecord(f"C-{number:05d}", "ok", warnings=("ä",)))
    assert max(written) - min(written) <= 1
    assert len(json.loads(path.read_bytes())["cases"]) == 3000


def test_a_file_that_somebody_else_writes_to_is_left_alone_until_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "record.json"
    record = RecordFile(path)
    record.begin(RUN)
    with path.open("ab") as file:
        file.write(b" " * 100)
    record.add(CaseRecord("A", "ok"))
    assert "somebody else" in caplog.text
    assert json.loads(path.read_bytes())["cases"] == []
    record.end((CaseRecord("A", "ok"),), None, 0, 1.0)
    assert [case["id"] for case in json.loads(path.read_bytes())["cases"]] == ["A"]
