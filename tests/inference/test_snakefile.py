"""The cohort's graph with a stand-in for the program: what it is called with, and what becomes of its exit statuses."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from inference.report.record import BundleIdentity, RunRecord, plain, read_record

pytest.importorskip("snakemake")

ROOT = Path(__file__).resolve().parents[2]

RUN = RunRecord((), BundleIdentity("b", "1", "a"), "fast", "torch", "cpu", 1, "skip", {}, "x", 0.5, seconds=1.0)

# Does as `fate.json` says of its shard, and writes down what it was called with; `merge` is the real one.
PROGRAM = """\
import json, pathlib, sys, time

words = sys.argv[1:]
if words[0] == "merge":
    sys.path.insert(0, {root!r})
    from inference.cli import main
    sys.exit(main(words))
value = lambda option: words[words.index(option) + 1] if option in words else None
here, shard, begin = pathlib.Path(__file__).parent, value("--shard"), time.time()
fate = json.loads((here / "fate.json").read_text()).get(shard, "ok")
time.sleep({seconds})
with (here / "words").open("a") as calls:
    calls.write(json.dumps(words) + chr(10))
with (here / "calls").open("a") as calls:
    calls.write(json.dumps([shard, value("--device"), begin, time.time()]) + chr(10))
status = {{"ok": 0, "failed": 1, "cut": 1, "broken": 2}}[fate]
if fate != "broken":
    run = {run} | {{"exit_status": status, "interrupted": "SIGTERM" if fate == "cut" else None}}
    case = {{"id": "case-" + shard[0], "status": "failed" if fate == "failed" else "ok", "resumed": False}}
    record = pathlib.Path(value("--record"))
    record.parent.mkdir(exist_ok=True)
    record.write_text(json.dumps({{"run": run, "cases": [case]}}))
sys.exit(status)
"""


class Cohort:
    """A cohort beside its program."""

    def __init__(self, folder: Path, *, seconds: float = 0) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        (folder / "in put").mkdir()
        (folder / "program.py").write_text(PROGRAM.format(root=str(ROOT), run=plain(RUN), seconds=seconds))

    def run(self, *settings: str, fate: dict[str, str] | None = None, cores: int = 1) -> tuple[int, str]:
        """Exit status and words of Snakemake, called from the cohort's folder."""
        (self.folder / "fate.json").write_text(json.dumps(fate or {}))
        program = f"program={sys.executable} {self.folder}/program.py"
        words = [sys.executable, "-m", "snakemake", "-s", ROOT / "inference" / "Snakefile", "--cores", str(cores)]
        config = [
            "--keep-going",
            "--config",
            "input=in put",
            "output=out",
            "work=my work",
            "threads=1",
            program,
            *settings,
        ]
        done = subprocess.run([*words, *config], cwd=self.folder, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    def calls(self) -> list[list]:
        """Shard, device, begin and end of every call so far."""
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]


def test_a_failed_case_is_told_and_a_broken_shard_is_done_when_called_again(tmp_path):
    cohort = Cohort(tmp_path)
    status, told = cohort.run("shards=3", fate={"1/3": "broken", "2/3": "failed"})
    assert status == 1
    assert "1 of 3 shards are not done" in told
    assert f"{tmp_path}/my work/logs/1-of-3.log" in told
    assert not (tmp_path / "my work" / "record.json").exists()
    before = len(cohort.calls())
    assert sorted(call[0] for call in cohort.calls()) == ["1/3", "1/3", "2/3", "3/3"]
    status, told = cohort.run("shards=3")
    assert status == 0
    assert [call[0] for call in cohort.calls()[before:]] == ["1/3"]
    assert "3 cases: 2 ok, 0 repaired, 1 failed: case-2" in told
    assert [case.id for case in read_record(tmp_path / "my work" / "record.json").cases] == [
        "case-1",
        "case-2",
        "case-3",
    ]
    assert not list((tmp_path / "in put").iterdir())


def test_folders_may_be_called_anything(tmp_path):
    cohort = Cohort(tmp_path)
    for place in ("in {shard} (A)", "bundle {x}"):
        (tmp_path / place).mkdir()
    places = ["input=in {shard} (A)", "output=out {log}", "bundle=bundle {x}", "options=--flag={y}"]
    status, told = cohort.run("shards=2", *places)
    assert status == 0, told
    assert len(read_record(tmp_path / "my work" / "record.json").cases) == 2
    words = json.loads((tmp_path / "words").read_text().splitlines()[0])
    for option, place in (("-i", "in {shard} (A)"), ("-o", "out {log}"), ("--bundle", "bundle {x}")):
        assert words[words.index(option) + 1] == str(tmp_path / place)
    assert "--flag={y}" in words


def test_a_shard_that_was_cut_short_is_not_done(tmp_path):
    cohort = Cohort(tmp_path)
    status, _ = cohort.run("shards=1", fate={"1/1": "cut"})
    assert status == 1
    assert "the run was ended by SIGTERM" in (tmp_path / "my work" / "logs" / "1-of-1.log").read_text()


def test_every_gpu_has_one_shard_at_a_time(tmp_path):
    cohort = Cohort(tmp_path, seconds=0.7)
    status, told = cohort.run("shards=4", "gpus=2", cores=3)
    assert status == 0, told
    calls = sorted(cohort.calls(), key=lambda call: call[2])
    assert {call[1] for call in calls} == {"cuda:0", "cuda:1"}
    for device in ("cuda:0", "cuda:1"):
        turns = [call[2:] for call in calls if call[1] == device]
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(turns))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("shards=0", "shards: found 0, expected a whole number of at least 1"),
        ("shads=4", "shads: unknown"),
        ("input=nowhere", "nowhere is not a folder"),
        ("work=out/work", "out/work lies in"),
        ("work=a{cohort}", "a{cohort} has braces in its path"),
    ],
)
def test_what_is_wrong_is_said_before_a_job_is_begun(tmp_path, setting, words):
    status, told = Cohort(tmp_path).run(setting)
    assert status == 1
    assert words in told
    assert not (tmp_path / "calls").exists()
