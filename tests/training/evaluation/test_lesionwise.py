from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from inference.labels import REGIONS
from training.evaluation.lesionwise import score_case, score_missing
from training.evaluation.scores import RegionScore

from .scenes import ED, ET, ISOTROPIC, NCR, empty, with_boxes

GOLDEN = Path(__file__).parents[2] / "golden"

OFFICIAL = {
    "Num_TP": "tp",
    "Num_FP": "fp",
    "Num_FN": "fn",
    "Sensitivity": "sensitivity",
    "Specificity": "specificity",
    "Legacy_Dice": "dice",
    "Legacy_HD95": "hd95",
    "Legacy NSD @ 0.5": "nsd_05",
    "Legacy NSD @ 1.0": "nsd_10",
    "GT_Complete_Volume": "reference_volume",
    "LesionWise_Score_Dice": "lesionwise_dice",
    "LesionWise_Score_HD95": "lesionwise_hd95",
    "LesionWise_Score_NSD @ 0.5": "lesionwise_nsd_05",
    "LesionWise_Score_NSD @ 1.0": "lesionwise_nsd_10",
}
"""What the official programs print, and the field that holds it."""

VERSIONS = (2023, 2024)


def check_golden(folder, name, version):
    pairs = np.load(folder / f"lesionwise_{name}.npz")
    cases = json.loads((folder / f"lesionwise_{name}_{version}.json").read_text())
    for case, regions in cases.items():
        scores = score_case(pairs[f"{case}_gt"], pairs[f"{case}_pred"], ISOTROPIC, version)
        for region, golden in regions.items():
            found = {official: getattr(scores[region], OFFICIAL[official]) for official in golden}
            assert found == pytest.approx(golden, abs=1e-6), (case, region)


@pytest.mark.parametrize("version", VERSIONS)
def test_synthetic_pairs_score_as_by_the_official_program(version):
    check_golden(GOLDEN, "synthetic", version)


@pytest.mark.parametrize("version", VERSIONS)
def test_african_pairs_score_as_by_the_official_program(version, shared_folder):
    check_golden(shared_folder / "golden", "africa", version)


def wt(reference, prediction, version, spacing=ISOTROPIC):
    return score_case(reference, prediction, spacing, version)["WT"]


LESION = (ED, (5, 5, 5), (8, 8, 8))
FAR = (25, 25, 25)


# Policies where a side, or both, are empty


@pytest.mark.parametrize("version", VERSIONS)
def test_both_empty_is_perfect(version):
    score = wt(empty(), empty(), version)
    assert (score.lesionwise_dice, score.lesionwise_hd95, score.dice, score.hd95) == (1, 0, 1, 0)
    assert (score.sensitivity, score.specificity, score.tp, score.fp, score.fn) == (1, 1, 0, 0, 0)
    assert (score.voxel_sensitivity, score.voxel_specificity) == (1, 1)
    if version == 2024:
        assert (score.nsd_05, score.nsd_10, score.lesionwise_nsd_05, score.lesionwise_nsd_10) == (1, 1, 1, 1)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_prediction_without_a_reference_is_a_false_positive(version):
    score = wt(empty(), with_boxes(LESION), version)
    assert (score.lesionwise_dice, score.lesionwise_hd95, score.dice, score.hd95) == (0, 374, 0, 374)
    assert (score.sensitivity, score.tp, score.fp, score.fn) == (0, 0, 1, 0)
    assert score.specificity == pytest.approx(1 - 512 / 40**3)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_reference_without_a_prediction_is_missed(version):
    score = wt(with_boxes(LESION, (ED, FAR, (6, 6, 6))), empty(), version)
    assert (score.lesionwise_dice, score.lesionwise_hd95, score.dice, score.hd95) == (0, 374, 0, 374)
    assert (score.sensitivity, score.specificity, score.tp, score.fp, score.fn) == (0, 1, 0, 0, 2)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_perfect_prediction_is_perfect(version):
    labels = with_boxes(LESION, (ET, (6, 6, 6), (4, 4, 4)), (NCR, (7, 7, 7), (2, 2, 2)), (ET, FAR, (6, 6, 6)))
    for score in score_case(labels, labels, ISOTROPIC, version).values():
        assert (score.lesionwise_dice, score.lesionwise_hd95, score.dice, score.hd95) == (1, 0, 1, 0)
        assert (score.fp, score.fn, score.voxel_sensitivity, score.voxel_specificity) == (0, 0, 1, 1)
        if version == 2024:
            assert score.lesionwise_nsd_05 == score.nsd_10 == 2 / (2 + 1e-8)


