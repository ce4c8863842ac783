"""SIGINT, SIGTERM and SIGHUP, answered in one place."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Final

_ANSWERED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# Signals that are answered now; a process has one handler each, whoever set it.
_answered: set[int] = set()


class Signals:
    """The first signal that arrived, if any; further ones change nothing."""

    def __init__(self) -> None:
        self.at_once = True
        """Whether the first signal raises KeyboardInterrupt, else it is only noted in `first`."""
        self._first: str | None = None

    def first(self) -> str | None:
        """Name of the first signal, such as SIGTERM."""
        return self._first

    @contextmanager
    def answered(self, *, last: bool) -> Iterator[None]:
        """Answer signals for as long as the context lasts; where they cannot be handled, nothing changes.

        Signals that the caller has us ignore (`nohup`, jobs in the background) stay ignored. `last` says that the
        program ends after this: signals are then ignored, since what they ask for is happening.
        """
        before = {}
        try:
            for number in _ANSWERED:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    before[number] = signal.signal(number, self._note)
                    _answered.add(number)
        except ValueError:  # not the main thread, the only one that Python lets handle signals
            yield
            return
        _prepare_forks()
        try:
            yield
        finally:
            _answered.clear()
            # A second signal while the program ends would only cut its log short.
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if last else handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self._first is None:
            self._first = signal.Signals(number).name
            if self.at_once:
                raise KeyboardInterrupt(self._first)


@cache  # a hook cannot be taken back
def _prepare_forks() -> None:
    """Have processes that are forked from us end as any do: a library's workers, when the library terminates them.

    Python runs a handler between two of its steps. A signal that comes just before a worker waits for work would not
    wake it, and the library, which waits for its end, would wait for ever.
    """
    os.register_at_fork(after_in_child=_leave_to_system)


def _leave_to_system() -> None:
    for number in _answered:
        signal.signal(number, signal.SIG_DFL)
