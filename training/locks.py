"""Locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from inference.errors import FolderError, UsageError
from inference.files import prepare_folder
from inference.text import printable


@contextmanager
def alone(path: Path, doing: str, *, wait: bool = False) -> Iterator[None]:
    """Within, no other process holds the lock `path`; else `wait` for it, or UsageError that says what it is `doing`.

    Raises FolderError where no file can be written there, or the file system has no locks.
    """
    prepare_folder(path.parent)
    try:
        file = path.open("a")
    except OSError as error:
        raise FolderError(f"{printable(str(path))}: cannot be written ({error.strerror})") from error
    with file:
        if not take(file, wait=wait):
            raise UsageError(f"another process is {doing} ({path} is locked)")
        yield


def take(file: IO[str], *, wait: bool = False) -> bool:
    """Whether the lock of an open file could be had, which is held until the file is closed; `wait` waits for it.

    A record lock, which child processes do not inherit: what a killed process leaves running keeps nobody out. Raises
    FolderError where the file system has no locks.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise FolderError(
            f"{printable(file.name)}: cannot be locked ({error.strerror}): choose a --work on a file system with locks"
        ) from error
    return True