def test_a_missing_prediction_scores_worst_even_where_the_region_is_empty():
    reference = with_boxes(LESION, (ED, FAR, (6, 6, 6)))
    for version in VERSIONS:
        scores = score_missing(reference, ISOTROPIC, version)
        for region, lesions in (("WT", 2), ("TC", 0), ("ET", 0)):
            named = scores[region].named()
            distances = {name for name in named if name.endswith("hd95")}
            assert {named.pop(name) for name in distances} == {374}
            assert (named.pop("fn"), named.pop("tp"), named.pop("fp")) == (lesions, 0, 0)
            assert set(named.values()) == {0}
            assert ("nsd_0.5" in named) == (version == 2024)


# What counts as a lesion


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("voxels", "scored"), [(50, 0), (51, 1)])
def test_reference_lesions_of_up_to_fifty_mm3_are_not_scored(version, voxels, scored):
    score = wt(with_boxes((ED, (5, 5, 1), (1, 1, voxels)), shape=(20, 20, 60)), empty((20, 20, 60)), version)
    assert score.fn == scored
    assert score.lesionwise_dice == 1 - scored
    assert score.dice == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_the_smallest_reference_lesion_is_a_volume_and_not_a_count(version):
    reference = with_boxes((ED, (5, 5, 5), (7, 1, 1)))
    assert wt(reference, empty(), version, spacing=(2, 2, 2)).fn == 1
    assert wt(reference, empty(), version, spacing=(1, 1, 2)).fn == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_a_small_reference_lesion_leaves_tp_but_excuses_what_it_meets(version):
    """It is not scored, and the prediction that it meets is no false positive."""
    reference = with_boxes(LESION, (ED, FAR, (3, 3, 3)))
    score = wt(reference, with_boxes(LESION, (ED, FAR, (4, 4, 4))), version)
    assert (score.tp, score.fp, score.fn, score.lesionwise_dice) == (1, 0, 0, 1)


@pytest.mark.parametrize("voxels", [1, 50, 51, 500])
def test_2023_counts_false_positives_of_any_size(voxels):
    prediction = with_boxes(LESION)
    prediction.reshape(-1)[-voxels:] = ED
    score = wt(with_boxes(LESION), prediction, 2023)
    assert (score.fp, score.lesionwise_dice, score.lesionwise_hd95) == (1, 0.5, 187)


@pytest.mark.parametrize(("voxels", "counted"), [(50, 0), (51, 1)])
def test_2024_ignores_predicted_lesions_of_up_to_fifty_voxels(voxels, counted):
    shape = (40, 40, 60)
    prediction = with_boxes(LESION, (ED, (30, 30, 5), (1, 1, voxels)), shape=shape)
    score = wt(with_boxes(LESION, shape=shape), prediction, 2024)
    assert score.fp == counted
    assert (score.dice == 1) == (not counted)
    assert (score.voxel_specificity == 1) is False


def test_2024_ignores_by_voxels_and_not_by_volume():
    prediction = with_boxes(LESION, (ED, FAR, (5, 5, 2)))
    assert wt(with_boxes(LESION), prediction, 2024, spacing=(3, 3, 3)).fp == 0


def test_2024_ignores_small_predictions_even_where_they_are_right():
    labels = with_boxes((ED, (5, 5, 5), (5, 5, 2)))
    score = wt(labels, labels, 2024, spacing=(2, 2, 2))
    assert (score.tp, score.fn, score.lesionwise_dice, score.dice) == (0, 1, 0, 0)
    assert wt(labels, labels, 2023, spacing=(2, 2, 2)).lesionwise_dice == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_fragments_of_the_reference_that_meet_when_dilated_are_one_lesion(version):
    near, apart = (with_boxes(LESION, (ED, (13 + gap, 5, 5), (8, 8, 8))) for gap in (6, 7))
    assert wt(near, empty(), version).fn == 1
    assert wt(apart, empty(), version).fn == 2


