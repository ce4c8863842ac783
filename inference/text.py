"""Text from outside (names, headers, JSON, messages of libraries), made safe for where it is shown."""

from __future__ import annotations


def printable(text: str) -> str:
    """Text that is safe on one line of a terminal or log: whatever is unprintable is escaped, as in Python's repr."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def times(shape: tuple[int, ...]) -> str:
    """A shape as people write it."""
    return "×".join(map(str, shape))


def csv_cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula: an apostrophe in front where it begins like one.

    The characters are those of OWASP's page on CSV injection.
    """
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
