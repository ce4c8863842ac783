from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from training.evaluation import surfaces
from training.evaluation.surfaces import hausdorff95, surface_dice

from .scenes import ISOTROPIC, plain_hausdorff95, plain_surface_dice

SPACINGS = (ISOTROPIC, (0.7, 0.7, 0.7), (0.9375, 0.9375, 5.0), (3.0, 1.0, 0.5))


def ball(shape, centre, radius):
    grid = np.ogrid[tuple(slice(0, side) for side in shape)]
    return sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)) <= radius**2


def ones(mask):
    return mask.astype(np.uint8)


def test_plates_are_as_far_apart_as_they_were_moved():
    mask = np.zeros((4, 4, 30), np.bool_)
    mask[:, :, 2:4] = True
    assert hausdorff95(ones(mask), ones(np.roll(mask, 7, axis=2)), (1.0, 1.0, 2.0)) == 14.0


def test_the_percentile_overlooks_a_spike_of_few_elements():
    mask = ball((50, 50, 50), (20, 20, 20), 14)
    spiked = mask.copy()
    spiked[20, 20, 34:48] = True
    assert hausdorff95(ones(mask), ones(spiked), ISOTROPIC) < 2
    spiked[10:30, 10:30, 44:48] = True
    assert hausdorff95(ones(mask), ones(spiked), ISOTROPIC) > 8


@pytest.mark.parametrize("spacing", SPACINGS)
def test_hausdorff_equals_the_plain_algorithm(spacing):
    first = ball((30, 34, 28), (14, 15, 12), 9.5)
    second = ball((30, 34, 28), (15, 18, 13), 8) | ball((30, 34, 28), (3, 30, 24), 3)
    expected = plain_hausdorff95(ones(first), ones(second), spacing)
    assert hausdorff95(ones(first), ones(second), spacing) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_hausdorff_is_the_same_by_tree_and_by_distance_transform(share, monkeypatch):
    monkeypatch.setattr(surfaces, "_QUERIES_PER_GRID", share)
    first, second = (ball((40, 40, 40), (20, 20, at), 9) for at in (12, 28))
    expected = plain_hausdorff95(ones(first), ones(second), (1.0, 1.2, 0.8))
    assert hausdorff95(ones(first), ones(second), (1.0, 1.2, 0.8)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("low", "high"), [(2, 1), (2, 3), (7, 5), (255, 200)])
def test_hausdorff_of_lesion_numbers_equals_the_plain_algorithm(low, high):
    """Values other than one wrap around in eight bits, as in the package that the official programs use."""
    first = low * ones(ball((30, 30, 30), (9, 9, 9), 6)) + high * ones(ball((30, 30, 30), (22, 22, 22), 5))
    second = high * ones(ball((30, 30, 30), (10, 9, 9), 6)) + low * ones(ball((30, 30, 30), (22, 21, 20), 5))
    expected = plain_hausdorff95(first, second, ISOTROPIC)
    assert hausdorff95(first, second, ISOTROPIC) == pytest.approx(expected, abs=1e-9)


def test_inner_corners_of_a_lesion_numbered_two_count_as_surface():
    mask = ones(ball((30, 30, 30), (15, 15, 15), 10))
    assert hausdorff95(mask, mask, ISOTROPIC) == 0
    assert hausdorff95(mask, 2 * mask, ISOTROPIC) > 4


def test_hausdorff_is_infinite_where_a_side_is_empty():
    mask = ones(ball((9, 9, 9), (4, 4, 4), 2))
    for sides in ((mask, 0 * mask), (0 * mask, mask), (0 * mask, 0 * mask)):
        assert hausdorff95(*sides, ISOTROPIC) == np.inf


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.uint8, (5, 6, 7), elements=st.integers(0, 3)),
    arrays(np.uint8, (5, 6, 7), elements=st.integers(0, 3)),
    st.sampled_from(SPACINGS),
)
def test_surfaces_of_noise_equal_the_plain_algorithm(first, second, spacing):
    expected = plain_hausdorff95(first, second, spacing)
    assert hausdorff95(first, second, spacing) == pytest.approx(expected, abs=1e-9)
    if first.any() and second.any():
        plain = [plain_surface_dice(first > 0, second > 0, spacing, tolerance) for tolerance in (0.5, 1.0)]
        assert surface_dice(first > 0, second > 0, spacing, (0.5, 1.0)) == pytest.approx(plain, abs=1e-12)


def test_surface_dice_of_a_perfect_match_is_just_below_one():
    mask = ball((20, 20, 20), (10, 10, 10), 6)
    assert surface_dice(mask, mask, ISOTROPIC, (0.5,)) == (2 / (2 + 1e-8),)
    assert surface_dice(mask, mask, ISOTROPIC, (0.5,))[0] < 1


def test_surface_dice_weighs_both_sides_alike():
    """A share of each side's own surface: a small prediction on the surface of a large reference loses half at most."""
    large, small = np.zeros((2, 20, 20, 20), np.bool_)
    large[2:18, 2:18, 2:18] = True
    small[2, 2, 2] = True
    assert surface_dice(large, small, ISOTROPIC, (0.5,))[0] == pytest.approx(0.5, abs=1e-3)


def test_surface_dice_of_nothing():
    mask = ball((9, 9, 9), (4, 4, 4), 2)
    assert surface_dice(mask & False, mask & False, ISOTROPIC, (0.5, 1.0)) == (1.0, 1.0)
    assert surface_dice(mask, mask & False, ISOTROPIC, (0.5, 1.0)) == (0.0, 0.0)
    assert surface_dice(mask & False, mask, ISOTROPIC, (0.5, 1.0)) == (0.0, 0.0)


def test_the_edge_of_the_volume_is_surface():
    full = np.ones((6, 6, 6), np.bool_)
    assert surface_dice(full, ball((6, 6, 6), (2, 2, 2), 1), ISOTROPIC, (1.0,))[0] < 0.5
    assert hausdorff95(ones(full), ones(full), ISOTROPIC) == 0
