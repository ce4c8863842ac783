"""Scans in canonical RAS, and results back in the geometry of their case."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from inference.intake.cases import Case, find_cases
from inference.intake.geometry import atlas_geometry
from inference.intake.label_map import read_labels, write_labels
from inference.intake.scan import any_geometry, read_scan
from inference.labels import SEQUENCES
from tests.inference.intake.samples import Header, brain, header_for, nifti, put, put_case

CANONICAL = (9, 10, 11)
SPACING = (1.0, 1.5, 2.0)
ORIENTATIONS = [
    np.column_stack([axes, flips])
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]
FORMS = {"both": (2, 3), "qform": (1, 0), "sform": (0, 4)}
RAS = nib.affines.from_matvec(np.diag(SPACING), [-7.25, 3.5, 11])


def in_orientation(canonical: np.ndarray, orientation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A canonical array as it is stored in another orientation, and its affine."""
    back = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), orientation)
    return nib.orientations.apply_orientation(canonical, back), RAS @ nib.orientations.inv_ornt_aff(
        back, canonical.shape
    )


def case_of(folder: Path, files: dict[str, bytes]) -> Case:
    return Case("a", {sequence: put(folder / f"a-{sequence}.nii.gz", contents) for sequence, contents in files.items()})


@pytest.mark.parametrize("forms", FORMS)
@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=lambda ornt: "".join(nib.orientations.ornt2axcodes(ornt)))
def test_every_orientation_reads_the_same_and_is_written_back_exactly(tmp_path, orientation, forms):
    canonical = [brain(number, CANONICAL) for number in range(4)]
    stored = [in_orientation(array, orientation) for array in canonical]
    case = case_of(
        tmp_path,
        {
            sequence: nifti(array, header_for(array, affine, codes=FORMS[forms]))
            for sequence, (array, affine) in zip(SEQUENCES, stored, strict=True)
        },
    )
    scan = read_scan(case)
    np.testing.assert_array_equal(scan.data, np.stack(canonical).astype(np.float32))
    assert scan.repairs == ()
    np.testing.assert_allclose(scan.spacing, SPACING, rtol=1e-6)
    np.testing.assert_allclose(scan.geometry.canonical_affine, RAS, atol=1e-5)

    labels = (np.arange(np.prod(CANONICAL)).reshape(CANONICAL) % 4).astype(np.uint8)
    output = tmp_path / "a.nii.gz"
    write_labels(labels, scan.geometry, output)
    written, source = nib.load(output), nib.load(case.paths["t1n"])
    assert written.shape == source.shape
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(written.affine, source.affine)
    for name in ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "xyzt_units"):
        assert written.header[name] == source.header[name]
    for name in ("srow_x", "srow_y", "srow_z"):
        np.testing.assert_array_equal(written.header[name], source.header[name])
    np.testing.assert_array_equal(written.header["pixdim"][:4], source.header["pixdim"][:4])
    np.testing.assert_array_equal(np.asarray(written.dataobj), in_orientation(labels, orientation)[0])
    read, geometry = read_labels(output)
    np.testing.assert_array_equal(read, labels)
    assert geometry.same_as(scan.geometry)


def test_forty_eight_orientations_are_forty_eight():
    assert len({"".join(nib.orientations.ornt2axcodes(orientation)) for orientation in ORIENTATIONS}) == 48


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("endian", "<>")
def test_what_is_written_carries_nothing_else_of_the_input(tmp_path, version, endian):
    array = brain(0)

    def identify(header: Header) -> None:
        header["descrip"], header["aux_file"], header["intent_name"] = b"Jane Doe", b"1970-01-01", b"ward 7"
        header["cal_max"], header["slice_duration"], header["toffset"] = 200, 3, 4
        header["scl_slope"], header["scl_inter"] = 2, 5

    case = case_of(
        tmp_path,
        {sequence: nifti(array, header_for(array, version=version), identify, endian) for sequence in SEQUENCES},
    )
    scan = read_scan(case)
    assert scan.data.max() == 2 * array.max() + 5
    output = tmp_path / "a.nii"
    write_labels(np.ones(scan.geometry.canonical_shape, np.uint8), scan.geometry, output)
    contents = output.read_bytes()
    assert b"Jane" not in contents
    assert b"1970" not in contents
    header = (nib.Nifti1Header if version == 1 else nib.Nifti2Header)(contents[: 348 if version == 1 else 540], "<")
    assert (float(header["scl_slope"]), float(header["scl_inter"])) == (1, 0)
    assert float(header["cal_max"]) == float(header["toffset"]) == 0
    assert len(contents) == int(header["vox_offset"]) + array.size
    assert nib.load(output).get_fdata().min() == 1


def test_codes_are_those_of_the_t1n(tmp_path):
    array = brain(0)
    codes = {"t1n": (2, 1), "t1c": (1, 1), "t2w": (1, 4), "t2f": (3, 3)}
    files = {sequence: nifti(brain(i), header_for(array, codes=codes[s])) for i, (s, sequence) in enumerate(zip(codes, SEQUENCES, strict=True))}  # fmt: skip  # noqa: E501
    scan = read_scan(case_of(tmp_path, files))
    header = scan.geometry.new_header()
    assert (header["qform_code"], header["sform_code"]) == (2, 1)
    assert scan.repairs == ()


def test_data_lies_in_memory_as_networks_take_it(tmp_path):
    put_case(tmp_path)
    scan = read_scan(find_cases(tmp_path).cases[0])
    assert scan.data.dtype == np.float32
    assert scan.data.transpose(0, 3, 2, 1).flags.c_contiguous


