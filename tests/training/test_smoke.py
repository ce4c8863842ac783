"""The whole pipeline on phantoms: every step, and a bundle at the end that inference accepts and uses."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import pytest

from inference.bundle.store import load_bundle
from inference.cli import main as infer
from training import fitting
from training.cli import main
from training.config import STAGES, load_config
from training.datasets import case_of, read_cases, read_folds

pytestmark = pytest.mark.timeout(1800)

CONFIG = Path(__file__).resolve().parents[2] / "training" / "configs" / "smoke.yaml"
MODELS = ("nnunet", "mednext")
FOLDS = range(2)


def step(name: str, work: Path, **options: object) -> None:
    extra = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    assert main([name, "--config", str(CONFIG), "--work", str(work), *extra]) == 0, name


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A finished run."""
    work = tmp_path_factory.mktemp("run")
    step("cases", work)
    step("folds", work)
    for stage in STAGES:
        step("dataset", work, stage=stage)
    step("plan", work)
    for stage in STAGES:
        for model in MODELS:
            step("preprocess", work, stage=stage, model=model)
    step("splits", work)
    for stage in STAGES:
        for model in MODELS:
            for fold in FOLDS:
                step("train", work, stage=stage, model=model, fold=fold, threads=2)
    for model in MODELS:
        for fold in FOLDS:
            step("predict", work, model=model, fold=fold)
    step("tune", work)
    step("freeze", work, revision="test")
    return work


def test_the_bundle_holds_what_was_trained(work):
    bundle = load_bundle(work / "bundle")
    assert [(model.name, model.folds) for model in bundle.models] == [("nnunet", (0, 1)), ("mednext", (0, 1))]
    assert bundle.manifest.provenance.code_revision == "test"
    assert bundle.manifest.provenance.data_sets[0].cases == 6
    assert sum(model.weight for model in bundle.models) == pytest.approx(1)


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


def test_one_fold_map_holds_for_both_stages_and_every_copy(work):
    folds = read_folds(work / "folds.json")
    for stage in ("Dataset001_pretraining", "Dataset002_finetuning"):
        splits = json.loads((work / "nnunet" / "preprocessed" / stage / "splits_final.json").read_text())
        for fold, split in enumerate(splits):
            assert split["val"]
            assert {folds[case_of(copy)] for copy in split["val"]} == {fold}
            assert fold not in {folds[case_of(copy)] for copy in split["train"]}


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
    finished = fitting.checkpoint_path(load_config(CONFIG), work, "finetuning", "nnunet", 0)
    kept = finished.rename(tmp_path / "kept.pth")
    try:
        arguments = ["--stage", "finetuning", "--model", "nnunet", "--fold", "0"]
        assert main(["train", "--config", str(CONFIG), "--work", str(work), *arguments]) == 2
    finally:
        kept.rename(finished)
        (folder / "nnunet.json").write_text(original)


def test_a_finished_training_is_left_alone(work):
    finished = fitting.checkpoint_path(load_config(CONFIG), work, "finetuning", "nnunet", 0)
    before = finished.stat().st_mtime_ns
    step("train", work, stage="finetuning", model="nnunet", fold=0)
    assert finished.stat().st_mtime_ns == before


def test_every_case_was_predicted_out_of_fold_in_every_form(work):
    for entry in read_cases(work / "cases.json"):
        for model in MODELS:
            for form in ("original", "africa1"):
                assert (work / "out_of_fold" / model / f"{entry.id}__{form}.npz").is_file()


def test_scores_are_reported_for_every_system_and_form(work):
    scores = json.loads((work / "scores.json").read_text())
    assert set(scores) == {"nnunet", "mednext", "ensemble", "refined"}
    for system in scores.values():
        assert set(system) == {"original", "africa1"}
        for form in system.values():
            assert all(0 <= form[region]["lesionwise_dice_2024"] <= 1 for region in ("WT", "TC", "ET"))
