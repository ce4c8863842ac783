"""Passes, tiles, mirrorings and the mean over folds, once for both engines, on arrays of either library."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from inference.boxes import Box
from inference.bundle.store import Model
from inference.predict.engines.base import Advance, Update, heads_of, pass_shape
from inference.predict.preprocess import Preprocessed
from inference.predict.tiling import MIRRORINGS, Triple, gaussian, pad, sum_of_weights, windows
from inference.settings import Profile

if TYPE_CHECKING:
    from torch import Tensor

# By name, because torch is loaded for its own engine only.
Array = TypeVar("Array", "NDArray[np.float32]", "Tensor")
Forward = Callable[[Iterable[Array]], Iterator[Array]]
"""Gives logits (heads, Z, Y, X), which are the caller's to change, for each of some arrays (4, Z, Y, X)."""


class PassEngine(ABC, Generic[Array]):
    """Runs a model's networks over a scan. A subclass says how one network is run, and on which arrays."""

    def __init__(self) -> None:
        # Networks and their buffers belong to one caller at a time. Reentrant, because OpenVinoEngine holds it as well.
        self._lock = threading.RLock()

    def mean_over_folds(
        self, model: Model, prepared: Preprocessed, profile: Profile, advance: Advance, update: Update | None = None
    ) -> NDArray[np.float32]:
        """As :class:`inference.predict.engines.base.Engine` says."""
        with self._lock, self._session():
            # Resampling comes before the sigmoid in nnU-Net. Where probabilities are averaged, it comes once, after the
            # mean, and each network is brought to the scan's grid only where it is asked for.
            late = profile is Profile.FAST or model.averaging == "probabilities"

            def folds() -> Iterator[Array]:
                for found in self._folds(model, prepared, profile, advance):
                    if late:
                        probabilities = found
                    else:
                        probabilities = self._probabilities(self._to_crop_grid(found, prepared), model.heads)
                    if update is not None:
                        update(self._to_host(self._to_crop_grid(found, prepared) if late else probabilities))
                    yield probabilities

            mean = _summed(folds())
            mean /= len(model.folds)
            return self._to_host(self._to_crop_grid(mean, prepared) if late else mean)

    def _folds(self, model: Model, prepared: Preprocessed, profile: Profile, advance: Advance) -> Iterator[Array]:
        """Logits (heads, Z, Y, X) of each fold on the network's grid, or its region probabilities (3, Z, Y, X)."""
        fast, patch = profile is Profile.FAST, prepared.plan.patch
        padded, box = pad(prepared.array, pass_shape(prepared.array.shape[1:], model.architecture) if fast else patch)
        array = self._to_device(padded)
        for fold in model.folds:
            with self._opened(model, fold) as forward:
                if fast:
                    (found,) = forward([array])
                    advance()
                else:
                    found = self._tiled(forward, array, patch, model, advance)
            inside = _part(found, box)
            yield self._probabilities(inside, model.heads) if fast else inside

    def _tiled(self, forward: Forward[Array], array: Array, patch: Triple, model: Model, advance: Advance) -> Array:
        """Logits (heads, Z, Y, X), or region probabilities where those are averaged, by tiles and mirrorings."""
        z, y, x = array.shape[1:]
        averaged = model.averaging == "probabilities"

        def mirrored(tile: Array) -> Iterator[Array]:
            """A network's answers for a tile (4, Z, Y, X) in all mirrorings, each turned back."""
            for axes, logits in zip(MIRRORINGS, forward(self._flip(tile, axes) for axes in MIRRORINGS), strict=True):
                yield self._flip(self._probabilities(logits, model.heads) if averaged else logits, axes)
                advance()

        weights = self._to_device(gaussian(patch), exact=True)
        total = self._zeros((3 if averaged else heads_of(model), z, y, x))
        for tile in windows((z, y, x), patch):
            answer = _summed(mirrored(_part(array, tile)))
            # Once for all mirrorings, each of which is turned back already. nnU-Net does the same.
            answer *= weights
            part = _part(total, tile)
            part += answer
        total /= self._to_device(sum_of_weights((z, y, x), patch), exact=True)
        return total

    def _session(self) -> AbstractContextManager[object]:
        """Around all that is computed for a scan."""
        return nullcontext()

    @abstractmethod
    def _opened(self, model: Model, fold: int) -> AbstractContextManager[Forward[Array]]:
        """One fold's network, ready to run; its buffers are given back afterwards."""

    @abstractmethod
    def _probabilities(self, logits: Array, heads: str) -> Array:
        """Probabilities (3, ...) of WT, TC, ET from the logits of region heads (3, ...) or label heads (4, ...)."""

    @abstractmethod
    def _to_crop_grid(self, array: Array, prepared: Preprocessed) -> Array:
        """As :meth:`Preprocessed.to_crop_grid`."""

    @abstractmethod
    def _to_device(self, array: NDArray[np.float32], *, exact: bool = False) -> Array:
        """An array where networks run; `exact`ly, or in the precision that they run in."""

    @abstractmethod
    def _to_host(self, array: Array) -> NDArray[np.float32]:
        """An array as numpy's."""

    @abstractmethod
    def _zeros(self, shape: tuple[int, ...]) -> Array:
        """Zeros in float32 on the device."""

    @abstractmethod
    def _flip(self, array: Array, axes: tuple[int, ...]) -> Array:
        """An array with some axes reversed."""


def _part(array: Array, box: Box) -> Array:
    """The part of an array (C, Z, Y, X) that lies in a box (Z, Y, X), as a view."""
    z, y, x = box
    return array[:, z, y, x]


def _summed(arrays: Iterator[Array]) -> Array:
    """The sum of arrays, of which there is at least one; it takes the place of the first."""
    total = next(arrays)
    for array in arrays:
        total += array
    return total
