"""The fenced blocks of a Markdown page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))
    # The changelog has no commands, and the card is made from the manifest.
    if path.name not in ("CHANGELOG.md", "model-card.md")
)
_BLOCK = re.compile(
    r"(?:^<!--\s*(?P<mark>not run: .*?)\s*-->\n)?^(?P<fence>```+)(?P<language>[^\n]*)\n(?P<text>.*?)^(?P=fence)\s*$",
    re.MULTILINE | re.DOTALL,
)
RUNNABLE = ("console", "python")
SHOWN = ("text", "yaml", "json", "{toctree}", "{eval-rst}", "{include}")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: Path
    line: int
    language: str
    text: str
    reason: str
    """Why it is not run; empty where it is."""

    @property
    def commands(self) -> list[str]:
        """The commands of a console block: lines after `$`, with those that continue them."""
        found: list[str] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append(line[2:])
            elif found and found[-1].endswith("\\"):
                found[-1] += "\n" + line
        return found


def blocks_of(page: Path) -> list[Block]:
    """All blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page,
            text.count("\n", 0, match.start("fence")) + 1,
            match["language"].strip().split(" ")[0],
            match["text"],
            (match["mark"] or "").removeprefix("not run: "),
        )
        for match in _BLOCK.finditer(text)
    ]