def test_sequences_keep_their_order_by_name(tmp_path):
    paths = put_case(tmp_path)
    scan = read_scan(Case("a", dict(reversed(paths.items()))))
    for number in range(4):
        np.testing.assert_array_equal(scan.data[number], brain(number)[::-1, ::-1].astype(np.float32))


@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32", "float64"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (0.25, 0), (-2, 3), (1e-3, -5)])
def test_values_are_those_that_nibabel_gives(tmp_path, dtype, slope, intercept):
    array = brain(0, dtype=dtype)

    def scale(header: Header) -> None:
        header["scl_slope"], header["scl_inter"] = slope, intercept

    case = case_of(tmp_path, {sequence: nifti(array, edit=scale) for sequence in SEQUENCES})
    expected = nib.as_closest_canonical(nib.load(case.paths["t2w"])).get_fdata().astype(np.float32)
    if intercept:  # which moves the background away from 0, as is noticed
        expected[expected == np.float32(intercept)] = 0
        assert "all sequences: background was" in read_scan(case).repairs[0]
    np.testing.assert_array_equal(read_scan(case).data[2], expected)


def test_a_saturated_voxel_becomes_the_median_of_its_neighbours_and_nothing_else_changes(tmp_path):
    array = brain(0, (40, 40, 40))
    spoilt = array.copy()
    spoilt[20, 20, 20] = 32767
    spoilt[20, 20, 21] = 32767
    case = case_of(
        tmp_path, {sequence: nifti(spoilt if sequence == "t2f" else brain(5, array.shape)) for sequence in SEQUENCES}
    )
    scan = read_scan(case)
    assert scan.repairs == ("t2f: 2 voxels far above the rest (up to 32767), set to the median of the neighbours",)
    expected = array[::-1, ::-1].astype(np.float32)
    changed = scan.data[3] != expected
    assert changed.sum() <= 2
    assert not changed[:19].any()
    around = array[19:22, 19:22, 19:22]
    assert around.min() <= scan.data[3, 19, 19, 20] <= around.max()


def test_a_voxel_at_the_bottom_is_mended_and_the_holes_of_a_brain_are_not_filled(tmp_path):
    array = brain(0, (40, 40, 40))
    array[28:32, 20, 20] = 0
    spoilt = array.copy()
    spoilt[20, 20, 20] = spoilt[0, 0, 1] = -32768
    files = {sequence: nifti(spoilt if sequence == "t1n" else array + 0 * i) for i, sequence in enumerate(SEQUENCES)}
    scan = read_scan(case_of(tmp_path, files))
    assert scan.repairs == ("t1n: 2 voxels far below the rest (up to -32768), set to the median of the neighbours",)
    expected = array[::-1, ::-1].astype(np.float32)
    assert np.argwhere(scan.data[0] != expected).tolist() in ([], [[19, 19, 20]])
    around = spoilt[19:22, 19:22, 19:22]
    assert scan.data[0, 19, 19, 20] == np.median(around[around >= 0])


def test_a_bright_lesion_is_no_artefact(tmp_path):
    array = brain(0, (40, 40, 40))
    array[20:24, 20:24, 20:24] *= 20
    scan = read_scan(case_of(tmp_path, {sequence: nifti(array + 0 * i) for i, sequence in enumerate(SEQUENCES)}))
    assert scan.repairs == ()
    assert scan.data.max() == array.max()


def test_negative_brain_is_brain(tmp_path):
    array = brain(0, dtype="float32")
    array[array != 0] -= 150
    scan = read_scan(case_of(tmp_path, {sequence: nifti(array) for sequence in SEQUENCES}))
    assert (scan.data < 0).any()
    np.testing.assert_array_equal(scan.data[0] != 0, array[::-1, ::-1] != 0)


def test_a_brain_at_a_millimetre_passes_without_a_word(tmp_path):
    shape = (110, 150, 120)
    scan = read_scan(
        case_of(tmp_path, {sequence: nifti(brain(i, shape, "uint8")) for i, sequence in enumerate(SEQUENCES)})
    )
    assert scan.repairs == ()
    assert scan.warnings == ()


def test_a_head_with_its_skull_is_noticed(tmp_path):
    files = {}
    for number, sequence in enumerate(SEQUENCES):
        array = brain(number, (50, 55, 45), "uint8")
        files[sequence] = nifti(array, header_for(array, np.diag([4.0, 4, 4, 1])))
    assert "brain of 2789 ml, where 600 to 2200 are usual" in read_scan(case_of(tmp_path, files)).warnings


def test_a_failed_case_still_has_a_geometry(tmp_path):
    paths = put_case(tmp_path)
    expected = read_scan(Case("ill", paths)).geometry
    assert any_geometry(paths).same_as(expected)
    paths["t1n"].write_bytes(b"")
    del paths["t1c"]
    assert any_geometry(paths).same_as(expected)
    assert any_geometry({}).same_as(atlas_geometry())
    assert not expected.same_as(atlas_geometry())


def test_the_atlas_grid_is_that_of_public_cases(shared_folder):
    geometry = any_geometry({"t1n": shared_folder / "data/glioma/BraTS2021_01477/BraTS2021_01477_t1.nii.gz"})
    assert geometry.shape == atlas_geometry().shape
    np.testing.assert_array_equal(geometry.affine, atlas_geometry().affine)


def test_a_real_case_reads_as_nibabel_reads_it_without_a_word(shared_folder):
    case = find_cases(shared_folder / "data" / "africa").cases[0]
    scan = read_scan(case)
    assert scan.repairs == ()
    assert scan.warnings == ()
    image = nib.as_closest_canonical(nib.load(case.paths["t2w"]))
    np.testing.assert_array_equal(scan.data[2], np.asarray(image.dataobj, np.float32))
