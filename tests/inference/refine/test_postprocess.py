from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from inference.bundle.tables import Thresholds, ThresholdTables
from inference.labels import Label
from inference.refine.postprocess import Removed, refine, relabel_by_ratio, remove_components, remove_doubtful
from inference.refine.radiomics import FEATURE_NAMES, PRESETS
from inference.refine.subtypes import SubtypeModel

NCR, ED, ET = Label.NCR, Label.ED, Label.ET
SPACING = (1.0, 1.0, 1.0)
NAMES = ("NCR", "ED", "ET")
NOTHING = dict.fromkeys(NAMES, 0.0)

label_maps = arrays(np.uint8, (6, 6, 6), elements=st.sampled_from([0, 0, 0, 1, 2, 3]))
limits = st.fixed_dictionaries({name: st.floats(0, 40) for name in NAMES})
spacings = st.tuples(*[st.sampled_from([0.5, 1.0, 2.0])] * 3)


def tumour() -> NDArray[np.uint8]:
    """A nested tumour of 8×8×8 with an ET speck of 5 and an ED speck of 4 voxels."""
    labels = np.zeros((30, 20, 16), np.uint8)
    labels[2:10, 2:10, 2:10] = ED
    labels[4:8, 4:8, 4:8] = NCR
    labels[5:7, 5:7, 5:7] = ET
    labels[15:20, 5, 5] = ET
    labels[25:29, 5, 5] = ED
    return labels


# -- components


def test_components_smaller_than_their_labels_threshold_become_background() -> None:
    cleaned, removed = remove_components(tumour(), SPACING, {"NCR": 0, "ED": 4.5, "ET": 6})
    expected = tumour()
    expected[12:] = 0
    np.testing.assert_array_equal(cleaned, expected)
    assert removed == {"NCR": Removed(0, 0.0), "ED": Removed(1, 4.0), "ET": Removed(1, 5.0)}


def test_a_component_as_large_as_the_threshold_stays() -> None:
    cleaned, removed = remove_components(tumour(), SPACING, {"NCR": 56, "ED": 4, "ET": 5})
    np.testing.assert_array_equal(cleaned, tumour())
    assert {entry.components for entry in removed.values()} == {0}


def test_what_is_removed_inside_becomes_background_too() -> None:
    cleaned, _ = remove_components(tumour(), SPACING, {"NCR": 0, "ED": 0, "ET": 9})
    assert (cleaned[5:7, 5:7, 5:7] == 0).all()


def test_a_label_is_split_by_another_and_joined_across_corners() -> None:
    labels = np.zeros((5, 5, 9), np.uint8)
    labels[2, 2, :] = ED
    labels[2, 2, 4] = ET  # two halves of ED, 4 voxels each
    labels[0, 0, 0] = labels[1, 1, 1] = NCR  # one component across a corner
    cleaned, removed = remove_components(labels, SPACING, {"NCR": 2, "ED": 5, "ET": 0})
    assert removed["ED"] == Removed(2, 8.0)
    assert removed["NCR"] == Removed(0, 0.0)
    assert np.unique(cleaned).tolist() == [0, NCR, ET]


def test_an_empty_map_stays_empty() -> None:
    cleaned, removed = remove_components(np.zeros((4, 4, 4), np.uint8), SPACING, dict.fromkeys(NAMES, 100.0))
    assert not cleaned.any()
    assert removed == dict.fromkeys(NAMES, Removed(0, 0.0))


def test_spacings_as_headers_have_them_do_not_move_the_threshold() -> None:
    labels = tumour()
    for side in (0.9999999, 1.0000001):
        cleaned, _ = remove_components(labels, (side, side, side), {"NCR": 0, "ED": 4, "ET": 5})
        np.testing.assert_array_equal(cleaned, labels)


def test_the_input_is_left_alone() -> None:
    labels = tumour()
    remove_components(labels, SPACING, dict.fromkeys(NAMES, 1e6))
    relabel_by_ratio(labels, 1.0)
    np.testing.assert_array_equal(labels, tumour())


@given(label_maps, limits, spacings)
@settings(max_examples=50, deadline=None)
def test_removing_twice_removes_no_more(
    labels: NDArray[np.uint8], limit: Mapping[str, float], spacing: tuple[float, float, float]
) -> None:
    once, _ = remove_components(labels, spacing, limit)
    twice, removed = remove_components(once, spacing, limit)
    np.testing.assert_array_equal(twice, once)
    assert {entry.components for entry in removed.values()} == {0}


@given(label_maps, limits, limits)
@settings(max_examples=50, deadline=None)
def test_a_larger_threshold_leaves_less(
    labels: NDArray[np.uint8], limit: Mapping[str, float], more: Mapping[str, float]
) -> None:
    low, removed_low = remove_components(labels, SPACING, limit)
    high, removed_high = remove_components(labels, SPACING, {name: limit[name] + more[name] for name in NAMES})
    assert (low[high > 0] == high[high > 0]).all()
    assert (labels[low > 0] == low[low > 0]).all()
    for label in (NCR, ED, ET):
        assert removed_low[label.name].mm3 <= removed_high[label.name].mm3
        assert removed_low[label.name].mm3 == np.count_nonzero((labels == label) & (low == 0))


