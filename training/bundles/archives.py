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
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, cast

from inference.errors import UsageError
from inference.text import printable

FILE: Final = "a file"
"""Kind of what can be read; other kinds say what stands in a file's place."""
MOST_FILES: Final = 2_000_000
CHUNK: Final = 2**20
# tarfile asks for a whole header at once, however much a damaged one announces. Real names take some thousand bytes.
_LONGEST_HEADER: Final = 2**20
# A small gzip can unpack to more than any disk holds. 256 GiB are ten times the largest images.
_MOST_BYTES: Final = 2**38
# Whatever lies deeper is no file of a program, and laying layers over each other looks at every folder of a path.
_DEEPEST: Final = 64
# First bytes of gzip (RFC 1952) and zstd (RFC 8878).
GZIP: Final = b"\x1f\x8b"
ZSTD: Final = b"\x28\xb5\x2f\xfd"
# Whiteouts of the OCI image specification: `.wh.NAME` deletes NAME of the layers below, the opaque one all of a folder.
_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
# The standard library's readers raise all of these for damaged archives; the fuzz test shows where one is missing.
DAMAGED: Final = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError, KeyError,
    IndexError, OverflowError, RecursionError, NotImplementedError, RuntimeError, gzip.BadGzipFile,
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """Entry of an archive for one of its paths."""

    kind: str
    """:data:`FILE`, or `a link` and so on."""
    archive: Layer | Folder | Zip
    """Where it can be read, under the same path."""
    size: int = 0
    """Bytes of a file."""


class Stream:
    """A file that is read forwards only, in pieces of a bounded size, and hashed: what tarfile sees of a layer.

    It ends after `size` bytes. With `seeks` a later position is gone to without reading, and nothing is hashed.
    """

    def __init__(self, file: IO[bytes], name: str, size: int = sys.maxsize, *, seeks: bool = False) -> None:
        self._file = file
        self._name = name
        self._size = size
        self._seeks = seeks
        self._position = 0
        self._digest = hashlib.sha256()
        self.last = b""

    def read(self, size: int) -> bytes:
        """The next bytes, fewer at the end."""
        if not 0 <= size <= _LONGEST_HEADER:
            raise UsageError(f"{self._name}: found a header of {size} bytes, expected at most {_LONGEST_HEADER}")
        data = self._file.read(min(size, self._size - self._position))
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
        # Not tarfile.open, which would search for a compression, and seek.
        tar = tarfile.TarFile(fileobj=cast("IO[bytes]", stream))
        while (member := tar.next()) is not None:
            # tarfile keeps all members, and global headers apply to all that follow: neither is wanted.
            cast("dict[str, list[object]]", vars(tar))["members"].clear()
            cast("dict[str, str]", tar.pax_headers).clear()
            count += 1
            if count > MOST_FILES:
                raise UsageError(f"{name}: found more than {MOST_FILES} files, expected fewer")
            yield member, tar
        # tarfile ends without a word at a header that it does not understand. A whole tar ends with a block of zeros.
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
    # An exclamation mark would read as a path inside a zip.
    if raw.startswith("/") or ".." in parts or "\0" in raw or "!" in raw or len(parts) > _DEEPEST:
        return None
    return "/".join(parts) or None


def kind_of(member: tarfile.TarInfo) -> str:
    """Kind of a tar's member: :data:`FILE`, `a folder` and so on."""
    if member.isdir():
        return "a folder"
    if member.issym() or member.islnk():
        return "a link"
    # Sizes are signed in the base-256 form of large numbers.
    return (
        FILE if member.isreg() and not member.issparse() and member.size >= 0 else "a device, a pipe or a sparse file"
    )


