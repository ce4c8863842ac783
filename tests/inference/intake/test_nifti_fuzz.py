"""Any bytes as a NIfTI file: read or refused by name, without a warning of a library."""

from __future__ import annotations

import gzip
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from inference.errors import CaseError
from inference.intake.cases import Case
from inference.intake.label_map import read_labels
from inference.intake.scan import read_scan
from inference.labels import SEQUENCES
from tests.inference.intake.samples import Header, brain, header_for, nifti

SHAPE = (8, 9, 10)
SOUND = {version: nifti(brain(0, SHAPE), header_for(brain(0, SHAPE), version=version)) for version in (1, 2)}
TEMPLATE = header_for(brain(0, SHAPE))

REALS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 352.0, 1e-30, 1e30, 3e38, np.nan, np.inf, -np.inf]) | st.floats(
    width=32
)
WHOLE = st.sampled_from([0, 1, 2, 3, 4, 7, 8, 9, 10, 16, 255, 32767, -1, -32768]) | st.integers(-(2**15), 2**15 - 1)
FIELDS = [name for name in TEMPLATE.keys() if TEMPLATE[name].dtype.kind in "if"]  # noqa: SIM118 (not a mapping)


@st.composite
def changes(draw: st.DrawFn) -> dict[str, object]:
    """New values for a few header fields, whole or element by element."""
    result: dict[str, object] = {}
    for name in draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=5, unique=True)):
        kind, shape = TEMPLATE[name].dtype.kind, TEMPLATE[name].shape
        values = REALS if kind == "f" else WHOLE
        count = int(np.prod(shape))
        result[name] = draw(st.lists(values, min_size=count, max_size=count)) if shape else draw(values)
    return result


def changed(values: dict[str, object], version: int, endian: str) -> bytes:
    array = brain(0, SHAPE)

    def edit(header: Header) -> None:
        for name in values.keys() & set(header.keys()):  # NIfTI-2 has lost a few
            field = np.asarray(values[name])
            with np.errstate(all="ignore"):
                header[name] = field.astype(header[name].dtype, casting="unsafe")

    return nifti(array, header_for(array, version=version), edit, endian)


def patched(patches: list[tuple[int, bytes]], version: int, length: int) -> bytes:
    contents = bytearray(SOUND[version])
    for start, patch in patches:
        contents[start : start + len(patch)] = patch
    return bytes(contents[:length])


HEADERS = st.builds(changed, changes(), st.sampled_from([1, 2]), st.sampled_from("<>"))
PATCHED = st.builds(
    patched,
    st.lists(st.tuples(st.integers(0, 560), st.binary(min_size=1, max_size=8)), max_size=6),
    st.sampled_from([1, 2]),
    st.sampled_from([10**6, 2000, 600, 540, 348, 352, 4, 100]),
)
NOISE = st.builds(
    lambda start, rest: start + rest,
    st.sampled_from([b"", b"\x1f\x8b\x08", b"\x1f\x8b\x08\x08"]),
    st.binary(max_size=400),
)
FILES = st.tuples(
    HEADERS | PATCHED | NOISE, st.sampled_from(["plain", "gzip", "cut", "twice", "flipped"]), st.integers(0, 10**6)
)


def dressed(contents: bytes, dress: str, number: int) -> bytes:
    if dress == "plain":
        return contents
    packed = bytearray(gzip.compress(contents, 1, mtime=0))
    if dress == "cut":
        del packed[number % len(packed) :]
    elif dress == "twice":
        packed = packed + packed
    elif dress == "flipped":
        packed[number % len(packed)] ^= 1 << number % 8
    return bytes(packed)


def check_refusal(error: CaseError, case: str) -> None:
    """It names the case and the evidence, on one line."""
    assert error.case == case
    assert error.found
    assert error.expected
    assert str(error).isprintable()


def check_file(contents: bytes) -> None:
    """Read the contents as one of four sequences, as all of them, and as labels."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("error")
        folder = Path(name)
        (folder / "sound.nii").write_bytes(SOUND[1])
        (folder / "odd.nii.gz").write_bytes(contents)
        for odd in (SEQUENCES, ("t2w",)):
            paths = {sequence: folder / ("odd.nii.gz" if sequence in odd else "sound.nii") for sequence in SEQUENCES}
            try:
                scan = read_scan(Case("fuzz", paths))
            except CaseError as error:
                check_refusal(error, "fuzz")
            else:
                assert np.isfinite(scan.data).all()
                assert scan.data.shape == (4, *scan.geometry.canonical_shape)
                assert (scan.data != 0).any(axis=(1, 2, 3)).all()
                assert np.isfinite(scan.spacing).all()
                assert "".join((*scan.repairs, *scan.warnings, "x")).isprintable()
                assert scan.geometry.same_as(scan.geometry)
        try:
            labels, _ = read_labels(folder / "odd.nii.gz")
        except CaseError as error:
            check_refusal(error, "odd.nii.gz")
        else:
            assert labels.max() <= 3


@settings(max_examples=150, deadline=None)
@given(FILES)
def test_any_file_is_read_or_refused_by_name(file):
    check_file(dressed(*file))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(8))
def test_twenty_thousand_files(number):
    @seed(number)
    @settings(max_examples=2500, deadline=None, database=None)
    @given(FILES)
    def each(file):
        check_file(dressed(*file))

    each()
