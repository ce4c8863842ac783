"""Files appear whole or not at all, over nothing but files; names and outputs that would do harm are refused."""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference import files
from inference.errors import CaseError, FolderError, UsageError
from inference.files import check_name, check_outputs, is_inside, prepare_folder, whole_file, write_whole
from inference.text import csv_cell, printable

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

    monkeypatch.setattr(files.os, "open", refuse)


def mounted_twice(monkeypatch) -> None:
    """An output folder that is a mount of its own of the file system that its parent is on."""
    replace = Path.replace

    def refuse(self, target):
        if self.parent != Path(target).parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return replace(self, target)

    def no_rename(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "replace", refuse)
    monkeypatch.setattr(files.os, "rename", no_rename)


def no_links(code: int):
    def change(monkeypatch) -> None:
        def refuse(*_, **__):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(files.os, "link", refuse)

    return change


WAYS = {
    "unnamed file": [],
    "no /proc": [no_links(errno.ENOENT)],
    "links forbidden": [no_links(errno.EPERM)],
    "beside the folder": [no_unnamed_files],
    "in the folder": [no_unnamed_files, mounted_twice],
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


def test_nothing_shows_before_the_file_is_whole(output, monkeypatch):
    seen = []
    flush = os.fsync

    def look(descriptor):
        seen.append(names(output))
        flush(descriptor)

    monkeypatch.setattr(files.os, "fsync", look)
    write_whole(output / "case.nii.gz", CONTENTS)
    assert seen == [[], ["case.nii.gz"]]


def test_the_mode_is_that_of_any_new_file(way, output):
    mask = os.umask(0o027)
    try:
        write_whole(output / "case.nii.gz", CONTENTS)
    finally:
        os.umask(mask)
    assert (output / "case.nii.gz").stat().st_mode & 0o777 == 0o640


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Files may have no more than 100 kB: the system's answer is EFBIG in place of ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_full_disk_leaves_what_was_there(way, output, full_disk, before):
    target = output / "case.nii.gz"
    if before is not None:
        target.write_bytes(before)
    with pytest.raises(FolderError, match=r"case\.nii\.gz: cannot be written \(File too large\)"):
        write_whole(target, CONTENTS)
    assert names(output) == ([] if before is None else ["case.nii.gz"])
    assert before is None or target.read_bytes() == before
    assert names(output.parent) == ["output"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_a_folder_that_cannot_be_written_is_named(output, monkeypatch, code):
    opened = os.open

    def refuse(path, flags, *arguments, **options):
        if flags & os.O_WRONLY:
            raise OSError(code, os.strerror(code))
        return opened(path, flags, *arguments, **options)

    monkeypatch.setattr(files.os, "open", refuse)
    with pytest.raises(FolderError, match=os.strerror(code)):
        write_whole(output / "case.nii.gz", CONTENTS)


def test_a_folder_that_is_gone_is_named(output):
    output.rmdir()
    with pytest.raises(FolderError, match="No such file or directory"):
        write_whole(output / "case.nii.gz", CONTENTS)


def make_device(path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can make a device")
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))


def make_socket(path: Path) -> None:
    # a socket's path has to be short
    with socket.socket(socket.AF_UNIX) as bound, contextlib.chdir(path.parent):
        bound.bind(path.name)


ODD = {"folder": Path.mkdir, "pipe": os.mkfifo, "socket": make_socket, "device": make_device}


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_nothing_but_a_regular_file_is_replaced(output, make, linked):
    target = output / "record.json"
    make(output.parent / "odd" if linked else target)
    if linked:
        target.symlink_to(output.parent / "odd")
    before = target.lstat()
    with pytest.raises(FolderError, match=r"record\.json: cannot be written \(it is a "):
        write_whole(target, CONTENTS)
    with pytest.raises(FolderError, match="expected a file or nothing"), whole_file(target):
        pytest.fail("the writer must not begin")
    assert target.lstat().st_ino == before.st_ino
    assert target.lstat().st_mode == before.st_mode


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_redirected_to_a_file_is_not_replaced(output, name):
    code = (
        "import sys; from pathlib import Path; from inference.files import check_replaceable; "
        "check_replaceable(Path(sys.argv[1]))"
    )
    with (output / "log").open("wb") as log:
        done = subprocess.run([sys.executable, "-c", code, name], stdout=log, stderr=subprocess.PIPE, check=False)
    assert b"FolderError" in done.stderr


def test_a_link_is_replaced_and_not_followed(way, output, tmp_path):
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    (output / "case.nii.gz").symlink_to(precious)
    write_whole(output / "case.nii.gz", CONTENTS)
    assert precious.read_bytes() == b"precious"
    assert not (output / "case.nii.gz").is_symlink()
    assert (output / "case.nii.gz").read_bytes() == CONTENTS


def test_a_loop_of_links_is_an_error_by_name(output):
    (output / "loop").symlink_to("loop")
    with pytest.raises(FolderError, match=r"Too many levels of symbolic links"):
        write_whole(output / "loop", CONTENTS)
    with pytest.raises(FolderError, match=r"Too many levels of symbolic links"):
        write_whole(output / "loop" / "case.nii.gz", CONTENTS)


def test_two_writers_of_one_file_do_not_disturb_each_other(way, output):
    failures: list[BaseException] = []

    def write(letter: bytes) -> None:
        try:
            for _ in range(200):
                write_whole(output / "x", letter * 2000)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert (output / "x").read_bytes() in {b"a" * 2000, b"b" * 2000, b"c" * 2000}
    assert names(output) == ["x"]
    assert names(output.parent) == ["output"]


def test_who_reads_while_a_file_is_replaced_always_sees_one(output):
    target = output / "x"
    write_whole(target, CONTENTS)
    done = threading.Event()

    def write() -> None:
        for _ in range(200):
            write_whole(target, CONTENTS)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert target.read_bytes() == CONTENTS
    writer.join()


def test_a_folder_that_cannot_be_flushed_is_no_failure(output, monkeypatch):
    def refuse(_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(files.os, "fsync", refuse)
    write_whole(output / "case.nii.gz", CONTENTS)
    assert (output / "case.nii.gz").read_bytes() == CONTENTS


def test_no_file_descriptor_is_left_open(way, output):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(20):
        write_whole(output / f"{number % 3}.nii.gz", CONTENTS)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_library_writes_to_a_path_with_the_same_suffixes(output):
    target = output / ("long" * 60 + ".nii.gz")
    with whole_file(target) as unfinished:
        assert unfinished.name.endswith(".nii.gz")
        unfinished.write_bytes(CONTENTS)
        assert not target.exists()
    assert target.read_bytes() == CONTENTS


def test_an_interrupted_library_leaves_nothing(output):
    (output / "x.npz").write_bytes(b"old")

    def write() -> None:
        with whole_file(output / "x.npz") as unfinished:
            unfinished.write_bytes(b"part")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert (output / "x.npz").read_bytes() == b"old"
    assert names(output.parent) == ["output"]


WRITER = """
import sys, gzip, itertools
from pathlib import Path
from inference.files import write_whole
contents = gzip.compress(bytes(200_000) + b"end", 1)
print("ready", flush=True)
for number in itertools.count():
    write_whole(Path(sys.argv[1]) / f"{number}.nii.gz", contents)
"""


def test_killed_at_any_moment_no_file_is_partial_or_temporary(output):
    root = Path(__file__).resolve().parents[2]
    for delay in (0.0, 0.003, 0.011, 0.037, 0.1):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(output)], stdout=subprocess.PIPE, cwd=root)
        assert process.stdout.readline() == b"ready\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        for path in output.iterdir():
            assert path.name.removesuffix(".nii.gz").isdigit()
            assert gzip.decompress(path.read_bytes()).endswith(b"end")
            path.unlink()
    assert names(output.parent) == ["output"]


