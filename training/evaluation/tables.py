"""Small tables as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from inference.errors import FolderError, UsageError

Cell = str | int | float
Row = Sequence[Cell]

TABLE_SUFFIXES = (".csv", ".md")
"""File name endings by which the format of a table is chosen."""


def check_table(path: Path) -> Path:
    """The path of a table, or UsageError where its ending names no format."""
    if path.suffix not in TABLE_SUFFIXES:
        raise UsageError(f"{path}: a table ends in {' or '.join(TABLE_SUFFIXES)}")
    return path


def markdown(header: Row, rows: Sequence[Row], digits: int = 4) -> str:
    """A Markdown table; fractional numbers with `digits` digits."""
    lines = [[_rounded(cell, digits) for cell in row] for row in (header, *rows)]
    ruler = ["---" if column == 0 else "---:" for column in range(len(header))]
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], ruler, *lines[1:]))


def comma_separated(header: Row, rows: Sequence[Row]) -> str:
    """A CSV table with numbers in full."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows((header, *rows))
    return text.getvalue()


def write_text(path: Path, text: str) -> None:
    """Write a text file, making its folder; FolderError where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FolderError(f"cannot write {path}: {error.strerror}") from error


def _rounded(cell: Cell, digits: int) -> str:
    return f"{cell:.{digits}f}" if isinstance(cell, float) else str(cell).replace("|", "\\|")
