"""What the person or program that runs us sees on standard error."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import stat
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Never

if TYPE_CHECKING:
    from tqdm import tqdm

    from inference.report.record import CaseRecord

log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 0.5
"""How long a reader of our standard error is waited for, per line."""
_LINE_LIMIT = 2000
"""Characters per line, so that a line fits into a pipe that has room at all."""


class Console(logging.Handler):
    """Logs to standard error, above a progress bar where that is a terminal.

    Some callers give us a pipe and never read it: once it is full a write would wait for ever, so lines that do not fit
    are dropped. The record of the run has it all.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm[Never] | None = None
        self._pipe = _is_pipe()

    @classmethod
    @contextlib.contextmanager
    def attached(cls) -> Iterator[Console]:
        """A console that shows the log of this package for as long as the context lasts."""
        console = cls()
        logger = logging.getLogger("inference")
        before = logger.level, logger.propagate
        logger.setLevel(logging.DEBUG if os.environ.get("GLIOMA_DEBUG") else logging.INFO)
        logger.propagate = False
        logger.addHandler(console)
        try:
            yield console
        finally:
            logger.removeHandler(console)
            logger.level, logger.propagate = before

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, if anybody reads it."""
        line = " ".join(self.format(record).split())[:_LINE_LIMIT]
        if record.exc_info and logging.getLogger("inference").level == logging.DEBUG:
            line = self.format(record)
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
            return
        with contextlib.suppress(OSError, ValueError):
            if self._pipe and not select.select([], [sys.stderr], [], _PATIENCE_SECONDS)[1]:
                return
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    @contextlib.contextmanager
    def progress(self, cases: int) -> Iterator[Callable[[int, int], None] | None]:
        """A progress bar where standard error is a terminal; yields what to tell the forward passes done and in all."""
        if not sys.stderr.isatty():
            yield None
            return
        from tqdm import tqdm

        layout = "{percentage:3.0f}% {bar} {n:.1f}/{total} cases, {elapsed} gone, {remaining} left"
        with tqdm(total=cases, bar_format=layout, file=sys.stderr, dynamic_ncols=True) as bar:
            self._bar = bar
            try:
                yield self._advance
            finally:
                self._bar = None

    def _advance(self, done: int, total: int) -> None:
        if self._bar is not None:
            self._bar.update(int(self._bar.n) + done / (total + 1) - self._bar.n)

    def case_done(self, case: CaseRecord) -> None:
        """One line about a case, or in a terminal only what is worth one."""
        if self._bar is not None:
            self._bar.update(int(self._bar.n) + 1 - self._bar.n)
        name = case.id
        if case.status == "failed":
            log.error("%s: failed: %s", name, case.error)
            return
        if case.status == "empty":
            log.error("%s: FAILED, AN EMPTY FILE WAS WRITTEN IN ITS PLACE: %s", name, case.error)
            return
        volumes = ", ".join(f"{region} {volume:.1f} mL" for region, volume in (case.volumes_ml or {}).items())
        took = "already there" if case.resumed else f"{sum(case.seconds.values()):.1f} s"
        notes = [*(f"repaired: {note}" for note in case.repairs), *(f"warning: {note}" for note in case.warnings)]
        log.log(logging.WARNING if notes else logging.INFO, "%s", "; ".join([f"{name}: {took}, {volumes}", *notes]))


def _is_pipe() -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(sys.stderr.fileno()).st_mode)
    except (AttributeError, OSError, ValueError):
        return False
