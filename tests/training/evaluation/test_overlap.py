from __future__ import annotations

import numpy as np
import pytest

from training.evaluation.overlap import dice, dice_of_sizes


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("1100", "0110", 0.5), ("1100", "1100", 1), ("1000", "0001", 0), ("0000", "0001", 0), ("0000", "0000", 1)],
)
def test_dice(first, second, expected):
    masks = [np.array([letter == "1" for letter in word]) for word in (first, second)]
    assert dice(*masks) == expected
    assert dice_of_sizes(*(int(mask.sum()) for mask in (masks[0] & masks[1], *masks))) == expected
