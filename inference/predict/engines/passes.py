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
from inference.predict.engines.base import Advance, Update, pass_shape
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
        # Networks and their buffers belong to one caller at a time.
        self._lock = threading.RLock()

    def mean_over_folds(
        self,
        model: Model,
        prepared: Preprocessed,
        profile: Profile,
        advance: Advance,
        update: Update | None = None,
    ) -> NDArray[np.float32]:
        """As :class:`inference.predict.engines.base.Engine` says."""
        with self._lock, self._session():
            late = profile is Profile.FAST or model.averaging == "probabilities"
            total: Array | None = None
            for found in self._folds(model, prepared, profile, advance):
                probabilities = found if late else self._probabilities(self._to_crop_grid(found, prepared), model.heads)
                if update is not None:
                    update(self._to_host(self._to_crop_grid(found, prepared) if late else probabilities))
                if total is None:
                    total = probabilities
                else:
                    total += probabilities
            assert total is not None, "a model has at least one fold"
            total /= len(model.folds)
            return self._to_host(self._to_crop_grid(total, prepared) if late else total)

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
        weights = self._to_device(gaussian(patch), exact=True)
        total: Array | None = None
        for tile in windows((z, y, x), patch):
            mirrored = self._mirrored_sum(forward, _part(array, tile), model, advance)
            mirrored *= weights
            if total is None:
                total = self._zeros((len(mirrored), z, y, x))
            part = _part(total, tile)
            part += mirrored
        assert total is not None, "there is at least one tile"
        total /= self._to_device(sum_of_weights((z, y, x), patch), exact=True)
        return total

    def _mirrored_sum(self, forward: Forward[Array], tile: Array, model: Model, advance: Advance) -> Array:
        """Sum of a network's answers for a tile (4, Z, Y, X) in all mirrorings, each turned back."""
        total: Array | None = None
        for axes, logits in zip(MIRRORINGS, forward(self._flip(tile, axes) for axes in MIRRORINGS), strict=True):
            averaged = model.averaging == "probabilities"
            answer = self._flip(self._probabilities(logits, model.heads) if averaged else logits, axes)
            if total is None:
                total = answer
            else:
                total += answer
            advance()
        assert total is not None, "there are eight mirrorings"
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
