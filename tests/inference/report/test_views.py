"""Slices: the right way round, at the right place, with sensible grey levels."""

from __future__ import annotations

import numpy as np
import pytest

from inference.labels import Label
from inference.report.views import (
    EDGE_MARKS,
    LABEL_COLOURS,
    View,
    brain_box,
    brightness,
    choose_views,
    extent_mm,
    slice_of,
)

RIGHT, FRONT, TOP = (8, 5, 3), (5, 10, 3), (5, 5, 6)
MIDDLE = (5, 5, 3)


def picture_of(voxel, plane):
    """Row and column at which a voxel of an (11, 12, 8) array appears."""
    volume = np.zeros((11, 12, 8), np.uint8)
    volume[voxel] = 1
    index = voxel[{"sagittal": 0, "coronal": 1, "axial": 2}[plane]]
    return tuple(int(i) for i in np.argwhere(slice_of(volume, plane, index))[0])


@pytest.mark.parametrize("plane", ["axial", "coronal"])
def test_patients_right_is_at_the_left_where_r_is_marked(plane):
    assert EDGE_MARKS[plane] == ("R", "L")
    assert picture_of(RIGHT, plane)[1] < picture_of(MIDDLE, plane)[1]


def test_front_is_on_top_of_axial_pictures():
    assert picture_of(FRONT, "axial")[0] < picture_of(MIDDLE, "axial")[0]


def test_front_is_at_the_left_of_sagittal_pictures_where_a_is_marked():
    assert EDGE_MARKS["sagittal"] == ("A", "P")
    assert picture_of(FRONT, "sagittal")[1] < picture_of(MIDDLE, "sagittal")[1]


@pytest.mark.parametrize("plane", ["coronal", "sagittal"])
def test_head_is_on_top(plane):
    assert picture_of(TOP, plane)[0] < picture_of(MIDDLE, plane)[0]


def test_slices_have_the_shape_and_size_of_their_plane():
    volume = np.zeros((11, 12, 8), np.uint8)
    spacing = (1.0, 2.0, 5.0)
    found = {plane: (slice_of(volume, plane, 0).shape, extent_mm(volume.shape, spacing, plane)) for plane in EDGE_MARKS}
    assert found == {
        "axial": ((12, 11), (24.0, 11.0)),
        "coronal": ((8, 11), (40.0, 11.0)),
        "sagittal": ((8, 12), (40.0, 24.0)),
    }


def test_views_show_most_of_each_region():
    labels = np.zeros((30, 30, 60), np.uint8)
    labels[5:25, 5:25, 10] = Label.ED
    labels[5:15, 5:15, 30] = Label.NCR
    labels[8:12, 8:12, 50] = Label.ET
    views = choose_views(labels, labels > 0, (1.0, 1.0, 1.0))
    assert [(view.index, view.reason) for view in views if view.plane == "axial"] == [
        (50, "most ET"),
        (30, "most TC"),
        (10, "most WT"),
    ]
    assert [view.plane for view in views[3:]] == ["coronal", "sagittal"]
    assert 5 <= views[3].index < 15


def test_neighbouring_views_are_shown_once():
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[5:15, 5:15, 10] = Label.ED
    labels[8:12, 8:12, 12] = Label.ET
    views = choose_views(labels, labels > 0, (1.0, 1.0, 1.0))
    assert views[0] == View("axial", 12, "most ET, TC, WT")
    assert len([view for view in views if view.plane == "axial"]) == 1
    apart = choose_views(labels, labels > 0, (1.0, 1.0, 5.0))
    assert len([view for view in apart if view.plane == "axial"]) == 2


def test_without_a_tumour_the_middle_of_the_brain_is_shown():
    brain = np.zeros((20, 20, 20), bool)
    brain[4:9, 10:17, 2:5] = True
    views = choose_views(np.zeros(brain.shape, np.uint8), brain, (1.0, 1.0, 1.0))
    assert [(view.plane, view.index) for view in views] == [("axial", 3), ("coronal", 13), ("sagittal", 6)]


def test_brain_box_has_a_margin_and_stays_in_the_array():
    brain = np.zeros((20, 20, 20), bool)
    brain[1:9, 8:10, 15:20] = True
    assert brain_box(brain, 3) == (slice(0, 12), slice(5, 13), slice(12, 20))
    assert brain_box(np.zeros((2, 3, 4), bool)) == (slice(0, 2), slice(0, 3), slice(0, 4))


def test_negative_brain_is_darker_than_the_rest_and_not_lost_in_the_background():
    volume = np.zeros((10, 10, 10), np.float32)
    volume[2:8, 2:8, 2:8] = np.linspace(-500, 900, 216).reshape(6, 6, 6)
    brain = volume != 0
    grey = brightness(volume, brain)
    assert (grey[~brain] == 0).all()
    assert grey[brain].min() >= 1
    assert grey[brain].max() == 255
    order = np.argsort(volume[brain])
    assert (np.diff(grey[brain][order].astype(int)) >= 0).all()


def test_brightness_of_nothing_and_of_a_constant():
    nothing = np.zeros((3, 3, 3), np.float32)
    assert not brightness(nothing, nothing > 0).any()
    assert brightness(nothing + 7, nothing == 0).min() >= 1


def test_every_label_has_a_colour_that_differs_in_lightness():
    assert set(LABEL_COLOURS) == {Label.NCR, Label.ED, Label.ET}
    light = []
    for colour in LABEL_COLOURS.values():
        red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        light.append(0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2)
    light.sort()
    assert light[1] / light[0] > 1.5
    assert light[2] / light[1] > 1.5
