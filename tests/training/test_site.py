"""`site.yaml` on tiny networks: every step of a run that starts from a bundle, from its cases to its report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from inference.bundle.manifest import ModelEntry
from inference.bundle.store import Model, load_bundle
from inference.bundle.writing import write_bundle
from tests.inference.tiny import FOLDS, PATCH, UNET, describe
from tests.training.fabricated import write_scan
from training.cli import main

pytestmark = pytest.mark.timeout(1200)

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "training" / "configs" / "site.yaml"
PLANS = ROOT / "weights" / "embedded" / "nnunet" / "plans.json"
CASES = 4


@pytest.fixture(scope="module")
def ancestor(tiny_bundle, tmp_path_factory):
    """The tiny bundle's first model alone, with plans as a training leaves them: prediction asks for less."""
    plans = json.loads(PLANS.read_text())
    plans["configurations"]["3d_fullres"] |= {"patch_size": list(PATCH), "architecture": UNET}
    tiny = load_bundle(tiny_bundle).models[0]
    entry = ModelEntry("nnunet", "PlainConvUNet", "regions", "safetensors", FOLDS, 1.0)
    model = Model(entry, plans, {fold: tiny.tensors(fold) for fold in FOLDS})
    return write_bundle(tmp_path_factory.mktemp("bundles") / "ancestor", describe((model,))).path


@pytest.fixture(scope="module")
def adapted(ancestor, tmp_path_factory):
    """Folder of a run of two folds whose one model takes one step from the ancestor's."""
    work = tmp_path_factory.mktemp("site")
    for number in range(CASES):
        write_scan(f"site-{number:05d}-000", number, work / "scans")
    settings = yaml.safe_load(SITE.read_text())
    settings |= {"ancestor": str(ancestor), "folds": 2, "models": settings["models"][:1]}
    settings["sources"][0]["folder"] = str(work / "scans")
    settings["models"][0] |= {"loading": "resident", "mixing": 0.5}
    settings["models"][0]["finetuning"] |= {"epochs": 1, "iterations": 1, "validation_iterations": 1}
    settings["subtypes"]["clusters"] = [2]
    config = work / "config.yaml"
    config.write_text(yaml.safe_dump(settings))

    run = ("--config", str(config), "--work", str(work))

    def step(name: str, *words: str) -> None:
        assert main([name, *run, *words]) == 0, (name, *words)

    def step_apart(name: str, *words: str) -> None:
        """As users run it: nnU-Net forks here, and a fork of a process that has threads, as this one, may hang."""
        subprocess.run([sys.executable, "-m", "training", name, *run, *words], cwd=ROOT, check=True)

    one, trained = ("--jobs", "1"), ("--stage", "finetuning", "--model", "nnunet")
    step("cases")
    step("folds", *one)
    step("dataset", "--stage", "finetuning", *one)
    step_apart("plan", *one)
    step_apart("preprocess", *trained, *one)
    step("splits")
    for fold in ("0", "1"):
        step("train", *trained, "--fold", fold, "--device", "cpu", "--threads", "1")
        step("predict", *trained, "--fold", fold)
    step("tune", *one)
    step("freeze", "--revision", "test")
    step("report", *one)
    return work


def test_a_site_gets_a_bundle_that_names_its_ancestor(adapted, ancestor):
    bundle = load_bundle(adapted / "bundle")
    assert [(model.name, model.folds) for model in bundle.models] == [("nnunet", (0, 1))]
    assert bundle.manifest.provenance.data_sets[-1].cases == CASES
    assert bundle.manifest.provenance.data_sets[-1].use.startswith("finetuning")
    assert load_bundle(ancestor).manifest.name in str(bundle.manifest.provenance.ancestry)


def test_a_site_trains_on_from_the_ancestors_weights(adapted, ancestor):
    """One step moves the weights of each fold a little: they are still nearest to those of the ancestor's fold."""
    old, new = (load_bundle(folder).models[0] for folder in (ancestor, adapted / "bundle"))
    for fold in (0, 1):
        tensors = new.tensors(fold)
        far = {
            start: sum(abs(tensors[name].astype(float) - array).sum() for name, array in old.tensors(start).items())
            for start in (0, 1)
        }
        assert 0 < far[fold] < far[1 - fold] / 5


def test_a_site_gets_a_report(adapted):
    assert "<html" in (adapted / "report" / "index.html").read_text()
