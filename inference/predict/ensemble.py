"""The weighted ensemble: every model, every fold, one running sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from inference.errors import DeviceError
from inference.labels import REGIONS
from inference.predict.agreement import Agreement, Comparison
from inference.predict.engines import Engine, Heed, NetworkSource, forward_count
from inference.predict.preprocess import Preprocessed, preprocess_for_all, read_plan, to_canonical_axes
from inference.settings import Profile

Progress = Callable[[int, int], None]
"""Called with the forward passes done so far and in all."""


class NetworkBundle(Protocol):
    """What prediction needs of a bundle."""

    @property
    def models(self) -> Sequence[NetworkSource]:
        """The ensemble's members."""

    @property
    def orientation(self) -> str:
        """Orientation of the arrays that they see: `RAS` or `LPS`."""


@dataclass(frozen=True)
class RegionProbabilities:
    """What an ensemble says of a scan: WT, TC, ET as (3, X, Y, Z) in canonical RAS, zero outside the brain's box."""

    array: NDArray[np.float32]
    """Probabilities of the three regions."""
    agreement: Agreement | None = None
    """How far the networks agree, of the whole scan, where it was asked for."""


def predict(
    data: NDArray[np.float32],
    spacing: Sequence[float],
    bundle: NetworkBundle,
    engine: Engine,
    profile: Profile,
    *,
    progress: Progress | None = None,
    compare_at: Sequence[float] | None = None,
) -> RegionProbabilities:
    """Region probabilities of a scan (4, X, Y, Z) in canonical RAS with voxels of `spacing` (x, y, z) mm.

    Per model the mean over its folds, then over models sum(w P) / sum(w) with their weights w. The scan is preprocessed
    once for models whose plans prepare it alike. With `compare_at` (region thresholds) the networks are also compared
    with their mean, each on the scan's grid; in `fast` on a CPU that takes about a third longer. Raises BundleError for
    plans or networks that are refused, and DeviceError when memory does not suffice or a model's answer is not finite.
    """
    data = _turned(data, bundle.orientation)
    prepared = preprocess_for_all(data, spacing, [read_plan(model.plans) for model in bundle.models])
    passes = (
        len(model.folds) * forward_count(scan.array.shape[1:], scan.plan.patch, profile)
        for model, scan in zip(bundle.models, prepared, strict=True)
    )
    advance = _counter(sum(passes), progress)
    weights = np.array([model.weight for model in bundle.models], np.float32)
    probabilities = np.zeros((len(REGIONS), *prepared[0].scan_shape), np.float32)
    comparison = None if compare_at is None else Comparison(compare_at)
    for model, scan, weight in zip(bundle.models, prepared, weights / weights.sum(), strict=True):
        heed = None if comparison is None else _listener(comparison, scan, float(weight) / len(model.folds))
        crop = _finite(engine.mean_over_folds(model, scan, profile, advance, heed), model)
        _add(probabilities, crop, scan, weight)
    seen = _turned(probabilities, bundle.orientation)
    if comparison is None:
        return RegionProbabilities(seen)
    # All models crop to the same box, that of the voxels which are not zero.
    inside = (slice(None), *(slice(*span) for span in prepared[0].box))
    agreement = comparison.conclude(probabilities[inside])
    spread = np.zeros_like(probabilities)
    spread[inside] = agreement.spread
    return RegionProbabilities(seen, replace(agreement, spread=_turned(spread, bundle.orientation)))


def _finite(crop: NDArray[np.float32], model: NetworkSource) -> NDArray[np.float32]:
    """A model's probabilities (3, Z, Y, X), of which DeviceError refuses NaN: it would pass for no tumour."""
    if not np.isfinite(crop).all():
        raise DeviceError(f"{model.name}: its networks gave probabilities that are no numbers; try another --engine")
    return crop


def _turned(array: NDArray[np.float32], orientation: str) -> NDArray[np.float32]:
    """An array (C, X, Y, Z) in RAS as one in `orientation`, or the other way round: LPS has X and Y reversed."""
    return array if orientation == "RAS" else np.ascontiguousarray(array[:, ::-1, ::-1])


def _listener(comparison: Comparison, scan: Preprocessed, share: float) -> Heed:
    """Hands what a network says on, in the scan's axes."""

    def heed(crop: NDArray[np.float32]) -> None:
        comparison.hear(to_canonical_axes(crop, scan), share)

    return heed


def _add(total: NDArray[np.float32], crop: NDArray[np.float32], scan: Preprocessed, weight: np.float32) -> None:
    """Add a weighted array (3, Z, Y, X) of the crop to a total (3, X, Y, Z) of the whole scan."""
    (x0, x1), (y0, y1), (z0, z1) = scan.box
    total[:, x0:x1, y0:y1, z0:z1] += weight * to_canonical_axes(crop, scan)


def _counter(total: int, progress: Progress | None) -> Callable[[], None]:
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return advance
