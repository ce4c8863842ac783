"""A table once, for the page and for the Markdown file beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from training.evaluation.tables import markdown

_LONG = 30
"""Letters from which on a cell is text."""


@dataclass(frozen=True)
class Table:
    """Cells as they are to be read."""

    caption: str
    """What it shows."""
    header: Sequence[str]
    """Names of the columns."""
    rows: Sequence[Sequence[str]]
    """The first cell of a row names it."""
    note: str = ""
    """What has to be known to read it."""

    def as_markdown(self) -> str:
        """Caption, table and note."""
        note = f"{self.note}\n" if self.note else ""
        return "\n".join(part for part in (f"### {self.caption}\n", markdown(self.header, self.rows), note) if part)

    def as_html(self) -> str:
        """A table that scrolls by itself, with the keyboard too, where the screen is narrow."""
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in self.header)
        body = "\n".join(
            f'<tr><th scope="row">{escape(row[0])}</th>{"".join(map(_cell, row[1:]))}</tr>' for row in self.rows
        )
        note = f'<p class="hint">{escape(self.note)}</p>' if self.note else ""
        caption = escape(self.caption)
        return (
            f'<h3>{caption}</h3><div class="scroll" tabindex="0" role="region" aria-label="{caption}">'
            f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>{note}"
        )


def _cell(text: str) -> str:
    """A cell that breaks its lines where it holds a sentence rather than a number."""
    return f'<td class="long">{escape(text)}</td>' if len(text) > _LONG else f"<td>{escape(text)}</td>"


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± standard deviation of the population, as `evaluate` gives it; a dash for no values."""
    import statistics

    if not values:
        return "–"
    return f"{statistics.fmean(values):.{digits}f} ± {statistics.pstdev(values):.{digits}f}"
