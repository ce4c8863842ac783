"""Locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inference.errors import UsageError


@contextmanager
def alone(path: Path, doing: str, *, wait: bool = False) -> Iterator[None]:
    """Within, no other process holds the lock `path`; else `wait` for it, or UsageError that says what it is `doing`.

    A record lock, which child processes do not inherit: what a killed process leaves running keeps nobody out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UsageError(f"another process is {doing} ({path} is locked)") from None
        yield
