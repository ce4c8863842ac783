"""Images and pickles with random damage: one line, or what a whole one gives, and never a traceback."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from inference.errors import GliomaError
from tests.training.bundles import lookalike
from tests.training.bundles.lookalike import FORMS, Files, layers_of, tarred
from training.bundles.import_ranked import listing, open_files
from training.bundles.pickles import read_pickle
from training.bundles.ranked import read_subtypes

MUTANTS = int(os.environ.get("RANKED_MUTANTS", "150"))
"""How many of each kind; the record of a release names its number."""


@pytest.fixture(scope="module")
def files() -> Files:
    """A system without networks, which take most of the time and are not read before all else is in order."""
    small, ratio = (str(table).replace("'", '"').encode() for table in lookalike.thresholds())
    networks = {f"fold_{fold}/checkpoint_final.pth": b"none" for fold in range(5)} | {"plans.json": b"{}"}
    return {
        "weights/a.zip": lookalike.zipped(networks, lookalike.NNUNET),
        "weights/name.json": b'{"-t1n.nii.gz": "_0000.nii.gz"}',
        "postproc/cc_thresholds_cv.json": small,
        "postproc/lblredef_thresholds_cv.json": ratio,
        "ensembler/e.py": lookalike.ENSEMBLER.encode(),
        "runner.py": lookalike.RUNNER.encode(),
    }


def mutant(whole: bytes, random: np.random.Generator) -> bytes:
    """Bytes changed, cut off, repeated, or moved; more often where a header is."""
    raw = bytearray(whole)
    kind = random.integers(5)
    place = int(random.integers(len(raw)))
    if random.random() < 0.5:
        place = place // 512 * 512 + int(random.integers(160))
    place = min(place, len(raw) - 1)
    if kind == 0:
        del raw[place:]
    elif kind == 1:
        raw[place : place + 8] = random.bytes(8)
    elif kind == 2:
        raw[place] ^= 1 << int(random.integers(8))
    elif kind == 3:
        raw[place:place] = raw[: int(random.integers(1, 1024))]
    else:
        raw[place] = int(random.choice([0, 0x2F, 0x2E, 0x80, 0xFF, 0x31, 0x4C, 0x78, 0x53]))
    return bytes(raw)


@pytest.mark.parametrize("form", FORMS)
def test_damaged_images(form: str, files: Files, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    whole = FORMS[form](files)
    refused: list[str] = []
    for number in range(MUTANTS):
        source = tmp_path / "image.tar"
        source.write_bytes(mutant(whole, random))
        (tmp_path / "scratch").mkdir(exist_ok=True)
        try:
            said = list(listing(open_files(source, tmp_path / "scratch")))
            assert said, number
        except GliomaError as error:
            refused.append(str(error))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["image.tar", "scratch"]
        for left in (tmp_path / "scratch").iterdir():
            left.unlink()
    assert len(refused) > MUTANTS / 10
    assert not any("\n" in line for line in refused)


def test_damaged_pickles() -> None:
    random = np.random.default_rng(1)
    whole = [lookalike.old_plans(), *(pickle.dumps(lookalike.fitted(), protocol) for protocol in (3, 4))]
    refused: list[str] = []
    for number in range(MUTANTS):
        damaged = mutant(whole[number % 3], random)
        for read in (read_pickle, read_subtypes):
            try:
                read(damaged, "a.pkl")
            except GliomaError as error:
                refused.append(str(error))
    assert len(refused) > MUTANTS
    assert not any("\n" in line for line in refused)


def bomb(kind: bytes, count: int) -> bytes:
    """Headers in front of headers, as long names and attributes are stored."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for _ in range(count):
            info = tarfile.TarInfo("././@LongLink")
            info.type, info.size = kind, 512
            archive.addfile(info, io.BytesIO(b"x" * 512))
    return file.getvalue()


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_headers_without_end_are_refused(kind: bytes, tmp_path: Path) -> None:
    source = tmp_path / "image.tar"
    source.write_bytes(bomb(kind, 5000))
    with pytest.raises(GliomaError, match="damaged"):
        open_files(source, tmp_path)


def test_a_header_that_announces_much_is_refused(tmp_path: Path) -> None:
    raw = bytearray(bomb(tarfile.GNUTYPE_LONGNAME, 1))
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2**40
    raw[:512] = header.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "image.tar").write_bytes(raw)
    with pytest.raises(GliomaError, match="header of 1099511627776 bytes"):
        open_files(tmp_path / "image.tar", tmp_path)


def test_many_deletions_take_no_time(tmp_path: Path) -> None:
    """Thousands of files in one layer, thousands of whiteouts in the next."""
    lower = tarred({f"a/b/c/{number}.py": b"" for number in range(20_000)})
    upper = tarred({f"a/b/c/.wh.{number}.py": b"" for number in range(20_000)})
    (tmp_path / "image.tar").write_bytes(lookalike.docker_old([lower, upper, *layers_of({})]))
    opened = open_files(tmp_path / "image.tar", tmp_path)
    assert not any(path.startswith("a/b/c/") for path in opened.image.entries)
