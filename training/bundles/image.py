"""Files out of a saved container image: `docker save`, an OCI archive, a flat export, or a folder.

Layers lie over each other as a container engine lays them: the last one rules, and whiteouts delete. Nothing is run.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

from inference.errors import UsageError
from inference.text import printable
from training.bundles.archives import (
    CHUNK,
    DAMAGED,
    FILE,
    GZIP,
    MOST_FILES,
    ZSTD,
    Archive,
    Entry,
    Folder,
    Layer,
    Stream,
    Zip,
    entry_of,
    members,
    named_errors,
    plain_name,
)

_LARGEST_JSON: Final = 2**24
_LARGEST_ZIPS: Final = 2**36
"""Most bytes of all zips together, 64 GiB: they are copied before they can be looked into."""


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
    """All paths."""
    places: dict[str, Archive]
    """Which archive each path is in, under the same name; files of zips are called `ZIP!PATH`."""
    notes: list[str] = field(default_factory=list)
    """What could not be looked into."""

    def open_zips(self, scratch: Path) -> None:
        """Add the files that lie in zips, which are copied to the folder `scratch` for it."""
        zips = [path for path, entry in self.entries.items() if path.lower().endswith(".zip") and entry.kind == FILE]
        if (size := sum(self.entries[path].size for path in zips)) > _LARGEST_ZIPS:
            raise UsageError(f"found zips of {size} bytes in the image, expected at most {_LARGEST_ZIPS}")
        copies: dict[str, Path | None] = {path: scratch / f"{number}.zip" for number, path in enumerate(zips)}
        self.read(copies)
        for path in zips:
            try:
                archive = Zip(path, cast("Path", copies[path]))
                found = {f"{path}!{name}": entry for name, entry in archive.entries()}
            except (UsageError, OSError, *DAMAGED):
                self.notes.append(f"{printable(path)}: no zip that can be read")
                continue
            self.entries.update(found)
            self.places.update(dict.fromkeys(found, archive))

    def read(self, wanted: Mapping[str, Path | None]) -> dict[str, str]:
        """Write files of the image, by path, to the places given, or nowhere for None; their SHA-256 by path.

        Raises UsageError for what is no file, or not as long as it is said to be.
        """
        by_archive: dict[int, dict[str, Path | None]] = {}
        for path, target in wanted.items():
            if self.entries[path].kind != FILE:
                raise UsageError(f"{printable(path)}: found {self.entries[path].kind}, expected a file")
            by_archive.setdefault(id(self.places[path]), {})[path] = target
        digests: dict[str, str] = {}
        for paths in by_archive.values():
            digests |= self.places[next(iter(paths))].read(paths)
        missing = sorted(set(wanted) - set(digests))
        if missing:
            raise UsageError(f"{printable(missing[0])}: found nothing when it was read, expected a file")
        return digests


def open_image(source: Path) -> SavedImage:
    """A saved image, its list of files read and all its digests checked.

    Raises UsageError for what is none, is damaged or goes beyond the limits of this module.
    """
    if source.is_dir():
        folder = Folder(source)
        entries = dict(folder.entries())
        return SavedImage("a folder", source.resolve().name, (), entries, dict.fromkeys(entries, folder))
    if not source.is_file():
        raise UsageError(f"{source}: found no file and no folder, expected a saved image")
    outer = _Outer(source)
    contents = outer.names()
    if "manifest.json" in contents and (saved := _docker_layers(outer)):
        return _from_layers("docker save", *saved)
    if "index.json" in contents and "oci-layout" in contents:
        return _from_layers("an OCI archive", *_oci_layers(outer))
    flat = Layer(str(source), outer.open)
    entries = _laid_over({}, flat, list(flat.entries()))
    return SavedImage("a flat export", f"sha256:{flat.digest}", (), entries, dict.fromkeys(entries, flat))


def _from_layers(how: str, identity: str, layers: Sequence[Layer]) -> SavedImage:
    """Lay layers, from the lowest, over each other."""
    # Read in the order in which they lie in the file: going back in a compressed one means unpacking it again.
    listed = {id(layer): list(layer.entries()) for layer in sorted(layers, key=lambda layer: layer.offset)}
    if sum(map(len, listed.values())) > MOST_FILES:
        raise UsageError(f"found more than {MOST_FILES} files in the image's layers, expected an image of fewer")
    entries: dict[str, Entry] = {}
    places: dict[str, Archive] = {}
    for layer in layers:
        entries = _laid_over(entries, layer, listed[id(layer)])
        own = {name for name, _ in listed[id(layer)]}
        places = {path: layer if path in own else places[path] for path in entries}
    digests = tuple(layer.digest for layer in layers)
    return SavedImage(f"{how}, {len(layers)} layers", identity, digests, entries, places)


def _laid_over(lower: dict[str, Entry], layer: Layer, listed: list[tuple[str, Entry]]) -> dict[str, Entry]:
    """Paths and their contents once a layer lies over others."""
    own: dict[str, Entry] = {}
    for name, entry in listed:
        twice = name in own and FILE in (entry.kind, own[name].kind)
        own[name] = Entry("a path that is there twice") if twice else entry
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
        self._contents: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}

    def open(self) -> io.BufferedReader:
        """The tar, from its beginning."""
        with self._path.open("rb") as file:
            first = file.read(4)
        if first == ZSTD:
            raise UsageError(f"{self._path}: found it compressed by zstd, expected a tar: unpack it with `zstd -d`")
        # Whoever asked for it closes it.
        return cast("io.BufferedReader", (gzip.open if first.startswith(GZIP) else open)(self._path, "rb"))

    def names(self) -> set[str]:
        """The paths of its files, but for those that are there twice."""
        twice = set()
        with self.open() as file:
            for member, _ in members(Stream(file, str(self._path), seeks=True), str(self._path)):
                name = plain_name(member.name)
                if name is None or member.isdir():
                    continue
                if name in self._contents or name in self._links:
                    twice.add(name)
                elif member.issym():
                    self._links[name] = os.path.normpath(f"{name}/../{member.linkname}")
                elif entry_of(member).kind == FILE:
                    self._contents[name] = member.offset_data, member.size
        for name in twice:
            self._contents.pop(name, None)
            self._links.pop(name, None)
        return set(self._contents)

    def place(self, name: str) -> tuple[int, int]:
        """Where a file lies: offset and size. Old docker wrote a layer that two images share once, and links to it."""
        found = self._contents.get(name) or self._contents.get(self._links.get(name, ""))
        if found is None:
            raise UsageError(f"{self._path}: {printable(name)}: found nothing there, or two files, expected one")
        return found

    def section(self, name: str) -> io.BufferedReader:
        """One of its files."""
        offset, size = self.place(name)
        file = self.open()
        with named_errors(str(self._path)):
            file.seek(offset)
        return io.BufferedReader(_Section(file, size), CHUNK)

    def json(self, name: str, digest: str = "") -> tuple[object, str]:
        """The value in one of its files, and its SHA-256, which must be the one that is stated."""
        shown = f"{self._path}: {printable(name)}"
        if self.place(name)[1] > _LARGEST_JSON:
            raise UsageError(f"{shown}: found {self.place(name)[1]} bytes, expected at most {_LARGEST_JSON}")
        with self.section(name) as file, named_errors(shown):
            raw = file.read(_LARGEST_JSON)
            value = json.loads(raw)
        found = hashlib.sha256(raw).hexdigest()
        if digest and found != digest:
            raise UsageError(f"{shown}: found sha256 {found}, expected {digest}: it is damaged or was altered")
        return value, found


class _Section(io.RawIOBase):
    """The next so many bytes of a file, which is closed with it."""

    def __init__(self, file: io.BufferedReader, size: int) -> None:
        self._file = file
        self._left = size

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview[int], /) -> int:  # type: ignore[override]
        """Fill a buffer as far as there is something left."""
        data = self._file.read(min(len(buffer), self._left))
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close both."""
        self._file.close()
        super().close()


