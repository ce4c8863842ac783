"""Choices from out-of-fold predictions, on scenes where the right choice is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inference.errors import UsageError
from inference.labels import REGIONS, region_mask
from training.config import load_config
from training.tuning import (
    COMPONENT_GRID,
    NEUTRAL,
    PAPER_WEIGHTS,
    RATIO_GRID,
    Choice,
    OutOfFold,
    Scorer,
    ensemble_weights,
    paint,
    tune_all,
    tune_subtypes,
)

CONFIG = load_config(Path(__file__).resolve().parents[2] / "training" / "configs" / "smoke.yaml")


def reference(enhancing: bool = True):
    labels = np.zeros((40, 40, 24), np.uint8)
    labels[8:24, 8:24, 6:18] = 2
    labels[11:21, 11:21, 8:16] = 1
    if enhancing:
        labels[12:18, 12:18, 9:15] = 3
    return labels


def probabilities(labels, inside=0.95):
    return np.stack([np.where(region_mask(labels, region), inside, 0.05) for region in REGIONS]).astype(np.float32)


def scenes(predictions, references=None):
    references = references or [reference()] * len(predictions)
    copies = [
        OutOfFold(f"case{index}__original", "original", index % 5, truth, {"nnunet": p, "mednext": p})
        for index, (p, truth) in enumerate(zip(predictions, references, strict=True))
    ]
    return Scorer(copies, predictions, 2024)


def with_specks():
    """A right prediction with far specks of 60 voxels of oedema: false positive lesions."""
    labels = reference()
    labels[32:36, 32:36, 18:22] = 2
    labels[32:36, 4:8, 18:22] = 2
    return probabilities(labels)


def test_the_grids_are_the_authors():
    assert (COMPONENT_GRID[0], COMPONENT_GRID[1], COMPONENT_GRID[-1]) == (0, 25, 500)
    assert RATIO_GRID[0] == 0
    assert RATIO_GRID[-1] == 0.95
    assert len(RATIO_GRID) == 20


def test_perfect_predictions_are_left_alone():
    tuned = tune_all(scenes([probabilities(reference())] * 5))
    assert tuned.choice == Choice()
    assert set(tuned.gains.values()) == {0}


def test_specks_are_removed():
    tuned = tune_all(scenes([with_specks()] * 5))
    assert tuned.gains["components"] > 0
    assert tuned.choice.thresholds.smallest_component_mm3["ED"] > 64
    assert tuned.choice.thresholds.smallest_component_mm3["NCR"] == 0


def test_specks_in_one_fold_alone_decide_nothing():
    # Chosen on that fold the removal helps it, but what the other folds would have chosen helps nobody.
    tuned = tune_all(scenes([with_specks()] + [probabilities(reference())] * 4))
    assert tuned.gains["components"] == 0
    assert tuned.choice.thresholds == NEUTRAL


def test_a_little_enhancement_where_there_is_none_is_relabelled():
    truth = reference(enhancing=False)
    predicted = truth.copy()
    predicted[12:21, 12:21, 8:15] = 3  # 567 mm³, more than any component threshold, and 18 % of the whole tumour
    tuned = tune_all(scenes([probabilities(predicted)] * 5, [truth] * 5))
    assert tuned.gains["ratio"] > 0
    assert tuned.choice.thresholds.et_wt_ratio == 0.2


def test_region_thresholds_follow_the_probabilities():
    truth = reference()
    timid = probabilities(truth)
    timid[2] = np.where(region_mask(truth, "ET"), 0.42, 0.05)
    tuned = tune_all(scenes([timid] * 5))
    assert tuned.gains["regions"] > 0
    assert tuned.choice.regions[2] < 0.42
    assert tuned.choice.regions[:2] == (0.5, 0.5)


def test_what_a_fold_is_scored_with_was_chosen_without_it():
    tuned = tune_all(scenes([with_specks()] * 4 + [probabilities(reference())]))
    assert set(tuned.by_fold) == {0, 1, 2, 3, 4}
    assert all(choice.thresholds.smallest_component_mm3["ED"] > 0 for choice in tuned.by_fold.values())


def test_small_subtypes_are_shrunk_to_the_choice_of_all():
    # Two tumours of subtype 1 would keep a true small lesion that specks of everyone else look like.
    scorer = scenes([with_specks()] * 10)
    tuned = tune_all(scorer)
    thresholds, gain = tune_subtypes(scorer, [0] * 8 + [1] * 2, tuned)
    assert thresholds[1].smallest_component_mm3 == tuned.choice.thresholds.smallest_component_mm3
    assert gain == 0


def test_a_tumour_without_subtype_does_not_stop_the_tuning():
    scorer = scenes([with_specks()] * 5)
    thresholds, _ = tune_subtypes(scorer, [0, 0, None, 0, 0], tune_all(scorer))
    assert set(thresholds) == {0}


@pytest.mark.parametrize("smallest", [0.0, 50.0, 64.0, 65.0, 300.0, 5000.0])
@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.1, 0.5])
def test_the_foreseen_effect_is_that_of_refinement(smallest, ratio):
    from inference.bundle.tables import Thresholds
    from inference.refine.postprocess import relabel_by_ratio, remove_components

    painted = paint(with_specks(), (0.5, 0.5, 0.5))
    thresholds = Thresholds({"NCR": 0.0, "ED": smallest, "ET": smallest}, ratio)
    cleaned, removed = remove_components(painted.labels, (1, 1, 1), thresholds.smallest_component_mm3)
    counts = [removed[label].components for label in ("NCR", "ED", "ET")]
    assert painted.effect(thresholds) == (*counts, relabel_by_ratio(cleaned, ratio)[2])


def test_weights_are_shares_of_the_scores():
    truth = reference()
    good, bad = probabilities(truth), probabilities(np.zeros_like(truth))
    copies = [OutOfFold("a__original", "original", 0, truth, {"nnunet": good, "mednext": bad})]
    weights = ensemble_weights(CONFIG, copies)
    assert weights == pytest.approx({"nnunet": 1, "mednext": 0})


def test_the_papers_weights_are_a_preset():
    paper = replace(CONFIG, tuning=replace(CONFIG.tuning, weights="paper"))
    assert ensemble_weights(paper, []) == PAPER_WEIGHTS
    assert PAPER_WEIGHTS["nnunet"] == pytest.approx(0.4722, abs=1e-4)


def test_other_weights_are_refused():
    odd = replace(CONFIG, tuning=replace(CONFIG.tuning, weights="guess"))
    with pytest.raises(UsageError, match="'guess'"):
        ensemble_weights(odd, [])


def test_scores_are_those_of_the_official_definition():
    from training.evaluation.lesionwise import score_case

    scorer = scenes([with_specks()])
    official = score_case(reference(), scorer.labels(0, Choice()), (1, 1, 1), 2024, metrics="dice")
    assert scorer.score(0, Choice()) == pytest.approx(np.mean([official[r].lesionwise_dice for r in REGIONS]))
    assert json.dumps(scorer.mean([0], Choice()))
