"""What every test may ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


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
