"""A bundle of tiny random networks, a small scan, and a command's result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from training.data.phantoms import make_phantom, write_phantom


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    assert main(["bundle", "--size", "tiny", "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    write_phantom(folder, "phantom-00000-000", make_phantom(0, (72, 80, 64)))
    return folder


@pytest.fixture
def measured(bundle: Path, scans: Path, tmp_path: Path) -> Callable[..., dict]:
    def measure(command: str, *options: str) -> dict:
        file = tmp_path / "result.json"  # nnU-Net prints on standard output, too
        words = ["--bundle", str(bundle), "--input", str(scans), "--device", "cpu", "--json", str(file)]
        assert main([command, *words, *options]) == 0
        return json.loads(file.read_text())

    return measure
