"""Tars, zips and folders from outside: lists of what is in them, and those files that are asked for.

A path is a name and nothing else: no link is followed, and no file is written under a name that an archive gives.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Protocol, cast

from inference.errors import UsageError
from inference.text import printable

FILE: Final = "a file"
"""Kind of what can be read; other kinds say what stands in a file's place."""
CHUNK: Final = 2**20
_LONGEST_HEADER: Final = 2**20
"""Most bytes that a tar may ask for at once: real names and attributes take some thousand."""
_MOST_BYTES: Final = 2**38
"""Most bytes of one unpacked layer; 256 GiB, ten times the largest images."""
MOST_FILES: Final = 2_000_000
_DEEPEST: Final = 64
"""Most folders above a file; whatever lies deeper is no file of a program."""
GZIP: Final = b"\x1f\x8b"
ZSTD: Final = b"\x28\xb5\x2f\xfd"
_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
DAMAGED: Final = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError, KeyError,
    IndexError, OverflowError, RecursionError, NotImplementedError, RuntimeError, gzip.BadGzipFile,
)  # fmt: skip
"""What the standard library's readers raise for archives that are not as they should be."""


@dataclass(frozen=True)
class Entry:
    """Entry of an archive for one of its paths."""

    kind: str
    """:data:`FILE`, or `a link` and so on."""
    size: int = 0
    """Bytes of a file."""


class Archive(Protocol):
    """Where files lie: a layer, a folder or a zip."""

    def read(self, wanted: Mapping[str, Path | None]) -> dict[str, str]:
        """Write files, by their paths, where a place is given; their SHA-256."""


class Stream:
    """A file that is read forwards only, in pieces of a bounded size, and hashed: what tarfile sees of a layer."""

    def __init__(self, file: IO[bytes], name: str, *, seeks: bool = False) -> None:
        self._file = file
        self._name = name
        self._seeks = seeks
        self._position = 0
        self._digest = hashlib.sha256()
        self.last = b""

    def read(self, size: int) -> bytes:
        """The next bytes, fewer at the end."""
        if not 0 <= size <= _LONGEST_HEADER:
            raise UsageError(f"{self._name}: found a header of {size} bytes, expected at most {_LONGEST_HEADER}")
        data = self._file.read(size)
        self._position += len(data)
        if self._position > _MOST_BYTES:
            raise UsageError(f"{self._name}: found more than {_MOST_BYTES} bytes, expected a smaller layer")
        if not self._seeks:
            self._digest.update(data)
        self.last = data
        return data

    def tell(self) -> int:
        """Bytes read so far."""
        return self._position

    def seek(self, position: int) -> int:
        """Go on to a later position."""
        if position < self._position:
            raise tarfile.ReadError("found a size below 0")
        if self._seeks:
            self._position = self._file.seek(position)
        while self._position < position:
            if not self.read(min(CHUNK, position - self._position)):
                raise tarfile.ReadError("unexpected end of data")
        return self._position

    def finish(self) -> str:
        """The SHA-256 of the whole, once the rest is read too."""
        while self.read(CHUNK):
            pass
        return self._digest.hexdigest()


