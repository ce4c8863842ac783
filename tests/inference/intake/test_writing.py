"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inference.errors import FolderError
from inference.intake import writing
from inference.intake.writing import write_whole

CONTENTS = bytes(range(256)) * 1000


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def output(tmp_path) -> Path:
    folder = tmp_path / "parent" / "output"
    folder.mkdir(parents=True)
    return folder


def no_unnamed_files(monkeypatch) -> None:
    """A file system that knows no O_TMPFILE."""
    opened = os.open

    def refuse(path, flags, *arguments, **options):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return opened(path, flags, *arguments, **options)

    monkeypatch.setattr(writing.os, "open", refuse)


def no_renames(monkeypatch) -> None:
    """An output folder that is a mount of its own."""

    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "replace", refuse)


def no_links(monkeypatch) -> None:
    """A system without /proc."""

    def refuse(*_, **__):
        raise OSError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(writing.os, "link", refuse)


WAYS = {
    "unnamed file": [],
    "no links": [no_links],
    "beside the folder": [no_unnamed_files],
    "in one call": [no_unnamed_files, no_renames],
}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch) -> str:
    for change in WAYS[request.param]:
        change(monkeypatch)
    return request.param


@pytest.mark.parametrize("before", [None, b"old", b"old" * 10**6])
def test_the_file_is_there_and_nothing_else(way, output, before):
    target = output / "case.nii.gz"
    if before is not None:
        target.write_bytes(before)
    write_whole(target, CONTENTS)
    assert target.read_bytes() == CONTENTS
    assert names(output) == ["case.nii.gz"]
    assert names(output.parent) == ["output"]
    assert target.stat().st_nlink == 1


def test_each_way_is_the_one_that_was_meant(output, monkeypatch):
    used = []
    for name in ("_link_unnamed", "_rename_from_parent", "_write_named"):
        monkeypatch.setattr(writing, name, lambda *_, name=name: used.append(name) or False)
    write_whole(output / "case.nii.gz", CONTENTS)
    assert used == ["_link_unnamed", "_rename_from_parent", "_write_named"]


def test_nothing_shows_before_the_file_is_whole(output, monkeypatch):
    seen = []
    flush = os.fsync

    def look(descriptor):
        seen.append(names(output))
        flush(descriptor)

    monkeypatch.setattr(writing.os, "fsync", look)
    write_whole(output / "case.nii.gz", CONTENTS)
    assert seen == [[], ["case.nii.gz"]]


def test_the_mode_is_that_of_any_new_file(way, output):
    mask = os.umask(0o027)
    try:
        write_whole(output / "case.nii.gz", CONTENTS)
    finally:
        os.umask(mask)
    assert (output / "case.nii.gz").stat().st_mode & 0o777 == 0o640


def test_a_full_disk_leaves_nothing(way, output, monkeypatch):
    write = os.write

    def fill(descriptor, contents):
        if len(contents) < 200_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, contents[:100_000])

    monkeypatch.setattr(writing.os, "write", fill)
    with pytest.raises(FolderError, match=r"case\.nii\.gz: cannot be written \(No space left on device\)"):
        write_whole(output / "case.nii.gz", CONTENTS)
    assert names(output) == []
    assert names(output.parent) == ["output"]


def test_a_full_disk_spares_the_old_file(output, monkeypatch):
    target = output / "case.nii.gz"
    target.write_bytes(b"old")

    def fill(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing.os, "write", fill)
    with pytest.raises(FolderError):
        write_whole(target, CONTENTS)
    assert target.read_bytes() == b"old"


def test_short_writes_are_continued(way, output, monkeypatch):
    write = os.write
    monkeypatch.setattr(writing.os, "write", lambda descriptor, contents: write(descriptor, contents[:70_000]))
    write_whole(output / "case.nii.gz", CONTENTS)
    assert (output / "case.nii.gz").read_bytes() == CONTENTS


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_a_folder_that_cannot_be_written_is_named(output, monkeypatch, code):
    opened = os.open

    def refuse(path, flags, *arguments, **options):
        if flags & os.O_WRONLY:
            raise OSError(code, os.strerror(code))
        return opened(path, flags, *arguments, **options)

    monkeypatch.setattr(writing.os, "open", refuse)
    with pytest.raises(FolderError, match=os.strerror(code)):
        write_whole(output / "case.nii.gz", CONTENTS)


def test_a_folder_that_is_gone_is_named(output):
    output.rmdir()
    with pytest.raises(FolderError, match="No such file or directory"):
        write_whole(output / "case.nii.gz", CONTENTS)


def test_a_folder_in_the_place_of_the_file_is_named_and_kept(way, output):
    (output / "case.nii.gz").mkdir()
    with pytest.raises(FolderError, match=r"case\.nii\.gz: cannot be written"):
        write_whole(output / "case.nii.gz", CONTENTS)
    assert (output / "case.nii.gz").is_dir()
    assert names(output.parent) == ["output"]


def test_a_link_is_replaced_and_not_followed(way, output, tmp_path):
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    (output / "case.nii.gz").symlink_to(precious)
    write_whole(output / "case.nii.gz", CONTENTS)
    assert precious.read_bytes() == b"precious"
    assert not (output / "case.nii.gz").is_symlink()
    assert (output / "case.nii.gz").read_bytes() == CONTENTS


def test_an_interrupt_between_the_two_calls_of_a_replacement_loses_nothing(output, monkeypatch):
    target = output / "case.nii.gz"
    target.write_bytes(b"old")
    unlink = os.unlink

    def interrupted(*arguments, **options):
        unlink(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(writing.os, "unlink", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(target, CONTENTS)
    assert target.read_bytes() == CONTENTS


def test_a_folder_that_cannot_be_flushed_is_no_failure(output, monkeypatch):
    def refuse(_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(writing.os, "fsync", refuse)
    write_whole(output / "case.nii.gz", CONTENTS)
    assert (output / "case.nii.gz").read_bytes() == CONTENTS


def test_no_file_descriptor_is_left_open(way, output):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(20):
        write_whole(output / f"{number % 3}.nii.gz", CONTENTS)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


WRITER = """
import sys, gzip, itertools
from pathlib import Path
from inference.intake.writing import write_whole
contents = gzip.compress(bytes(200_000) + b"end", 1)
print("ready", flush=True)
for number in itertools.count():
    write_whole(Path(sys.argv[1]) / f"{number % 50}.nii.gz", contents)
"""


def test_killed_at_any_moment_no_file_is_partial_or_temporary(output):
    root = Path(__file__).resolve().parents[3]
    for delay in (0.0, 0.003, 0.011, 0.037, 0.1):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(output)], stdout=subprocess.PIPE, cwd=root)
        assert process.stdout.readline() == b"ready\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        for name in names(output):
            assert name.removesuffix(".nii.gz").isdigit()
            assert gzip.decompress((output / name).read_bytes()).endswith(b"end")
    assert names(output)
    assert names(output.parent) == ["output"]
