from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, silhouette_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from inference.errors import UsageError
from inference.refine.radiomics import PRESETS
from training.config import SubtypeConfig
from training.data.subtyping import SubtypeFit, fit_subtypes

SETTINGS = PRESETS["paper"]


def fitted(features: NDArray[np.float64], seed: int = 0, **choices: object) -> SubtypeFit:
    return fit_subtypes(features, SubtypeConfig(**choices), seed)


def tumours(kinds: int, per_kind: int = 12, noise: float = 0.3, seed: int = 0) -> tuple[NDArray[np.float64], list[int]]:
    """Features (tumours, 386) around `kinds` far centres, and the kind of each."""
    random = np.random.default_rng(seed)
    kind = np.repeat(np.arange(kinds), per_kind)
    return random.normal(size=(kinds, 386))[kind] + noise * random.normal(size=(len(kind), 386)), kind.tolist()


@pytest.mark.parametrize("scaling", ["l2", "standard"])
@pytest.mark.parametrize("kinds", [2, 5])
def test_the_silhouette_finds_the_kinds_that_are_there(scaling: str, kinds: int) -> None:
    features, kind = tumours(kinds)
    fit = fitted(features, scaling=scaling)
    assert len(fit.model.centroids) == kinds == max(fit.silhouettes, key=lambda k: fit.silhouettes[k])
    assert adjusted_rand_score(kind, fit.clusters) == 1
    assert sorted(fit.silhouettes) == list(range(2, 9))
    assert fit.model.extraction == SETTINGS


@pytest.mark.parametrize(("scaling", "scaler"), [("l2", Normalizer()), ("standard", StandardScaler())])
def test_it_is_scikit_learns_pipeline(scaling: str, scaler: Normalizer | StandardScaler) -> None:
    features, _ = tumours(4, noise=1.0)
    fit = fitted(features, scaling=scaling, clusters=(4,), seed=3)
    reduction = make_pipeline(scaler, PCA(0.99, svd_solver="full")).fit(features)
    reduced = reduction.transform(features)
    kmeans = KMeans(4, n_init=50, random_state=3).fit(reduced)
    assert fit.model.pca_components.shape == (reduced.shape[1], 386)
    assert fit.clusters == tuple(kmeans.labels_.tolist())
    assert fit.silhouettes[4] == pytest.approx(silhouette_score(reduced, kmeans.labels_))
    unseen, _ = tumours(4, noise=1.0, seed=7)
    found = [fit.model.assign(values).cluster for values in unseen]
    assert found == kmeans.predict(reduction.transform(unseen)).tolist()


def test_the_kept_components_explain_the_share_of_variance_and_no_more_than_needed() -> None:
    features, _ = tumours(4, noise=1.0)
    scaled = StandardScaler().fit_transform(features)
    spectrum = np.linalg.svd(scaled - scaled.mean(axis=0), compute_uv=False) ** 2
    shares = np.cumsum(spectrum) / spectrum.sum()
    kept = len(fitted(features, scaling="standard").model.pca_components)
    assert shares[kept - 1] >= 0.99 > shares[kept - 2]
    everything = fitted(features, scaling="standard", variance=1.0).model
    assert len(everything.pca_components) == len(features)


def test_the_tumours_that_were_fitted_are_assigned_their_own_subtype() -> None:
    features, _ = tumours(3, noise=1.5)
    fit = fitted(features, scaling="standard")
    assert tuple(fit.model.assign(values).cluster for values in features) == fit.clusters


def test_the_same_seed_gives_the_same_model() -> None:
    features, _ = tumours(6, per_kind=4, noise=2.0)
    first, second = (fitted(features, seed=5) for _ in range(2))
    assert first.clusters == second.clusters
    np.testing.assert_array_equal(first.model.centroids, second.model.centroids)


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_tumours_are_one_subtype(count: int) -> None:
    features, _ = tumours(1, per_kind=count)
    fit = fitted(features)
    assert fit.clusters == (0,) * count
    assert fit.silhouettes == {}
    assert fit.model.assign(features[0]).cluster == 0


@pytest.mark.parametrize("scaling", ["l2", "standard"])
def test_tumours_that_are_all_alike_are_one_subtype(scaling: str) -> None:
    fit = fitted(np.tile(tumours(1, 1)[0], (6, 1)), scaling=scaling)
    assert fit.clusters == (0,) * 6


def test_counts_beyond_the_tumours_are_not_tried() -> None:
    features, _ = tumours(2, per_kind=3)
    assert sorted(fitted(features, clusters=(2, 4, 6, 8)).silhouettes) == [2, 4]


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(UsageError, match=r"shape \(24, 385\), expected \(tumours, 386\)"):
        fitted(tumours(2)[0][:, 1:])
    with pytest.raises(UsageError, match=r"shape \(0, 386\)"):
        fitted(np.zeros((0, 386)))
