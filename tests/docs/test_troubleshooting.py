"""Every message that the troubleshooting page quotes is one that the program has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.docs.blocks import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^### `(.*)`$", PAGE, re.MULTILINE)
GAP = "…"


def templates() -> Iterator[str]:
    """Every text in the program, with … for what is put into it."""
    for path in (ROOT / "inference").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"%\w", GAP, node.value)
            elif isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)


KNOWN = list(templates())


def is_known(quoted: str) -> bool:
    """Whether the parts of a message between its gaps stand, in their order, in one text of the program."""
    # A refusal puts the name of the file in front of its problem.
    pattern = ".*".join(re.escape(part.strip(": ")) for part in quoted.split(GAP) if part.strip(": "))
    return any(re.search(pattern, text, re.DOTALL) for text in KNOWN)


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_exists(quoted: str) -> None:
    assert is_known(quoted)


def test_messages_that_do_not_exist_are_noticed() -> None:
    assert len(QUOTED) > 20
    assert not is_known("…: another shapes")
    assert not is_known("device …: torch finds a working GPU")
    assert not is_known("the GPU is … on fire")
