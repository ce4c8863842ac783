"""Choices from out-of-fold predictions, on scenes where the right choice is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest

from inference.labels import REGIONS, region_mask
from training.config import TuningConfig
from training.config_file import load_config
from training.tune import thresholds
from training.tune.choices import NEUTRAL, Choice, Scorer, choice_of, tables_of, trusted_labels, unrefined_labels
from training.tune.out_of_fold import OutOfFold
from training.tune.thresholds import (
    COMPONENT_GRID,
    GROUPS,
    RATIO_GRID,
    SUBTYPES,
    honest_gains,
    select,
    tune_all,
)
from training.tune.tune import score_systems
from training.workers import open_workers

CONFIG = load_config(Path(__file__).resolve().parents[3] / "training" / "configs" / "smoke.yaml")


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
    cases = [
        OutOfFold(f"case{index}", index % 5, f"patient{index}", truth, {"nnunet": p, "mednext": p})
        for index, (p, truth) in enumerate(zip(predictions, references, strict=True))
    ]
    return Scorer(cases, predictions, 2024)


def with_specks():
    """A right prediction with far specks of 60 voxels of oedema: false positive lesions."""
    labels = reference()
    labels[32:36, 32:36, 18:22] = 2
    labels[32:36, 4:8, 18:22] = 2
    return probabilities(labels)


def test_a_configuration_may_ask_for_every_group_and_no_other():
    kind, _ = get_args(get_type_hints(TuningConfig)["groups"])
    assert get_args(kind) == (*GROUPS, SUBTYPES)


def test_the_grids_are_the_authors():
    assert (COMPONENT_GRID[0], COMPONENT_GRID[1], COMPONENT_GRID[-1]) == (0, 25, 500)
    assert RATIO_GRID[0] == 0
    assert RATIO_GRID[-1] == 0.95
    assert len(RATIO_GRID) == 20


def test_perfect_predictions_are_left_alone():
    tuned, _ = tune_all(scenes([probabilities(reference())] * 5))
    assert tuned.choice == Choice()
    assert set(tuned.gains.values()) == {0}


def test_specks_are_removed():
    tuned, _ = tune_all(scenes([with_specks()] * 5))
    assert tuned.gains["components"] > 0
    assert tuned.choice.thresholds.smallest_component_mm3["ED"] > 64
    assert tuned.choice.thresholds.smallest_component_mm3["NCR"] == 0


def test_specks_in_one_fold_alone_decide_nothing():
    # Chosen on that fold the removal helps it, but what the other folds would have chosen helps nobody.
    tuned, _ = tune_all(scenes([with_specks()] + [probabilities(reference())] * 4))
    assert tuned.gains["components"] == 0
    assert tuned.choice.thresholds == NEUTRAL


def test_a_little_enhancement_where_there_is_none_is_relabelled():
    truth = reference(enhancing=False)
    predicted = truth.copy()
    predicted[12:21, 12:21, 8:15] = 3  # 567 mm³, more than any component threshold, and 18 % of the whole tumour
    tuned, _ = tune_all(scenes([probabilities(predicted)] * 5, [truth] * 5))
    assert tuned.gains["ratio"] > 0
    assert tuned.choice.thresholds.et_wt_ratio == 0.2


def test_region_thresholds_follow_the_probabilities():
    truth = reference()
    timid = probabilities(truth)
    timid[2] = np.where(region_mask(truth, "ET"), 0.42, 0.05)
    tuned, _ = tune_all(scenes([timid] * 5))
    assert tuned.gains["regions"] > 0
    assert tuned.choice.regions[2] < 0.42
    assert tuned.choice.regions[:2] == (0.5, 0.5)


def test_a_large_lesion_that_the_networks_doubt_is_left_out():
    """No region threshold and no smallest component of the grids would remove it."""
    doubted = probabilities(reference())
    doubted[0, 30:39, 4:14, 8:16] = 0.72
    tuned, by_fold = tune_all(scenes([doubted] * 5))
    assert tuned.choice.confidence == 0.8
    assert tuned.choice.thresholds == NEUTRAL
    assert all(selection.choice.confidence == 0.8 for selection in by_fold.values())


def test_what_a_fold_is_scored_with_was_chosen_without_it():
    _, by_fold = tune_all(scenes([with_specks()] * 4 + [probabilities(reference())]))
    assert set(by_fold) == {0, 1, 2, 3, 4}
    assert all(chosen.choice.thresholds.smallest_component_mm3["ED"] > 0 for chosen in by_fold.values())


def test_what_helps_one_fold_alone_is_no_honest_gain():
    # Two folds with specks let all folds keep the removal: each shows it to the other, and the clean ones lose nothing.
    scorer = scenes([with_specks()] * 2 + [probabilities(reference())] * 3)
    tuned, by_fold = tune_all(scorer)
    assert tuned.choice.thresholds.smallest_component_mm3["ED"] > 0
    # Without one of the two, the other's specks are in one fold alone: not kept, so the held-out one keeps its specks.
    assert by_fold[0].choice == Choice()
    assert tuned.gains["components"] > 0
    assert honest_gains(scorer, by_fold)["components"] == 0


def test_the_honest_gain_is_the_difference_on_held_out_folds():
    scorer = scenes([with_specks()] * 5)
    _, by_fold = tune_all(scorer)
    gains = honest_gains(scorer, by_fold)
    assert gains["components"] == pytest.approx(1 - scorer.mean(range(5), Choice()))
    assert gains["regions"] == gains["ratio"] == 0


@pytest.mark.parametrize("count", [1, 2])
def test_cases_of_one_patient_show_no_gain(count):
    scorer = scenes([with_specks()] * count)
    scorer.cases = [replace(case, patient="one") for case in scorer.cases]
    selection = select(scorer, range(count), GROUPS)
    assert selection.choice == Choice()
    assert selection.found["components"] != Choice()


def test_a_gain_of_less_than_a_thousandth_keeps_nothing(monkeypatch):
    scorer = scenes([with_specks()] * 5)
    gain = select(scorer, range(5), GROUPS).gains["components"]
    for least, kept in ((gain + 1e-6, False), (gain - 1e-6, True)):
        monkeypatch.setattr(thresholds, "LEAST_GAIN", least)
        assert (select(scorer, range(5), GROUPS).choice != Choice()) == kept
    monkeypatch.undo()
    assert thresholds.LEAST_GAIN == 0.001


def test_many_patients_are_left_out_in_parts(monkeypatch):
    """A search for each of a thousand patients would take hours."""
    searched = []

    def step(_scorer, indices, start):
        searched.append(sorted(indices))
        return replace(start, confidence=0.8)

    monkeypatch.setattr(thresholds, "MOST_PARTS", 2)
    select(scenes([probabilities(reference())] * 5), range(5), {"confidence": step})
    assert searched == [[0, 1, 2, 3, 4], [1, 3], [0, 2, 4]]


def test_empty_predictions_of_other_sizes_are_other_label_maps():
    """Both have as many voxels, none of which is tumour."""
    shapes = ((4, 6, 5), (5, 6, 4))
    references = [np.zeros(shape, np.uint8) for shape in shapes]
    scorer = scenes([np.zeros((3, *shape), np.float32) for shape in shapes], references)
    assert [scorer.labels(index, Choice()).shape for index in (0, 1)] == [*shapes]
    assert scorer.mean([0, 1], Choice()) == 1


def test_workers_find_what_one_process_finds():
    predictions = [with_specks(), probabilities(reference()), with_specks(), with_specks()]
    alone = tune_all(scenes(predictions))
    with open_workers(2) as workers:
        scorer = scenes(predictions)
        scorer.workers = workers
        assert tune_all(scorer) == alone


def test_a_choice_survives_the_tables():
    own = replace(NEUTRAL, et_wt_ratio=0.1)
    choice = Choice((0.4, 0.5, 0.6), NEUTRAL, {1: own}, 0.9)
    back = choice_of(tables_of(choice, 3))
    assert (back.regions, back.confidence) == (choice.regions, choice.confidence)
    assert [back.of(cluster) for cluster in (None, 0, 1, 2)] == [NEUTRAL, NEUTRAL, own, NEUTRAL]


def lonely_enhancement():
    """A true spot of enhancement that removing specks of everyone else's size would delete, and such a speck."""
    truth = reference(enhancing=False)
    truth[13:17, 13:17, 9:13] = 3  # 64 mm³, true here
    return truth, probabilities(truth)