def _docker_layers(outer: _Outer) -> tuple[str, list[Layer]] | None:
    """Identity and layers of `docker save`; None where `manifest.json` is another program's."""
    manifest, _ = outer.json("manifest.json")
    if not isinstance(manifest, list) or not all(isinstance(one, dict) and "Layers" in one for one in manifest):
        return None
    if len(manifest) != 1:
        raise UsageError(f"manifest.json: found {len(manifest)} images, expected one: save it alone")
    config, layers = manifest[0].get("Config"), manifest[0]["Layers"]
    if not isinstance(config, str) or not isinstance(layers, list) or not all(isinstance(one, str) for one in layers):
        raise UsageError("manifest.json: found no names of a configuration and layers, expected those of docker save")
    stated = re.search(r"(?:^|/)([0-9a-f]{64})(?:\.json)?$", config)
    value, digest = outer.json(config, stated[1] if stated else "")
    unpacked = _unpacked_digests(value, len(layers))
    blobs = [re.fullmatch(r"blobs/sha256/([0-9a-f]{64})", name) for name in layers]
    return f"sha256:{digest}", [
        _layer(outer, name, blob[1] if blob else "", plain)
        for name, blob, plain in zip(layers, blobs, unpacked, strict=True)
    ]


def _oci_layers(outer: _Outer) -> tuple[str, list[Layer]]:
    """Identity and layers of an OCI archive of one image."""
    value, _ = outer.json("index.json")
    for _depth in range(4):
        found = value.get("manifests") if isinstance(value, dict) else None
        if found is None:
            break
        # An index lists signatures and the like beside the image, for a platform that is unknown.
        images = [one for one in found if isinstance(one, dict) and _platform(one) != "unknown"]
        images = [one for one in images if _platform(one) == "amd64"] or images
        if len(images) != 1:
            raise UsageError(f"index.json: found {len(images)} images, expected one: copy it alone")
        value, _ = outer.json(*_blob(images[0]))
    if not isinstance(value, dict) or not isinstance(value.get("layers"), list):
        raise UsageError("index.json: found no image's manifest behind it, expected an OCI archive")
    config, digest = outer.json(*_blob(value.get("config")))
    blobs = [_blob(layer) for layer in value["layers"]]
    unpacked = _unpacked_digests(config, len(blobs))
    return f"sha256:{digest}", [_layer(outer, *blob, plain) for blob, plain in zip(blobs, unpacked, strict=True)]


