"""The graph before it runs: which jobs there are, in what order, and with what."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from training.cli import main
from training.config_file import load_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "training" / "configs"
HOLDER = """
import sys
from pathlib import Path
from training.locks import alone
with alone(Path(sys.argv[1]), ""):
    print("held", flush=True)
    sys.stdin.read()
"""
SEQUENCES = ("t1n", "t1c", "t2w", "t2f", "seg")


def planned(config: Path, work: Path, *options: str) -> str:
    """What the graph would do."""
    words = [sys.executable, "-m", "training", "run", "--config", str(config), "--work", str(work), "--dry-run"]
    done = subprocess.run([*words, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def jobs(text: str) -> dict[str, int]:
    """Rule → jobs, trainings counted by their kind and model."""
    table = text.split("Job stats:")[1].split("\n\n", maxsplit=1)[0]
    counts: dict[str, int] = {}
    for rule, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE):
        name = re.sub(r"^train_(\w+)_\d+$", r"\1", rule)
        counts[name] = counts.get(name, 0) + int(count)
    return counts


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    """Folders as the challenge's archives unpack: 1251 cases of adult glioma, 60 of Africa, all files empty."""
    folder = tmp_path_factory.mktemp("downloads")
    for name, cases in (("GLI", 1251), ("SSA", 60)):
        for number in range(cases):
            case = f"BraTS-{name}-{number:05d}-000"
            (folder / name / case).mkdir(parents=True)
            for sequence in SEQUENCES:
                (folder / name / case / f"{case}-{sequence}.nii.gz").touch()
    return folder


@pytest.fixture(scope="module")
def paper(downloads, tmp_path_factory):
    """The paper's run: its folder, and what the graph would do."""
    work = tmp_path_factory.mktemp("paper")
    sources = ["--source", f"gli={downloads / 'GLI'}", "--source", f"ssa={downloads / 'SSA'}"]
    return work, planned(CONFIGS / "paper.yaml", work, "--gpus", "4", "--cores", "48", *sources)


def test_the_papers_jobs(paper):
    assert jobs(paper[1]) == {
        "cases": 1,
        "folds": 1,
        "dataset": 2,
        "plan": 1,
        "preprocess": 4,
        "splits": 1,
        "pretraining_nnunet": 5,
        "pretraining_mednext": 5,
        "finetuning_nnunet": 5,
        "finetuning_mednext": 5,
        "scratch_nnunet": 5,
        "predict": 15,
        "tune": 1,
        "freeze": 1,
        "report": 1,
        "all": 1,
        "total": 54,
    }


def test_the_papers_cases_are_found_where_the_command_says(paper):
    work, _ = paper
    assert main(["cases", "--config", str(work / "config.yaml"), "--work", str(work)]) == 0
    from training.data.datasets import read_cases

    sources = [entry.source for entry in read_cases(work / "cases.json")]
    assert (sources.count("gli"), sources.count("ssa")) == (1251, 60)


def job(text: str, rule: str) -> str:
    """What is said about the first job of a rule."""
    return next(part for part in text.split("\n\n") if f"rule {rule}:" in part)


def test_a_training_of_the_paper_takes_one_gpu_and_starts_from_the_same_fold(paper):
    text = job(paper[1], "train_finetuning_mednext_3")
    assert "gpu=1" in text
    assert "Dataset001_pretraining/MedNeXtRegionTrainer__mednext__3d_fullres/fold_3/checkpoint_final.pth" in text
    assert "threads: 12" in text


def test_a_training_from_scratch_waits_for_no_other(paper):
    assert "checkpoint" not in job(paper[1], "train_scratch_nnunet_0").split("output:")[0]


def test_a_site_has_no_pretraining(tmp_path):
    found = jobs(planned(CONFIGS / "site.yaml", tmp_path, "--source", f"site={tmp_path}"))
    assert (found["dataset"], found["preprocess"], found["finetuning_nnunet"]) == (1, 2, 5)
    assert not {"pretraining_nnunet", "pretraining_mednext"} & set(found)


def test_snakemake_alone_plans_the_same(tmp_path):
    words = ["-m", "snakemake", "-s", "training/Snakefile", "--configfile", str(CONFIGS / "smoke.yaml"), "--directory"]
    done = subprocess.run(
        [sys.executable, *words, str(tmp_path), "--cores", "2", "--dry-run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert jobs(done.stdout + done.stderr) == jobs(planned(CONFIGS / "smoke.yaml", tmp_path))


def test_two_runs_do_not_share_a_folder(tmp_path, caplog):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "locks" / "run")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as other:
        assert other.stdout.readline() == b"held\n"
        assert main(["run", "--config", str(CONFIGS / "smoke.yaml"), "--work", str(tmp_path), "--dry-run"]) == 2
        other.kill()
    assert "another process is running the graph" in caplog.text
    assert planned(CONFIGS / "smoke.yaml", tmp_path)  # a killed process holds nothing


def test_a_run_keeps_its_configuration_with_the_folders_it_was_given(paper, downloads):
    config = load_config(paper[0] / "config.yaml")
    assert config.source("gli").folder == str(downloads / "GLI")
    assert yaml.safe_load((paper[0] / "config.yaml").read_text())["folds"] == 5


@pytest.mark.parametrize("word", ["gli", "gli=", "site=/data"])
def test_a_source_that_is_not_in_the_configuration_is_named(tmp_path, caplog, word):
    arguments = ["--config", str(CONFIGS / "paper.yaml"), "--work", str(tmp_path), "--dry-run", "--source", word]
    assert main(["run", *arguments]) == 2
    assert word in caplog.text
    assert "gli, ssa" in caplog.text


@pytest.mark.parametrize("option", ["run", "snakemake"])
def test_a_folder_with_braces_is_refused_before_a_job_is_begun(tmp_path, option):
    work = tmp_path / "a{stage}"
    words = ["-m", "training", "run", "--config", str(CONFIGS / "smoke.yaml"), "--work", str(work)]
    if option == "snakemake":
        words = ["-m", "snakemake", "-s", "training/Snakefile", "--configfile", str(CONFIGS / "smoke.yaml")]
        words += ["--directory", str(work), "--cores", "1"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2)
    assert "found braces in its path" in done.stdout + done.stderr
    assert not (work / "cases.json").exists()


def test_folders_and_revisions_may_be_called_anything(tmp_path):
    work, revision = tmp_path / "my work's (A) #1: $HOME é", "{stage} 'x'; touch it"
    source, config = tmp_path / "{threads} & more", tmp_path / "{log} smoke.yaml"
    settings = yaml.safe_load((CONFIGS / "smoke.yaml").read_text())
    settings["sources"] = [{"name": "cases", "folder": str(source)}]
    settings["pretraining"] = settings["finetuning"] = {"sources": ["cases"]}
    config.write_text(yaml.safe_dump(settings))
    for case in ("A", "B"):
        (source / case).mkdir(parents=True)
        for sequence in SEQUENCES:
            (source / case / f"{case}-{sequence}.nii.gz").touch()
    told = planned(config, work, "--revision", revision, "--", "--printshellcmds")
    assert f"--revision {shlex.quote(revision)}" in told
    assert f"--work {shlex.quote(str(work))} --stage finetuning --model mednext --fold 1 --threads 1" in told
    words = [sys.executable, "-m", "training", "run", "--config", str(config), "--work", str(work), "--cores", "1"]
    done = subprocess.run([*words, "--", "--until", "cases"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [entry["id"] for entry in yaml.safe_load((work / "cases.json").read_text())] == ["A", "B"]
    assert (work / "logs" / "cases.log").is_file()
