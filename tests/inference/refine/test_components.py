"""Components are those of scipy, in the order of a scan, also where cc3d fails."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage

from inference.boxes import bounding_box
from inference.refine.components import connected_components, largest_component


@pytest.mark.parametrize("shape", [*itertools.product((1, 2, 3, 5), repeat=3), (1, 1, 40), (40, 1, 1)])
def test_components_are_those_of_scipy(shape):
    random = np.random.default_rng(0)
    masks = [random.random(shape) < share for share in (0.1, 0.3, 0.6)] + [np.indices(shape).sum(axis=0) % 2 == 0]
    for mask in masks:
        expected, _ = ndimage.label(mask, np.ones((3, 3, 3)))
        np.testing.assert_array_equal(connected_components(mask), expected)
        np.testing.assert_array_equal(connected_components(np.asfortranarray(mask)), expected)


def test_touching_labels_are_told_apart():
    labels = np.array([[[1, 1, 2, 0, 1]]], np.uint8)
    assert connected_components(labels).tolist() == [[[1, 1, 2, 0, 3]]]


def test_components_touch_across_corners():
    mask = np.zeros((6, 6, 6), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    mask[4, 4, 4] = True
    assert np.argwhere(largest_component(mask)).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert not largest_component(np.zeros((3, 3, 3), bool)).any()


def test_a_line_of_single_voxels_has_a_largest_component():
    mask = np.zeros((48, 48, 40), bool)
    mask[(10, 12, 14), 5, 5] = True
    assert np.argwhere(largest_component(mask)).tolist() == [[10, 5, 5]]


def test_a_box_is_the_smallest():
    mask = np.zeros((6, 7, 8), bool)
    mask[1, 2, 3] = mask[3, 4, 3] = True
    assert bounding_box(mask) == (slice(1, 4), slice(2, 5), slice(3, 4))
