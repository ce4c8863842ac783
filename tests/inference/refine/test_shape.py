from __future__ import annotations

import logging

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from inference.refine.shape import shape_features

Spacing = tuple[float, float, float]


def pyradiomics_shape(tumour: NDArray[np.bool_], spacing: Spacing) -> dict[str, float]:
    from radiomics.shape import RadiomicsShape

    logging.getLogger("radiomics").setLevel(logging.CRITICAL)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(tumour.T.astype(np.uint8)))
    image.SetSpacing(spacing)
    calculator = RadiomicsShape(image, image)
    calculator.enableAllFeatures()
    return {name: float(value) for name, value in calculator.execute().items()}


def assert_equal_to_pyradiomics(tumour: NDArray[np.bool_], spacing: Spacing) -> None:
    expected = pyradiomics_shape(tumour, spacing)
    found = shape_features(tumour, spacing)
    assert found == {name: pytest.approx(value, rel=1e-9, abs=1e-6) for name, value in expected.items()}
    assert list(found) == list(expected)


@given(
    st.integers(0, 10**6), st.tuples(*[st.integers(2, 9)] * 3), st.tuples(*[st.sampled_from([0.5, 1.0, 1.2, 3.0])] * 3)
)
@settings(max_examples=60, deadline=None)
def test_noise_with_every_kind_of_corner_and_hole(seed: int, size: tuple[int, int, int], spacing: Spacing) -> None:
    random = np.random.default_rng(seed)
    tumour = random.random(size) < random.uniform(0.2, 0.95)
    tumour[tuple(np.array(size) // 2)] = tumour[0, 0, 0] = True
    assert_equal_to_pyradiomics(tumour, spacing)


@pytest.mark.parametrize("seed", range(4))
def test_smooth_tumours(seed: int) -> None:
    random = np.random.default_rng(seed)
    bumps = gaussian_filter(random.normal(size=(30, 24, 36)), 3)
    assert_equal_to_pyradiomics(bumps > np.quantile(bumps, 0.7), (1.0, 0.9, 1.5))


def test_a_block_is_measured() -> None:
    block = np.zeros((14, 9, 8), bool)
    block[2:12, 2:6, 3:5] = True
    found = shape_features(block, (1.0, 2.0, 3.0))
    assert found["VoxelVolume"] == 10 * 4 * 2 * 6
    # Mesh points lie half a voxel beyond the outermost centres along one axis, not along two.
    assert found["Maximum2DDiameterColumn"] == pytest.approx(max(np.hypot(10, 3), np.hypot(9, 6)))
    assert found["Maximum2DDiameterSlice"] == pytest.approx(max(np.hypot(10, 6), np.hypot(9, 8)))
    assert found["Maximum2DDiameterRow"] == pytest.approx(max(np.hypot(8, 3), np.hypot(6, 6)))