class Layer:
    """One tar of files, perhaps compressed: `size` bytes of what `open_at` opens at an offset.

    `blob` and `unpacked` are the SHA-256 that the image states of it as it is stored and unpacked, where it does.
    """

    def __init__(
        self,
        name: str,
        open_at: Callable[[int], io.BufferedReader],
        offset: int = 0,
        size: int = sys.maxsize,
        *,
        blob: str = "",
        unpacked: str = "",
    ) -> None:
        self._name = name
        self._open_at = open_at
        self.offset = offset
        self._size = size
        self._stated = blob, unpacked
        self.digest = ""
        self.deleted: set[str] = set()
        self.emptied: set[str] = set()

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """Its paths; once all are read, also `digest`, `deleted` and `emptied`, and digests are as they were stated."""
        with self._open_at(self.offset) as packed:
            whole, stream = self._streams(packed)
            for member, _ in members(stream, self._name):
                name = plain_name(member.name)
                if name is None:
                    continue
                folder, _, last = name.rpartition("/")
                if last == _OPAQUE:
                    self.emptied.add(folder)
                elif last.startswith(_WHITEOUT):
                    # `.wh..wh.plnk` and the like are marks of aufs itself, and delete nothing.
                    if not last.startswith(".wh..wh.") and last != _WHITEOUT:
                        self.deleted.add(f"{folder}/{last[4:]}".lstrip("/"))
                else:
                    yield name, Entry(kind_of(member), self, member.size)
            with named_errors(self._name):
                self.digest = stream.finish()
                blob = whole.finish()
        for found, stated in zip((blob, self.digest), self._stated, strict=True):
            if stated and found != stated:
                raise UsageError(f"{self._name}: found sha256 {found}, expected {stated}: it is damaged or was altered")

    def files(self, paths: Iterable[str]) -> Iterator[tuple[str, IO[bytes], int]]:
        """Some of its files, as they come: path, contents, bytes."""
        left = set(paths)
        with self._open_at(self.offset) as packed:
            for member, tar in members(self._streams(packed)[1], self._name):
                name = plain_name(member.name)
                if name in left and kind_of(member) == FILE:
                    file = tar.extractfile(member)
                    assert file is not None, "a regular file has contents"
                    yield name, file, member.size
                    left.remove(name)
                    # What follows in a layer may be gigabytes.
                    if not left:
                        return

    def _streams(self, packed: io.BufferedReader) -> tuple[Stream, Stream]:
        """The layer as it is stored, and as it is once unpacked."""
        first = packed.peek(4)[:4]
        if first == ZSTD:
            raise UsageError(
                f"{printable(self._name)}: found it compressed by zstd, expected gzip or none: "
                "`crane export IMAGE FILE` writes the image as one plain tar"
            )
        whole = Stream(packed, self._name, self._size)
        if not first.startswith(GZIP):
            return whole, whole
        return whole, Stream(cast("IO[bytes]", gzip.GzipFile(fileobj=cast("IO[bytes]", whole), mode="rb")), self._name)


class Folder:
    """A folder with the image's files, or some of them."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """All paths below it."""
        for count, path in enumerate(self._root.rglob("*"), start=1):
            if count > MOST_FILES:
                raise UsageError(f"{self._root}: found more than {MOST_FILES} files, expected an image of fewer")
            name = plain_name(path.relative_to(self._root).as_posix())
            if name is not None:
                status = path.lstat()
                other = "a link" if stat.S_ISLNK(status.st_mode) else "a folder or a device"
                yield name, Entry(FILE if stat.S_ISREG(status.st_mode) else other, self, status.st_size)

    def files(self, paths: Iterable[str]) -> Iterator[tuple[str, IO[bytes], int]]:
        """Some of its files: path, contents, bytes."""
        for name in paths:
            with (self._root / name).open("rb") as file:
                yield name, file, os.fstat(file.fileno()).st_size


class Zip:
    """A zip of files; their paths are `ZIP!PATH`."""

    def __init__(self, name: str, path: Path) -> None:
        self._name = name
        self._path = path
        self._members: dict[str, zipfile.ZipInfo] = {}

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """Its paths."""
        found: dict[str, Entry] = {}
        with zipfile.ZipFile(self._path) as archive:
            for member in archive.infolist():
                name = plain_name(member.filename)
                if name is None or member.is_dir():
                    continue
                path = f"{self._name}!{name}"
                kind = "a link" if stat.S_ISLNK(member.external_attr >> 16) else FILE
                # Readers differ in which of two they take, so that neither is to be trusted.
                kind = "a path that is there twice" if path in found else kind
                self._members[path] = member
                found[path] = Entry(kind, self, member.file_size)
        yield from found.items()

    def files(self, paths: Iterable[str]) -> Iterator[tuple[str, IO[bytes], int]]:
        """Some of its files: path, contents, bytes."""
        with named_errors(self._name), zipfile.ZipFile(self._path) as archive:
            for path in paths:
                with archive.open(self._members[path]) as file:
                    yield path, file, self._members[path].file_size
