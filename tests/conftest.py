"""Fixtures that every test may ask for."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


LONGEST = ("training/test_smoke", "inference/faults", "training/bundles/test_ranked", "inference/predict/test_ensemble")
"""Files that take long, the longest first; begun first, so that at the end no process waits for one of them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, in their order."""

    def place(item: pytest.Item) -> int:
        name = str(item.path.relative_to(ROOT / "tests"))
        return next((number for number, begin in enumerate(LONGEST) if name.startswith(begin)), len(LONGEST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Real scans and golden numbers, no part of the repository; the test is skipped where they are absent."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the real scans and golden numbers in ../shared")
    return folder


@pytest.fixture(scope="session")
def embedded_bundle() -> Path:
    """The bundle that ships in the repository."""
    return ROOT / "weights" / "embedded"


@pytest.fixture(autouse=True, scope="session")
def signals_are_answered() -> None:
    """Undo that signals are ignored by whoever started the tests (nohup, a shell's background): programs inherit it."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
