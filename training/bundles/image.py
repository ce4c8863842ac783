"""Files out of a saved container image: `docker save`, an OCI archive, a flat export, or a folder.

Layers lie over each other as a container engine lays them: the last one rules, and whiteouts delete. Nothing is run.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Final, TypeVar, cast

import msgspec

from inference.errors import UsageError
from inference.schema import SIZE_LIMIT, convert, parse_json
from inference.text import printable
from training.bundles.archives import (
    CHUNK,
    DAMAGED,
    FILE,
    GZIP,
    MOST_FILES,
    ZSTD,
    Entry,
    Folder,
    Layer,
    Stream,
    Zip,
    kind_of,
    members,
    named_errors,
    plain_name,
)

T = TypeVar("T")

# All zips of an image together, 64 GiB: a zip is read from its end, so each is copied before it is looked into.
_LARGEST_ZIPS: Final = 2**36


@dataclass
class SavedImage:
    """A saved image, or a folder of one: what is where, and the files themselves."""

    description: str
    """How it was saved."""
    identity: str
    """`sha256:…` of the image's configuration or of the flat file; the folder's name where it is a folder."""
    layers: tuple[str, ...]
    """SHA-256 of its layers, unpacked, from the lowest."""
    entries: dict[str, Entry]
    """All paths; files of zips are called `ZIP!PATH`."""
    notes: list[str] = field(default_factory=list)
    """Files that could not be looked into."""
    digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every file that was copied, by its path."""

    def open_zips(self, scratch: Path) -> None:
        """Add the files that lie in zips, which are copied to the folder `scratch` for it."""
        zips = [path for path, entry in self.entries.items() if path.lower().endswith(".zip") and entry.kind == FILE]
        if (size := sum(self.entries[path].size for path in zips)) > _LARGEST_ZIPS:
            raise UsageError(f"found zips of {size} bytes in the image, expected at most {_LARGEST_ZIPS}")
        copies = {path: scratch / f"{number}.zip" for number, path in enumerate(zips)}
        self._copied(copies)
        for path, copy in copies.items():
            try:
                self.entries.update(Zip(path, copy).entries())
            except (UsageError, OSError, *DAMAGED):
                self.notes.append(f"{printable(path)}: no zip that can be read")

    def copy(self, wanted: Mapping[str, Path | None], most: int) -> None:
        """Copy files, of at most `most` bytes, to the places given, or with None only take their SHA-256.

        Raises UsageError for what is no file, or not as long as it is said to be.
        """
        for path in wanted:
            if path in self.entries and (size := self.entries[path].size) > most:
                raise UsageError(f"{printable(path)}: found {size} bytes, expected at most {most}")
        self.digests |= self._copied(wanted)

    def _copied(self, wanted: Mapping[str, Path | None]) -> dict[str, str]:
        """Copy files; their SHA-256."""
        # An archive is read once for all that is wanted of it: a compressed layer has to be unpacked from its start.
        by_archive: dict[Layer | Folder | Zip, list[str]] = defaultdict(list)
        for path in wanted:
            entry = self.entries.get(path)
            if entry is None or entry.kind != FILE:
                raise UsageError(f"{printable(path)}: found {entry.kind if entry else 'nothing'}, expected a file")
            by_archive[entry.archive].append(path)
        digests = {}
        for archive, paths in by_archive.items():
            for path, file, size in archive.files(paths):
                with Path(wanted[path] or os.devnull).open("wb") as copy, named_errors(path):
                    digests[path] = _copy(file, copy, size)
        if missing := sorted(set(wanted) - set(digests)):
            raise UsageError(f"{printable(missing[0])}: found nothing when it was read, expected a file")
        return digests


def _copy(source: IO[bytes], target: IO[bytes], size: int) -> str:
    """Copy `size` bytes from one file to another; their SHA-256."""
    digest = hashlib.sha256()
    # By the stated size, so that a zip that unpacks to more than it states cannot fill the disk.
    left = size
    while left > 0:
        data = source.read(min(CHUNK, left))
        if not data:
            raise EOFError(f"{left} of {size} bytes are missing")
        target.write(data)
        digest.update(data)
        left -= len(data)
    return digest.hexdigest()


