"""Typed JSON and YAML: whatever is wrong with a file is one line with file, key, found and expected."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

from inference.errors import BundleError, UsageError
from inference.schema import Count, Mismatch, Name, Text, parse_json, read_json, read_yaml, shown, to_json


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Name
    size: Count
    kind: Literal["a", "b"] = "a"
    weight: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0


class Whole(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    files: Mapping[str, Part]
    shape: tuple[int, int, int]
    parts: tuple[Part, ...] = ()
    texts: tuple[Text, ...] = ()
    numbered: Mapping[int, Part] = {}
    free: Mapping[str, object] = {}
    maybe: Part | None = None

    def __post_init__(self) -> None:
        if self.shape[0] == 9:
            raise Mismatch("shape", self.shape, "anything but 9")


PART = {"name": "n", "size": 1}
GOOD = {"files": {}, "shape": [1, 2, 3]}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    whole = Whole({"a.b": Part("x", 2)}, (1, 2, 3), numbered={3: Part("y", 0, "b", 0.5)}, free={"ü": [None]})
    (tmp_path / "x.json").write_bytes(to_json(whole))
    assert read_json(tmp_path / "x.json", Whole, UsageError) == whole
    with pytest.raises(ValueError, match="JSON"):
        to_json({"a": float("nan")})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"files": {"fine": PART, "a.b[c]": {**PART, "name": ".."}}},
            'files.a.b[c].name: found "..", expected letters',
        ),
        ({"files": 3}, "files: found 3, expected an object"),
        ({"files": None}, "files: found nothing, expected an object"),
        ({"shape": [1, 2]}, "shape: found [1, 2], expected a list of 3 values, each a whole number"),
        ({"shape": [1, 2, True]}, "shape[2]: found true, expected a whole number"),
        ({"shape": [9, 2, 3]}, "shape: found [9, 2, 3], expected anything but 9"),
        ({"parts": [PART, {**PART, "kind": "c"}]}, 'parts[1].kind: found "c", expected one of a, b'),
        ({"parts": [PART, {"name": "n"}]}, "parts[1].size: found nothing, expected a whole number of at least 0"),
        ({"texts": ["a", " "]}, 'texts[1]: found " ", expected a text that is not empty'),
        ({"numbered": {"x": PART}}, "numbered: found a key that is not a whole number"),
        ({"numbered": {"1": {**PART, "size": -1}}}, "numbered.1.size: found -1"),
        ({"maybe": {**PART, "weight": 0}}, "maybe.weight: found 0, expected a number above 0 of at most 1"),
        ({"frre": {}}, "frre: found an unknown key, expected only files, free, maybe"),
        ({"frre": {}}, "did you mean free?"),
        ({"free": "\x1b[31m"}, r'free: found "\u001b[31m", expected an object'),
    ],
)
def test_a_wrong_key_is_named(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(BundleError) as caught:
        parse_json(json.dumps(GOOD | changes).encode(), Whole, BundleError, "x.json")
    assert str(caught.value).startswith("x.json: ")
    assert complaint in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"", "not valid JSON"),
        ('{"a": 1}'.encode("utf-16"), "not valid JSON"),
        (b"[1]", "the whole file: found [1], expected an object"),
        (b'{"a": 1, "a": 2}', "a: found twice in one object, expected once"),
        (b'{"a": NaN}', "found the number NaN, expected finite numbers"),
        (b'{"a": 1e999}', "found the number 1e999, expected finite numbers"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "not valid JSON"),
        (b'{"files": ' + b'{"a": ' * 900 + b"1" + b"}" * 900 + b"}", "files.a.a: found an unknown key"),
    ],
)
def test_a_damaged_file_is_one_line(raw: bytes, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_json(raw, Whole, UsageError, "x.json")
    assert complaint in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"", "found nothing, expected an object"),
        (b"a: [", "cannot be read as YAML"),
        ("a: 1".encode("utf-16"), "cannot be read as YAML"),
        (b"a: .nan", "finite numbers"),
        (b"a: 1\na: 2", "a: found twice"),
        (b"[" * 3000, "cannot be read as YAML"),
        (b"1: 2", "found a key that is not a text"),
        (b"a: !!python/object:os.system {}", "cannot be read as YAML"),
    ],
)
def test_damaged_yaml_is_one_line(tmp_path: Path, raw: bytes, complaint: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(raw)
    with pytest.raises(UsageError, match=r"x\.yaml") as caught:
        read_yaml(path, UsageError)
    assert complaint in str(caught.value)
    assert str(caught.value).isprintable()


def test_yaml_merges_keys_and_keeps_dates_as_texts(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: &a {b: 1, c: 2024-02-03}\nd: {<<: *a, b: 2}")
    assert read_yaml(tmp_path / "x.yaml", UsageError)["d"] == {"b": 2, "c": "2024-02-03"}


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UsageError, match="cannot be read"):
            read_json(path, Whole, UsageError)


@dataclass(frozen=True)
class Plain:
    parts: tuple[Part, ...]
    inner: Mapping[str, Plain] = field(default_factory=dict)


def test_dataclasses_know_their_keys_too() -> None:
    good = {"parts": [PART], "inner": {"a": {"parts": []}}}
    assert parse_json(json.dumps(good).encode(), Plain, UsageError, "x.json").parts == (Part("n", 1),)
    good["inner"]["a"]["part"] = 1
    with pytest.raises(UsageError, match=r"inner\.a\.part: found an unknown key, expected only inner, parts \(did you"):
        parse_json(json.dumps(good).encode(), Plain, UsageError, "x.json")


def test_huge_values_are_shown_short() -> None:
    assert len(shown([list(range(10**6))] * 100)) == 78
