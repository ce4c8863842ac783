"""The record of a run on its way to its file."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from inference.errors import FolderError
from inference.files import prepare_folder, write_whole
from inference.report.record import CaseRecord, RunRecord, render_record

log = logging.getLogger(__name__)


class RecordFile:
    """The record of a run in a file, if one was asked for; written anew after every case, since a kill may follow."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._run: RunRecord | None = None
        self._cases: list[CaseRecord] = []
        if path is not None:
            prepare_folder(path.parent)
            if path.is_dir():
                raise FolderError(f"{path}: the record cannot be written (it is a folder)")

    def begin(self, run: RunRecord) -> None:
        """The run begins; FolderError where its record cannot be written."""
        self._run = run
        if self._path is not None:
            write_whole(self._path, render_record(run, ()))

    def add(self, case: CaseRecord) -> None:
        """A case is over."""
        self._cases.append(case)
        self._write()

    def end(self, cases: Sequence[CaseRecord], interrupted: str | None, status: int, seconds: float) -> None:
        """The run is over; `cases` are all of them, in the order in which readers want them."""
        assert self._run is not None
        self._run = replace(self._run, interrupted=interrupted, exit_status=int(status), seconds=round(seconds, 3))
        self._cases = list(cases)
        self._write()

    def write_page(self, report: Path) -> None:
        """Write the page of the run, once it is over, to the folder that holds the pictures of its cases."""
        assert self._run is not None
        try:
            from inference.report.page import write_page

            write_page(json.loads(render_record(self._run, self._cases)), report)
        except Exception as error:
            log.debug("no page", exc_info=True)
            log.error("warning: no page: %s", str(error) or type(error).__name__)

    def _write(self) -> None:
        if self._path is None or self._run is None:
            return
        try:
            write_whole(self._path, render_record(self._run, self._cases))
        except FolderError as error:
            log.error("warning: the record is not up to date: %s", error)