def open_image(source: Path) -> SavedImage:
    """A saved image, its list of files read and all its digests checked.

    Raises UsageError for what is none, is damaged or goes beyond the limits of this module.
    """
    if source.is_dir():
        return SavedImage("a folder", source.resolve().name, (), dict(Folder(source).entries()))
    if not source.is_file():
        raise UsageError(f"{source}: found no file and no folder, expected a saved image")
    outer = _Outer(source)
    # Docker from 25 on writes both lists, which say the same.
    if "manifest.json" in outer.files and (saved := _docker_layers(outer)):
        return _from_layers("docker save", *saved)
    if "index.json" in outer.files and "oci-layout" in outer.files:
        return _from_layers("an OCI archive", *_oci_layers(outer))
    flat = Layer(str(source), outer.open)
    entries = _laid_over({}, flat, list(flat.entries()))
    return SavedImage("a flat export", f"sha256:{flat.digest}", (), entries)


def _from_layers(how: str, identity: str, layers: Sequence[Layer]) -> SavedImage:
    """Lay layers, from the lowest, over each other."""
    # Read in the order in which they lie in the file: going back in a compressed one means unpacking it again.
    listed = {layer: list(layer.entries()) for layer in sorted(layers, key=lambda layer: layer.offset)}
    if sum(map(len, listed.values())) > MOST_FILES:
        raise UsageError(f"found more than {MOST_FILES} files in the image's layers, expected an image of fewer")
    entries: dict[str, Entry] = {}
    for layer in layers:
        entries = _laid_over(entries, layer, listed[layer])
    return SavedImage(f"{how}, {len(layers)} layers", identity, tuple(layer.digest for layer in layers), entries)


def _laid_over(lower: dict[str, Entry], layer: Layer, listed: list[tuple[str, Entry]]) -> dict[str, Entry]:
    """Paths and their contents once a layer lies over others."""
    own: dict[str, Entry] = {}
    for name, entry in listed:
        # Folders may be there twice. Of two files, container engines take the last and scanners may take the first.
        twice = name in own and FILE in (entry.kind, own[name].kind)
        own[name] = Entry("a path that is there twice", layer) if twice else entry
    # A file in the place of a folder hides all that lay in it.
    hidden_by = layer.deleted | layer.emptied | {path for path, entry in own.items() if entry.kind != "a folder"}
    kept: dict[str, Entry] = {}
    for path, entry in lower.items():
        parents = [path[: slash.start()] for slash in re.finditer("/", path)]
        if path not in layer.deleted and "" not in layer.emptied and hidden_by.isdisjoint(parents):
            kept[path] = entry
    return {**kept, **own}


