"""A tumour's subtype: its features scaled, projected onto principal components, and the nearest centroid.

What scikit-learn fitted is kept as plain arrays and applied here, so that no pickle and no scikit-learn is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from inference.bundle.tables import SubtypeTables
from inference.errors import BundleError
from inference.refine.radiomics import FEATURE_NAMES, ExtractionSettings
from inference.schema import convert, mismatch


@dataclass(frozen=True)
class Subtype:
    """The subtype of one tumour."""

    cluster: int
    """Index of the nearest centroid, the first among equals."""
    distances: tuple[float, ...]
    """Euclidean distances to the two nearest centroids in the space of the principal components, nearest first; one
    where the model has a single centroid."""


@dataclass(frozen=True)
class SubtypeModel:
    """A fitted subtype model as arrays; (386,) is the length of :data:`inference.refine.radiomics.FEATURE_NAMES`."""

    extraction: ExtractionSettings
    """How the features have to be extracted."""
    scaling: str
    """`l2`: each case to unit length (scikit-learn's `Normalizer`); `standard`: each feature to zero mean and unit
    variance (`StandardScaler`); `none`."""
    pca_mean: NDArray[np.float64]
    """(386,), subtracted after scaling."""
    pca_components: NDArray[np.float64]
    """(components, 386)."""
    centroids: NDArray[np.float64]
    """(k, components)."""
    mean: NDArray[np.float64] | None = None
    """(386,) for `standard`."""
    scale: NDArray[np.float64] | None = None
    """(386,) for `standard`, above 0."""

    def project(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Feature values (..., 386) as principal components (..., components)."""
        projected: NDArray[np.float64] = (self._scaled(values) - self.pca_mean) @ self.pca_components.T
        return projected

    def assign(self, values: NDArray[np.float64]) -> Subtype:
        """The subtype of a tumour with these features (386,): the nearest centroid, as in scikit-learn."""
        distances = np.linalg.norm(self.centroids - self.project(values), axis=1)
        return Subtype(int(np.argmin(distances)), tuple(np.sort(distances)[:2].tolist()))

    def _scaled(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.scaling == "l2":
            # A vector of zeros stays one, as in scikit-learn.
            lengths = np.linalg.norm(values, axis=-1, keepdims=True)
            scaled: NDArray[np.float64] = values / np.where(lengths > 0, lengths, 1)
            return scaled
        if self.scaling == "standard":
            assert self.mean is not None
            assert self.scale is not None
            return (values - self.mean) / self.scale
        return values


class _Stored(msgspec.Struct):
    extraction: ExtractionSettings


def subtype_model(tables: SubtypeTables) -> SubtypeModel:
    """The model in the tables of a bundle's `subtypes.json`, whose shapes are checked already.

    Raises :class:`BundleError` where the features or their settings are not ones that can be extracted.
    """
    file, count = "subtypes.json", len(FEATURE_NAMES)
    # Centroids are arrays without names: features in another order would give some subtype all the same.
    if len(tables.features) != count:
        raise mismatch(file, "features", len(tables.features), f"{count} names", BundleError)
    for index, (found, expected) in enumerate(zip(tables.features, FEATURE_NAMES, strict=True)):
        if found != expected:
            raise mismatch(file, f"features[{index}]", found, expected, BundleError)
    stored = convert({"extraction": tables.extraction}, _Stored, BundleError, file)
    return SubtypeModel(stored.extraction, tables.scaling, **tables.arrays)


def subtype_tables(model: SubtypeModel) -> SubtypeTables:
    """Tables of a model as a bundle stores them; the inverse of :func:`subtype_model`."""
    arrays = {name: getattr(model, name) for name in ("pca_mean", "pca_components", "centroids", "mean", "scale")}
    return SubtypeTables(
        features=FEATURE_NAMES,
        extraction=msgspec.to_builtins(model.extraction),
        scaling=model.scaling,
        clusters=len(model.centroids),
        arrays={name: array for name, array in arrays.items() if array is not None},
    )
