"""Every command meets a bad folder or configuration with one line of the family of named errors, and exit status 2."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from inference.errors import CaseError, SeveralErrors
from training import cli

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ROOT / "training" / "configs" / "smoke.yaml"
MODEL = ["--model", "nnunet"]
STEPS = {
    "cases": [],
    "folds": ["--jobs", "1"],
    "dataset": ["--stage", "finetuning", "--jobs", "1"],
    "plan": ["--jobs", "1"],
    "preprocess": ["--stage", "finetuning", *MODEL, "--jobs", "1"],
    "splits": [],
    "train": ["--stage", "finetuning", *MODEL, "--fold", "0", "--device", "cpu"],
    "predict": [*MODEL, "--fold", "0"],
    "tune": ["--jobs", "1"],
    "freeze": [],
    "report": ["--jobs", "1"],
    "run": ["--cores", "1"],
}


def test_every_step_is_tried():
    assert STEPS.keys() == {*cli.STEPS, "run"}


CONFIGURATIONS = {
    "utf-16": SMOKE.read_text().encode("utf-16"),
    "latin-1": SMOKE.read_text().encode() + "# Zürich".encode("latin-1"),
    "binary": bytes(range(256)),
    "empty": b"",
    "a list": b"- 1",
    "tabs": b"a:\n\t- b",
}


@pytest.mark.parametrize("step", STEPS)
def test_configurations_that_are_none_are_named(tmp_path, step, caplog):
    for name, contents in CONFIGURATIONS.items():
        config = tmp_path / f"{name}.yaml"
        config.write_bytes(contents)
        assert one_line(["--config", config, "--work", tmp_path / "work"], step, caplog).startswith("error: ")
        assert f"{name}.yaml" in caplog.messages[-1]
    for place in (tmp_path / "missing.yaml", tmp_path):
        assert str(place) in one_line(["--config", place, "--work", tmp_path / "work"], step, caplog)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in one_line(["--config", tmp_path / "pipe", "--work", tmp_path / "work"], step, caplog)


def one_line(words, step, caplog):
    """What a step says, called in this process."""
    caplog.clear()
    assert cli.main([step, *map(str, words), *STEPS[step]]) == 2
    (line,) = caplog.messages
    assert "\n" not in line
    assert "unexpected" not in line
    return line


@pytest.mark.parametrize("step", STEPS)
def test_a_work_folder_that_cannot_be_is_named(tmp_path, step, caplog):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    for place in (tmp_path / "file", tmp_path / "file" / "work", tmp_path / "loop", Path("/proc/none/work")):
        line = one_line(["--config", SMOKE, "--work", place], step, caplog)
        assert line.startswith(f"error: {place}: cannot be"), line


@pytest.mark.parametrize("step", sorted(STEPS.keys() - {"cases", "run", "report"}))
def test_a_run_that_has_not_begun_is_told(tmp_path, step, caplog):
    line = one_line(["--config", SMOKE, "--work", tmp_path], step, caplog)
    assert str(tmp_path) in line


@pytest.mark.parametrize("step", sorted(STEPS.keys() - {"cases", "plan", "preprocess", "train"}))
def test_a_damaged_list_of_cases_is_named(tmp_path, step, caplog):
    for contents in (b"", b"\xff\xfe[", b"{}", b'[{"id": 3}]'):
        for name in ("cases.json", "folds.json", "tuning.json", "scores.json", "subtypes.json"):
            (tmp_path / name).write_bytes(contents)
        line = one_line(["--config", SMOKE, "--work", tmp_path], step, caplog)
        assert ".json" in line or "subtypes.safetensors" in line


@pytest.fixture(params=["full", "read-only"])
def bad_disk(request, tmp_path):
    """A file system with no room, or that nothing can be written to."""
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    options = "size=16k" if request.param == "full" else "size=1m,ro"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    if request.param == "full":
        (folder / "filler").write_bytes(bytes(4 * 4096))
    yield folder
    subprocess.run(["umount", folder], check=True)


WRITING = {
    "cases": ["cases", "--config", SMOKE, "--work", "DISK"],
    "run": ["run", "--config", SMOKE, "--work", "DISK", "--cores", "1"],
    "phantoms": ["phantoms", "--output", "DISK/cases", "--labels", "DISK/labels", "--shape", "48", "48", "40"],
}


@pytest.mark.parametrize("command", WRITING)
def test_a_disk_that_takes_nothing_is_named(bad_disk, command):
    words = [str(word).replace("DISK", str(bad_disk)) for word in WRITING[command]]
    done = subprocess.run(
        [sys.executable, "-m", "training", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr or "Read-only file system" in done.stderr


def test_errors_of_several_cases_have_a_line_each(monkeypatch, caplog, tmp_path):
    def fail(*_: object) -> None:
        raise SeveralErrors([CaseError("A", "empty"), CaseError("B", "corrupt")])

    monkeypatch.setitem(cli.STEPS, "splits", (fail, ()))
    assert cli.main(["splits", "--config", str(SMOKE), "--work", str(tmp_path)]) == 2
    assert caplog.messages == ["error: A: empty", "error: B: corrupt"]


def test_a_signal_is_told_in_one_line(monkeypatch, caplog, tmp_path):
    def end(*_: object) -> None:
        os.kill(os.getpid(), 15)

    monkeypatch.setitem(cli.STEPS, "splits", (end, ()))
    assert cli.main(["splits", "--config", str(SMOKE), "--work", str(tmp_path)]) == 2
    assert caplog.messages == ["error: ended by SIGTERM"]


TOOLS = [
    ["evaluate", "--reference", "PLACE", "--prediction", ".", "--version", "2024"],
    ["check-submission", "--prediction", "PLACE"],
    ["compare", "PLACE", "PLACE"],
    ["phantoms", "--output", "PLACE/cases", "--shape", "48", "48", "40"],
    ["import-checkpoints", "--nnunet", "PLACE", "--orientation", "LPS", "--output", "OUT"],
    ["import-ranked", "PLACE", "--output", "OUT"],
    ["export-openvino", "--bundle", "PLACE", "--output", "OUT"],
    ["finer-grid", "--bundle", "PLACE", "--output", "OUT"],
    ["picture", "--input", "PLACE", "--reference", "PLACE", "--prediction", "PLACE", "--output", "OUT.png"],
]


@pytest.mark.parametrize("words", TOOLS, ids=lambda words: words[0])
def test_tools_name_a_place_that_is_not_what_they_expect(tmp_path, words, caplog):
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "loop").symlink_to("loop")
    places = [tmp_path / "binary"] + [tmp_path / "missing", tmp_path / "loop"] * (words[0] != "phantoms")
    for place in places:
        caplog.clear()
        given = [word.replace("PLACE", str(place)).replace("OUT", str(tmp_path / "out")) for word in words]
        assert cli.main(given) == 2
        assert caplog.messages
        assert all("\n" not in line and "unexpected" not in line for line in caplog.messages), caplog.messages
    assert {word for command in TOOLS for word in command[:1]} == set(cli.TOOLS)
