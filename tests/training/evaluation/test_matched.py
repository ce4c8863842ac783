"""The scores of 2026, against numbers that the official package printed, and by hand."""

from __future__ import annotations

import json
from math import inf, isnan
from pathlib import Path

import numpy as np
import pytest

from training.evaluation.editions import score, worst
from training.evaluation.matched import MatchedScore, score_matched

from .scenes import ED, ET, ISOTROPIC, NCR, empty, with_boxes

GOLDEN = Path(__file__).parents[2] / "golden"

PRINTED = {
    "sq_dsc": "lesionwise_dice",
    "sq_hd95": "lesionwise_hd95",
    "sq_nsd": "lesionwise_nsd",
    "global_bin_dsc": "dice",
    "global_bin_hd95": "hd95",
    "global_bin_nsd": "nsd",
    "tp": "tp",
    "fp": "fp",
    "fn": "fn",
}
"""What the official package calls a score, and the field that holds it."""


def test_synthetic_pairs_score_as_by_the_official_package():
    pairs = np.load(GOLDEN / "lesionwise_synthetic.npz")
    for case, regions in json.loads((GOLDEN / "lesionwise_synthetic_2026.json").read_text()).items():
        scores = score_matched(pairs[f"{case}_gt"], pairs[f"{case}_pred"], ISOTROPIC)
        for region, golden in regions.items():
            expected = {name: {None: np.nan, "inf": inf}.get(value, value) for name, value in golden.items()}
            found = {name: getattr(scores[region], PRINTED[name]) for name in golden}
            assert found == pytest.approx(expected, abs=1e-6, nan_ok=True), (case, region)


BALL, OTHER = (with_boxes((ED, (at, at, at), (3, 3, 3))) for at in (2, 9))


def test_one_predicted_lesion_is_matched_once():
    reference = with_boxes((ED, (2, 2, 2), (4, 4, 4)), (ED, (10, 2, 2), (4, 4, 4)))
    prediction = with_boxes((ED, (2, 2, 2), (12, 4, 4)))  # a bridge over both
    whole = score_matched(reference, prediction, ISOTROPIC)["WT"]
    assert (whole.tp, whole.fp, whole.fn) == (1, 0, 1)
    assert whole.lesionwise_dice == pytest.approx(2 * 64 / (64 + 192))


def test_the_assignment_has_the_largest_sum_of_dice():
    """Greedily the first lesion would take the large prediction, and the second nothing."""
    reference = with_boxes((ED, (2, 2, 2), (4, 4, 8)), (ED, (7, 2, 2), (4, 4, 8)))
    prediction = with_boxes((ED, (5, 2, 2), (4, 4, 8)), (ED, (2, 2, 2), (2, 4, 4)))
    whole = score_matched(reference, prediction, ISOTROPIC)["WT"]
    assert (whole.tp, whole.fp, whole.fn) == (2, 0, 0)
    dices = sorted(lesion.dice for lesion in whole.lesions)
    assert dices == pytest.approx([2 * 32 / (128 + 32), 2 * 64 / 256])


def test_diagonal_voxels_are_one_lesion_and_nothing_is_too_small():
    reference = empty()
    reference[5, 5, 5] = reference[6, 6, 6] = ED
    scores = score_matched(reference, reference, ISOTROPIC)["WT"]
    assert (scores.tp, scores.lesionwise_dice, scores.lesionwise_hd95, scores.nsd) == (1, 1, 0, 1)


@pytest.mark.parametrize(
    ("reference", "prediction", "expected"),
    [
        (empty(), empty(), (np.nan, np.nan, np.nan, np.nan, np.nan, np.nan, 0, 0, 0)),
        (empty(), BALL, (0, inf, 0, 0, inf, 0, 0, 1, 0)),
        (BALL, empty(), (0, inf, 0, 0, inf, 0, 0, 0, 1)),
        (BALL, OTHER, (0, inf, 0, 0, inf, 0, 0, 1, 1)),
    ],
)
def test_where_nothing_is_or_nothing_meets(reference, prediction, expected):
    found = score_matched(reference, prediction, ISOTROPIC)["WT"]
    assert tuple(found.named().values()) == pytest.approx(expected, nan_ok=True)


def test_a_shift_of_one_slice_is_one_slice_thick_but_for_the_package():
    spacing = (1.0, 1.0, 3.0)
    reference = with_boxes((ED, (5, 5, 5), (9, 9, 9)))
    shifted = np.roll(reference, 1, axis=2)
    ours = score_matched(reference, shifted, spacing)["WT"]
    package = score_matched(reference, shifted, spacing, package_faults=True)["WT"]
    assert (ours.lesionwise_hd95, ours.hd95) == (3, 3)
    assert (package.lesionwise_hd95, package.hd95) == (1, 1)
    assert ours.lesionwise_dice == package.lesionwise_dice


def test_lesions_are_listed_where_they_are():
    reference = with_boxes((ED, (2, 2, 2), (5, 5, 5)), (ET, (3, 3, 3), (3, 3, 3)), (NCR, (4, 4, 4), (1, 1, 1)))
    prediction = with_boxes((ED, (2, 2, 2), (5, 5, 5)), (ET, (20, 20, 20), (3, 3, 3)))
    lesions = score_matched(reference, prediction, (1.0, 1.0, 2.0))["ET"].lesions
    assert [(lesion.side, lesion.matched, lesion.volume) for lesion in lesions] == [
        ("reference", False, 52),
        ("prediction", False, 54),
    ]
    assert lesions[0].centre == (4, 4, 4)
    assert lesions[1].centre == (21, 21, 21)


def test_a_missing_case_is_the_worst_in_every_edition():
    reference = with_boxes((ED, (2, 2, 2), (5, 5, 5)))
    for edition, distance in ((2023, 374), (2024, 374), (2025, 374), (2026, inf)):
        for region, scores in worst(reference, ISOTROPIC, edition).items():
            assert (scores.lesionwise_dice, scores.lesionwise_hd95, scores.dice) == (0, distance, 0)
            assert scores.fn == (region == "WT")


def test_editions_choose_their_definition():
    reference = with_boxes((ED, (2, 2, 2), (5, 5, 5)))
    assert isinstance(score(reference, reference, ISOTROPIC, 2026)["WT"], MatchedScore)
    assert isnan(score(reference, reference, ISOTROPIC, 2023)["WT"].nsd_10)
    assert score(reference, reference, ISOTROPIC, 2025) == score(reference, reference, ISOTROPIC, 2024)
