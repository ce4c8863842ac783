"""Sequences, labels, regions."""

from __future__ import annotations

import numpy as np
import pytest

from inference.labels import REGIONS, labels_from_regions, region_mask, regions_from_label_probabilities

VOXELS = np.array([[[0, 1, 2, 3]]], np.uint8)


@pytest.mark.parametrize(("region", "inside"), [("WT", [0, 1, 1, 1]), ("TC", [0, 1, 0, 1]), ("ET", [0, 0, 0, 1])])
def test_regions_hold_their_labels(region, inside):
    assert region_mask(VOXELS, region).ravel().tolist() == [bool(value) for value in inside]


def test_region_order_is_that_of_the_heads():
    assert list(REGIONS) == ["WT", "TC", "ET"]


def test_painting_is_the_inverse_of_reading_regions():
    regions = np.stack([region_mask(VOXELS, region) for region in REGIONS]).astype(np.float32)
    assert np.array_equal(labels_from_regions(regions), VOXELS)


def test_enhancing_tumour_is_painted_even_outside_the_whole_tumour():
    regions = np.array([0.1, 0.2, 0.9], np.float32).reshape(3, 1, 1, 1)
    assert labels_from_regions(regions).item() == 3


def test_a_probability_at_the_threshold_is_not_above_it():
    assert labels_from_regions(np.full((3, 1, 1, 1), 0.5, np.float32)).item() == 0


def test_each_region_has_its_own_threshold():
    regions = np.full((3, 1, 1, 1), 0.6, np.float32)
    assert labels_from_regions(regions, (0.5, 0.7, 0.7)).item() == 2
    assert labels_from_regions(regions, (0.7, 0.5, 0.7)).item() == 1


def test_label_probabilities_add_up_to_regions():
    softmax = np.array([0.1, 0.2, 0.3, 0.4], np.float32).reshape(4, 1, 1, 1)
    assert regions_from_label_probabilities(softmax).ravel() == pytest.approx([0.9, 0.6, 0.4])
