"""Finding cases in folders."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from inference.errors import CaseError, FolderError, GliomaError
from inference.intake.cases import Case, find_cases
from inference.labels import SEQUENCES
from tests.inference.intake.samples import put_case

STYLES = {
    "BraTS 2023": ("-t1n", "-t1c", "-t2w", "-t2f"),
    "BraTS 2021": ("_t1", "_t1ce", "_t2", "_flair"),
    "nnU-Net": ("_0000", "_0001", "_0002", "_0003"),
}


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("layout", ["{id}{end}", "{id}/{id}{end}", "images/{id}{end}"])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("identifier", ["BraTS-SSA-00002-000", "Brats18_2013_2_1", "t1", "0000", "a-t2f-b_flair"])
def test_every_style_layout_and_id_is_found_as_it_is(tmp_path, style, layout, suffix, identifier):
    files = {
        sequence: tmp_path / (layout.format(id=identifier, end=end) + suffix)
        for sequence, end in zip(SEQUENCES, STYLES[style], strict=True)
    }
    touch(tmp_path, *(str(path.relative_to(tmp_path)) for path in files.values()))
    listing = find_cases(tmp_path)
    assert listing.cases == (Case(identifier, files),)
    assert listing.problems == ()


def test_cases_come_sorted_by_id(tmp_path):
    for name in ("b", "c", "a"):
        put_case(tmp_path, name)
    assert [case.id for case in find_cases(tmp_path).cases] == ["a", "b", "c"]


def test_a_link_to_a_folder_gives_its_own_name_to_a_case(tmp_path):
    for store, name in (("one", "P-00001-000"), ("two", "P-00002-000")):
        touch(tmp_path / "stores" / store / "baseline", *(f"{sequence}.nii.gz" for sequence in SEQUENCES))
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).symlink_to(tmp_path / "stores" / store / "baseline")
    listing = find_cases(tmp_path / "in")
    assert [case.id for case in listing.cases] == ["P-00001-000", "P-00002-000"]
    assert listing.problems == ()


def test_an_empty_folder_of_a_case_that_is_elsewhere_is_no_second_case(tmp_path):
    put_case(tmp_path, "P1")
    (tmp_path / "P1").rename(tmp_path / "P1copy")
    (tmp_path / "P1").mkdir()
    listing = find_cases(tmp_path)
    assert [case.id for case in listing.cases] == ["P1"]
    assert listing.problems == ()


def test_a_folder_around_an_output_folder_is_no_case(tmp_path):
    put_case(tmp_path, "P1")
    (tmp_path / "results" / "labels").mkdir(parents=True)
    assert [problem.case for problem in find_cases(tmp_path).problems] == ["results"]
    assert find_cases(tmp_path, ignored=[tmp_path / "results" / "labels"]).problems == ()


def test_a_folder_that_is_missing_or_a_file_is_named(tmp_path):
    with pytest.raises(FolderError, match=r"nowhere: cannot be read \(No such file"):
        find_cases(tmp_path / "nowhere")
    touch(tmp_path, "file")
    with pytest.raises(FolderError, match=r"file: cannot be read \(Not a directory"):
        find_cases(tmp_path / "file")


def test_a_folder_without_cases_says_what_would_be_one(tmp_path):
    touch(tmp_path, "a/b/c-t1n.nii.gz", "readme.txt", "x-seg.nii.gz", ".hidden-t1n.nii.gz")
    with pytest.raises(FolderError, match=r"no case found \(.* its 1 sub-folders .* expected <ID>/<ID>-t1n\.nii\.gz"):
        find_cases(tmp_path)


def test_an_unreadable_folder_is_named(tmp_path, monkeypatch):
    put_case(tmp_path, "sound")
    touch(tmp_path, "locked/locked-t1n.nii.gz")
    scan = os.scandir

    def refuse(folder):
        if Path(folder).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr("inference.intake.cases.os.scandir", refuse)
    listing = find_cases(tmp_path)
    assert [case.id for case in listing.cases] == ["sound"]
    (problem,) = listing.problems
    assert problem.case == "locked"
    assert "Permission denied" in str(problem)
    with pytest.raises(FolderError, match="Permission denied"):
        find_cases(tmp_path / "locked")


def test_a_problem_comes_with_the_sequences_that_are_there(tmp_path):
    put_case(tmp_path, "sound")
    touch(tmp_path, "part/part-t1n.nii.gz", "part/part-t1c.nii.gz", "part/part-t1c.nii")
    listing = find_cases(tmp_path)
    assert [problem.case for problem in listing.problems] == ["part"]
    assert listing.found["part"] == {"t1n": tmp_path / "part" / "part-t1n.nii.gz"}


def test_an_output_folder_inside_the_input_is_no_case(tmp_path):
    put_case(tmp_path, "sound")
    touch(tmp_path, "out/sound.nii.gz")
    assert [problem.case for problem in find_cases(tmp_path).problems] == ["out"]
    assert find_cases(tmp_path, ignored=[tmp_path / "out"]).problems == ()


def test_further_folders_beside_flat_files_are_no_problem(tmp_path):
    touch(tmp_path, *(f"a-{sequence}.nii.gz" for sequence in SEQUENCES), "logs/today.txt")
    listing = find_cases(tmp_path)
    assert [case.id for case in listing.cases] == ["a"]
    assert listing.problems == ()


PIECES = st.sampled_from(
    ["-", "_", ".", " ", "\\", "\n", "\x1b", "é", "\u0301", "\u202e", "\udcff", "t1n", "0000", "a", "..", "~"]
)
CHARACTERS = st.characters(exclude_characters="/\0", exclude_categories=["Cs"])
ODD = st.lists(PIECES | CHARACTERS, max_size=8).map("".join)
ENDS = st.sampled_from(
    [end for style in STYLES.values() for end in style] + ["-T1N", "_seg", "-seg", "", "_0004", "-t1"]
)
SUFFIXES = st.sampled_from([".nii.gz", ".nii", ".NII.GZ", ".gz", "", ".nii.gz.nii", ".txt"])
NAMES = st.builds(lambda stem, end, suffix: stem + end + suffix, ODD, ENDS, SUFFIXES)
TREES = st.lists(st.tuples(st.sampled_from(["", "a", "b", "-t1n.nii.gz"]) | ODD, NAMES), max_size=12)


def check_text(error: GliomaError) -> None:
    """One line that is safe in a log."""
    assert str(error).isprintable()


def check_tree(tree: list[tuple[str, str]]) -> None:
    """Make the files that the file system lets one make, and find cases among them."""
    folder = Path(tempfile.mkdtemp())
    try:
        for subfolder, name in tree:
            path = folder / subfolder / name
            if ".." in (subfolder, name):
                continue
            try:
                touch(folder, str(path.relative_to(folder)))
            except (OSError, ValueError):
                continue
        try:
            listing = find_cases(folder)
        except FolderError as error:
            check_text(error)
            return
        identifiers = [case.id for case in listing.cases] + [problem.case for problem in listing.problems]
        assert identifiers
        for case in listing.cases:
            result = folder / f"{case.id}.nii.gz"
            assert result.parent == folder
            assert case.id.isprintable()
            assert "/" not in case.id
            assert not case.id.startswith(".")
            assert all(path.is_file() for path in case.paths.values())
        for problem in listing.problems:
            assert isinstance(problem, CaseError)
            check_text(problem)
    finally:
        shutil.rmtree(folder)


@settings(max_examples=150, deadline=None)
@given(TREES)
def test_any_names_give_cases_or_named_errors(tree):
    check_tree(tree)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))
def test_ten_thousand_trees_of_names(number):
    @seed(number)
    @settings(max_examples=2500, deadline=None, database=None)
    @given(TREES)
    def each(tree):
        check_tree(tree)

    each()
