"""The whole graph on phantoms: killed in the middle, gone on with, and a bundle at the end that inference uses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nibabel
import pytest
import torch

from inference.bundle.store import load_bundle
from inference.cli import main as infer
from training.cli import main
from training.config_file import load_config
from training.data.datasets import read_cases, read_folds
from training.fit import train as fitting

pytestmark = pytest.mark.timeout(3000)

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "training" / "configs" / "smoke.yaml"
MODELS = ("nnunet", "mednext")
NETWORKS = (*MODELS, "nnunet-scratch")
TRAININGS = 10
LATEST = "nnunet/trainings/*/*/*/checkpoint_latest.pth"
ALONE = ("folds", "dataset", "plan", "preprocess", "predict", "report")
"""Rules of which two jobs at a time are quicker here than one with two processes, each of which imports nnU-Net; `tune`
keeps its two."""
FINISHED = re.compile(r"^Finished jobid: \d+ \(Rule: train_(\w+)_(\w+)_(\d)\)", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """A run that was killed in the middle of a training and started again."""

    work: Path
    interrupted: dict[Path, int]
    """Trainings that had begun → epochs that their last checkpoint had behind it."""
    before: dict[Path, int]
    """Trainings that had finished → time of their last checkpoint."""


def start(work: Path, log: Path) -> subprocess.Popen[bytes]:
    words = ["run", "--config", str(CONFIG), "--work", str(work), "--cores", "2", "--revision", "test"]
    words += ["--", "--set-threads", *(f"{rule}=1" for rule in ALONE)]
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "training", *words], cwd=ROOT, stdout=stream, stderr=stream, start_new_session=True
        )


def finished(work: Path, log: Path) -> list[Path]:
    """Last checkpoints of the trainings that the graph knows to be done."""
    config = load_config(CONFIG)
    found = FINISHED.findall(log.read_text(errors="replace"))
    return [fitting.checkpoint_path(config, work, stage, model, int(fold)) for stage, model, fold in found]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Killed with SIGKILL, all of its processes, when one training is done and another has a checkpoint."""
    work, logs = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("logs")
    process = start(work, logs / "first.log")
    latest: list[Path] = []
    while not latest:
        assert process.poll() is None, (logs / "first.log").read_text()[-3000:]
        time.sleep(0.05)
        found = list(work.glob(LATEST))
        if found and finished(work, logs / "first.log"):
            latest = found
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    interrupted = {
        path.parent: torch.load(path, map_location="cpu", weights_only=False)["current_epoch"]
        for path in work.glob(LATEST)
    }
    before = {path: path.stat().st_mtime_ns for path in finished(work, logs / "first.log")}
    assert start(work, logs / "second.log").wait() == 0, (logs / "second.log").read_text()[-3000:]
    return Run(work, interrupted, before)


@pytest.fixture(scope="module")
def work(run):
    return run.work


def test_a_killed_training_goes_on_from_its_last_checkpoint(run):
    assert run.interrupted
    for folder, epoch in run.interrupted.items():
        model = folder.parent.name.split("__")[1]
        stage = folder.parents[1].name.split("_")[1]
        log = run.work / "logs" / f"train.{stage}.{model}.{folder.name.removeprefix('fold_')}.log"
        assert f"goes on at epoch {epoch}\n" in log.read_text()
        assert (folder / "checkpoint_final.pth").is_file()


def test_what_was_done_is_not_done_again(run):
    assert run.before
    assert {path: path.stat().st_mtime_ns for path in run.before} == run.before


def test_every_training_is_done_and_leaves_a_log_and_what_it_took(work):
    assert len(list(work.glob("nnunet/trainings/*/*/*/checkpoint_final.pth"))) == TRAININGS
    for folder, ending in (("logs", "log"), ("benchmarks", "tsv")):
        assert len(list((work / folder).glob(f"train.*.{ending}"))) == TRAININGS


def test_the_bundle_holds_what_was_trained(work):
    bundle = load_bundle(work / "bundle")
    assert [(model.name, model.folds) for model in bundle.models] == [("nnunet", (0, 1)), ("mednext", (0, 1))]
    assert bundle.manifest.provenance.code_revision == "test"
    assert bundle.manifest.provenance.data_sets[0].cases == 6
    assert sum(model.weight for model in bundle.models) == pytest.approx(1)


def test_the_run_ends_with_a_report(work):
    assert "<html" in (work / "report" / "index.html").read_text()


def test_inference_uses_the_bundle(work, tmp_path):
    assert main(["phantoms", "--output", str(tmp_path / "in"), "--seed", "3", "--shape", "64", "64", "48"]) == 0
    status = infer(["infer", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--bundle", str(work / "bundle")])
    assert status == 0
    written = list((tmp_path / "out").iterdir())
    assert [path.name for path in written] == ["phantom-00003-000.nii.gz"]
    assert nibabel.load(written[0]).shape == (64, 64, 48)


def test_heads_are_in_the_order_of_the_regions(work):
    folder = work / "nnunet" / "preprocessed" / "Dataset002_finetuning"
    labels = json.loads((folder / "dataset.json").read_text())["labels"]
    assert list(labels) == ["background", "WT", "TC", "ET"]


def test_one_fold_map_holds_for_both_stages(work):
    folds = read_folds(work / "folds.json")
    for stage in ("Dataset001_pretraining", "Dataset002_finetuning"):
        splits = json.loads((work / "nnunet" / "preprocessed" / stage / "splits_final.json").read_text())
        for fold, split in enumerate(splits):
            assert split["val"]
            assert {folds[case] for case in split["val"]} == {fold}
            assert fold not in {folds[case] for case in split["train"]}


def test_both_stages_share_their_plans(work):
    plans = [
        json.loads((work / "nnunet" / "preprocessed" / stage / "mednext.json").read_text())["configurations"]
        for stage in ("Dataset001_pretraining", "Dataset002_finetuning")
    ]
    assert plans[0] == plans[1]


def test_fine_tuning_with_other_plans_is_refused(work, tmp_path):
    folder = work / "nnunet" / "preprocessed" / "Dataset002_finetuning"
    original = (folder / "nnunet.json").read_text()
    altered = json.loads(original)
    altered["configurations"]["3d_fullres"]["patch_size"] = [48, 48, 48]
    (folder / "nnunet.json").write_text(json.dumps(altered))
    last = fitting.checkpoint_path(load_config(CONFIG), work, "finetuning", "nnunet", 0)
    kept = last.rename(tmp_path / "kept.pth")
    try:
        arguments = ["--stage", "finetuning", "--model", "nnunet", "--fold", "0"]
        assert main(["train", "--config", str(CONFIG), "--work", str(work), *arguments]) == 2
    finally:
        kept.rename(last)
        (folder / "nnunet.json").write_text(original)


def test_every_case_was_predicted_out_of_fold(work):
    for entry in read_cases(work / "cases.json"):
        for network in NETWORKS:
            assert (work / "out_of_fold" / network / f"{entry.id}.npz").is_file()


def test_scores_are_reported_for_every_system(work):
    scores = json.loads((work / "scores.json").read_text())
    assert {"nnunet", "mednext", "ensemble", "refined"} <= set(scores)
    for system in scores.values():
        assert all(0 <= system[region]["lesionwise_dice_2024"] <= 1 for region in ("WT", "TC", "ET"))
