"""Tiles, weights and padding equal nnU-Net's."""

from __future__ import annotations

import numpy as np
import pytest

from inference.predict.tiling import MIRRORINGS, gaussian, next_multiple, pad, windows


@pytest.mark.parametrize(
    ("shape", "patch"), [((64, 96, 110), (64, 64, 64)), ((131, 77, 50), (32, 48, 50)), ((33, 40, 47), (32, 16, 8))]
)
def test_windows_equal_nnunet(shape: tuple[int, ...], patch: tuple[int, ...]) -> None:
    from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

    steps = compute_steps_for_sliding_window(shape, patch, 0.5)
    expected = [(z, y, x) for z in steps[0] for y in steps[1] for x in steps[2]]
    found = windows(shape, patch)
    assert [tuple(side.start for side in box) for box in found] == expected
    assert all(tuple(side.stop - side.start for side in box) == patch for box in found)
    covered = np.zeros(shape, bool)
    for box in found:
        covered[box] = True
    assert covered.all()


@pytest.mark.parametrize("patch", [(32, 32, 32), (16, 48, 20), (9, 15, 8)])
def test_gaussian_equals_nnunet(patch: tuple[int, int, int]) -> None:
    import torch
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian

    expected = compute_gaussian(patch, 1 / 8, 1, dtype=torch.float32, device=torch.device("cpu")).numpy()
    assert gaussian(patch) == pytest.approx(expected, rel=1e-5)
    assert gaussian(patch).min() > 0


def test_the_cached_gaussian_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        gaussian((8, 8, 8))[0] = 0


def test_there_are_eight_different_mirrorings() -> None:
    assert len(set(MIRRORINGS)) == 8
    assert MIRRORINGS[0] == ()
    assert MIRRORINGS[-1] == (1, 2, 3)


def test_padding_is_nnunets() -> None:
    from acvl_utils.cropping_and_padding.padding import pad_nd_image

    array = np.random.default_rng(0).normal(size=(2, 3, 34, 55)).astype(np.float32)
    expected, inside = pad_nd_image(array, (8, 32, 64), return_slicer=True)
    padded, box = pad(array, (8, 32, 64))
    np.testing.assert_array_equal(padded, expected)
    assert box == tuple(slice(part.start, part.stop) for part in inside[1:])


def test_next_multiple() -> None:
    assert next_multiple((1, 16, 17), (16, 16, 8)) == (16, 16, 24)
