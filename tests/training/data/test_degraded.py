"""The Africa-like form of a scan: same geometry and mask, degraded intensities."""

from __future__ import annotations

import numpy as np
import pytest

from training.data.degraded import change_contrast, correlated_noise, degrade, smooth_field, thick_slices
from training.data.phantoms import make_phantom


@pytest.fixture(scope="module")
def scan() -> np.ndarray:
    return make_phantom(0, (72, 72, 62)).data


def test_deterministic_by_seed(scan):
    np.testing.assert_array_equal(degrade(scan, 5), degrade(scan, 5))
    assert (degrade(scan, 5) != degrade(scan, 6)).any()


def test_input_is_left_alone(scan):
    before = scan.copy()
    degrade(scan, 5)
    np.testing.assert_array_equal(scan, before)


@pytest.mark.parametrize("seed", range(6))
def test_background_stays_exactly_zero_and_brain_stays_brain(scan, seed):
    result = degrade(scan, seed)
    assert result.dtype == np.float32
    brain = (scan != 0).any(axis=0)
    np.testing.assert_array_equal(result != 0, np.broadcast_to(brain, scan.shape))
    assert np.isfinite(result).all()


@pytest.mark.parametrize("seed", range(6))
def test_some_brain_voxels_are_negative(scan, seed):
    assert (degrade(scan, seed) < 0).any()


def test_sequences_stay_recognisable(scan):
    brain = (scan != 0).any(axis=0)
    for seed in range(4):
        for before, after in zip(scan, degrade(scan, seed), strict=True):
            assert np.corrcoef(before[brain], after[brain])[0, 1] > 0.5


def test_empty_scan_stays_empty():
    assert not degrade(np.zeros((4, 8, 8, 8), np.float32), 1).any()


def test_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape \(4, X, Y, Z\)"):
        degrade(np.zeros((3, 8, 8, 8), np.float32), 1)


def test_thick_slices_blur_along_z_only():
    volume = np.random.default_rng(0).standard_normal((20, 20, 40)).astype(np.float32)
    brain = np.ones(volume.shape, bool)
    blurred = thick_slices(volume, brain, 5.0)
    along_z = np.abs(np.diff(blurred, axis=2)).mean() / np.abs(np.diff(volume, axis=2)).mean()
    along_x = np.abs(np.diff(blurred, axis=0)).mean() / np.abs(np.diff(volume, axis=0)).mean()
    assert along_z < 0.15
    assert along_x > 2 * along_z


def test_thick_slices_keep_a_constant_brain_up_to_its_edge():
    brain = np.zeros((6, 6, 30), bool)
    brain[1:5, 1:5, 7:22] = True
    volume = np.where(brain, np.float32(50), 0)
    for phase in (0.0, 0.3, 0.9):
        np.testing.assert_allclose(thick_slices(volume, brain, 4.5, phase)[brain], 50, rtol=1e-5)


def test_slices_thinner_than_a_voxel_change_nothing():
    volume = np.random.default_rng(1).standard_normal((4, 4, 9)).astype(np.float32)
    np.testing.assert_array_equal(thick_slices(volume, np.ones(volume.shape, bool), 0.8), volume)


def test_contrast_is_monotonic_and_one_changes_nothing():
    volume = np.linspace(-50, 900, 8 * 8 * 8, dtype=np.float32).reshape(8, 8, 8)
    brain = np.ones(volume.shape, bool)
    np.testing.assert_allclose(change_contrast(volume, brain, 1.0), volume, atol=1e-2)
    assert (np.diff(change_contrast(volume, brain, 1.4).ravel()) >= 0).all()


def test_bias_field_stays_within_its_strength():
    field = smooth_field((20, 30, 10), 0.2, np.random.default_rng(0))
    assert field.shape == (20, 30, 10)
    assert np.abs(field - 1).max() == pytest.approx(0.2, rel=1e-5)
    assert np.abs(np.diff(field, axis=1)).max() < 0.05


def test_noise_has_unit_deviation_and_is_correlated_in_plane():
    noise = correlated_noise((60, 60, 40), np.random.default_rng(0))
    assert noise.std() == pytest.approx(1, abs=0.05)
    assert np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1] > 0.3
    assert abs(np.corrcoef(noise[..., 1:].ravel(), noise[..., :-1].ravel())[0, 1]) < 0.05
