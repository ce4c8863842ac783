"""Ways to weigh the models, where it is known what they should say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest

from inference.errors import UsageError
from inference.labels import REGIONS, region_mask
from training.config import TuningConfig
from training.config_file import load_config
from training.tune.ensemble_weights import (
    PAPER_WEIGHTS,
    WAYS,
    Evidence,
    choose_weights,
    rank,
    score_share,
    search,
    simplex,
)
from training.tune.out_of_fold import OutOfFold
from training.workers import Workers

CONFIG = load_config(Path(__file__).resolve().parents[3] / "training" / "configs" / "smoke.yaml")
NAMES = ("nnunet", "mednext")


def evidence(alone, mixed=None):
    """Of scores (models, copies), the same in each region."""
    alone = np.repeat(np.array(alone, float)[:, :, None], len(REGIONS), axis=2)
    mixed = np.zeros((len(simplex(len(alone))), alone.shape[1])) if mixed is None else np.array(mixed, float)
    return Evidence(NAMES[: len(alone)], alone, mixed)


def copies(nnunet, mednext, folds=4):
    """A block of tumour in each fold, seen by either model with some confidence."""
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[4:12, 4:12, 4:12] = 3
    region = np.stack([region_mask(labels, region) for region in REGIONS])
    see = [np.where(region, inside, outside).astype(np.float32) for inside, outside in (nnunet, mednext)]
    return [
        OutOfFold(f"case{fold}", fold, f"case{fold}", labels, dict(zip(NAMES, see, strict=True)))
        for fold in range(folds)
    ]


def configured(way):
    return replace(CONFIG, tuning=replace(CONFIG.tuning, weights=way))


def test_the_simplex_is_complete_and_begins_in_its_middle():
    two, three = simplex(2), simplex(3)
    assert (len(two), len(three)) == (9, 36)
    assert np.allclose(two.sum(axis=1), 1)
    assert two[0].tolist() == [0.5, 0.5]
    assert {tuple(row) for row in two[-2:].tolist()} == {(0.1, 0.9), (0.9, 0.1)}
    assert min(two.min(), three.min()) == 0.1  # no bundle holds a model without a say


def test_shares_of_the_scores():
    assert score_share(evidence([[0.9, 0.9], [0.3, 0.3]]), [0, 1]) == pytest.approx({"nnunet": 0.75, "mednext": 0.25})
    assert score_share(evidence([[0, 0], [0, 0]]), [0, 1]) == {"nnunet": 0.5, "mednext": 0.5}


def test_ranks_count_how_often_and_not_by_how_much():
    often = evidence([[0.8, 0.8, 0.8], [0.79, 0.79, 0.79]])
    assert rank(often, [0, 1, 2]) == pytest.approx({"nnunet": 2 / 3, "mednext": 1 / 3})
    assert rank(evidence([[0.8], [0.8]]), [0]) == pytest.approx({"nnunet": 0.5, "mednext": 0.5})


def test_only_the_copies_that_are_asked_for_speak():
    found = evidence([[1, 0], [0, 1]])
    assert rank(found, [0])["nnunet"] > rank(found, [1])["nnunet"]
    assert 0 < score_share(found, [1])["nnunet"] < 0.01


def test_the_search_takes_the_best_mixture_and_the_most_even_of_equals():
    grid = simplex(2)
    mixed = np.where(grid[:, :1] >= 0.7, 1.0, 0.0)
    assert search(evidence([[0], [0]], mixed), [0]) == pytest.approx({"nnunet": 0.7, "mednext": 0.3})
    assert search(evidence([[0], [0]]), [0]) == {"nnunet": 0.5, "mednext": 0.5}


def test_the_search_scores_the_mean_probabilities():
    # The tumour passes 0.5 only where the model that sees it has at least six tenths of the say.
    found = choose_weights(configured("search"), copies((0.9, 0.1), (0.0, 0.0)), 2024, Workers())
    assert found["search"].weights == pytest.approx({"nnunet": 0.6, "mednext": 0.4})
    assert found["search"].score == 1
    assert found["paper"].score == 0
    assert found["score_share"].weights == pytest.approx({"nnunet": 1, "mednext": 0}, abs=0.002)


def test_every_fold_is_scored_with_the_weights_of_the_others():
    some = copies((0.9, 0.1), (0.0, 0.0), folds=2)
    swapped = dict(zip(NAMES, reversed(some[1].probabilities.values()), strict=True))
    found = choose_weights(configured("search"), [some[0], replace(some[1], probabilities=swapped)], 2024, Workers())
    assert found["search"].by_fold[0]["mednext"] == 0.6
    assert found["search"].by_fold[1]["nnunet"] == 0.6
    assert found["search"].score == 0


def test_the_papers_weights_are_a_preset():
    found = choose_weights(configured("paper"), copies((0.9, 0.1), (0.9, 0.1)), 2024, Workers())
    assert found["paper"].weights == PAPER_WEIGHTS
    assert set(found) == set(WAYS)
    assert PAPER_WEIGHTS["nnunet"] == pytest.approx(0.4722, abs=1e-4)


def test_a_configuration_may_ask_for_every_way_and_no_other():
    assert get_args(get_type_hints(TuningConfig)["weights"]) == tuple(WAYS)


def test_the_papers_weights_are_refused_for_other_models():
    alone = replace(configured("paper"), models=CONFIG.models[:1])
    with pytest.raises(UsageError, match="not nnunet"):
        choose_weights(alone, [], 2024, Workers())
