"""Processes that share the work on many cases."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from typing import TypeVar

from inference.errors import CaseError, GliomaError, SeveralErrors, UsageError, reason
from inference.machine import available_threads

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Workers:
    """So many processes, or this one where there is no pool."""

    pool: ProcessPoolExecutor | None = None
    """The processes."""

    def map(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        chunk: int = 1,
        name: Callable[[Task], str] | None = None,
    ) -> Iterator[Result]:
        """Results of `function` for every task, in their order; `chunk` tasks travel together.

        `function` and tasks have to be picklable. `name` gives the ID of a task's case, for errors. All tasks are
        done even if some fail; then the error is raised, or :class:`SeveralErrors`, where the results end.
        """
        named = [(name(task) if name else "", task) for task in tasks]
        attempt = partial(_attempt, function=function)
        failures: list[GliomaError] = []
        done = 0
        try:
            for outcome in self._outcomes(attempt, named, chunk):
                done += 1
                if isinstance(outcome, GliomaError):
                    failures.append(outcome)
                elif not failures:
                    yield outcome
        except BrokenProcessPool as error:
            # The pool does not say which task it was; results come in order, so that it is this one or a later one.
            at = f" at {named[done][0]}, or after it" if named[done][0] else ""
            raise UsageError(
                f"a process was ended from outside{at}: as a rule for lack of memory; give fewer --jobs"
            ) from error
        if failures:
            raise failures[0] if len(failures) == 1 else SeveralErrors(failures)

    def _outcomes(
        self, attempt: Callable[[tuple[str, Task]], Result | GliomaError], named: list[tuple[str, Task]], chunk: int
    ) -> Iterator[Result | GliomaError]:
        if self.pool is None or len(named) < 2:
            return map(attempt, named)
        # Processes start in here and keep what is blocked: Ctrl-C goes to all, and this process alone shall answer it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self.pool.map(attempt, named, chunksize=chunk)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _attempt(named: tuple[str, Task], function: Callable[[Task], Result]) -> Result | GliomaError:
    """The result of a task, or its error: returned, since a pool gives up the rest at the first that is raised."""
    name, task = named
    try:
        return function(task)
    except GliomaError as error:
        return error
    except Exception as error:
        # Others' errors may not survive the way between processes.
        why = reason(error, name)
        failed = CaseError(name, why) if name else UsageError(why)
        failed.add_note(traceback.format_exc())
        return failed


@contextmanager
def open_workers(jobs: int = 0) -> Iterator[Workers]:
    """`jobs` processes, 0 for one per core that may be used; UsageError for fewer.

    They end with the context, and with this process, whatever ends it.
    """
    if jobs < 0:
        raise UsageError(f"--jobs {jobs}: at least one, or 0 for all cores")
    count = jobs or available_threads()
    if count == 1:
        yield Workers()
        return
    # Another pool may be open in this process, whose workers are not ours to end.
    others = multiprocessing.active_children()
    # Spawned, since forking a process that has threads can hang.
    pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent)
    try:
        yield Workers(pool)
    except BaseException:
        # What they are at would be waited for to its end.
        for process in multiprocessing.active_children():
            if process not in others:
                process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Have this process end when the one that started it does, which may be killed before it can say so."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
