from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from training.evaluation.lesions import dilate, merge_enhancing, merged_lesions, plain_lesions, without_small

from .scenes import with_boxes

ELEMENT = ndimage.generate_binary_structure(3, 2)


@settings(max_examples=60, deadline=None)
@given(arrays(np.bool_, (9, 8, 11), elements=st.sampled_from([False] * 30 + [True])), st.integers(1, 4))
def test_dilation_equals_scipy(mask, iterations):
    np.testing.assert_array_equal(
        dilate(mask, iterations), ndimage.binary_dilation(mask, ELEMENT, iterations=iterations)
    )


@settings(max_examples=60, deadline=None)
@given(arrays(np.bool_, (14, 9, 30), elements=st.sampled_from([False] * 60 + [True])))
def test_zones_are_the_dilated_lesions(mask):
    lesions = merged_lesions(mask)
    for number in np.flatnonzero(lesions.sizes):
        dilated = ndimage.binary_dilation(lesions.ids() == number, ELEMENT, iterations=3)
        np.testing.assert_array_equal(lesions.zones == number, dilated)


def mask_of(*boxes, shape=(40, 40, 40)):
    return with_boxes(*((1, corner, extent) for corner, extent in boxes), shape=shape) > 0


@pytest.mark.parametrize(("gap", "lesions"), [(6, 1), (7, 2)])
def test_fragments_join_up_to_a_gap_of_six(gap, lesions):
    """Each side grows by three, and touching is enough."""
    mask = mask_of(((5, 10, 10), (4, 4, 4)), ((9 + gap, 10, 10), (4, 4, 4)))
    merged = merged_lesions(mask)
    assert np.count_nonzero(merged.sizes) == lesions
    np.testing.assert_array_equal(merged.ids() > 0, mask)


def test_plain_lesions_meet_at_corners():
    mask = mask_of(((5, 5, 5), (2, 2, 2)), ((7, 7, 7), (2, 2, 2)), ((11, 5, 5), (2, 2, 2)))
    assert np.count_nonzero(plain_lesions(mask).sizes) == 2


@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_follow_a_scan_with_the_last_axis_fastest(order):
    """Whatever the order in memory, as cc3d numbers by memory order."""
    mask = np.asarray(mask_of(((2, 30, 2), (2, 2, 2)), ((2, 2, 30), (2, 2, 2)), ((30, 2, 2), (2, 2, 2))), order=order)
    ids = plain_lesions(mask).ids()
    assert (ids[2, 2, 30], ids[2, 30, 2], ids[30, 2, 2]) == (1, 2, 3)


def test_merged_lesions_are_numbered_by_their_dilation():
    """The dilated lesion that the scan meets first is number one, though its own voxels come later."""
    mask = mask_of(((9, 30, 5), (1, 1, 1)), ((10, 5, 5), (9, 9, 9)))
    assert merged_lesions(mask).ids()[9, 30, 5] == 1
    mask = mask_of(((9, 30, 5), (1, 1, 1)), ((9, 5, 5), (9, 9, 9)))
    assert merged_lesions(mask).ids()[9, 30, 5] == 2


def test_without_small_removes_fifty_voxels_and_keeps_numbers():
    mask = mask_of(((2, 2, 2), (5, 5, 2)), ((20, 20, 20), (3, 17, 1)))
    kept = without_small(merged_lesions(mask))
    assert kept.sizes.tolist() == [0, 0, 51]
    assert set(np.unique(kept.ids())) == {0, 2}


def lesions_of(*boxes):
    return merged_lesions(mask_of(*boxes))


ONE, TWO, THREE = (((at, 4, 4), (4, 4, 4)) for at in (2, 14, 26))


def numbers(lesions):
    """Numbers at the three places where enhancing lesions are put."""
    return tuple(int(lesions.ids()[at, 4, 4]) for at in (2, 14, 26))


def test_enhancing_lesions_at_one_necrosis_are_one():
    merged = merge_enhancing(lesions_of(ONE, TWO), lesions_of(((2, 4, 8), (16, 4, 4))))
    assert numbers(merged) == (1, 1, 0)


def test_enhancing_lesions_that_touch_nothing_keep_apart():
    merged = merge_enhancing(lesions_of(ONE, TWO), lesions_of(((2, 4, 20), (16, 4, 4))))
    assert numbers(merged) == (1, 2, 0)


def test_touching_reaches_edges_and_not_corners():
    """Dilated by the 18-neighbour element: a gap of none along one or two axes, but not along three."""
    edge = merge_enhancing(lesions_of(ONE, TWO), lesions_of(((2, 8, 8), (16, 4, 4))))
    assert numbers(edge) == (1, 1, 0)
    corner = merge_enhancing(lesions_of(ONE, TWO), lesions_of(((6, 8, 8), (8, 4, 4))))
    assert numbers(corner) == (1, 2, 0)


def test_a_single_touching_pair_changes_nothing():
    """Merging is skipped unless two pairs touch, so that even the numbers stay as they are."""
    merged = merge_enhancing(lesions_of(ONE, TWO, THREE), lesions_of(((2, 4, 8), (4, 4, 4))))
    assert numbers(merged) == (1, 2, 3)


def test_touching_lesions_are_numbered_after_the_others():
    merged = merge_enhancing(lesions_of(ONE, TWO, THREE), lesions_of(((2, 4, 8), (16, 4, 4))))
    assert numbers(merged) == (2, 2, 1)


def test_an_enhancing_lesion_joins_the_lowest_necrosis_only():
    """The middle one touches both necroses and goes with the first; in the mirror that is the other one."""
    enhancing = mask_of(((2, 4, 4), (4, 4, 4)), ((14, 4, 4), (12, 4, 4)), ((34, 4, 4), (4, 4, 4)))
    necrotic = mask_of(((2, 4, 8), (15, 4, 4)), ((24, 4, 8), (14, 4, 4)))
    here = merge_enhancing(merged_lesions(enhancing), merged_lesions(necrotic)).ids()
    assert (here[2, 4, 4], here[14, 4, 4], here[34, 4, 4]) == (1, 1, 2)
    mirrored = merge_enhancing(merged_lesions(enhancing[::-1]), merged_lesions(necrotic[::-1])).ids()[::-1]
    assert (mirrored[2, 4, 4], mirrored[14, 4, 4], mirrored[34, 4, 4]) == (2, 1, 1)


def test_numbers_are_closed_up_after_small_ones_are_removed():
    small = ((2, 4, 4), (2, 2, 2))
    merged = merge_enhancing(without_small(lesions_of(small, TWO, THREE)), lesions_of(((30, 30, 30), (2, 2, 2))))
    assert numbers(merged) == (0, 1, 2)
