"""The embedded bundle on real scans of the target population."""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest

from inference import Segmenter
from inference.cli import main
from inference.labels import SEQUENCES

CODES = ["".join(axes) for order in permutations(("RL", "AP", "SI")) for axes in product(*order)]
"""The 48 ways in which a scan can be stored."""
SOME = ("LPS", "SAR")
"""BraTS's adult scans lie LPS; SAR has its axes in another order. `-m slow` takes all."""


@pytest.fixture(scope="module")
def folder(shared_folder):
    return shared_folder / "data" / "africa"


@pytest.fixture(scope="module")
def case(folder):
    name = "BraTS-SSA-00125-000"
    return {sequence: nib.load(folder / name / f"{name}-{sequence}.nii.gz") for sequence in SEQUENCES}


@pytest.fixture(scope="module")
def segmenter(embedded_bundle):
    return Segmenter.load(embedded_bundle)


@pytest.fixture(scope="module")
def expected(segmenter, case):
    return nib.as_closest_canonical(segmenter.segment(**case).image)


def stored_as(image, codes):
    wanted = nib.orientations.axcodes2ornt(tuple(codes))
    return image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), wanted))


def check_orientation(codes, segmenter, case, expected):
    turned = {sequence: stored_as(image, codes) for sequence, image in case.items()}
    result = segmenter.segment(**turned)
    assert nib.aff2axcodes(result.affine) == tuple(codes)
    found = nib.as_closest_canonical(result.image)
    assert np.allclose(found.affine, expected.affine)
    tumour = np.asarray(expected.dataobj) > 0
    same = np.asarray(found.dataobj)[tumour] == np.asarray(expected.dataobj)[tumour]
    assert same.mean() >= 0.999
    assert np.count_nonzero(found.dataobj) == pytest.approx(np.count_nonzero(tumour), rel=1e-3)


def test_there_are_48_orientations():
    assert len(set(CODES)) == 48


@pytest.mark.parametrize("codes", SOME)
def test_orientation_does_not_matter(codes, segmenter, case, expected):
    check_orientation(codes, segmenter, case, expected)


@pytest.mark.slow
@pytest.mark.parametrize("codes", CODES)
def test_no_orientation_matters(codes, segmenter, case, expected):
    check_orientation(codes, segmenter, case, expected)


def test_a_folder_of_scans_gives_one_file_each(folder, embedded_bundle, tmp_path):
    output = tmp_path / "out"
    assert main(["infer", "-i", str(folder), "-o", str(output), "--bundle", str(embedded_bundle)]) == 0
    written = sorted(path.name for path in output.iterdir())
    assert written == ["BraTS-SSA-00002-000.nii.gz", "BraTS-SSA-00125-000.nii.gz"]
    for path in output.iterdir():
        identifier = path.name.removesuffix(".nii.gz")
        source = nib.load(folder / identifier / f"{identifier}-t1n.nii.gz")
        result = nib.load(path)
        assert result.shape == source.shape
        assert np.array_equal(result.affine, source.affine)
        for form in ("get_qform", "get_sform"):
            ours, theirs = (getattr(image.header, form)(coded=True) for image in (result, source))
            assert ours[1] == theirs[1]
        assert result.get_data_dtype() == np.uint8
        # A glioma that a radiologist would call large: neither nothing nor half of the brain.
        assert 20_000 < np.count_nonzero(result.dataobj) < 300_000