def _layer(outer: _Outer, name: str, blob: str, unpacked: str) -> Layer:
    offset, _ = outer.place(name)
    return Layer(name, lambda: outer.section(name), blob=blob, unpacked=unpacked, offset=offset)


def _platform(image: Mapping[str, object]) -> object:
    platform = image.get("platform")
    return platform.get("architecture") if isinstance(platform, dict) else None


def _blob(described: object) -> tuple[str, str]:
    """Name and SHA-256 of what an OCI descriptor names."""
    digest = described.get("digest") if isinstance(described, dict) else None
    named = re.fullmatch(r"sha256:([0-9a-f]{64})", digest) if isinstance(digest, str) else None
    if named is None:
        raise UsageError(f"found the digest {printable(str(digest)[:80])}, expected sha256 and 64 hexadecimal digits")
    return f"blobs/sha256/{named[1]}", named[1]


def _unpacked_digests(config: object, count: int) -> list[str]:
    """The SHA-256 of the unpacked layers by an image's configuration."""
    root = config.get("rootfs") if isinstance(config, dict) else None
    digests = root.get("diff_ids") if isinstance(root, dict) else None
    if not isinstance(digests, list) or len(digests) != count or not count:
        raise UsageError(f"the image's configuration: found no digests of its {count} layers, expected one of each")
    return [_blob({"digest": digest})[1] for digest in digests]
