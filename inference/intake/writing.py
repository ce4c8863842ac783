"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Final

from inference.errors import FolderError
from inference.intake.notes import printable

_UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT, errno.ENOSYS, errno.EXDEV})
"""What file systems without unnamed files answer (EISDIR: kernels before 3.11), and a system without /proc."""


def write_whole(path: Path, contents: bytes) -> None:
    """Put a file with `contents` at `path`, replacing what is there; no other name ever shows in its folder.

    The bytes go to an unnamed file in the same folder (`O_TMPFILE`), are flushed to the disk, and the file is then
    linked to its name: before that instant the folder shows nothing, after it the whole file, whatever kills the
    process. A link cannot replace a name, and a rename would need a second name in the folder, so an existing file is
    unlinked just before the link: who looks between the two calls sees no file, and who kills the process between them
    leaves none; a part of a file is never seen.

    Where the file system knows no unnamed files (NFS, some FUSE and network drives) the bytes go to a hidden file
    in the parent of the folder and are renamed, which is as good if both are on one file system. Where that fails too,
    they are written under the final name in one call, and removed if the call fails; only there can a kill leave a
    part of a file behind.

    Raises FolderError where the file cannot be written (disk full, read-only, folder gone).
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        if not _link_unnamed(folder, path.name, contents) and not _rename_from_parent(path, contents):
            _write_named(folder, path.name, contents)
        _flush(folder)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        os.close(folder)


def _unwritable(path: Path, error: OSError) -> FolderError:
    return FolderError(f"{printable(str(path))}: cannot be written ({error.strerror or error})")


def _link_unnamed(folder: int, name: str, contents: bytes) -> bool:
    """Write an unnamed file and link it to `name` in the open `folder`; False where that is not supported."""
    try:
        unnamed = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=folder)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    try:
        _write_all(unnamed, contents)
        return _link(f"/proc/self/fd/{unnamed}", folder, name)
    finally:
        os.close(unnamed)


def _link(source: str, folder: int, name: str) -> bool:
    """Link `source` to `name`, in place of what is there; False where that is not supported.

    Naming a `folder` makes Python call linkat, which follows /proc's link to the unnamed file; plain link would not.
    """
    try:
        os.link(source, name, dst_dir_fd=folder)
    except FileExistsError:
        try:
            os.unlink(name, dir_fd=folder)
        finally:  # a signal handler may raise between the two calls, and must not cost the file
            os.link(source, name, dst_dir_fd=folder)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def _rename_from_parent(path: Path, contents: bytes) -> bool:
    """Write a hidden file beside the folder of `path` and rename it; False where that is not possible."""
    parent = path.parent.resolve().parent
    staged = parent / f".{path.name}.{os.getpid()}"
    try:
        if parent.stat().st_dev != path.parent.stat().st_dev:
            return False
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError:
        return False
    try:
        try:
            _write_all(descriptor, contents)
        finally:
            os.close(descriptor)
        staged.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            staged.unlink()
        if error.errno == errno.EXDEV:
            return False
        raise
    return True


def _write_named(folder: int, name: str, contents: bytes) -> None:
    """Write under the final name, and remove it again if that fails."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=folder)
    try:
        _write_all(descriptor, contents)
    except BaseException:
        os.unlink(name, dir_fd=folder)
        raise
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, contents: bytes) -> None:
    """Write every byte and flush them to the disk (a single write may take only a part)."""
    left = memoryview(contents)
    while left:
        left = left[os.write(descriptor, left) :]
    _flush(descriptor)


def _flush(descriptor: int) -> None:
    """Flush a file or folder to the disk, where its file system knows how to."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