def false_enhancement():
    truth = reference(enhancing=False)
    labels = truth.copy()
    labels[13:17, 13:17, 9:13] = 3  # 64 mm³, false here
    return truth, probabilities(labels)


def two_subtypes(true_ones):
    """Ten tumours of subtype 0 with false enhancement, and some of subtype 1 where the same is true."""
    scenes_of = [false_enhancement()] * 10 + [lonely_enhancement()] * true_ones
    scorer = scenes([p for _, p in scenes_of], [truth for truth, _ in scenes_of])
    scorer.clusters = [0] * 10 + [1] * true_ones
    return scorer


def test_a_subtype_with_many_tumours_gets_its_own_thresholds():
    scorer = two_subtypes(8)
    tuned, by_fold = tune_all(scorer)
    assert tuned.choice.of(0) != tuned.choice.of(1)
    assert tuned.choice.of(1) == NEUTRAL
    assert all(scorer.score(index, tuned.choice) == 1 for index in range(10, 18))
    assert sum(honest_gains(scorer, by_fold).values()) > 0


def test_small_subtypes_are_shrunk_to_the_choice_of_all():
    tuned, _ = tune_all(two_subtypes(1))
    assert tuned.choice.thresholds != NEUTRAL
    assert tuned.choice.of(1) == tuned.choice.of(0) == tuned.choice.thresholds


