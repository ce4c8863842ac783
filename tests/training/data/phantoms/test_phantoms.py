"""Phantoms: deterministic, anatomically consistent, with the contrasts of real scans."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from inference.labels import SEQUENCES, Label, region_mask
from training.data.phantoms import Phantom, make_phantom, write_phantom

SHAPE = (96, 96, 62)
SPACING = 2.5
SEEDS = range(8)


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [make_phantom(seed, SHAPE) for seed in SEEDS]


def brain_of(phantom: Phantom) -> np.ndarray:
    return (phantom.data != 0).any(axis=0)


def z_scores(phantom: Phantom) -> np.ndarray:
    brain = brain_of(phantom)
    return np.stack([(volume - volume[brain].mean()) / volume[brain].std() for volume in phantom.data])


def test_same_seed_same_phantom_other_seed_other(phantoms):
    again = make_phantom(1, SHAPE)
    np.testing.assert_array_equal(again.data, phantoms[1].data)
    np.testing.assert_array_equal(again.labels, phantoms[1].labels)
    assert (phantoms[1].data != phantoms[2].data).any()
    assert (phantoms[1].labels != phantoms[2].labels).any()


def test_types_and_shapes(phantoms):
    for phantom in phantoms:
        assert phantom.data.shape == (len(SEQUENCES), *SHAPE)
        assert phantom.data.dtype == np.float32
        assert phantom.labels.dtype == np.uint8
        assert np.isfinite(phantom.data).all()
        assert set(np.unique(phantom.labels)) <= {0, Label.NCR, Label.ED, Label.ET}


def test_background_is_exactly_zero_in_all_sequences_alike(phantoms):
    for phantom in phantoms:
        masks = phantom.data != 0
        assert (masks == masks[0]).all()
        assert not masks[:, [0, -1]].any()
        assert not masks[:, :, [0, -1]].any()


def test_tumour_lies_inside_the_brain(phantoms):
    for phantom in phantoms:
        assert brain_of(phantom)[phantom.labels > 0].all()


def test_volumes_are_those_of_brains_and_gliomas(phantoms):
    millilitres = SPACING**3 / 1000
    for phantom in phantoms:
        assert 1150 < brain_of(phantom).sum() * millilitres < 1800
        assert 1 < (phantom.labels > 0).sum() * millilitres < 350
        assert region_mask(phantom.labels, "TC").any()


def test_kinds_of_tumour_vary(phantoms):
    enhancing = [bool(region_mask(phantom.labels, "ET").any()) for phantom in phantoms]
    assert any(enhancing)
    assert not all(enhancing)
    volumes = [(phantom.labels > 0).sum() for phantom in phantoms]
    assert max(volumes) > 3 * min(volumes)


def test_brain_lies_where_sri24_has_it(phantoms):
    for phantom in phantoms:
        centre = np.argwhere(brain_of(phantom)).mean(axis=0) * SPACING
        np.testing.assert_allclose(centre, (120, 104, 77), atol=9)


def test_tumours_stay_on_their_side_of_the_falx(phantoms):
    right = [np.argwhere(region_mask(phantom.labels, "TC"))[:, 0] > SHAPE[0] / 2 for phantom in phantoms]
    assert all(side.mean() > 0.9 or side.mean() < 0.1 for side in right)
    assert len({side.mean() > 0.5 for side in right}) == 2


def test_contrast_of_lesions(phantoms):
    t1n, t1c, t2w, t2f = range(4)
    for phantom in phantoms:
        z = z_scores(phantom)
        healthy = binary_erosion(brain_of(phantom), iterations=4) & (phantom.labels == 0)
        oedema = phantom.labels == Label.ED
        assert np.median(z[t2f][oedema]) > np.median(z[t2f][healthy]) + 0.5
        assert np.median(z[t2w][oedema]) > np.median(z[t2w][healthy]) + 0.3
        enhancing = phantom.labels == Label.ET
        if enhancing.sum() > 30:
            assert np.median(z[t1c][enhancing]) > np.percentile(z[t1c][healthy], 85)
            assert np.median(z[t1c][enhancing]) > np.median(z[t1n][enhancing]) + 0.7


def test_ventricles_are_dark_on_t1_and_flair_and_bright_on_t2(phantoms):
    for phantom in phantoms:
        z = z_scores(phantom)
        deep = binary_erosion(brain_of(phantom), iterations=8) & (phantom.labels == 0)
        fluid = deep & (z[2] > np.percentile(z[2][deep], 98))
        assert np.median(z[0][fluid]) < np.percentile(z[0][deep], 15)
        assert np.median(z[3][fluid]) < np.percentile(z[3][deep], 15)


def test_the_same_brain_at_any_resolution():
    coarse = make_phantom(3, (48, 48, 31))
    fine = make_phantom(3, SHAPE)
    seen = fine.labels[::2, ::2, ::2] > 0
    overlap = 2 * (seen & (coarse.labels > 0)).sum() / (seen.sum() + (coarse.labels > 0).sum())
    assert overlap > 0.7


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PIR"])
def test_written_files_hold_the_phantom(tmp_path, phantoms, orientation):
    case = write_phantom(tmp_path, "P-1", replace(phantoms[0], spacing=(SPACING,) * 3), orientation, with_labels=True)
    assert sorted(path.name for path in case.iterdir()) == sorted(f"P-1-{n}.nii.gz" for n in (*SEQUENCES, "seg"))
    for index, name in enumerate(SEQUENCES):
        image = nib.load(case / f"P-1-{name}.nii.gz")
        assert "".join(nib.aff2axcodes(image.affine)) == orientation
        canonical = nib.as_closest_canonical(image)
        np.testing.assert_array_equal(np.asarray(canonical.dataobj), phantoms[0].data[index])
        np.testing.assert_allclose(canonical.header.get_zooms(), SPACING)
    truth = nib.as_closest_canonical(nib.load(case / "P-1-seg.nii.gz"))
    assert truth.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(truth.dataobj), phantoms[0].labels)


def test_truth_is_written_only_when_asked_for(tmp_path, phantoms):
    case = write_phantom(tmp_path, "P-2", phantoms[0])
    assert not (case / "P-2-seg.nii.gz").exists()