def test_predicted_fragments_are_false_positives_one_by_one_in_2023_and_together_in_2024():
    prediction = with_boxes(LESION, (ED, (25, 25, 25), (3, 6, 6)), (ED, (32, 25, 25), (3, 6, 6)))
    assert wt(with_boxes(LESION), prediction, 2023).fp == 2
    assert wt(with_boxes(LESION), prediction, 2024).fp == 1


def test_2024_scores_both_fragments_when_one_meets_the_lesion():
    """In 2023 the far fragment, out of reach of the lesion, is a false positive of its own."""
    fragments = with_boxes(LESION, (ED, (17, 5, 5), (8, 8, 8)))
    old, new = (wt(with_boxes(LESION), fragments, version) for version in VERSIONS)
    assert (old.tp, old.fp, old.lesionwise_dice) == (1, 1, 0.5)
    assert (new.tp, new.fp, new.lesionwise_dice) == (1, 0, pytest.approx(2 / 3))


# Matching


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("gap", "found"), [(2, 1), (3, 0)])
def test_a_lesion_meets_what_its_dilation_reaches(version, gap, found):
    """A prediction beside the lesion is a hit with Dice 0 and a finite distance; one voxel further it is none."""
    reference = with_boxes(LESION)
    score = wt(reference, with_boxes((ED, (13 + gap, 5, 5), (8, 8, 8))), version)
    assert (score.tp, score.fp, score.fn, score.lesionwise_dice) == (found, 1 - found, 1 - found, 0)
    assert (score.lesionwise_hd95 < 20) == bool(found)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_whole_of_a_matched_component_counts(version):
    reference = with_boxes(LESION)
    prediction = with_boxes((ED, (5, 5, 5), (24, 8, 8)))
    assert wt(reference, prediction, version).lesionwise_dice == pytest.approx(2 * 512 / (512 + 3 * 512))


@pytest.mark.parametrize("version", VERSIONS)
def test_one_prediction_may_meet_several_lesions(version):
    reference = with_boxes(LESION, (ED, (25, 5, 5), (8, 8, 8)))
    prediction = with_boxes((ED, (5, 5, 5), (28, 8, 8)))
    score = wt(reference, prediction, version)
    assert (score.tp, score.fp) == (2, 0)
    assert score.lesionwise_dice == pytest.approx(2 * 512 / (512 + 28 * 64))


@pytest.mark.parametrize("version", VERSIONS)
def test_penalties_are_averaged_with_the_lesions(version):
    reference = with_boxes(LESION, (ED, FAR, (6, 6, 6)))
    prediction = with_boxes(LESION, (ED, (5, 25, 5), (6, 6, 6)))
    score = wt(reference, prediction, version)
    assert (score.tp, score.fp, score.fn) == (1, 1, 1)
    assert score.lesionwise_dice == pytest.approx(1 / 3)
    assert score.lesionwise_hd95 == pytest.approx(2 * 374 / 3)


# Oddities of the official program of 2024


def test_2024_sensitivity_sees_the_first_lesion_only():
    """On lesion numbers, voxels of lesion 2 count twice in the denominator and never in the numerator."""
    labels = with_boxes(LESION, (ED, FAR, (8, 8, 8)))
    score = wt(labels, labels, 2024)
    assert score.sensitivity == pytest.approx(512 / (512 + 2 * 512))
    assert score.voxel_sensitivity == 1
    assert wt(labels, labels, 2023).sensitivity == 1


