"""Writing files: whole or not at all, over nothing but regular files, and never over what is read."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from inference.errors import CaseError, FolderError, UsageError
from inference.text import printable

# What file systems without unnamed files answer (EISDIR: kernels before 3.11).
_NO_UNNAMED: Final = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT, errno.ENOSYS})
# What forbids linking an unnamed file: no /proc (ENOENT), no hard links, or the rules of a sandbox.
_NO_LINK: Final = _NO_UNNAMED | {errno.EPERM, errno.EACCES, errno.EXDEV, errno.EMLINK}
# Bytes in a file name on the usual file systems.
_LONGEST_NAME: Final = 255


def write_whole(path: Path, contents: bytes) -> None:
    """Put a file with `contents` at `path`, in place of a regular file or link there.

    The bytes go to an unnamed file in the same folder (`O_TMPFILE`), which is flushed to the disk and then linked to
    its name: before that instant the folder shows nothing, after it the whole file, whatever kills the process, and no
    other name ever shows in the folder, which is what organisers read. A link cannot replace a name: where there is a
    file already, the new one gets a hidden name beside the folder first, and is renamed. Where the file system knows no
    unnamed files (NFS, some network drives), or forbids linking them, see :func:`whole_file`.

    Raises FolderError where the file cannot be written, or something else than a file is in its place.
    """
    check_replaceable(path)
    with _named_errors(path):
        if not _link_unnamed(path, contents):
            with whole_file(path) as unfinished:
                unfinished.write_bytes(contents)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a hidden path to write to, which takes the name `path` at the end of the block; an error leaves nothing.

    For libraries that write to a path, whose suffixes they may look at. The hidden file is in the parent of the folder
    where that is on the same file system, else in the folder itself. Two writers of one path do not disturb each other:
    the last one stays. Raises FolderError as :func:`write_whole` does.
    """
    check_replaceable(path)
    with _named_errors(path):
        hidden = _hidden(path)
        try:
            yield hidden
            _flush(hidden)
            try:
                hidden.replace(path)
            except OSError as error:  # one file system mounted twice looks like one until it is tried
                if error.errno != errno.EXDEV:
                    raise
                hidden = Path(shutil.move(hidden, path.parent / hidden.name))
                hidden.replace(path)
            _flush(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                hidden.unlink()
            raise


def prepare_folder(folder: Path) -> None:
    """Make a folder if it is not there and make sure that it takes files; FolderError where it does not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        # Links are followed: what is there and does not exist is one whose end is missing, or that leads to itself.
        kind = "a file" if folder.exists() else "a link that leads nowhere"
        raise FolderError(f"{printable(str(folder))}: cannot be written to (it is {kind}, not a folder)") from error
    except OSError as error:
        raise FolderError(f"{printable(str(folder))}: cannot be created ({error.strerror or error})") from error
    try:
        # An unnamed file: nobody who watches the folder sees the attempt.
        os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY))
    except OSError as error:
        if error.errno not in _NO_UNNAMED or not os.access(folder, os.W_OK | os.X_OK):
            raise FolderError(f"{printable(str(folder))}: cannot be written to ({error.strerror or error})") from error


def check_replaceable(path: Path) -> None:
    """Refuse to write where something is that is no regular file (FolderError).

    A device, pipe or socket, or a link to one, is refused rather than written to: a pipe without a reader would hold
    the run for ever. So are the links of /dev and /proc (`/dev/stdout`), whatever they lead to. Any other link is
    replaced itself, and what it leads to stays as it is.
    """
    with _named_errors(path):
        folder = os.path.realpath(path.parent)
        system = folder == "/dev" or folder.startswith(("/proc/", "/dev/fd"))
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:  # nothing, or a link to nothing
            mode = stat.S_IFREG
        if not stat.S_ISREG(mode) or (system and path.is_symlink()):
            kind = "a folder" if stat.S_ISDIR(mode) else "a device, pipe or socket"
            raise FolderError(f"{printable(str(path))}: cannot be written (it is {kind}, expected a file or nothing)")


def check_readable(path: Path) -> None:
    """UsageError where a file is to be read and something else is in its place: a pipe would be waited for for ever."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UsageError(f"{printable(str(path))}: cannot be read ({error.strerror or error})") from error
    if not stat.S_ISREG(mode):
        raise UsageError(f"{printable(str(path))}: cannot be read (not a regular file)")


def check_name(identifier: str) -> None:
    """Refuse an ID that is not one plain part of a path, here or on another system, or is unsafe in a log (CaseError).

    With `.nii.gz` behind it, it has to be a name that file systems take.
    """
    shown = printable(identifier)
    problem, found, expected = "its name cannot be used", "", "plain text"
    if shown != identifier or "\\" in identifier:
        found = "control characters, or a backslash"
    elif "/" in identifier:
        found = "a slash"
    elif not identifier or identifier.startswith("."):  # hidden, and `..` leads out of the folder
        found = "a leading dot" if identifier else "no character"
    elif (size := len(os.fsencode(identifier + ".nii.gz"))) > _LONGEST_NAME:
        problem, found = "its name is too long for the result", f"{size} bytes"
        expected = f"at most {_LONGEST_NAME}"
    if found:
        raise CaseError(shown, problem, found=found, expected=expected)


def check_outputs(outputs: Mapping[str, Path], inputs: Iterable[Path]) -> None:
    """UsageError where an output, by option, is one of the files and folders that are read, or holds one of the files.

    Links are followed on both sides. A folder inside an input folder is allowed if no input file lies directly in it.
    """
    taken = {os.path.realpath(path) for path in inputs}
    taken |= {os.path.dirname(path) for path in taken if not os.path.isdir(path)}  # noqa: PTH112, PTH120 (strings)
    for option, path in outputs.items():
        if os.path.realpath(path) in taken:
            raise UsageError(f"{option}: {printable(str(path))} is read by this run, expected a path of its own")


def is_inside(path: Path, folder: Path) -> bool:
    """Whether `path` is `folder` or lies in it, links followed on both sides."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise FolderError(f"{printable(str(path))}: cannot be written ({reason})") from error


def _link_unnamed(path: Path, contents: bytes) -> bool:
    """Write an unnamed file and give it its name; False where that is not supported."""
    try:
        descriptor = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in _NO_UNNAMED:
            return False
        raise
    with os.fdopen(descriptor, "wb") as file:
        file.write(contents)
        file.flush()
        _flush(descriptor)
        try:
            _link(descriptor, path)
        except FileExistsError:
            hidden = _hidden(path)
            _link(descriptor, hidden)
            hidden.replace(path)
        except OSError as error:
            if error.errno in _NO_LINK:
                return False
            raise
    _flush(path.parent)  # the name is an entry of the folder, which may be lost though the file is not
    return True


def _link(descriptor: int, path: Path) -> None:
    """Give an unnamed file a name, where there is none yet.

    Naming a folder makes Python call linkat, which follows /proc's link to the unnamed file; plain link would not.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(f"/proc/self/fd/{descriptor}", path.name, dst_dir_fd=folder)
    finally:
        os.close(folder)


def _hidden(path: Path) -> Path:
    """A new name beside the folder of `path`, or in it where its parent is another file system or not writable."""
    folder = Path(os.path.realpath(path.parent))
    beside = folder.parent
    if beside.stat().st_dev != folder.stat().st_dev or not os.access(beside, os.W_OK | os.X_OK):
        beside = folder
    token = secrets.token_hex(4)
    kept = path.name[-100:]  # the end, where suffixes are; a long name may have no room for more
    return beside / f".{token}.{kept}"


def _flush(place: int | Path) -> None:
    """Flush a file or folder to the disk, where its file system knows how to."""
    if isinstance(place, Path):
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _flush(descriptor)
        finally:
            os.close(descriptor)
        return
    try:
        os.fsync(place)
    except OSError as error:
        if error.errno not in _NO_UNNAMED:
            raise
