"""Thick slices, shading and noise."""

from __future__ import annotations

import numpy as np
import pytest

from training.data.phantoms.picture import correlated_noise, smooth_field, thick_slices


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
