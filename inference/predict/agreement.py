"""How far the networks of an ensemble agree on a scan: voxel by voxel, and in one number per region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.labels import REGIONS


@dataclass(frozen=True)
class Agreement:
    """How single networks compare with the ensemble of them."""

    spread: NDArray[np.float32]
    """(3, X, Y, Z), WT TC ET: standard deviation over networks of the probability, weighted by their
    shares of the ensemble. 0 where all say the same, at most 0.5 (half say 0, half say 1)."""
    overlap: Mapping[str, float]
    """Per region the mean over networks, weighted by their shares, of the Dice of the network's mask with the
    ensemble's, both by the bundle's region threshold and before refinement; 1 where both are empty."""


class Comparison:
    """Takes in every network of an ensemble once, and then compares all of them with their weighted mean."""

    def __init__(self, thresholds: Sequence[float]) -> None:
        self._thresholds = np.asarray(thresholds, np.float32).reshape(-1, 1, 1, 1)
        self._squares: NDArray[np.float32] | None = None
        # Masks wait as bits for the mean, which is known only at the end: ten probability maps would take gigabytes.
        self._masks: list[tuple[float, NDArray[np.uint8]]] = []

    def update(self, probabilities: NDArray[np.float32], share: float) -> None:
        """Take in what one network says of the crop (3, X, Y, Z); the shares of all networks add up to 1."""
        squares = np.square(probabilities)
        squares *= np.float32(share)
        self._squares = squares if self._squares is None else np.add(self._squares, squares, out=self._squares)
        self._masks.append((share, self._bits(probabilities)))

    def finalise(self, mean: NDArray[np.float32]) -> Agreement:
        """The agreement of all that was taken in with the ensemble's probabilities of the crop (3, X, Y, Z)."""
        assert self._squares is not None, "an ensemble has at least one network"
        # Rounding can take a variance of nothing below zero.
        spread = np.sqrt(np.maximum(self._squares - np.square(mean), 0))
        whole = self._bits(mean)
        overlaps = np.sum([share * _dice(mask, whole) for share, mask in self._masks], axis=0)
        return Agreement(
            spread, {region: round(float(value), 4) for region, value in zip(REGIONS, overlaps, strict=True)}
        )

    def _bits(self, probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Masks (3, bytes) of probabilities (3, X, Y, Z)."""
        return np.packbits((probabilities > self._thresholds).reshape(len(REGIONS), -1), axis=1)


def _dice(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Dice per region of two masks (3, bytes); 1 where both are empty."""
    common, first, second = (np.bitwise_count(mask).sum(axis=1, dtype=np.float64) for mask in (one & other, one, other))
    return np.where(first + second > 0, 2 * common / np.maximum(first + second, 1), 1.0)
