"""Training curves from checkpoints, and from what is no checkpoint yet."""

from __future__ import annotations

import pickle

import pytest

from tests.training.fabricated import write_checkpoint
from training.report.curves import read_curves


def folder(work, fold=0, stage="Dataset001_pretraining", plans="nnunet"):
    return work / "nnunet" / "trainings" / stage / f"NnUNetRegionTrainer__{plans}__3d_fullres" / f"fold_{fold}"


def test_a_checkpoint_gives_its_curve(tmp_path):
    write_checkpoint(folder(tmp_path, 3), epochs=5, seed=0)
    (curve,) = read_curves(tmp_path)
    assert (curve.stage, curve.model, curve.fold, curve.finished, len(curve.train_loss)) == (
        "pretraining",
        "nnunet",
        3,
        True,
        5,
    )
    assert curve.pseudo_dice == pytest.approx([0, 0.09, 0.18, 0.27, 0.36])
    assert curve.seconds == 5 * 28
    assert all(isinstance(value, float) for value in curve.train_loss)


def test_a_training_under_way_gives_what_it_has(tmp_path):
    write_checkpoint(folder(tmp_path), epochs=2, seed=0, name="checkpoint_latest.pth")
    (curve,) = read_curves(tmp_path)
    assert (curve.finished, len(curve.train_loss)) == (False, 2)


def test_the_last_checkpoint_speaks(tmp_path):
    write_checkpoint(folder(tmp_path), epochs=4, seed=0)
    write_checkpoint(folder(tmp_path), epochs=2, seed=0, name="checkpoint_best.pth")
    assert [len(curve.train_loss) for curve in read_curves(tmp_path)] == [4]


def test_comparison_models_are_trainings_of_their_own(tmp_path):
    write_checkpoint(folder(tmp_path, stage="Dataset002_finetuning"), epochs=1, seed=0)
    write_checkpoint(folder(tmp_path, stage="Dataset002_finetuning", plans="nnunet-scratch"), epochs=1, seed=0)
    assert [curve.model for curve in read_curves(tmp_path)] == ["nnunet", "nnunet-scratch"]


def test_one_that_is_being_written_is_left_out_with_a_warning(tmp_path, caplog):
    write_checkpoint(folder(tmp_path), epochs=4, seed=0)
    whole = (folder(tmp_path) / "checkpoint_final.pth").read_bytes()
    (folder(tmp_path) / "checkpoint_final.pth").write_bytes(whole[: len(whole) // 2])
    assert read_curves(tmp_path) == []
    assert "cannot be read" in caplog.text


class Harmful:
    def __reduce__(self):
        return exec, ("raise SystemExit('ran')",)


def test_nothing_in_a_checkpoint_is_run(tmp_path):
    folder(tmp_path).mkdir(parents=True)
    (folder(tmp_path) / "checkpoint_final.pth").write_bytes(pickle.dumps({"logging": Harmful()}))
    assert read_curves(tmp_path) == []


def test_a_run_without_trainings_has_no_curves(tmp_path):
    assert read_curves(tmp_path) == []
