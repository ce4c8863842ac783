"""Fitting of tumour subtypes: scaling, principal components, k-means with k chosen by the silhouette."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from inference.errors import UsageError
from inference.refine.radiomics import FEATURE_NAMES, PRESETS
from inference.refine.subtypes import SubtypeModel
from training.config import SubtypeConfig

# Starts of every k-means; the best is kept, so that little is left to the seed. scikit-learn's own default is 1.
_STARTS: Final = 50


@dataclass(frozen=True)
class SubtypeFit:
    """A fitted subtype model, and how it came about."""

    model: SubtypeModel
    """The model that assigns a subtype to a tumour."""
    clusters: tuple[int, ...]
    """Subtype of every tumour that it was fitted on."""
    silhouettes: Mapping[int, float]
    """Mean silhouette by number of clusters tried, from -1 to 1; empty where there were too few tumours to try any."""


def fit_subtypes(features: NDArray[np.float64], config: SubtypeConfig, seed: int = 0) -> SubtypeFit:
    """Subtypes of tumours from their features (tumours, 386), which were extracted as the configuration says.

    As many principal components are kept as it takes to explain the configuration's share of the variance. Among its
    numbers of clusters the largest mean silhouette decides, the smaller number among equals. A silhouette needs fewer
    clusters than tumours: numbers beyond that are not tried, and with none left all tumours are one subtype. The same
    features and seed give the same model. Raises :class:`UsageError` for no tumour, or features of another length.
    """
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import Normalizer, StandardScaler

    if features.ndim != 2 or features.shape[1] != len(FEATURE_NAMES) or not len(features):
        raise UsageError(f"subtypes: features of shape {features.shape}, expected (tumours, {len(FEATURE_NAMES)})")
    mean, scale = None, None
    if config.scaling == "l2":
        scaled: NDArray[np.float64] = Normalizer("l2").fit_transform(features)
    else:
        scaler = StandardScaler().fit(features)
        scaled, mean, scale = scaler.transform(features), scaler.mean_, scaler.scale_
    # Without any variance its shares are 0/0.
    if len(features) > 1 and np.ptp(scaled, axis=0).any():
        # The share is a count of components once it reaches 1, so "all of the variance" has to be None.
        pca = PCA(n_components=config.variance if config.variance < 1 else None, svd_solver="full").fit(scaled)
        pca_mean, components = pca.mean_, pca.components_
    else:
        pca_mean, components = scaled.mean(axis=0), np.zeros((1, scaled.shape[1]))
    projected = (scaled - pca_mean) @ components.T
    centroids, clusters, silhouettes = _cluster(projected, config.clusters, seed)
    model = SubtypeModel(PRESETS[config.extraction], config.scaling, pca_mean, components, centroids, mean, scale)
    return SubtypeFit(model, tuple(clusters.tolist()), silhouettes)


def _cluster(
    projected: NDArray[np.float64], counts: Sequence[int], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.int32], dict[int, float]]:
    """Centroids (k, components), the cluster of every tumour, and the silhouettes of all counts that could be tried."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    # k-means warns, and finds fewer clusters, where there are fewer distinct points.
    distinct = len(np.unique(projected, axis=0))
    fits = {}
    silhouettes: dict[int, float] = {}
    for count in sorted(set(counts)):
        if 2 <= count < len(projected) and count <= distinct:
            fits[count] = KMeans(count, n_init=_STARTS, random_state=seed).fit(projected)
            silhouettes[count] = float(silhouette_score(projected, fits[count].labels_))
    if not fits:
        return projected.mean(axis=0, keepdims=True), np.zeros(len(projected), np.int32), {}
    # The first of equals is the smallest, since they are sorted.
    best = fits[max(silhouettes, key=lambda count: silhouettes[count])]
    return best.cluster_centers_, best.labels_, silhouettes