def test_2024_sensitivity_is_zero_where_a_spurious_lesion_comes_first():
    """Then lesion 1 of the prediction is the spurious one; the very lesion found by both has different numbers."""
    reference = with_boxes((ED, FAR, (8, 8, 8)))
    score = wt(reference, with_boxes((ED, FAR, (8, 8, 8)), (ED, (2, 2, 2), (5, 5, 5))), 2024)
    assert (score.sensitivity, score.voxel_sensitivity) == (0, 1)
    assert score.dice > 0.8


def test_2024_specificity_counts_a_voxel_by_its_lesion_number():
    reference, prediction = empty(), with_boxes(LESION, (ED, FAR, (8, 8, 8)))
    volume = reference.size
    score = wt(reference, prediction, 2024)
    # Only lesion 1 is "not outside", and the false positives are 512 · 1 + 512 · 2.
    assert score.specificity == pytest.approx((volume - 512) / (volume - 512 + 3 * 512))
    assert score.voxel_specificity == pytest.approx(1 - 1024 / volume)


def test_2024_whole_volume_distance_is_that_of_lesion_numbers():
    """A lesion numbered 2 has surface elements inside, so that its distance to the same lesion numbered 1 is not 0."""
    reference = with_boxes((ED, FAR, (12, 12, 12)))
    prediction = with_boxes((ED, FAR, (12, 12, 12)), (ED, (22, 5, 5), (4, 4, 4)))
    score = wt(reference, prediction, 2024)
    assert score.tp == 1
    assert 0 < score.hd95 != wt(reference, prediction, 2023).hd95
    alone = wt(reference, reference, 2024)
    assert alone.hd95 == 0


def test_2024_numbers_of_removed_lesions_are_not_reused():
    """A small spurious lesion that comes first is ignored, but the lesion after it stays number 2."""
    reference = with_boxes((ED, FAR, (8, 8, 8)))
    prediction = with_boxes((ED, FAR, (8, 8, 8)), (ED, (2, 2, 2), (3, 3, 3)))
    assert wt(reference, prediction, 2024).sensitivity == 0
    for labels in (reference, prediction):
        labels[labels > 0] = ET
    scores = score_case(reference, prediction, ISOTROPIC, 2024)
    assert scores["TC"].sensitivity == 0
    # Enhancing lesions are numbered anew after merging.
    assert scores["ET"].sensitivity == 1


RING = ((ET, (5, 5, 5), (5, 5, 5)), (ET, (19, 5, 5), (5, 5, 5)), (NCR, (5, 5, 10), (19, 5, 5)))
"""Two enhancing lesions at the two ends of one necrosis."""


def test_2024_merges_enhancing_lesions_at_one_necrosis():
    reference = with_boxes(*RING)
    missed = with_boxes(*RING[:1], *RING[2:])
    old, new = (score_case(reference, missed, ISOTROPIC, version)["ET"] for version in VERSIONS)
    assert (old.tp, old.fn, old.lesionwise_dice) == (1, 1, 0.5)
    assert (new.tp, new.fn, new.lesionwise_dice) == (1, 0, pytest.approx(2 / 3))


def test_2024_merging_of_enhancing_lesions_depends_on_the_orientation():
    """The middle lesion touches two necroses and joins the lower-numbered one, which is another in the mirror."""
    reference = with_boxes(
        (ET, (2, 4, 4), (4, 4, 4)),
        (ET, (14, 4, 4), (12, 4, 4)),
        (ET, (34, 4, 4), (4, 4, 5)),
        (NCR, (2, 4, 8), (15, 4, 4)),
        (NCR, (24, 4, 9), (14, 4, 4)),
        (NCR, (24, 4, 8), (2, 4, 1)),
    )
    prediction = with_boxes((ET, (2, 4, 4), (4, 4, 4)))
    here = score_case(reference, prediction, ISOTROPIC, 2024)["ET"]
    mirrored = score_case(reference[::-1], prediction[::-1], ISOTROPIC, 2024)["ET"]
    assert here.lesionwise_dice != pytest.approx(mirrored.lesionwise_dice, abs=0.01)


# Arguments


