from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from inference.bundle.tables import parse_subtypes, subtypes_to_json
from inference.errors import BundleError
from inference.refine.radiomics import FEATURE_NAMES, PRESETS, ExtractionSettings
from inference.refine.subtypes import SubtypeModel, subtype_model, subtype_tables
from inference.schema import to_json


def tumours(count: int, seed: int = 0) -> NDArray[np.float64]:
    """Features (count, 386) of tumours of four kinds, of magnitudes as different as real ones are."""
    random = np.random.default_rng(seed)
    kinds = np.random.default_rng(99).normal(size=(4, 386))
    values = kinds[random.integers(0, 4, count)] + 0.4 * random.normal(size=(count, 386))
    return values * np.geomspace(1e-3, 5e10, 386)[np.random.default_rng(98).permutation(386)]


def fitted(scaling: str, clusters: int = 4) -> tuple[SubtypeModel, Pipeline]:
    """A model of scikit-learn's, and the same in arrays."""
    scaler = {"l2": Normalizer(), "standard": StandardScaler(), "none": Normalizer("max")}[scaling]
    steps = [*([] if scaling == "none" else [scaler]), PCA(0.99, svd_solver="full"), KMeans(clusters, random_state=0)]
    pipeline = make_pipeline(*steps).fit(tumours(60))
    pca, kmeans = pipeline[-2:]
    statistics = (scaler.mean_, scaler.scale_) if scaling == "standard" else (None, None)
    arrays = (pca.mean_, pca.components_, kmeans.cluster_centers_, *statistics)
    return SubtypeModel(PRESETS["paper"], scaling, *arrays), pipeline


@pytest.mark.parametrize("scaling", ["l2", "standard", "none"])
def test_assignment_equals_scikit_learn(scaling: str) -> None:
    model, pipeline = fitted(scaling)
    unseen = tumours(200, seed=1)
    found = [model.assign(values) for values in unseen]
    assert [subtype.cluster for subtype in found] == pipeline.predict(unseen).tolist()
    assert len({subtype.cluster for subtype in found}) > 2
    expected = np.sort(pipeline.transform(unseen), axis=1)[:, :2]
    np.testing.assert_allclose([subtype.distances for subtype in found], expected, rtol=1e-6)


def test_a_tumour_without_length_is_not_divided_by_zero() -> None:
    model, pipeline = fitted("l2")
    nothing = np.zeros(386)
    assert model.assign(nothing).cluster == pipeline.predict(nothing[None])[0]


def test_a_single_subtype_has_one_distance() -> None:
    model, _ = fitted("standard", clusters=1)
    subtype = model.assign(tumours(1, seed=2)[0])
    assert subtype.cluster == 0
    assert len(subtype.distances) == 1


@pytest.mark.parametrize("scaling", ["l2", "standard", "none"])
def test_what_a_bundle_stores_gives_the_same_model(scaling: str) -> None:
    model, _ = fitted(scaling)
    stored = subtype_tables(model)
    assert stored.features == FEATURE_NAMES
    again = subtype_model(parse_subtypes(subtypes_to_json(stored), stored.arrays, "subtypes.json"))
    for field in dataclasses.fields(model):
        np.testing.assert_equal(getattr(again, field.name), getattr(model, field.name))


@pytest.mark.parametrize("settings", PRESETS.values(), ids=PRESETS)
def test_settings_survive_json(settings: ExtractionSettings) -> None:
    stored = subtype_tables(dataclasses.replace(fitted("l2")[0], extraction=settings))
    assert (
        subtype_model(dataclasses.replace(stored, extraction=json.loads(to_json(stored.extraction)))).extraction
        == settings
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"statistics": "tumour"}, 'extraction.statistics: found "tumour", expected one of brain, image'),
        ({"bins": {"width": 0}}, "extraction.bins.width: found 0, expected a number above 0"),
        ({"bins": {}}, "extraction.bins: found {}, expected either a width or a count"),
        ({"bins": {"count": 2.5}}, "extraction.bins.count: found 2.5"),
        ({"bins": {"count": 32, "width": 25}}, 'extraction.bins: found {"width": 25.0, "count": 32}, expected either'),
        ({"bins": {"widht": 25}}, "extraction.bins.widht: found an unknown key"),
        ({"smallest_tumour_voxels": 0}, "extraction.smallest_tumour_voxels: found 0"),
        ({"wavelet": True}, "extraction.wavelet: found an unknown key"),
    ],
)
def test_settings_are_checked_key_by_key(change: dict[str, object], message: str) -> None:
    stored = subtype_tables(fitted("l2")[0])
    with pytest.raises(BundleError, match=r"subtypes\.json") as caught:
        subtype_model(dataclasses.replace(stored, extraction={**stored.extraction, **change}))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (FEATURE_NAMES[1:], "features: found 385, expected 386 names"),
        (("shape_Colour", *FEATURE_NAMES[1:]), 'features[0]: found "shape_Colour", expected shape_Elongation'),
        ((FEATURE_NAMES[1], FEATURE_NAMES[0], *FEATURE_NAMES[2:]), 'features[0]: found "shape_Flatness"'),
    ],
)
def test_features_are_checked_name_by_name(names: tuple[str, ...], message: str) -> None:
    stored = subtype_tables(fitted("l2")[0])
    with pytest.raises(BundleError, match=r"subtypes\.json") as caught:
        subtype_model(dataclasses.replace(stored, features=names))
    assert message in str(caught.value)
