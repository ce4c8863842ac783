"""JSON read key by key, so that every complaint names the file, the key, what was found and what was expected."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

from inference.errors import BundleError

JSON_LIMIT = 64 * 2**20
"""Largest JSON file, in bytes, that is read at all."""


def wrong(file: str, key: str, found: object, expected: str) -> BundleError:
    """The error for one key of one file (None for a key that is absent); `found` is shortened to a line."""
    evidence = "nothing" if found is None else json.dumps(found, ensure_ascii=False, default=str)
    if len(evidence) > 80:
        evidence = evidence[:77] + "…"
    return BundleError(f"{file}: {key or 'the whole file'}: found {evidence}, expected {expected}")


def parse_json(raw: bytes, file: str) -> object:
    """The value in a JSON file; duplicate keys and non-finite numbers are refused (BundleError)."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(pairs)
        if len(result) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise BundleError(f"{file}: {twice}: found twice in one object, expected once")
        return result

    def constant(name: str) -> object:
        raise BundleError(f"{file}: found the number {name}, expected finite numbers")

    try:
        value: object = json.loads(raw, object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file}: not valid JSON ({str(error) or type(error).__name__})") from error
    return value


def read_json(path: Path, file: str) -> object:
    """The value in the JSON file at `path`, called `file` in errors (BundleError)."""
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise BundleError(f"{file}: found {path.stat().st_size} bytes, expected at most {JSON_LIMIT}")
        raw = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{file}: cannot be read ({error.strerror or error})") from error
    return parse_json(raw, file)


class Fields:
    """One JSON object whose keys are asked for by type; :meth:`close` refuses keys that nobody asked for."""

    def __init__(self, value: object, file: str, key: str = "") -> None:
        if not isinstance(value, dict):
            raise wrong(file, key, value, "an object")
        self.file = file
        """Name of the file, relative to the bundle."""
        self.key = key
        """Path of keys that leads to this object; empty at the top."""
        self._values: dict[str, object] = value
        self._asked: set[str] = set()

    def names(self) -> tuple[str, ...]:
        """All keys that are there, in the file's order."""
        return tuple(self._values)

    def path(self, key: str) -> str:
        """How `key` of this object is called in errors."""
        return f"{self.key}.{key}" if self.key else key

    def wrong(self, key: str, expected: str) -> BundleError:
        """The error that says what stands at `key` and what should."""
        return wrong(self.file, self.path(key), self._values.get(key), expected)

    def value(self, key: str, expected: str = "a value") -> object:
        """Whatever stands at `key`, which has to be there."""
        self._asked.add(key)
        if key not in self._values:
            raise self.wrong(key, expected)
        return self._values[key]

    def text(self, key: str, pattern: str = r".*\S.*", expected: str = "a text that is not empty") -> str:
        """A text that matches `pattern` from end to end."""
        value = self.value(key, expected)
        if not isinstance(value, str) or not re.fullmatch(pattern, value, re.DOTALL):
            raise self.wrong(key, expected)
        return value

    def choice(self, key: str, choices: Sequence[str]) -> str:
        """One of a few texts."""
        expected = "one of " + ", ".join(choices)
        value = self.value(key, expected)
        if not isinstance(value, str) or value not in choices:
            raise self.wrong(key, expected)
        return value

    def fixed(self, key: str, expected: object) -> None:
        """A value that this program knows only one of."""
        if self.value(key, json.dumps(expected)) != expected:
            raise self.wrong(key, json.dumps(expected))

    def number(self, key: str, least: float = -math.inf, most: float = math.inf) -> float:
        """A finite number from `least` to `most`, both included."""
        bounds = f" from {least:g} to {most:g}" if math.isfinite(most) else f" of at least {least:g}"
        expected = "a number" + (bounds if math.isfinite(least) else "")
        value = self.value(key, expected)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self.wrong(key, expected)
        return float(value)

    def count(self, key: str, least: int = 0) -> int:
        """A whole number of at least `least`."""
        expected = f"a whole number of at least {least}"
        value = self.value(key, expected)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.wrong(key, expected)
        return value

    def counts(self, key: str) -> tuple[int, ...]:
        """At least one whole number, none negative, none twice."""
        expected = "a list of different whole numbers of at least 0"
        value = self.value(key, expected)
        whole = isinstance(value, list) and all(type(entry) is int and entry >= 0 for entry in value)
        if not isinstance(value, list) or not whole or not value or len(set(value)) != len(value):
            raise self.wrong(key, expected)
        return tuple(value)

    def texts(self, key: str, *, unique: bool = False) -> tuple[str, ...]:
        """A list of texts, possibly empty."""
        expected = "a list of " + "different " * unique + "texts"
        value = self.value(key, expected)
        if not isinstance(value, list) or not all(isinstance(entry, str) and entry.strip() for entry in value):
            raise self.wrong(key, expected)
        if unique and len(set(value)) != len(value):
            raise self.wrong(key, expected)
        return tuple(value)

    def fields(self, key: str) -> Fields:
        """The object at `key`."""
        return Fields(self.value(key, "an object"), self.file, self.path(key))

    def list_of_fields(self, key: str) -> list[Fields]:
        """The objects of the list at `key`."""
        value = self.value(key, "a list of objects")
        if not isinstance(value, list):
            raise self.wrong(key, "a list of objects")
        return [Fields(entry, self.file, f"{self.path(key)}[{index}]") for index, entry in enumerate(value)]

    def free(self, key: str) -> dict[str, object]:
        """An object that holds whatever it likes."""
        value = self.value(key, "an object")
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return value

    def close(self) -> None:
        """Refuse what was not asked for: an unknown key may change what the others mean."""
        unknown = [key for key in self._values if key not in self._asked]
        if unknown:
            known = ", ".join(sorted(self._asked))
            raise BundleError(f"{self.file}: {self.path(unknown[0])}: found an unknown key, expected only {known}")
