"""Processes that share the work on many cases."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from inference.errors import UsageError
from inference.machine import available_threads

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Workers:
    """So many processes, or this one where there is no pool."""

    pool: ProcessPoolExecutor | None = None
    """The processes."""

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task], chunk: int = 1) -> Iterator[Result]:
        """`function` of every task, in their order; `chunk` tasks travel together. Both have to be picklable."""
        if self.pool is None or len(tasks) < 2:
            return map(function, tasks)
        return self.pool.map(function, tasks, chunksize=chunk)


@contextmanager
def open_workers(jobs: int = 0) -> Iterator[Workers]:
    """`jobs` processes, 0 for one per core that may be used; UsageError for fewer."""
    if jobs < 0:
        raise UsageError(f"--jobs {jobs}: at least one, or 0 for all cores")
    count = jobs or available_threads()
    if count == 1:
        yield Workers()
        return
    # Spawned, since forking a process that has threads can hang.
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield Workers(pool)
