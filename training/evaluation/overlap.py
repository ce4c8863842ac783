"""Dice of two masks, one way for training, benchmarks and tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Dice of two masks of one shape: 2 |A ∩ B| / (|A| + |B|); 1 where both are empty."""
    sizes = (int(np.count_nonzero(first)), int(np.count_nonzero(second)))
    return dice_of_sizes(int(np.count_nonzero(first & second)), *sizes)


def dice_of_sizes(shared: int, first: int, second: int) -> float:
    """Dice of two sets by what they share and their sizes; 1 where both are empty."""
    # Two empty masks agree in full: the challenge's rule.
    return float(2 * shared / (first + second)) if first + second else 1.0
