"""What trainings and predictions were made from: kept as long as that is the same, else made anew and told."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from inference.errors import SeveralErrors
from inference.predict.ensemble import RegionProbabilities
from tests.training.fabricated import configuration, write_scan
from training.data.datasets import list_cases, write_dataset, write_json
from training.fit import predict as predicting
from training.fit import train as training
from training.fit.predict import predict_fold, prediction_path
from training.fit.train import checkpoint_path, write_splits

CASES = ["BraTS-SSA-00000-000", "BraTS-SSA-00001-000", "BraTS-SSA-00002-000"]
WHERE = ("finetuning", "nnunet", 0)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Three cases in three folds, as a raw data set with plans, and a finished pretraining."""
    work = tmp_path_factory.mktemp("template")
    for number, case in enumerate(CASES):
        write_scan(case, number, work / "scans")
    config = configuration(work)
    write_json(list_cases(config), work / "cases.json")
    write_json({"folds": {case: number for number, case in enumerate(CASES)}}, work / "folds.json")
    for stage in config.stages:
        write_dataset(config, stage, list_cases(config), work / "nnunet" / "raw")
    write_splits(config, work)
    for folder in (work / "nnunet" / "preprocessed").iterdir():
        write_json({"batch": 2}, folder / "nnunet.json")
    put(checkpoint_path(config, work, "pretraining", "nnunet", 0), b"pretrained")
    return work


@pytest.fixture
def run(template, tmp_path):
    """A copy of it: configuration and folder."""
    work = tmp_path / "work"
    shutil.copytree(template, work)
    config = configuration(work)
    write_json(list_cases(config), work / "cases.json")
    return config, work


def put(path: Path, contents: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents)


def spoil(work: Path, case: str, name: str) -> None:
    """Other voxels in one file of a case."""
    path = work / "scans" / case / f"{case}-{name}.nii.gz"
    image = nibabel.load(path)
    voxels = np.asarray(image.dataobj).copy()
    voxels[voxels > 0] = voxels[voxels > 0][::-1]
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine), path)


@pytest.fixture
def trained(run, monkeypatch):
    """Train the network of fold 0; the checkpoints that a training found when it began, none where it did not."""
    config, work = run
    began: list[set[str]] = []

    def stand_in(*_: object, **__: object) -> None:
        finished = checkpoint_path(config, work, *WHERE)
        began.append({path.name for path in finished.parent.glob("*.pth")})
        put(finished, b"finetuned")

    monkeypatch.setattr(training, "_train", stand_in)

    def train() -> list[set[str]]:
        began.clear()
        training.train(config, work, *WHERE)
        return list(began)

    return train


def test_a_finished_training_is_left_alone(run, trained, caplog):
    assert trained() == [set()]
    assert trained() == []
    spoil(run[1], CASES[0], "seg")  # the case that it holds out
    write_dataset(run[0], "finetuning", list_cases(run[0]), run[1] / "nnunet" / "raw")
    assert trained() == []
    assert "begins anew" not in caplog.text


@pytest.mark.parametrize("changed", ["cases", "plans", "weights"])
def test_a_training_begins_anew_when_what_it_learnt_from_has_changed(run, trained, caplog, changed):
    config, work = run
    trained()
    put(checkpoint_path(config, work, *WHERE).with_name("checkpoint_latest.pth"), b"half way")
    if changed == "cases":
        spoil(work, CASES[1], "seg")
        write_dataset(config, "finetuning", list_cases(config), work / "nnunet" / "raw")
    elif changed == "plans":
        write_json({"batch": 3}, work / "nnunet" / "preprocessed" / "Dataset002_finetuning" / "nnunet.json")
    else:
        put(checkpoint_path(config, work, "pretraining", "nnunet", 0), b"pretrained longer")
    assert trained() == [set()]
    assert f"finetuning of nnunet, fold 0, begins anew: its {changed} changed" in caplog.text


def test_a_training_that_says_nothing_of_its_sources_is_kept(run, trained):
    put(checkpoint_path(run[0], run[1], *WHERE), b"finetuned")
    assert trained() == []
    assert trained() == []


@pytest.fixture
def predicted(run, monkeypatch):
    """Predict fold 1 with a stand-in for the network; the cases that were predicted."""
    config, work = run
    done: list[int] = []
    (work / "plans").mkdir()
    write_json({"configurations": {}}, work / "plans" / "nnunet.json")
    put(checkpoint_path(config, work, "finetuning", "nnunet", 1), b"finetuned")

    def stand_in(data: np.ndarray, *_: object) -> RegionProbabilities:
        done.append(1)
        return RegionProbabilities(np.zeros((3, *data.shape[1:]), np.float32))

    monkeypatch.setattr(predicting, "predict", stand_in)
    monkeypatch.setattr(predicting, "stored_weights", lambda *_, **__: {})
    monkeypatch.setattr(predicting, "open_engine", lambda *_: None)

    def again() -> int:
        done.clear()
        predict_fold(config, work, "nnunet", 1)
        return len(done)

    return again


def test_a_prediction_of_the_same_scans_and_network_is_kept(run, predicted, caplog):
    assert predicted() == 1
    assert predicted() == 0
    spoil(run[1], CASES[1], "seg")  # labels take no part in a prediction
    assert predicted() == 0
    assert not caplog.messages


@pytest.mark.parametrize("changed", ["scan", "network", "plans", "damage", "no word"])
def test_a_prediction_of_others_is_made_anew(run, predicted, caplog, changed):
    config, work = run
    predicted()
    target = prediction_path(work, "nnunet", CASES[1])
    if changed == "scan":
        spoil(work, CASES[1], "t2f")
    elif changed == "network":
        put(checkpoint_path(config, work, "finetuning", "nnunet", 1), b"finetuned longer")
    elif changed == "plans":
        write_json({"configurations": {"3d_fullres": {}}}, work / "plans" / "nnunet.json")
    elif changed == "damage":
        target.write_bytes(target.read_bytes()[:-100])
    else:
        np.savez_compressed(target, probabilities=np.zeros((3, 1, 1, 1), np.float16))
    assert predicted() == 1
    assert f"{CASES[1]}: predicted anew" in caplog.text
    assert predicted() == 0


def test_all_cases_that_cannot_be_predicted_are_named(run, predicted):
    work = run[1]
    write_json({"folds": dict.fromkeys(CASES, 1)}, work / "folds.json")
    for case in CASES[:2]:
        (work / "scans" / case / f"{case}-t1c.nii.gz").write_bytes(b"")
    with pytest.raises(SeveralErrors) as caught:
        predicted()
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == CASES[:2]
    assert prediction_path(work, "nnunet", CASES[2]).is_file()
