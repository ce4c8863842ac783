"""The meter, and what cannot be measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import COMMANDS, main
from benchmarks.measuring import Meter


def test_the_meter_counts_what_comes_on_top_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    held = {"memory_allocated": 3 * 10**9, "max_memory_allocated": 5 * 10**9}
    for name in ("synchronize", "reset_peak_memory_stats", *held):
        monkeypatch.setattr(torch.cuda, name, lambda _, name=name: calls.append(name) or held.get(name))
    with Meter("cuda:0") as meter:
        calls.append("work")
    assert meter.gpu == 2
    before = ["synchronize", "reset_peak_memory_stats", "memory_allocated"]
    assert calls == [*before, "work", "synchronize", "max_memory_allocated"]
    with Meter("cpu") as meter:
        pass
    assert meter.gpu is None


def test_what_cannot_be_measured_is_a_line(
    bundle: Path, scans: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--bundle", str(bundle), "--input", str(scans)]
    with pytest.raises(SystemExit, match="2"):
        main(["speed", *words, "--cases", "0"])
    assert "--cases" in capsys.readouterr().err
    assert main(["nnunet", *words, "--model", "third"]) == 2
    assert "nnunet, mednext" in caplog.text
    assert main(["speed", "--input", str(tmp_path)]) == 2


def test_every_command_says_what_it_takes_and_help_needs_no_torch(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        assert f"python -m benchmarks {command}" in capsys.readouterr().out
    code = "import sys, benchmarks.__main__; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
