"""The record of a run on its way to its file."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from inference.errors import FolderError
from inference.files import check_replaceable, prepare_folder, write_whole
from inference.report.record import CaseRecord, RunRecord, plain, render_record

log = logging.getLogger(__name__)


class RecordFile:
    """The record of a run in a file, if one was asked for, kept up to date since a kill may follow.

    The file is one JSON at all times. While the run goes on, a case is written over the brackets at its end, with the
    brackets after it: its cost does not depend on how many there were before. At the end the file is written whole.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._run: RunRecord | None = None
        self._cases: list[CaseRecord] = []
        # How many of the cases are in the file: those that a full disk kept out wait, and go in with a later one.
        self._written = 0
        self._file = -1
        # Where the brackets begin that close the list of cases.
        self._end = 0
        self._brackets = b""
        if path is not None:
            prepare_folder(path.parent)
            check_replaceable(path)

    def begin(self, run: RunRecord) -> None:
        """The run begins; FolderError where its record cannot be written."""
        self._run = run
        if self._path is None:
            return
        contents = render_record(run, ())
        write_whole(self._path, contents)
        self._end = contents.rindex(b"]")
        self._brackets = contents[self._end :]
        # Closed on exec: no process that a library starts holds the record open.
        self._file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)

    def add(self, case: CaseRecord) -> None:
        """A case is over."""
        self._cases.append(case)
        if self._path is None:
            return
        try:
            self._append()
        except OSError as error:
            log.error("warning: the record is not up to date: %s: %s", self._path, error.strerror or error)

    def end(self, cases: Sequence[CaseRecord], interrupted: str | None, status: int, seconds: float) -> None:
        """The run is over; `cases` are all of them, in the order in which readers want them."""
        assert self._run is not None
        self._run = replace(self._run, interrupted=interrupted, exit_status=int(status), seconds=round(seconds, 3))
        self._cases = list(cases)
        if self._path is None:
            return
        os.close(self._file)
        try:
            write_whole(self._path, render_record(self._run, self._cases))
        except FolderError as error:
            log.error("warning: the record is not up to date: %s", error)

    def write_page(self, report: Path) -> None:
        """Write the page of the run, once it is over, to the folder that holds the pictures of its cases."""
        assert self._run is not None
        try:
            from inference.report.page import write_page

            write_page(self._run, self._cases, report)
        # Whatever it is: the label maps and the record are there, and a page is not worth an exit status.
        except Exception as error:
            log.debug("no page", exc_info=True)
            log.error("warning: no page: %s", str(error) or type(error).__name__)

    def _append(self) -> None:
        """Write the waiting cases over the brackets, in one call; where that fails the file stays as it was."""
        # Two runs with one record would write into each other.
        if os.fstat(self._file).st_size != self._end + len(self._brackets):
            raise OSError("somebody else has written to it; it will be whole at the end")
        waiting = self._cases[self._written :]
        objects = (json.dumps(plain(case), ensure_ascii=False, allow_nan=False) for case in waiting)
        text = (b",\n" if self._written else b"\n") + ",\n".join(objects).encode("utf-8", "replace")
        try:
            written = os.pwrite(self._file, text + self._brackets, self._end)
            if written < len(text) + len(self._brackets):
                raise OSError("No space left on device")
        except OSError:
            # What was written of a case goes first: it may be longer than the brackets.
            os.ftruncate(self._file, self._end)
            os.pwrite(self._file, self._brackets, self._end)
            raise
        self._end += len(text)
        self._written = len(self._cases)
