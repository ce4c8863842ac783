"""Processes that share work: every failure is told by name, and no process outlives the one that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inference.errors import CaseError, SeveralErrors, UsageError
from training.workers import open_workers

ROOT = Path(__file__).resolve().parents[2]


class OddError(Exception):
    """One that cannot be made again from its text, like many in libraries."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def half(number: int) -> int:
    if number == 3:
        raise CaseError("case-3", "odd", found="3", expected="an even number")
    if number == 5:
        raise OddError(1, 2)
    if number == 7:
        raise FileNotFoundError(2, "No such file or directory", "scan.nii.gz")
    if number == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return number // 2


def name(number: int) -> str:
    return f"case-{number}"


@pytest.fixture(params=[1, 2], ids=["alone", "processes"])
def workers(request):
    with open_workers(request.param) as opened:
        yield opened


def test_results_are_in_order(workers):
    assert list(workers.map(half, [8, 2, 6, 4], chunk=2)) == [4, 1, 3, 2]


def test_one_failure_is_raised_itself_after_all_that_came_before(workers):
    results = workers.map(half, [8, 3, 2], name=name)
    assert next(results) == 4
    with pytest.raises(CaseError, match=r"^case-3: odd \(found 3, expected an even number\)$"):
        list(results)


def test_all_failures_are_named_in_order(workers):
    with pytest.raises(SeveralErrors) as caught:
        list(workers.map(half, [7, 2, 5, 3], name=name))
    assert str(caught.value).splitlines() == [
        "case-7: scan.nii.gz: No such file or directory",
        "case-5: unexpected OddError: 1 and 2",
        "case-3: odd (found 3, expected an even number)",
    ]
    assert "raise OddError" in caught.value.errors[1].__notes__[0]


def test_what_others_raise_is_a_named_error_without_a_case_too(workers):
    with pytest.raises(UsageError, match=r"^unexpected OddError: 1 and 2"):
        list(workers.map(half, [2, 5]))


def test_a_process_that_is_killed_is_told_with_where_it_was():
    with open_workers(2) as opened, pytest.raises(UsageError, match=r"ended from outside at case-9.*fewer --jobs"):
        list(opened.map(half, [9, 9, 9], name=name))


def test_fewer_than_no_processes_are_refused():
    with pytest.raises(UsageError, match="--jobs -1"), open_workers(-1):
        pass


PARENT = """
import sys, time
from pathlib import Path
from tests.training.test_workers import linger
from training.workers import open_workers
if __name__ == "__main__":
    with open_workers(2) as workers:
        list(workers.map(linger, [Path(sys.argv[1]), Path(sys.argv[2])]))
"""


def linger(told: Path) -> None:
    told.write_text(str(os.getpid()))
    time.sleep(300)


def is_running(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc which processes there are")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_one_that_started_it(tmp_path, number):
    (tmp_path / "parent.py").write_text(PARENT)
    told = [tmp_path / "one", tmp_path / "two"]
    words = [sys.executable, str(tmp_path / "parent.py"), *map(str, told)]
    with subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE) as parent:
        wait_until(lambda: all(path.is_file() and path.read_text() for path in told))
        children = [int(path.read_text()) for path in told]
        assert all(map(is_running, children))
        for process in [*children, parent.pid] if number == signal.SIGINT else [parent.pid]:  # a terminal's goes to all
            os.kill(process, number)
        wait_until(lambda: not any(map(is_running, children)), 15)
        assert parent.stderr.read().count(b"Traceback") == (number == signal.SIGINT)  # its own, that the CLI replaces
