"""Standard error, as callers have it."""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import socket
import struct
import sys
import termios
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from inference.console import Console, say
from inference.errors import FolderError, UsageError
from inference.report.record import CaseRecord

log = logging.getLogger("inference.test")


def test_a_pipe_that_nobody_reads_does_not_stop_us(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr("inference.console._PATIENCE_SECONDS", 0.01)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        begin = time.monotonic()
        with Console.attached():
            for _ in range(300):
                log.info("x" * 1000)
        assert time.monotonic() - begin < 20
        os.set_blocking(reader, False)
        assert os.read(reader, 1001) == b"x" * 1000 + b"\n"
    os.close(reader)


def test_a_closed_pipe_does_not_stop_us(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with Console.attached():
            log.info("into the void")
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def test_one_line_per_case(capsys: pytest.CaptureFixture[str]) -> None:
    with Console.attached() as console:
        console.case_done(CaseRecord("A", "ok", seconds={"read": 1, "predict": 2}, volumes_ml={"WT": 1.25}))
        console.case_done(
            CaseRecord("B", "repaired", repairs=("t1n: x",), warnings=("odd\nthing",), volumes_ml={"WT": 2.0})
        )
        console.case_done(CaseRecord("C", "failed", error="missing t1c"))
        console.case_done(CaseRecord("D", "empty", error="missing t1n"))
        console.case_done(CaseRecord("E", "ok", resumed=True, volumes_ml={"WT": 0.0}))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "A: 3.0 s, WT 1.2 mL"
    assert lines[1] == "B: 0.0 s, WT 2.0 mL; repaired: t1n: x; warning: odd thing"
    assert lines[2] == "C: failed: missing t1c"
    assert "D: FAILED, AN EMPTY FILE" in lines[3]
    assert lines[4] == "E: already there, WT 0.0 mL"
    assert len(lines) == 5


def test_a_terminal_gets_a_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 25, 80, 0, 0))
    clock = iter([10.0, 14.0])
    with os.fdopen(follower, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with Console.attached() as console, console.progress(2):
            console.begins("A", "read")
            with monkeypatch.context() as patched:
                patched.setattr("inference.console.time", SimpleNamespace(monotonic=lambda: next(clock)))
                console.begins("A", "predict")
                console.begins("B", "read")
                console.advance(2, 3)
            console.begins("A", "refine")
            console.case_done(CaseRecord("A", "ok", volumes_ml={"WT": 1.0}))
            console.case_done(CaseRecord("B", "failed", error="x"))
        stream.flush()
        os.set_blocking(leader, False)
        shown = ""
        with contextlib.suppress(BlockingIOError):
            while True:
                shown += os.read(leader, 100_000).decode()
    os.close(leader)
    lines = [line.strip() for line in shown.split("\r")]
    assert any(line.startswith("A: reading") for line in lines)
    assert any(line.startswith("A: predicting, 2 s left") and "0.5/2 cases" in line for line in lines)
    assert any(line.startswith("A: refining") for line in lines), "what is done for a case, not what is read ahead"
    assert any(line.startswith("B: reading") and "1.0/2 cases" in line for line in lines)
    assert "2.0/2 cases" in shown
    assert "B: failed: x" in shown
    assert max(map(len, lines)) <= 80


def test_the_log_is_left_as_it_was() -> None:
    logger = logging.getLogger("inference")
    before = (logger.level, logger.propagate, list(logger.handlers))
    with Console.attached():
        assert not logger.propagate
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_a_socket_that_nobody_reads_does_not_stop_us(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    monkeypatch.setattr("inference.console._PATIENCE_SECONDS", 0.01)
    with ours, theirs, os.fdopen(os.dup(ours.fileno()), "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        begin = time.monotonic()
        with Console.attached():
            for _ in range(3000):
                log.info("x" * 1000)
        assert time.monotonic() - begin < 20
        monkeypatch.undo()


def test_a_terminal_that_is_closed_does_not_stop_us(monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = os.openpty()
    with os.fdopen(follower, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with Console.attached() as console, console.progress(2):
            os.close(leader)
            for done in range(3):
                console.advance(done, 3)
                log.warning("nobody is there")
            console.case_done(CaseRecord("A", "ok", volumes_ml={"WT": 1.0}))
        monkeypatch.undo()


def test_without_standard_error_there_is_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with Console.attached() as console, console.progress(1):
        console.begins("A", "predict")
        console.advance(1, 3)
        log.error("nobody is there")


def test_a_reader_that_is_slow_gets_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    shown = bytearray()

    def read_slowly() -> None:
        while chunk := os.read(reader, 50_000):
            shown.extend(chunk)
            time.sleep(0.01)

    slow = threading.Thread(target=read_slowly)
    slow.start()
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with Console.attached():
            for number in range(1000):
                log.info("%s", number)
        monkeypatch.undo()
    slow.join()
    os.close(reader)
    assert bytes(shown).split() == [str(number).encode() for number in range(1000)]


def test_control_characters_are_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    with Console.attached():
        log.info("case \x1b[31mred")
    say("page\n\x1b]0;title\x07\n")
    captured = capsys.readouterr()
    assert captured.err == "case \\x1b[31mred\n"
    assert captured.out == "page\n\\x1b]0;title\\x07\n"


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", b"2 \\xd7 3\n"), ("latin-1", b"2 \xd7 3\n")])
def test_any_encoding_of_standard_output_will_do(monkeypatch: pytest.MonkeyPatch, encoding: str, shown: bytes) -> None:
    with io.BytesIO() as raw, io.TextIOWrapper(raw, encoding) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        say("2 × 3\n")
        assert raw.getvalue() == shown


def test_a_standard_output_that_takes_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(UsageError, match="standard output is closed"):
        say("x")
    with Path("/dev/full").open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(FolderError, match="standard output: cannot be written"):
            say("x")
