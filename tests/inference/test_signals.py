"""Signals that arrive once, again, at once, or at a time when nobody wants to hear of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from inference.signals import Signals

ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("number", ALL)
def test_the_first_signal_is_told_and_the_others_change_nothing(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in ALL]
    signals = Signals()
    with signals.answered(last=False):
        with pytest.raises(KeyboardInterrupt, match=number.name):
            os.kill(os.getpid(), number)
        for each in ALL * 3:
            os.kill(os.getpid(), each)
        assert signals.first() == number.name
    assert [signal.getsignal(each) for each in ALL] == before


def test_a_signal_may_be_noted_only() -> None:
    signals = Signals()
    with signals.answered(last=False):
        signals.at_once = False
        assert signals.first() is None
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.first() == "SIGHUP"


def test_what_the_caller_has_us_ignore_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signals = Signals()
        with signals.answered(last=False):
            os.kill(os.getpid(), signal.SIGHUP)
        assert signals.first() is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_at_the_end_of_a_program_signals_are_ignored() -> None:
    before = {each: signal.getsignal(each) for each in ALL}
    try:
        with Signals().answered(last=True):
            pass
        assert all(signal.getsignal(each) is signal.SIG_IGN for each in ALL)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_another_thread_cannot_answer_signals_and_goes_on() -> None:
    done = []

    def body() -> None:
        with Signals().answered(last=True):
            done.append(True)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert done == [True]


FORKING = """
import os, signal, time
from inference.signals import Signals

ready, told = os.pipe()
with Signals().answered(last=False):
    child = os.fork()
    if not child:
        os.write(told, b".")
        while True:
            try:
                time.sleep(60)
            except KeyboardInterrupt:  # as a library's worker may
                pass
    os.read(ready, 1)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
print(os.WTERMSIG(status))
"""


def test_a_worker_that_a_library_forks_ends_when_it_is_told_to() -> None:
    """nnU-Net forks pools, and waits for those that it has terminated."""
    found = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=30, check=True)
    assert found.stdout.split() == [str(int(signal.SIGTERM))]