@pytest.mark.parametrize("name", ["BraTS-SSA-00002-000", "Ärzte 7", "a.b", "x" * 248, "case..1"])
def test_plain_names_are_taken(name):
    check_name(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/tmp/x", "Doe/Jane", "a\\b", "a\nb", "a\0b", "\x1b[31m", ".hidden", "x" * 249, "\udc80"],
)
def test_names_that_are_no_plain_part_of_a_path_are_refused_on_one_line(name):
    with pytest.raises(CaseError, match=r"its name (cannot be used|is too long)") as error:
        check_name(name)
    assert str(error.value).isprintable()


def test_an_output_in_the_place_of_what_is_read_is_refused(tmp_path):
    case = tmp_path / "in" / "P"
    case.mkdir(parents=True)
    scan = case / "P-t1n.nii"
    scan.write_bytes(b"scan")
    (tmp_path / "link").symlink_to(case)
    read = (tmp_path / "in", scan)
    for path in (scan, case, tmp_path / "in", tmp_path / "link", tmp_path / "link" / ".." / "P" / "P-t1n.nii"):
        with pytest.raises(UsageError, match=r"--output: .* is read by this run, expected a path of its own"):
            check_outputs({"--output": path}, read)
    check_outputs({"--output": tmp_path / "in" / "out", "--record": case / "record.json"}, read)


def test_inside_follows_links(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    assert is_inside(tmp_path / "link" / "x", tmp_path / "folder")
    assert not is_inside(tmp_path / "folder-2", tmp_path / "folder")


def test_text_from_outside_is_made_safe():
    assert printable("a\x1b[2J\nb\u202e") == r"a\x1b[2J\nb\u202e"
    assert [csv_cell(text) for text in ("=1+1", "@x", "-1", "\t=1", "P-1", "")] == [
        "'=1+1",
        "'@x",
        "'-1",
        r"\t=1",
        "P-1",
        "",
    ]


def test_a_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    prepare_folder(tmp_path / "a" / "b")


def test_what_takes_no_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FolderError, match="it is a file"):
        prepare_folder(tmp_path / "file")
    with pytest.raises(FolderError, match="cannot be created"):
        prepare_folder(tmp_path / "file" / "below")
    for name, target in (("loop", "loop"), ("broken", "nowhere")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(FolderError, match="it is a link that leads nowhere"):
            prepare_folder(tmp_path / name)
    with pytest.raises(FolderError, match="cannot be created"):
        prepare_folder(Path("/proc/nowhere"))

    def read_only(*_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(FolderError, match="Read-only file system"):
        prepare_folder(tmp_path)


def test_a_file_system_without_unnamed_files_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "open", unsupported)
    prepare_folder(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(FolderError, match="cannot be written to"):
        prepare_folder(tmp_path)
