"""A full-size case is scored within its budget, by every edition."""

from __future__ import annotations

import tracemalloc
from functools import partial
from typing import get_args

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.scoring import FULL_SIZE, SPACING, least_seconds, two_tumours
from training.evaluation.editions import Edition
from training.evaluation.lesionwise import score_case


@pytest.fixture(scope="module")
def scene():
    return two_tumours()


def test_the_scene_has_two_tumours_of_every_label_at_full_size(scene):
    reference, prediction = scene
    assert reference.shape == prediction.shape == FULL_SIZE
    for score in score_case(reference, prediction, SPACING, 2023, metrics="dice").values():
        assert (score.tp, score.fp, score.fn) == (2, 0, 0)
        assert 0.7 < score.lesionwise_dice < 0.95
    assert 150_000 < np.count_nonzero(reference) < 400_000


@pytest.mark.parametrize(("metrics", "seconds"), [("all", 0.8), ("dice", 0.3)])
@pytest.mark.parametrize("version", [2023, 2024])
def test_a_full_size_case_is_scored_within_its_budget(scene, version, metrics, seconds):
    """Of processor time, once in three tries, so that a busy machine does not fail it."""
    call = partial(score_case, *scene, SPACING, version, metrics=metrics)
    assert any(least_seconds(call, 1)[1] < seconds for _ in range(3))


@pytest.mark.parametrize("version", [2023, 2024])
def test_a_full_size_case_needs_less_than_a_gigabyte(scene, version):
    tracemalloc.start()
    score_case(*scene, SPACING, version)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e9


def test_the_command_prints_a_table_of_every_edition(capsys):
    assert main(["scoring", "--repeats", "1"]) == 0
    out = capsys.readouterr().out
    assert all(out.count(f"| {edition} | all |") == 1 for edition in get_args(Edition))
    assert out.count("| dice |") == 2
    assert "Peak memory" in out
