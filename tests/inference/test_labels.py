"""Sequences, labels, regions."""

from __future__ import annotations

import numpy as np
import pytest

from inference.labels import (
    REGIONS,
    labels_from_regions,
    most_probable_labels,
    region_mask,
    regions_from_label_probabilities,
)

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


def test_the_most_probable_label_is_the_argmax_of_averaged_softmaxes():
    logits = np.random.default_rng(0).normal(size=(3, 4, 9, 8, 7)).astype(np.float32)
    softmaxes = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    regions = np.mean([regions_from_label_probabilities(softmax) for softmax in softmaxes], axis=0, dtype=np.float32)
    found = most_probable_labels(regions)
    assert found.dtype == np.uint8
    assert set(np.unique(found)) == {0, 1, 2, 3}
    np.testing.assert_array_equal(found, softmaxes.mean(axis=0).argmax(axis=0))


def test_equal_probabilities_fall_to_the_lower_label():
    assert most_probable_labels(np.zeros((3, 1, 1, 1), np.float32)).item() == 0
    regions = np.array([0.5, 0.0, 0.0], np.float32).reshape(3, 1, 1, 1)
    assert most_probable_labels(regions).item() == 0
    regions = np.array([1.0, 0.5, 0.0], np.float32).reshape(3, 1, 1, 1)
    assert most_probable_labels(regions).item() == 1
