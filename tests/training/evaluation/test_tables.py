from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from inference.errors import FolderError, UsageError
from training.evaluation.tables import check_table, comma_separated, markdown, write_text

HEADER = ("case", "dice", "fp")
ROWS = [("a|b", 0.123456, 2), ("c", 1.0, 0)]


def test_markdown_rounds_fractions_only():
    assert markdown(HEADER, ROWS) == (
        "| case | dice | fp |\n| --- | ---: | ---: |\n| a\\|b | 0.1235 | 2 |\n| c | 1.0000 | 0 |\n"
    )


def test_csv_keeps_every_digit():
    rows = list(csv.reader(io.StringIO(comma_separated(HEADER, ROWS))))
    assert rows == [["case", "dice", "fp"], ["a|b", "0.123456", "2"], ["c", "1.0", "0"]]


def test_the_ending_names_the_format(tmp_path):
    assert check_table(tmp_path / "a.csv") == tmp_path / "a.csv"
    with pytest.raises(UsageError, match=r"a\.xlsx: a table ends in \.csv or \.md"):
        check_table(Path("a.xlsx"))


def test_text_is_written_into_new_folders_or_refused_by_name(tmp_path):
    write_text(tmp_path / "new" / "a.md", "ü")
    assert (tmp_path / "new" / "a.md").read_text(encoding="utf-8") == "ü"
    with pytest.raises(FolderError, match=r"a\.md: cannot be written to \(it is a file"):
        write_text(tmp_path / "new" / "a.md" / "b.md", "")


def test_text_from_outside_commands_neither_terminal_nor_spreadsheet():
    rows = [("=1+1", 1.0, 0), ("\x1b[31mred", -1.0, 0)]
    assert "| \\x1b[31mred |" in markdown(HEADER, rows)
    assert list(csv.reader(io.StringIO(comma_separated(HEADER, rows))))[1:] == [
        ["'=1+1", "1.0", "0"],
        ["\\x1b[31mred", "-1.0", "0"],
    ]
