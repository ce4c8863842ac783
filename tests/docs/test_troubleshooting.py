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
    for path in (path for package in ("inference", "training") for path in (ROOT / package).rglob("*.py")):
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


def messages_about_scans() -> Iterator[str]:
    """All that intake refuses, mends and warns of, with … for what is put in."""
    for path in sorted((ROOT / "inference" / "intake").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or not call.args:
                continue
            called = ast.unparse(call.func)
            if called.endswith(("notes.refusal", ").refusal", "self.refusal", "repairs.append", "warnings.append")):
                yield template_of(call.args[0])
            elif called == "CaseError" and len(call.args) > 1:
                yield template_of(call.args[1])


def template_of(node: ast.expr) -> str:
    """The text of an expression, with … for what is not known before the program runs."""
    if isinstance(node, ast.JoinedStr):
        return "".join(template_of(part) for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else GAP


def is_answered(message: str) -> bool:
    """Whether the page quotes some words of a message that tell it from others."""
    quoted = {part.strip(": ()") for span in re.findall(r"`([^`]+)`", PAGE) for part in span.split(GAP)}
    pieces = [piece.strip(": ()") for piece in message.split(GAP)]
    return any(part == piece or (len(part) > 8 and part in piece) for part in quoted if part for piece in pieces)


def test_every_message_about_a_scan_is_answered() -> None:
    # These only pass on another one of the messages.
    messages = set(messages_about_scans()) - {GAP, f"{GAP}: {GAP}", f"its folder {GAP}"}
    assert len(messages) > 40
    assert not sorted(message for message in messages if not is_answered(message))
    assert not is_answered("the scan is upside down")


def test_messages_that_do_not_exist_are_noticed() -> None:
    assert len(QUOTED) > 20
    assert not is_known("…: another shapes")
    assert not is_known("device …: torch finds a working GPU")
    assert not is_known("the GPU is … on fire")