def test_dice_alone_gives_the_same_numbers_without_distances():
    reference = with_boxes(LESION, *RING[:1], (ED, FAR, (6, 6, 6)))
    prediction = with_boxes(LESION, *RING, shape=reference.shape)
    for version in VERSIONS:
        whole = score_case(reference, prediction, ISOTROPIC, version)
        light = score_case(reference, prediction, ISOTROPIC, version, metrics="dice")
        for region, score in light.items():
            left_out = {name for name in whole[region].named() if "hd95" in name or "nsd" in name}
            assert left_out
            assert score.named() == {n: v for n, v in whole[region].named().items() if n not in left_out}


def test_only_the_regions_asked_for_are_scored():
    labels = with_boxes(LESION, *RING)
    assert list(score_case(labels, labels, ISOTROPIC, 2024, regions=("ET",))) == ["ET"]
    assert list(score_case(labels, labels, ISOTROPIC, 2024)) == list(REGIONS)


def test_surface_dice_belongs_to_2024():
    labels = with_boxes(LESION)
    assert math.isnan(wt(labels, labels, 2023).nsd_05)
    assert not {name for name in wt(labels, labels, 2023).named() if "nsd" in name}
    assert {name for name in wt(labels, labels, 2024).named() if "nsd" in name} == {
        "nsd_0.5",
        "nsd_1.0",
        "lesionwise_nsd_0.5",
        "lesionwise_nsd_1.0",
    }


@pytest.mark.parametrize(
    ("reference", "prediction", "complaint"),
    [
        (empty((4, 4, 4)), empty((4, 4, 5)), r"\(4, 4, 4\) and \(4, 4, 5\)"),
        (empty((4, 4)), empty((4, 4)), "three-dimensional"),
        (np.full((4, 4, 4), 4, np.uint8), empty((4, 4, 4)), "reference must be 0 to 3"),
        (empty((4, 4, 4)), np.full((4, 4, 4), 7, np.uint8), "prediction must be 0 to 3"),
    ],
)
def test_what_is_no_pair_of_label_maps_is_refused(reference, prediction, complaint):
    with pytest.raises(ValueError, match=complaint):
        score_case(reference, prediction, ISOTROPIC, 2024)


# Invariants


SHAPE = (22, 18, 16)


@st.composite
def label_maps(draw, labels=(ED, ET), shape=SHAPE):
    """A few boxes; without necrosis no enhancing lesions are merged, so that orientation does not matter."""
    boxes = draw(
        st.lists(
            st.tuples(
                st.sampled_from(labels),
                st.tuples(*(st.integers(0, side - 2) for side in shape)),
                st.tuples(*(st.integers(1, 9) for _ in shape)),
            ),
            max_size=5,
        )
    )
    return with_boxes(*boxes, shape=shape)


PAIRS = st.tuples(label_maps(), label_maps())
LESIONWISE = ("lesionwise_dice", "lesionwise_hd95", "lesionwise_nsd_05", "lesionwise_nsd_10", "tp", "fp", "fn")
BY_VOXEL = ("dice", "voxel_sensitivity", "voxel_specificity", "nsd_05", "nsd_10", "reference_volume")

invariant = settings(max_examples=25, deadline=None)


def values(scores: dict[str, RegionScore], names):
    return {(region, name): getattr(score, name) for region, score in scores.items() for name in names}


def assert_same(first, second, names):
    assert values(first, names) == pytest.approx(values(second, names), abs=1e-9, nan_ok=True)


@invariant
@given(PAIRS, st.permutations(range(3)), st.tuples(*[st.sampled_from((1, -1))] * 3), st.sampled_from(VERSIONS))
def test_axes_may_be_permuted_and_flipped(pair, order, steps, version):
    turned = [side.transpose(order)[tuple(slice(None, None, step) for step in steps)] for side in pair]
    names = LESIONWISE + BY_VOXEL
    assert_same(score_case(*pair, ISOTROPIC, version), score_case(*turned, ISOTROPIC, version), names)


@invariant
@given(PAIRS, st.sampled_from(VERSIONS))
def test_order_in_memory_does_not_matter(pair, version):
    fortran = [np.asfortranarray(side) for side in pair]
    names = (*LESIONWISE, *BY_VOXEL, "sensitivity", "specificity", "hd95")
    assert_same(score_case(*pair, ISOTROPIC, version), score_case(*fortran, ISOTROPIC, version), names)


