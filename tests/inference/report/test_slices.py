"""Stacks for the viewer: the right slices, the right way round, small."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from inference.errors import FolderError
from inference.labels import Label
from inference.report.slices import SliceStack, read_slices, stack_slices, write_slices

SPACING = (1.0, 1.0, 1.0)


def case(shape=(60, 70, 50)) -> tuple[np.ndarray, np.ndarray]:
    """A block of a brain, brightest at the patient's right; a tumour at the right, in front, most of it in slice 31."""
    data = np.zeros((4, *shape), np.float32)
    data[:, 10:50, 10:60, 5:45] = np.linspace(100, 900, 40)[None, :, None, None]
    labels = np.zeros(shape, np.uint8)
    labels[40:48, 50:58, 25:36] = Label.ED
    labels[42:46, 52:56, 31] = Label.ET
    labels[38:48, 50:58, 31][labels[38:48, 50:58, 31] == 0] = Label.ED
    return data, labels


def tile_of(stack: SliceStack, sheet: bytes, number: int) -> np.ndarray:
    width, height = stack.tile
    left, top = width * (number % stack.columns), height * (number // stack.columns)
    return np.asarray(Image.open(io.BytesIO(sheet)).convert("RGBA").crop((left, top, left + width, top + height)))


def test_the_first_slice_shown_is_the_one_with_most_tumour():
    stack = stack_slices(*case(), SPACING)
    assert stack.positions[stack.start] == 31


def test_slices_are_evenly_spaced_and_cover_the_brain():
    stack = stack_slices(*case(), SPACING)
    steps = np.diff(stack.positions)
    assert set(steps) == {3}
    assert stack.positions[0] <= 6
    assert stack.positions[-1] >= 42


def test_thick_slices_are_all_kept_and_long_scans_are_thinned():
    data, labels = case()
    assert set(np.diff(stack_slices(data, labels, (1.0, 1.0, 5.0)).positions)) == {1}
    long = np.ones((4, 4, 4, 1000), np.float32)
    assert len(stack_slices(long, np.zeros(long.shape[1:], np.uint8), (1.0, 1.0, 3.0)).positions) <= 64


def test_the_patients_right_is_at_the_left_and_the_front_on_top():
    data, labels = case()
    stack = stack_slices(data, labels, SPACING)
    regions = tile_of(stack, stack.regions, stack.start)
    where = np.argwhere(regions[..., 3] > 0)
    assert where[:, 1].max() < stack.tile[0] / 2
    assert where[:, 0].max() < stack.tile[1] / 2
    grey = tile_of(stack, stack.t1c, stack.start)[..., 0].astype(int)
    middle = stack.tile[1] // 2
    assert grey[middle, 8] > grey[middle, -9] + 50


def test_pixels_are_square_millimetres():
    data, labels = case()
    assert stack_slices(data, labels, SPACING).tile == (44, 54)
    assert stack_slices(data, labels, (2.0, 0.5, 1.0)).tile == (88, 27)


def test_regions_are_washed_inside_and_opaque_at_the_border_and_nothing_elsewhere():
    stack = stack_slices(*case(), SPACING)
    opacity = tile_of(stack, stack.regions, stack.start)[..., 3]
    assert set(np.unique(opacity)) == {0, 70, 255}
    bare = tile_of(stack, stack.regions, 0)
    assert not bare[..., 3].any()


def test_colours_are_those_of_the_labels():
    stack = stack_slices(*case(), SPACING)
    tile = tile_of(stack, stack.regions, stack.start)
    found = {"#{:02X}{:02X}{:02X}".format(*pixel[:3]) for pixel in tile[tile[..., 3] > 0]}
    assert found == {"#56B4E9", "#F0E442"}


def test_empty_segmentation_and_empty_scan():
    data, labels = case()
    assert len(stack_slices(data, np.zeros_like(labels), SPACING).positions) > 5
    stack = stack_slices(np.zeros_like(data), np.zeros_like(labels), SPACING)
    assert not tile_of(stack, stack.t1c, 0)[..., :3].any()


def test_a_stack_reads_back(tmp_path):
    stack = stack_slices(*case(), SPACING)
    write_slices(stack, tmp_path / "a.slices.json")
    assert read_slices(tmp_path / "a.slices.json") == stack


@pytest.mark.parametrize("contents", [b"", b"{}", b"[]", b"\xff\xfe", b'{"tile": [1, 2], "t1c": 5}', b"null"])
def test_a_file_that_is_none_is_none(tmp_path, contents):
    path = tmp_path / "a.slices.json"
    path.write_bytes(contents)
    assert read_slices(path) is None
    assert read_slices(tmp_path / "absent") is None


def test_sheets_that_are_not_base64_are_refused(tmp_path):
    stack = stack_slices(*case(), SPACING)
    path = tmp_path / "a.slices.json"
    path.write_text(stack.as_json().replace('"t1c": "', '"t1c": "</script>'))
    assert read_slices(path) is None


def test_start_outside_the_stack_is_moved_inside(tmp_path):
    stack = replace(stack_slices(*case(), SPACING), start=999)
    write_slices(stack, tmp_path / "a.slices.json")
    found = read_slices(tmp_path / "a.slices.json")
    assert found is not None
    assert found.start == len(stack.positions) - 1


def test_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FolderError, match="nowhere"):
        write_slices(stack_slices(*case(), SPACING), tmp_path / "nowhere" / "a.slices.json")