class _Outer:
    """The file that holds an image's layers, itself perhaps compressed by gzip."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.files: dict[str, tuple[int, int]] = {}
        """Offset and size of its files, but for those that are there twice."""
        links: dict[str, str] = {}
        twice = set()
        with self.open() as file:
            for member, _ in members(Stream(file, str(path), seeks=True), str(path)):
                name = plain_name(member.name)
                if name is None or member.isdir():
                    continue
                if name in self.files or name in links:
                    twice.add(name)
                elif member.issym():
                    links[name] = os.path.normpath(f"{name}/../{member.linkname}")
                elif kind_of(member) == FILE:
                    self.files[name] = member.offset_data, member.size
        # Old docker wrote a layer that two images share once, and links to it.
        self.files |= {name: self.files[target] for name, target in links.items() if target in self.files}
        for name in twice:
            self.files.pop(name, None)

    def open(self, offset: int = 0) -> io.BufferedReader:
        """The file, unpacked, from a place in it."""
        with self._path.open("rb") as file:
            first = file.read(4)
        if first == ZSTD:
            raise UsageError(f"{self._path}: found it compressed by zstd, expected a tar: unpack it with `zstd -d`")
        # Whoever asked for it closes it.
        opened = cast("io.BufferedReader", (gzip.open if first.startswith(GZIP) else open)(self._path, "rb"))
        with named_errors(str(self._path)):
            opened.seek(offset)
        return opened

    def place(self, name: str) -> tuple[int, int]:
        """Where a file lies: offset and size."""
        if name not in self.files:
            raise UsageError(f"{self._path}: {printable(name)}: found nothing there, or two files, expected one")
        return self.files[name]

    def layer(self, name: str, blob: str, unpacked: str) -> Layer:
        """One of its layers, whose SHA-256 are those that are stated."""
        return Layer(name, self.open, *self.place(name), blob=blob, unpacked=unpacked)

    def json(self, name: str, kind: type[T], digest: str = "") -> tuple[T, str]:
        """The value in one of its files, and its SHA-256, which must be the one that is stated."""
        shown = f"{self._path}: {printable(name)}"
        offset, size = self.place(name)
        if size > SIZE_LIMIT:
            raise UsageError(f"{shown}: found {size} bytes, expected at most {SIZE_LIMIT}")
        with self.open(offset) as file, named_errors(shown):
            raw = file.read(size)
            value = parse_json(raw, kind, UsageError, shown)
        found = hashlib.sha256(raw).hexdigest()
        if digest and found != digest:
            raise UsageError(f"{shown}: found sha256 {found}, expected {digest}: it is damaged or was altered")
        return value, found


# The forms of github.com/opencontainers/image-spec and of `docker save`, as far as they are followed here.
_Digest = Annotated[
    str, msgspec.Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z", description="sha256 and 64 hexadecimal digits")
]


class _Saved(msgspec.Struct):
    layers: list[str] = msgspec.field(name="Layers")
    config: str = msgspec.field(name="Config", default="")


class _Platform(msgspec.Struct):
    architecture: str = ""


class _Descriptor(msgspec.Struct):
    digest: _Digest
    platform: _Platform | None = None

    @property
    def blob(self) -> tuple[str, str]:
        """Name of the file that it describes, and its SHA-256."""
        return self.digest.replace("sha256:", "blobs/sha256/"), self.digest[7:]


class _Index(msgspec.Struct):
    manifests: list[_Descriptor] | None = None
    config: _Descriptor | None = None
    layers: list[_Descriptor] = []


class _RootFs(msgspec.Struct):
    diff_ids: list[_Digest]


class _Configuration(msgspec.Struct):
    rootfs: _RootFs

    def unpacked(self, count: int) -> list[str]:
        """SHA-256 of its `count` layers, unpacked."""
        digests = [digest[7:] for digest in self.rootfs.diff_ids]
        if len(digests) != count or not count:
            raise UsageError(f"the image's configuration: found {len(digests)} digests, expected one of {count} layers")
        return digests


def _docker_layers(outer: _Outer) -> tuple[str, list[Layer]] | None:
    """Identity and layers of `docker save`; None where `manifest.json` is another program's."""
    manifest, _ = outer.json("manifest.json", object)
    if not isinstance(manifest, list) or not all(isinstance(one, dict) and "Layers" in one for one in manifest):
        return None
    if len(manifest) != 1:
        raise UsageError(f"manifest.json: found {len(manifest)} images, expected one: save it alone")
    saved = convert(manifest[0], _Saved, UsageError, "manifest.json")
    # Configuration and layers are named by their digests, but for layers of docker before 25.
    stated = re.search(r"(?:^|/)([0-9a-f]{64})(?:\.json)?$", saved.config)
    value, digest = outer.json(saved.config, _Configuration, stated[1] if stated else "")
    blobs = [re.fullmatch(r"blobs/sha256/([0-9a-f]{64})", name) for name in saved.layers]
    return f"sha256:{digest}", [
        outer.layer(name, blob[1] if blob else "", plain)
        for name, blob, plain in zip(saved.layers, blobs, value.unpacked(len(blobs)), strict=True)
    ]


def _oci_layers(outer: _Outer) -> tuple[str, list[Layer]]:
    """Identity and layers of an OCI archive of one image."""
    index, _ = outer.json("index.json", _Index)
    # An index may name a further one, as for several platforms. Four are more than anybody writes, and no endless loop.
    for _depth in range(4):
        if index.manifests is None:
            break
        # An index lists signatures and the like beside the image, for a platform that is unknown.
        platforms = [(one.platform.architecture if one.platform else "", one) for one in index.manifests]
        images = [one for platform, one in platforms if platform == "amd64"]
        images = images or [one for platform, one in platforms if platform != "unknown"]
        if len(images) != 1:
            raise UsageError(f"index.json: found {len(images)} images, expected one: copy it alone")
        name, digest = images[0].blob
        index, _ = outer.json(name, _Index, digest)
    if index.config is None:
        raise UsageError("index.json: found no image's manifest behind it, expected an OCI archive")
    name, digest = index.config.blob
    config, _ = outer.json(name, _Configuration, digest)
    unpacked = config.unpacked(len(index.layers))
    layers = [outer.layer(*layer.blob, plain) for layer, plain in zip(index.layers, unpacked, strict=True)]
    return f"sha256:{digest}", layers
