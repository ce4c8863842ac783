"""Where a run writes: folders looked at before it begins, and its record kept up to date."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from inference.errors import FolderError, UsageError
from inference.files import write_whole
from inference.report.record import CaseRecord, RunRecord, render_record

if TYPE_CHECKING:
    from inference.pipeline import FolderOutcome

log = logging.getLogger(__name__)

_NO_UNNAMED_FILES: Final = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS, errno.ENOENT)


def prepare_folder(folder: Path) -> None:
    """Make a folder if it is not there and make sure that it takes files; FolderError where it does not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise FolderError(f"{folder}: cannot be written to (it is a file, not a folder)") from error
    except OSError as error:
        raise FolderError(f"{folder}: cannot be created ({error.strerror or error})") from error
    try:
        # An unnamed file: nobody who watches the folder sees the attempt.
        os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY))
    except OSError as error:
        if error.errno not in _NO_UNNAMED_FILES or not os.access(folder, os.W_OK | os.X_OK):
            raise FolderError(f"{folder}: cannot be written to ({error.strerror or error})") from error


def keep_apart(folders: Mapping[str, Path], taken: Mapping[str, Path]) -> None:
    """UsageError where one of `folders`, by option, is one of those `taken`, by what is in them."""
    for option, folder in folders.items():
        for what, other in taken.items():
            if folder.resolve() == other.resolve():
                raise UsageError(f"{option}: {folder} is the folder of the {what}, expected one of its own")


def keep_out(folders: Mapping[str, Path], label_maps: Path) -> None:
    """UsageError where one of `folders`, by option, is that of label maps or in it: organisers read all of it."""
    keep_apart(folders, {"label maps": label_maps})
    for option, folder in folders.items():
        if folder.resolve().is_relative_to(label_maps.resolve()):
            raise UsageError(f"{option}: {folder} lies in the folder of the label maps, expected one outside of it")


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

    def end(self, outcome: FolderOutcome, status: int, seconds: float) -> None:
        """The run is over, its cases in the order of the outcome."""
        assert self._run is not None
        self._run = replace(
            self._run, interrupted=outcome.interrupted, exit_status=int(status), seconds=round(seconds, 3)
        )
        self._cases = list(outcome.cases)
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
