"""Small tables as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from inference.errors import UsageError
from inference.files import prepare_folder, write_whole
from inference.text import csv_cell, printable

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
    """A Markdown table; fractional numbers with `digits` digits, text without control characters."""
    lines = [[_rounded(cell, digits) for cell in row] for row in (header, *rows)]
    ruler = ["---" if column == 0 else "---:" for column in range(len(header))]
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], ruler, *lines[1:]))


def comma_separated(header: Row, rows: Sequence[Row]) -> str:
    """A CSV table with numbers in full, and text that no spreadsheet takes for a formula."""
    text = io.StringIO()
    # A name such as `=SUM(A1)` would be carried out by the spreadsheet that opens the table.
    safe = [[csv_cell(cell) if isinstance(cell, str) else cell for cell in row] for row in (header, *rows)]
    csv.writer(text, lineterminator="\n").writerows(safe)
    return text.getvalue()


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, making its folder; FolderError where that fails."""
    prepare_folder(path.parent)
    write_whole(path, text.encode())


def _rounded(cell: Cell, digits: int) -> str:
    return f"{cell:.{digits}f}" if isinstance(cell, float) else printable(str(cell)).replace("|", "\\|")
