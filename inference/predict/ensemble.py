"""The weighted ensemble: every model, every fold, one running sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

import numpy as np
from numpy.typing import NDArray

from inference.bundle.store import Model
from inference.errors import DeviceError
from inference.labels import REGIONS
from inference.predict.agreement import Agreement, Comparison
from inference.predict.engines.base import Engine, forward_count
from inference.predict.preprocess import Preprocessed, preprocess_for_all, read_plan
from inference.settings import Profile

Progress = Callable[[int, int], None]
"""Called with the forward passes done so far and in all."""


@dataclass(frozen=True)
class RegionProbabilities:
    """An ensemble's answer for a scan: WT, TC, ET as (3, X, Y, Z) in canonical RAS, zero outside the brain's box."""

    array: NDArray[np.float32]
    """Probabilities of the three regions."""
    agreement: Agreement | None = None
    """Agreement of the networks on the whole scan, where it was asked for."""


def predict(
    data: NDArray[np.float32],
    spacing: Sequence[float],
    models: Sequence[Model],
    engine: Engine,
    profile: Profile,
    *,
    orientation: str = "RAS",
    progress: Progress | None = None,
    compare_at: Sequence[float] | None = None,
) -> RegionProbabilities:
    """Region probabilities of a scan (4, X, Y, Z) in canonical RAS with voxels of `spacing` (x, y, z) mm.

    `orientation` is that of the arrays that the models' networks see: `RAS` or `LPS`.

    Per model the mean over its folds, then over models sum(w P) / sum(w) with their weights w. The scan is preprocessed
    once for models whose plans prepare it alike. With `compare_at` (region thresholds) the networks are also compared
    with their mean, each on the scan's grid; in `fast` on a CPU that takes about a third longer. Raises BundleError for
    plans or networks that are refused, and DeviceError when memory does not suffice or a model's answer is not finite.
    """
    prepared = preprocess_for_all(data, spacing, [read_plan(model.plans) for model in models], orientation)
    advance = _counter(models, prepared, profile, progress)
    weights = np.array([model.weight for model in models], np.float32)
    comparison = None if compare_at is None else Comparison(compare_at)
    # All models crop to the same box, that of the voxels which are not zero.
    total = np.zeros((len(REGIONS), *(side.stop - side.start for side in prepared[0].box)), np.float32)
    for model, scan, weight in zip(models, prepared, weights / weights.sum(), strict=True):
        share = float(weight) / len(model.folds)
        update = None if comparison is None else partial(_compare, comparison, scan, share)
        crop = engine.mean_over_folds(model, scan, profile, advance, update)
        # Checked before thresholds are applied: to them NaN is no tumour.
        if not np.isfinite(crop).all():
            raise DeviceError(
                f"{model.name}: its networks gave probabilities that are not finite; try another --engine"
            )
        total += weight * scan.to_scan_axes(crop)
    whole = prepared[0].to_whole_scan(total)
    if comparison is None:
        return RegionProbabilities(whole)
    agreement = comparison.finalise(total)
    return RegionProbabilities(whole, replace(agreement, spread=prepared[0].to_whole_scan(agreement.spread)))


def _compare(comparison: Comparison, scan: Preprocessed, share: float, crop: NDArray[np.float32]) -> None:
    comparison.update(scan.to_scan_axes(crop), share)


def _counter(
    models: Sequence[Model], prepared: Sequence[Preprocessed], profile: Profile, progress: Progress | None
) -> Callable[[], None]:
    """A function that reports one more forward pass, of all that these models need for the scan."""
    if progress is None:
        return lambda: None
    total = sum(
        len(model.folds) * forward_count(scan.array.shape[1:], scan.plan.patch, profile)
        for model, scan in zip(models, prepared, strict=True)
    )
    done = count(1)
    return lambda: progress(next(done), total)
