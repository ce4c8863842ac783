"""Every command and code block of README and docs is run, or says why not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, ROOT, RUNNABLE, SHOWN, Block, blocks_of
from tests.inference.conftest import tiny_bundle  # noqa: F401 (a fixture)
from training.data.phantoms import make_phantom, write_phantom

TO_RUN = [page for page in PAGES if any(b.language in RUNNABLE and not b.reason for b in blocks_of(page))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    for block in blocks_of(page):
        where = f"{page.name}, line {block.line}"
        assert block.language in (*RUNNABLE, *SHOWN), f"{where}: a block of {block.language or 'no language'}"
        assert not (block.reason and block.language in SHOWN), f"{where}: marked, but nothing that could be run"
        if block.language == "console":
            assert block.commands, f"{where}: no line begins with '$ '"
            assert block.text.startswith("$ "), f"{where}: output before the first command"


def test_fences_are_told_apart(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text(
        "```console\n$ a \\\n  b\nout\n$ c\n```\n\n<!-- not run: no GPU -->\n```python\nx\n```\n```\ny\n```\n"
    )
    first, second, third = blocks_of(page)
    assert (first.language, first.commands, first.reason, first.line) == ("console", ["a \\\n  b", "c"], "", 1)
    assert (second.language, second.text, second.reason) == ("python", "x\n", "no GPU")
    assert (third.language, third.reason) == ("", "")


def test_the_pages_have_what_there_is_to_run() -> None:
    assert {"README.md", "using.md", "extending.md"} <= {page.name for page in TO_RUN}


@pytest.fixture
def desk(tmp_path: Path, tiny_bundle: Path) -> Path:  # noqa: F811
    """A folder with one small case in IN, its label map in TRUTH, and the program."""
    case = write_phantom(tmp_path / "IN", "P-00001-000", make_phantom(1, (48, 52, 44)), "RAS", with_labels=True)
    (tmp_path / "TRUTH").mkdir()
    (case / f"{case.name}-seg.nii.gz").rename(tmp_path / "TRUTH" / f"{case.name}.nii.gz")
    for name in ("inference", "training", "benchmarks", "weights"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(tiny_bundle, tmp_path / "other")
    return tmp_path


@pytest.mark.slow
# Against what hangs, not against what is slow: other jobs may have the cores.
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", TO_RUN, ids=lambda page: page.name)
def test_blocks_run_in_their_order(page: Path, desk: Path) -> None:
    for block in blocks_of(page):
        if block.language in RUNNABLE and not block.reason:
            run(block, desk)


def run(block: Block, desk: Path) -> None:
    """Run a block; what it prints under a command that lists a folder is compared with what the page shows."""
    where = f"{block.page.name}, line {block.line}"
    scripts = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{scripts}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "BUNDLE": "other"}
    pieces = [block.text] if block.language == "python" else block.commands
    program = [sys.executable, "-c"] if block.language == "python" else ["bash", "-eo", "pipefail", "-c"]
    for text in pieces:
        done = subprocess.run(
            [*program, text], cwd=desk, env=environment, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, f"{where}: {text}\n{done.stdout}{done.stderr}"
        if text.startswith("ls "):
            shown = block.text.partition(f"$ {text}\n")[2].partition("\n$ ")[0]
            assert done.stdout.splitlines() == shown.splitlines(), f"{where}: {text}"