@given(label_maps, limits)
@settings(max_examples=50, deadline=None)
def test_each_label_obeys_its_own_threshold_alone(labels: NDArray[np.uint8], limit: Mapping[str, float]) -> None:
    together, _ = remove_components(labels, SPACING, limit)
    for label in (NCR, ED, ET):
        alone, _ = remove_components(labels, SPACING, {**NOTHING, label.name: limit[label.name]})
        np.testing.assert_array_equal(together == label, alone == label)


@given(label_maps, limits, spacings)
@settings(max_examples=50, deadline=None)
def test_thresholds_scale_with_the_voxel(
    labels: NDArray[np.uint8], limit: Mapping[str, float], spacing: tuple[float, float, float]
) -> None:
    voxel = math.prod(spacing)
    whole = {name: float(round(size)) for name, size in limit.items()}
    expected, removed = remove_components(labels, SPACING, whole)
    found, scaled = remove_components(labels, spacing, {name: size * voxel for name, size in whole.items()})
    np.testing.assert_array_equal(found, expected)
    assert {name: entry.mm3 for name, entry in scaled.items()} == pytest.approx(
        {name: entry.mm3 * voxel for name, entry in removed.items()}, abs=1e-3
    )


# -- ratio


def test_too_little_enhancing_tumour_becomes_necrotic_core() -> None:
    labels = np.zeros((10, 10, 1), np.uint8)
    labels[:] = ED
    labels[0, :5] = ET
    final, ratio, relabelled = relabel_by_ratio(labels, 0.06)
    assert (ratio, relabelled) == (0.05, True)
    assert (final[0, :5] == NCR).all()
    assert (final[labels == ED] == ED).all()
    kept, ratio, relabelled = relabel_by_ratio(labels, 0.05)
    assert (ratio, relabelled) == (0.05, False)
    np.testing.assert_array_equal(kept, labels)


def test_without_tumour_there_is_no_ratio_and_without_et_nothing_to_relabel() -> None:
    assert relabel_by_ratio(np.zeros((3, 3, 3), np.uint8), 0.5)[1:] == (None, False)
    assert relabel_by_ratio(np.full((3, 3, 3), ED, np.uint8), 0.5)[1:] == (0.0, False)


# -- lesions in doubt


