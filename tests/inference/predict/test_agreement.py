"""Networks against their ensemble: known masks, empty masks, known deviations."""

from __future__ import annotations

import numpy as np
import pytest

from inference.predict.agreement import Comparison

SHAPE = (3, 5, 4, 3)


def filled(*values: float) -> np.ndarray:
    """Probabilities (3, 5, 4, 3) with one value per region."""
    return np.broadcast_to(np.array(values, np.float32).reshape(3, 1, 1, 1), SHAPE).copy()


def agree(networks: list[np.ndarray], shares: list[float], thresholds: tuple[float, ...] = (0.5, 0.5, 0.5)):
    comparison = Comparison(thresholds)
    for network, share in zip(networks, shares, strict=True):
        comparison.update(network, share)
    return comparison.finalise(sum(share * network for network, share in zip(networks, shares, strict=True)))


def test_dice_with_the_ensemble_is_weighted_by_share() -> None:
    half, whole = filled(0, 0, 0), filled(0, 0, 0)
    half[0, :2], whole[0, :4] = 1, 1
    found = agree([whole, half], [0.75, 0.25])
    # The ensemble's mask is the larger one: the other's Dice with it is 2 · 2 / (2 + 4).
    assert found.overlap["WT"] == pytest.approx(0.75 + 0.25 * 2 / 3, abs=1e-4)


def test_empty_masks_agree_and_a_lone_mask_does_not() -> None:
    found = agree([filled(0.1, 0.9, 0.4), filled(0.2, 0.1, 0.4)], [0.4, 0.6])
    assert found.overlap == {"WT": 1.0, "TC": 0.6, "ET": 1.0}


def test_thresholds_are_those_of_the_regions_and_strict() -> None:
    networks = [filled(0.3, 0.7, 0.5), filled(0.3, 0.7, 0.5)]
    assert agree(networks, [0.5, 0.5], (0.3, 0.7, 0.5)).overlap == {"WT": 1.0, "TC": 1.0, "ET": 1.0}
    assert agree([filled(0.6, 0, 0), filled(0.2, 0, 0)], [0.5, 0.5], (0.25, 0.5, 0.5)).overlap["WT"] == 0.5


def test_spread_is_the_weighted_deviation_and_at_most_half() -> None:
    found = agree([filled(1, 0.25, 0.5), filled(0, 0.75, 0.5)], [0.5, 0.5]).spread
    assert found.shape == SHAPE
    np.testing.assert_allclose(found[:, 0, 0, 0], [0.5, 0.25, 0], atol=1e-6)
    uneven = agree([filled(1, 0, 0), filled(0, 0, 0)], [0.9, 0.1]).spread
    np.testing.assert_allclose(uneven[:, 0, 0, 0], [0.3, 0, 0], atol=1e-6)
