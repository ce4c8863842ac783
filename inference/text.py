"""Text from outside (names, headers, JSON, messages of libraries), made safe for where it is shown."""

from __future__ import annotations


def printable(text: str) -> str:
    """Text that is safe on one line of a terminal or log: whatever is unprintable is escaped, as in Python's repr."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def times(shape: tuple[int, ...]) -> str:
    """A shape as people write it."""
    return "×".join(map(str, shape))


def csv_cell(text: str) -> str:
    """Text for a cell of a CSV file that no spreadsheet takes for a formula: an apostrophe precedes what might be one.

    The characters are those of OWASP's page on CSV injection; tabs and returns among them are escaped as unprintable.
    """
    # Escaped first: a tab or return in front of the sign would hide it here, but not from a spreadsheet.
    text = printable(text)
    return "'" + text if text.startswith(("=", "+", "-", "@")) else text