def two_lesions(second: float) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A lesion of 512 voxels with a core, of probability .96, and one of 27 voxels of this probability."""
    labels = np.zeros((20, 12, 12), np.uint8)
    probabilities = np.zeros((3, *labels.shape), np.float32)
    labels[1:9, 1:9, 1:9], labels[3:6, 3:6, 3:6], labels[14:17, 3:6, 3:6] = ED, ET, ET
    probabilities[:, 1:9, 1:9, 1:9], probabilities[:, 14:17, 3:6, 3:6] = 0.96, second
    return labels, probabilities


@pytest.mark.parametrize(("region", "left"), [("WT", 0), ("TC", ED), ("ET", NCR)])
def test_a_lesion_in_doubt_becomes_what_lies_around_its_region(region: str, left: int) -> None:
    """The networks doubt the second lesion in this region alone."""
    labels, probabilities = two_lesions(0.96)
    index = ("WT", "TC", "ET").index(region)
    probabilities[index, 14:17] *= 0.875
    cleaned, removed = remove_doubtful(labels, probabilities, (1.0, 1.0, 2.0), 0.9)
    assert (cleaned[14:17, 3:6, 3:6] == left).all()
    np.testing.assert_array_equal(cleaned[:12], labels[:12])
    assert {name: entry.components for name, entry in removed.items()} == {
        name: int(name == region) for name in ("WT", "TC", "ET")
    }
    assert removed[region].mm3 == 54.0


def test_confidence_is_measured_by_the_largest_lesion() -> None:
    """Ten networks together are less sure of everything: .8 beside .85 is no doubt, .8 beside .96 is."""
    labels, probabilities = two_lesions(0.8)
    assert not remove_doubtful(labels, probabilities, SPACING, 0.9)[0][14:].any()
    probabilities[probabilities > 0.9] = 0.85
    np.testing.assert_array_equal(remove_doubtful(labels, probabilities, SPACING, 0.9)[0], labels)


def test_an_inner_lesion_goes_with_the_outer_one_and_is_counted_once() -> None:
    labels, probabilities = two_lesions(0.6)
    cleaned, removed = remove_doubtful(labels, probabilities, SPACING, 0.9)
    assert not cleaned[14:].any()
    assert [removed[name] for name in ("WT", "TC", "ET")] == [Removed(1, 27.0), Removed(0, 0.0), Removed(0, 0.0)]


@given(label_maps, st.integers(0, 2**32 - 1), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_the_largest_lesion_of_every_case_stays(labels: NDArray[np.uint8], seed: int, share: float) -> None:
    probabilities = np.random.default_rng(seed).random((3, *labels.shape), np.float32)
    cleaned, _ = remove_doubtful(labels, probabilities, SPACING, share)
    assert cleaned.any() == labels.any()
    assert (cleaned <= labels).all() or np.isin(cleaned[cleaned > labels], ED).all()
    np.testing.assert_array_equal(remove_doubtful(labels, probabilities, SPACING, 0.0)[0], labels)


@given(label_maps, st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_relabelling_is_idempotent_monotone_and_keeps_the_whole_tumour(
    labels: NDArray[np.uint8], ratio: float, more: float
) -> None:
    once, _, relabelled = relabel_by_ratio(labels, ratio)
    np.testing.assert_array_equal(relabel_by_ratio(once, ratio)[0], once)
    np.testing.assert_array_equal(once > 0, labels > 0)
    np.testing.assert_array_equal(np.isin(once, (NCR, ET)), np.isin(labels, (NCR, ET)))
    assert relabel_by_ratio(labels, min(1.0, ratio + more))[2] >= relabelled


# -- both, by subtype


def scan(seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(100, 20, size=(4, *tumour().shape)).astype(np.float32)


def model_by_volume(limit: float) -> SubtypeModel:
    """Subtype 0 below a voxel volume, subtype 1 above it."""
    axis = np.zeros((1, 386))
    axis[0, FEATURE_NAMES.index("shape_VoxelVolume")] = 1
    centroids = np.array([[limit - 10.0], [limit + 10.0]])
    return SubtypeModel(PRESETS["brain"], "none", np.zeros(386), axis, centroids)


def tables(use: str) -> ThresholdTables:
    return ThresholdTables(
        regions=(0.5, 0.5, 0.5),
        overall=Thresholds(NOTHING, 0.0),
        subtypes={0: Thresholds({"NCR": 0, "ED": 0, "ET": 6}, 0.0), 1: Thresholds({"NCR": 0, "ED": 5, "ET": 0}, 0.2)},
        use=use,
    )


def test_the_tumours_subtype_chooses_the_thresholds() -> None:
    final, record = refine(tumour(), SPACING, scan(), model_by_volume(520), tables("subtypes"))
    assert record.cluster == 0  # 512 voxels
    assert record.distances == pytest.approx((2.0, 18.0))
    assert record.thresholds == tables("subtypes").subtypes[0]
    assert record.thresholds_of == "subtype 0"
    assert record.no_subtype is None
    assert {name: entry.components for name, entry in record.removed.items()} == {"NCR": 0, "ED": 0, "ET": 1}
    assert not record.et_relabelled
    assert not (final[15:20, 5, 5]).any()

    final, record = refine(tumour(), SPACING, scan(), model_by_volume(500), tables("subtypes"))
    assert record.cluster == 1
    assert record.removed["ED"] == Removed(1, 4.0)
    # WT is counted after the removal: 13 of 517 voxels, not of 521.
    assert record.et_wt_ratio == pytest.approx(13 / 517)
    assert record.et_relabelled
    assert np.unique(final).tolist() == [0, NCR, ED]


def test_global_thresholds_rule_where_the_bundle_says_so_and_the_subtype_is_recorded() -> None:
    final, record = refine(tumour(), SPACING, scan(), model_by_volume(500), tables("global"))
    np.testing.assert_array_equal(final, tumour())
    assert record.cluster == 1
    assert record.thresholds == tables("global").overall
    assert record.thresholds_of == "all cases: the bundle uses one set of thresholds"


def test_a_bundle_without_a_model_uses_the_thresholds_of_all_cases() -> None:
    final, record = refine(tumour(), SPACING, scan(), None, tables("global"))
    np.testing.assert_array_equal(final, tumour())
    assert (record.cluster, record.distances) == (None, ())
    assert record.no_subtype == "the bundle has no subtype model"


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        (slice(0, 0), "the whole tumour is empty"),
        (slice(15, 30), "the largest component has 5 voxels, fewer than 50"),
        (slice(2, 3), "the largest component is one voxel thick"),
    ],
)
def test_a_tumour_that_cannot_be_described_never_gets_a_subtype(kept: slice, reason: str) -> None:
    labels = np.zeros_like(tumour())
    labels[kept] = tumour()[kept]
    final, record = refine(labels, SPACING, scan(), model_by_volume(500), tables("subtypes"))
    np.testing.assert_array_equal(final, labels)
    assert record.cluster is None
    assert record.no_subtype == reason
    assert record.thresholds == tables("subtypes").overall
    assert record.thresholds_of == f"all cases: no subtype, since {reason}"


@given(label_maps)
@settings(max_examples=50, deadline=None)
def test_thresholds_of_zero_leave_everything_alone(labels: NDArray[np.uint8]) -> None:
    data = np.zeros((4, *labels.shape), np.float32)
    final, record = refine(labels, SPACING, data, None, tables("global"))
    np.testing.assert_array_equal(final, labels)
    assert not record.et_relabelled
