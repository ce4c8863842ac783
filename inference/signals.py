"""SIGINT, SIGTERM and SIGHUP, answered in one place."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_ANSWERED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
        except ValueError:  # not the main thread
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if last else handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self._first is None:
            self._first = signal.Signals(number).name
            if self.at_once:
                raise KeyboardInterrupt(self._first)