def members(stream: Stream, name: str) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """The members of a tar, one after the other. Raises UsageError for one that is damaged or ends early."""
    count = 0
    with named_errors(name):
        tar = tarfile.TarFile(fileobj=cast("IO[bytes]", stream))
        while (member := tar.next()) is not None:
            # What tarfile would keep of all of them.
            cast("dict[str, list[object]]", vars(tar))["members"].clear()
            cast("dict[str, str]", tar.pax_headers).clear()
            count += 1
            if count > MOST_FILES:
                raise UsageError(f"{name}: found more than {MOST_FILES} files, expected fewer")
            yield member, tar
        # tarfile ends without a word at a header that it does not understand.
        if stream.last.strip(b"\0") or len(stream.last) != tarfile.BLOCKSIZE:
            raise UsageError(f"{name}: found no end of the archive: it is damaged, or was cut off")


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Turn what readers raise for a damaged archive into UsageError."""
    try:
        yield
    except DAMAGED as error:
        reason = printable(str(error).partition("\n")[0][:100]) or type(error).__name__
        raise UsageError(f"{printable(name)}: found an archive that is damaged or cut off ({reason})") from error


def plain_name(raw: str) -> str | None:
    """A path without dots, or None for one that leads elsewhere and is read past."""
    parts = [part for part in raw.split("/") if part not in ("", ".")]
    if raw.startswith("/") or ".." in parts or "\0" in raw or "!" in raw or len(parts) > _DEEPEST:
        return None
    return "/".join(parts) or None


def entry_of(member: tarfile.TarInfo) -> Entry:
    """Entry of a tar for one of its members."""
    if member.isdir():
        return Entry("a folder")
    if member.issym() or member.islnk():
        return Entry("a link")
    if member.isreg() and not member.issparse() and member.size >= 0:
        return Entry(FILE, member.size)
    return Entry("a device, a pipe or a sparse file")


class Layer:
    """One tar of files."""

    def __init__(
        self,
        name: str,
        open_it: Callable[[], io.BufferedReader],
        *,
        blob: str = "",
        unpacked: str = "",
        offset: int = 0,
    ) -> None:
        self._name = name
        self._open = open_it
        self._blob = blob
        self._unpacked = unpacked
        self.offset = offset
        self.digest = ""
        self.deleted: set[str] = set()
        self.emptied: set[str] = set()

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """Its paths; once all are read, also `digest`, `deleted` and `emptied`, and digests are as they were stated."""
        with self._open() as packed:
            whole, stream = self._streams(packed)
            for member, _ in members(stream, self._name):
                name = plain_name(member.name)
                if name is None:
                    continue
                folder, _, last = name.rpartition("/")
                if last == _OPAQUE:
                    self.emptied.add(folder)
                elif last.startswith(_WHITEOUT):
                    if not last.startswith(".wh..wh.") and last != _WHITEOUT:
                        self.deleted.add(f"{folder}/{last[4:]}".lstrip("/"))
                else:
                    yield name, entry_of(member)
            with named_errors(self._name):
                self.digest = stream.finish()
                blob = whole.finish()
        for found, stated in ((blob, self._blob), (self.digest, self._unpacked)):
            if stated and found != stated:
                raise UsageError(f"{self._name}: found sha256 {found}, expected {stated}: it is damaged or was altered")

    def read(self, wanted: Mapping[str, Path | None]) -> dict[str, str]:
        """As :class:`Archive` says."""
        digests = {}
        with self._open() as packed:
            _, stream = self._streams(packed)
            for member, tar in members(stream, self._name):
                name = plain_name(member.name)
                if name is not None and name in wanted and entry_of(member).kind == FILE:
                    file = tar.extractfile(member)
                    assert file is not None, "a regular file has contents"
                    digests[name] = _copied(file, wanted[name], member.size, name)
                    if len(digests) == len(wanted):
                        break
        return digests

    def _streams(self, packed: io.BufferedReader) -> tuple[Stream, Stream]:
        """The layer as it is stored, and as it is once unpacked."""
        first = packed.peek(4)[:4]
        if first == ZSTD:
            raise UsageError(
                f"{printable(self._name)}: found it compressed by zstd, expected gzip or none: "
                "`crane export IMAGE FILE` writes the image as one plain tar"
            )
        whole = Stream(packed, self._name)
        if not first.startswith(GZIP):
            return whole, whole
        return whole, Stream(cast("IO[bytes]", gzip.GzipFile(fileobj=cast("IO[bytes]", whole), mode="rb")), self._name)


class Folder:
    """A folder with the image's files, or some of them."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """All paths below it."""
        count = 0
        for folder, folders, files in os.walk(self._root, followlinks=False):
            for name in (*folders, *files):
                path = Path(folder, name)
                shown = plain_name(path.relative_to(self._root).as_posix())
                count += 1
                if count > MOST_FILES:
                    raise UsageError(f"{self._root}: found more than {MOST_FILES} files, expected an image of fewer")
                if shown is not None:
                    status = path.lstat()
                    regular = Entry(FILE, status.st_size) if stat.S_ISREG(status.st_mode) else None
                    other = "a link" if stat.S_ISLNK(status.st_mode) else "a folder or a device"
                    yield shown, regular or Entry(other)

    def read(self, wanted: Mapping[str, Path | None]) -> dict[str, str]:
        """As :class:`Archive` says."""
        digests = {}
        for name, target in wanted.items():
            with (self._root / name).open("rb") as file:
                digests[name] = _copied(file, target, os.fstat(file.fileno()).st_size, name)
        return digests


class Zip:
    """A zip of files; its paths begin with its own."""

    def __init__(self, shown: str, path: Path) -> None:
        self._shown = shown
        self._path = path

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """Its paths, without its own."""
        with zipfile.ZipFile(self._path) as archive:
            seen: dict[str, Entry] = {}
            for member in archive.infolist():
                name = plain_name(member.filename)
                if name is None or member.is_dir():
                    continue
                linked = stat.S_ISLNK(member.external_attr >> 16)
                entry = Entry("a link") if linked else Entry(FILE, member.file_size)
                seen[name] = Entry("a path that is there twice") if name in seen else entry
            yield from seen.items()

    def read(self, wanted: Mapping[str, Path | None]) -> dict[str, str]:
        """As :class:`Archive` says."""
        digests = {}
        with named_errors(self._shown), zipfile.ZipFile(self._path) as archive:
            for member in archive.infolist():
                path = f"{self._shown}!{plain_name(member.filename)}"
                if path in wanted and not member.is_dir():
                    with archive.open(member) as file:
                        digests[path] = _copied(file, wanted[path], member.file_size, path)
        return digests


def _copied(source: IO[bytes], target: Path | None, size: int, name: str) -> str:
    """Write so many bytes of a file to a new one, or nowhere; their SHA-256."""
    digest = hashlib.sha256()
    with Path(target or os.devnull).open("wb") as file, named_errors(name):
        left = size
        while left > 0:
            data = source.read(min(CHUNK, left))
            if not data:
                raise EOFError(f"{left} of {size} bytes are missing")
            file.write(data)
            digest.update(data)
            left -= len(data)
    return digest.hexdigest()
