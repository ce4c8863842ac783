"""Output for the person or program that runs us: the log on standard error, answers on standard output."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Never, TextIO

from inference.errors import FolderError, UsageError
from inference.text import printable

if TYPE_CHECKING:
    from tqdm import tqdm

    from inference.report.record import CaseRecord

log = logging.getLogger(__name__)

# How long a reader of our standard error is waited for: once while it takes nothing, and at the end.
_PATIENCE_SECONDS = 0.5
# Lines that wait for their reader; further ones are dropped. The record of the run has it all.
_MOST_WAITING = 200
# Characters per line, so that a line fits into a pipe that has room at all (PIPE_BUF is 4096 bytes).
_LINE_LIMIT = 2000
# The steps of a case as they are shown. Of several cases at work the one whose step comes first here is shown, since
# prediction takes longest.
_STEPS = {"predict": "predicting", "refine": "refining", "write": "writing", "draw": "drawing", "read": "reading"}


def say(text: str) -> None:
    """Write an answer to standard output, whatever its encoding; control characters are escaped.

    Raises UsageError where standard output is closed, FolderError where it takes no more, and BrokenPipeError where
    its reader has gone.
    """
    if sys.stdout is None:
        raise UsageError("standard output is closed: there is nowhere to write the answer to")
    safe = "\n".join(map(printable, text.split("\n")))
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(safe.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise FolderError(f"standard output: cannot be written ({error.strerror or error})") from error


class _PatientStream:
    """Standard error as a stream that neither waits nor fails: what nobody takes is dropped.

    Callers give us pipes and sockets that they never read, terminals that are closed or stopped, or nothing at all. So
    one thread writes and may wait for ever, and nobody waits for it.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"
        self._lines: queue.Queue[str | None] = queue.Queue(_MOST_WAITING)
        self._is_stuck = False
        self._thread = threading.Thread(target=self._write_all, name="console", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the system grants no further thread
            self._stream = None

    def write(self, text: str) -> int:
        try:
            self._lines.put(text, not self._is_stuck, _PATIENCE_SECONDS)
            self._is_stuck = False
        except queue.Full:
            self._is_stuck = True
        return len(text)

    def flush(self) -> None:
        """Nothing is kept back."""

    def isatty(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return self._stream is not None and self._stream.isatty()
        return False

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError("no stream")
        return self._stream.fileno()

    def close(self) -> None:
        """Give what is waiting a moment to be taken."""
        end = time.monotonic() + _PATIENCE_SECONDS
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=_PATIENCE_SECONDS)
        if self._thread.ident is not None:
            self._thread.join(max(0.0, end - time.monotonic()))

    def _write_all(self) -> None:
        while (text := self._lines.get()) is not None:
            with contextlib.suppress(OSError, ValueError):
                self._write(text)

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            descriptor = self._stream.fileno()
        except (OSError, ValueError):  # an object in memory, as in tests
            self._stream.write(text)
            return
        # Past Python's own buffer: its lock, held while a write waits, would be missed at exit.
        left = memoryview(text.encode(self.encoding, "backslashreplace"))
        while left:
            left = left[os.write(descriptor, left) :]


class Console(logging.Handler):
    """Logs to standard error, above a progress bar where that is a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._stream = _PatientStream(sys.stderr)
        self._bar: tqdm[Never] | None = None
        self._at: dict[str, str] = {}
        """By ID, the step that a case is in."""
        self._predicting_since = 0.0

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
            console._stream.close()

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, if anybody reads it."""
        text = self.format(record)
        if record.exc_info and logging.getLogger("inference").level == logging.DEBUG:
            line = "\n".join(map(printable, text.split("\n")))
        else:
            line = printable(" ".join(text.split()))[:_LINE_LIMIT]
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            self._stream.write(line + "\n")

    @contextlib.contextmanager
    def progress(self, cases: int) -> Iterator[None]:
        """A live line about the case in hand and all of them, where standard error is a terminal."""
        if not self._stream.isatty():
            yield
            return
        from tqdm import tqdm

        layout = "{desc} {bar} {n:.1f}/{total} cases, {remaining} left"
        with tqdm(total=cases, bar_format=layout, file=self._stream, dynamic_ncols=True) as bar:
            self._bar = bar
            try:
                yield
            finally:
                self._bar = None

    def begins(self, case: str, step: str) -> None:
        """Show the step that begins for a case; called by every thread."""
        self._at[case] = step
        if step == "predict":
            self._predicting_since = time.monotonic()
        self._describe()

    def advance(self, done: int, total: int) -> None:
        """Show the forward passes of the case in prediction, done and in all."""
        if self._bar is not None:
            # Of one pass more, so that a case counts as done when it is written and not before.
            self._bar.update(int(self._bar.n) + done / (total + 1) - self._bar.n)
            left = (time.monotonic() - self._predicting_since) * (total / done - 1) if done else None
            self._describe(left)

    def _describe(self, left: float | None = None) -> None:
        """Begin the live line with the case that is shown, its step, and the seconds left of that where known."""
        if self._bar is not None and self._at:
            steps = list(_STEPS)
            case, step = min(list(self._at.items()), key=lambda item: steps.index(item[1]))
            self._bar.set_description_str(
                f"{case}: {_STEPS[step]}" + (f", {left:.0f} s left" if left is not None else "")
            )

    def case_done(self, case: CaseRecord) -> None:
        """One line about a case."""
        self._at.pop(case.id, None)
        if self._bar is not None:
            self._bar.update(int(self._bar.n) + 1 - self._bar.n)
            self._describe()
        if case.status in ("failed", "empty"):
            what = "failed" if case.status == "failed" else "FAILED, AN EMPTY FILE WAS WRITTEN IN ITS PLACE"
            log.error("%s: %s: %s", case.id, what, case.error)
            return
        volumes = ", ".join(f"{region} {volume:.1f} mL" for region, volume in (case.volumes_ml or {}).items())
        took = "already there" if case.resumed else f"{sum(case.seconds.values()):.1f} s"
        notes = [*(f"repaired: {note}" for note in case.repairs), *(f"warning: {note}" for note in case.warnings)]
        log.log(logging.WARNING if notes else logging.INFO, "%s", "; ".join([f"{case.id}: {took}, {volumes}", *notes]))