@invariant
@given(PAIRS, st.tuples(*[st.tuples(st.integers(0, 5), st.integers(0, 5))] * 3), st.sampled_from(VERSIONS))
def test_more_background_changes_specificity_only(pair, margins, version):
    """As long as nothing lies nearer to an edge than three voxels, where the dilation would be cut off."""
    pair = [np.pad(side, 3) for side in pair]
    wider = [np.pad(side, margins) for side in pair]
    names = (*LESIONWISE, "dice", "nsd_05", "nsd_10", "sensitivity", "voxel_sensitivity", "hd95")
    assert_same(score_case(*pair, ISOTROPIC, version), score_case(*wider, ISOTROPIC, version), names)


@invariant
@given(PAIRS)
@example((empty(SHAPE), empty(SHAPE)))
def test_a_far_island_of_fifty_voxels_changes_2023_and_not_2024(pair):
    reference, prediction = (np.pad(side, ((0, 20), (0, 0), (0, 0))) for side in pair)
    island = prediction.copy()
    island[-5:, -5:, -2:] = ET
    assert np.count_nonzero(island) - np.count_nonzero(prediction) == 50
    old = [score_case(reference, side, ISOTROPIC, 2023) for side in (prediction, island)]
    for region in REGIONS:
        assert old[1][region].fp == old[0][region].fp + 1
        assert old[1][region].lesionwise_dice < old[0][region].lesionwise_dice or old[0][region].lesionwise_dice == 0
        assert old[1][region].lesionwise_hd95 >= old[0][region].lesionwise_hd95
    new = [score_case(reference, side, ISOTROPIC, 2024) for side in (prediction, island)]
    assert_same(*new, (*LESIONWISE, "dice", "nsd_05", "nsd_10"))


@invariant
@given(PAIRS, st.sampled_from(VERSIONS))
def test_scores_keep_to_their_ranges_and_lesions_to_their_number(pair, version):
    for score in score_case(*pair, ISOTROPIC, version).values():
        named = score.named()
        for name in named.keys() - {"tp", "fp", "fn"}:
            assert 0 <= named[name] <= (374 if name.endswith("hd95") else 1)
        missed = score_case(pair[0], 0 * pair[1], ISOTROPIC, version, metrics="dice")
        assert score.tp + score.fn in {side.fn for side in missed.values()}


@invariant
@given(PAIRS)
def test_distances_scale_with_the_voxels(pair):
    """Where no lesion crosses the smallest volume: the volumes grow eightfold."""
    one, two = (score_case(*pair, (side, side, side), 2023) for side in (1.0, 2.0))
    for region in REGIONS:
        assume(one[region].tp + one[region].fn == two[region].tp + two[region].fn)
        if one[region].hd95 < 187:
            assert two[region].hd95 == pytest.approx(2 * one[region].hd95)
        assert two[region].lesionwise_dice == pytest.approx(one[region].lesionwise_dice)


@invariant
@given(PAIRS, st.sampled_from(VERSIONS))
def test_enhancing_tumour_is_scored_whatever_the_oedema_is(pair, version):
    bare = [np.where(side == ED, 0, side) for side in pair]
    names = (*LESIONWISE, *BY_VOXEL, "sensitivity", "specificity", "hd95")
    whole, alone = (score_case(*sides, ISOTROPIC, version, regions=("ET",)) for sides in (pair, bare))
    assert_same(whole, alone, names)


@invariant
@given(label_maps(labels=(NCR, ED, ET)), st.sampled_from(VERSIONS))
def test_any_segmentation_agrees_with_itself(labels, version):
    for score in score_case(labels, labels, ISOTROPIC, version).values():
        assert (score.fp, score.voxel_sensitivity, score.voxel_specificity) == (0, 1, 1)
        if version == 2023:  # 2024 ignores what is small, in the prediction only.
            assert (score.lesionwise_dice, score.lesionwise_hd95, score.hd95, score.fn) == (1, 0, 0, 0)