def test_a_tumour_without_subtype_gets_the_thresholds_of_all():
    scorer = scenes([with_specks()] * 5)
    scorer.clusters = [0, 0, None, 0, 0]
    tuned, _ = tune_all(scorer)
    assert set(tuned.gains) == {"regions", "confidence", "components", "ratio", "subtypes 0"}
    assert tuned.choice.of(None) == tuned.choice.thresholds


@pytest.mark.parametrize("smallest", [0.0, 50.0, 64.0, 65.0, 300.0, 5000.0])
@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.1, 0.5])
def test_the_foreseen_effect_is_that_of_refinement(smallest, ratio):
    from inference.bundle.tables import Thresholds
    from inference.refine.postprocess import relabel_by_ratio, remove_components

    before = unrefined_labels(trusted_labels(with_specks(), Choice()))
    thresholds = Thresholds({"NCR": 0.0, "ED": smallest, "ET": smallest}, ratio)
    cleaned, removed = remove_components(before.labels, (1, 1, 1), thresholds.smallest_component_mm3)
    counts = [removed[label].components for label in ("NCR", "ED", "ET")]
    assert before.effect(thresholds) == (*counts, relabel_by_ratio(cleaned, ratio)[2])


def test_scores_are_those_of_the_official_definition():
    from training.evaluation.lesionwise import score_case

    scorer = scenes([with_specks()])
    official = score_case(reference(), scorer.labels(0, Choice()), (1, 1, 1), 2024, metrics="dice")
    assert scorer.score(0, Choice()) == pytest.approx(np.mean([official[r].lesionwise_dice for r in REGIONS]))
    assert json.dumps(scorer.mean([0], Choice()))


def test_a_region_that_no_case_has_is_without_dice():
    labels = reference(enhancing=False)
    scorer = scenes([probabilities(labels)] * 2, [labels] * 2)
    scores = score_systems(CONFIG, scorer, tune_all(scorer, ["ratio"])[1])
    assert json.dumps(scores, allow_nan=False)
    for found in scores.values():
        assert found["ET"] == {"cases_with_region": 0, "lesionwise_dice_2023": 1, "lesionwise_dice_2024": 1, "cases": 2}
        assert (found["WT"]["dice"], found["WT"]["cases_with_region"]) == (1, 2)
