"""Intensity and texture features are those of pyradiomics, on tumours of every shape and any number of grey levels."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from inference.refine.components import bounding_box, largest_component
from inference.refine.texture import intensity_features

SPACING = (1.0, 0.9, 1.5)


def pyradiomics(values: NDArray[np.float64], tumour: NDArray[np.bool_], **bins: float) -> dict[str, dict[str, float]]:
    import radiomics

    logging.getLogger("radiomics").setLevel(logging.CRITICAL)
    images = [SimpleITK.GetImageFromArray(np.ascontiguousarray(array.T)) for array in (values, tumour.astype(np.uint8))]
    for image in images:
        image.SetSpacing(SPACING)
    found = {}
    for kind in ("firstorder", "glcm", "gldm", "glrlm", "glszm", "ngtdm"):
        calculator = radiomics.getFeatureClasses()[kind](*images, **bins)
        calculator.enableAllFeatures()
        with np.errstate(all="ignore"):
            found[kind] = {name: float(value) for name, value in calculator.execute().items()}
    return found


def assert_equal_to_pyradiomics(
    values: NDArray[np.float64], tumour: NDArray[np.bool_], bin_width: float | None, bin_count: int | None
) -> None:
    bins = {"binCount": bin_count} if bin_width is None else {"binWidth": bin_width}
    found = intensity_features(values, tumour, float(np.prod(SPACING)), bin_width=bin_width, bin_count=bin_count)
    expected = pyradiomics(values, tumour, **bins)
    assert sum(map(len, expected.values())) == 93
    for kind, features in expected.items():
        assert {name: found[kind][name] for name in features} == {
            name: pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True) for name, value in features.items()
        }


def thick(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest component of a mask in its box, two voxels thick or more."""
    mask = mask.copy()
    mask[:2, :2, :2] = True
    mask = largest_component(mask)
    return mask[bounding_box(mask)]


@given(
    st.integers(0, 10**6),
    st.tuples(*[st.integers(2, 8)] * 3),
    st.sampled_from([(25.0, None), (0.3, None), (None, 32), (None, 1), (None, 3)]),
    st.sampled_from(["noise", "whole numbers", "flat", "wide"]),
)
@settings(max_examples=60, deadline=None)
def test_noise_in_ragged_tumours(
    seed: int, size: tuple[int, int, int], bins: tuple[float | None, int | None], kind: str
) -> None:
    random = np.random.default_rng(seed)
    tumour = thick(random.random(size) < random.uniform(0.2, 0.95))
    values = random.normal(size=tumour.shape)
    if kind == "whole numbers":
        values = np.round(3 * values)
    elif kind == "flat":
        values[...] = random.normal()
    elif kind == "wide":
        values *= 10
    assert_equal_to_pyradiomics(values, tumour, *bins)


@pytest.mark.parametrize("bins", [(25.0, None), (0.1, None), (None, 32)])
def test_smooth_tumours(bins: tuple[float | None, int | None]) -> None:
    random = np.random.default_rng(0)
    bumps = gaussian_filter(random.normal(size=(30, 24, 36)), 3)
    tumour = thick(bumps > np.quantile(bumps, 0.7))
    values = gaussian_filter(random.normal(size=tumour.shape), 1.5)
    values[tuple(np.argwhere(tumour)[40])] = 30  # a level of one voxel, and many that are empty
    assert_equal_to_pyradiomics(values, tumour, *bins)


def test_a_checkerboard_is_measured() -> None:
    tumour = np.ones((4, 4, 4), bool)
    values = np.indices(tumour.shape).sum(axis=0) % 2.0
    found = intensity_features(values, tumour, 1.0, bin_width=None, bin_count=2)
    assert found["firstorder"]["Mean"] == 0.5
    assert found["firstorder"]["Entropy"] == pytest.approx(1)
    assert found["glszm"]["ZonePercentage"] == 2 / 64  # voxels of a level touch across edges
    # Levels differ across faces and corners (7 directions of 13), and are alike across edges.
    assert found["glcm"]["Contrast"] == pytest.approx(7 / 13)
