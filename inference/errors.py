"""Named errors, and the exit status that each of them means."""

from __future__ import annotations

import copyreg
import sys
from collections.abc import Sequence
from enum import IntEnum
from typing import Final

# What libraries say, in errors of any type, where the system or the GPU gives them no memory. None of them raises
# MemoryError for all of it, so that their words have to be looked for.
_NO_THREAD: Final = ("can't start new thread", "resource temporarily unavailable")
_NO_ROOM: Final = (
    *("allocate memory", "can't alloc", "bad_alloc", "alloc_failed", "out of memory"),
    "failed to map segment",  # of a library
    *_NO_THREAD,
)


class ExitStatus(IntEnum):
    """Exit status of `python -m inference`."""

    OK = 0
    """Every case was written."""
    CASE_FAILED = 1
    """Some case failed, named in the log and the record; the others were written."""
    NOTHING_ATTEMPTED = 2
    """Arguments, bundle, device or folders are wrong, or no case was found: nothing was written."""


class GliomaError(Exception):
    """Base of every error that is meant for the user: its text is one line that says what to do about it."""

    def __reduce__(self) -> tuple[object, ...]:
        """Let it pass from one process to another whatever its class is made of.

        Python calls a class again with `args`, which here are the text alone: where a class takes more, that fails in
        the thread that reads the results of a pool, and breaks the pool.
        """
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined] # (pickle's own)


class UsageError(GliomaError):
    """Arguments that cannot be carried out."""


def no_module(error: ModuleNotFoundError) -> str:
    """Advice where a library is missing: as a rule the system's Python was called."""
    return f"no module {error.name} in {sys.executable}: run it with .venv/bin/python, which ./build.sh setup makes"


class FolderError(GliomaError):
    """An input folder that cannot be read or holds no case, or an output folder that cannot be written."""


class BundleError(GliomaError):
    """A bundle that is incomplete, altered, or not understood."""


class DeviceError(GliomaError):
    """A device or engine that was asked for and is not there or does not work."""


class CaseError(GliomaError):
    """A problem with one case; the other cases go on."""

    def __init__(self, case: str, problem: str, *, found: str = "", expected: str = "") -> None:
        self.case = case
        """ID of the case."""
        self.problem = problem
        """The fault, naming the file where one is to blame."""
        self.found = found
        """The evidence."""
        self.expected = expected
        """The values that would have been accepted."""
        details = [f"found {found}"] * bool(found) + [f"expected {expected}"] * bool(expected)
        super().__init__(f"{case}: {problem}" + (f" ({', '.join(details)})" if details else ""))


class SeveralErrors(GliomaError):  # noqa: N818 (the suffix, of several)
    """More than one thing that is wrong, each with a line of its own."""

    def __init__(self, errors: Sequence[GliomaError]) -> None:
        self.errors = tuple(errors)
        """All of them, in order."""
        super().__init__("\n".join(map(str, self.errors)))


def reason(error: Exception, case: str) -> str:
    """Why a case failed, in one line that does not repeat its ID."""
    text = " ".join(str(error).split())
    if isinstance(error, GliomaError):
        return text.removeprefix(f"{case}: ")
    # The words of a library's error before its type: OpenVINO and torch raise RuntimeError for want of memory.
    lower = text.lower()
    if isinstance(error, MemoryError) or any(sign in lower for sign in _NO_ROOM):
        # "failed to map segment" names a file, such as libcuda.so, that the machine's memory has no room for.
        if ("cuda" in lower or "cublas" in lower) and "failed to map" not in lower:
            return "out of GPU memory: close what else uses it, or choose --device cpu"
        few = "; or too few processes are allowed: raise ulimit -u, or the container's limit"
        few = few if any(sign in lower for sign in _NO_THREAD) else ""
        return f"out of memory: close other programs, or use a machine with more{few}"
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or error}"
    return f"unexpected {type(error).__name__}: {text[:300]}"
