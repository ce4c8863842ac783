"""Reading and writing typed data: JSON and YAML files as msgspec types, checked key by key.

Types say what is allowed. Every mismatch is one line that names file, key, what was found and what was expected, raised
as the named error of the caller's choice. Whatever a type cannot say is checked in its `__post_init__`, which raises
:class:`Mismatch`.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import msgspec
from msgspec import Meta

from inference.errors import GliomaError
from inference.text import printable

if TYPE_CHECKING:
    import yaml

T = TypeVar("T")

SIZE_LIMIT: Final = 64 * 2**20
"""Largest file, in bytes, that is read where no other limit is named."""

Text = Annotated[str, Meta(pattern=r"\S", description="a text that is not empty")]
Name = Annotated[
    str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z", description="letters, digits, '.', '_' and '-'")
]
"""A plain name: safe as a file's name and in a command."""
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Amount = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]

# A step of msgspec's paths: a field, an index of a list, or some value of a mapping.
_PATH: Final = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|(\[\.\.\.\])")


def one_of(choices: Sequence[str]) -> Meta:
    """The constraint on a text that it is one of a few."""
    return Meta(pattern=rf"\A({'|'.join(map(re.escape, choices))})\Z", description=f"one of {', '.join(choices)}")


class Mismatch(ValueError):  # noqa: N818 (becomes a named error, is none itself)
    """A value that fits its type and is wrong all the same; `key` is the path of keys inside it, empty for itself."""

    def __init__(self, key: str, found: object, expected: str) -> None:
        super().__init__(f"{key}: found {shown(found)}, expected {expected}")
        self.key, self.found, self.expected = key, found, expected

    def __reduce__(self) -> tuple[object, ...]:
        return Mismatch, (self.key, self.found, self.expected)


class _Unclear(ValueError):  # noqa: N818
    """Valid JSON or YAML that readers understand in different ways."""


def shown(value: object) -> str:
    """A value as JSON on one line, shortened to 80 characters; None is nothing."""
    if value is None:
        return "nothing"
    # Lazily, so that a huge or deep value costs no more than what is shown of it.
    parts, length = [], 0
    for part in json.JSONEncoder(ensure_ascii=False, default=str).iterencode(value):
        parts.append(part[:81])
        length += len(part)
        if length > 80:
            break
    text = printable("".join(parts))
    return text if len(text) <= 80 else text[:77] + "…"


def mismatch(file: str, key: str, found: object, expected: str, error: type[GliomaError]) -> GliomaError:
    """The named error for one key of one file; `found` is None for a key that is absent."""
    return error(f"{file}: {printable(key) or 'the whole file'}: found {shown(found)}, expected {expected}")


def read_json(path: Path, kind: type[T], error: type[GliomaError], file: str = "", *, limit: int = SIZE_LIMIT) -> T:
    """The JSON file at `path`, of at most `limit` bytes, as `kind`; `file` is its name in errors, its path if empty."""
    file = file or printable(str(path))
    return parse_json(_read(path, error, file, limit), kind, error, file)


def parse_json(raw: bytes, kind: type[T], error: type[GliomaError], file: str) -> T:
    """The bytes of a JSON file as `kind`; keys given twice and numbers that are not finite are refused, too."""
    try:
        # Python's reader, not msgspec's, which takes the last of two equal keys without a word.
        value: object = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as problem:
        if isinstance(problem, _Unclear):
            raise error(f"{file}: {problem}") from None
        raise error(f"{file}: not valid JSON ({_first_line(problem)})") from problem
    return convert(value, kind, error, file)


def read_yaml(path: Path, error: type[GliomaError]) -> dict[str, object]:
    """The keys and values of a YAML file, as :func:`convert` takes them."""
    import yaml

    file = printable(str(path))
    try:
        value = yaml.load(_read(path, error, file).decode(), Loader=_yaml_loader())  # noqa: S506 (a safe loader)
    except (yaml.YAMLError, ValueError, RecursionError) as problem:
        if isinstance(problem, _Unclear):
            raise error(f"{file}: {problem}") from None
        raise error(f"{file}: cannot be read as YAML ({_first_line(problem)})") from None
    return convert(value, dict[str, object], error, file)


def convert(value: object, kind: type[T], error: type[GliomaError], file: str) -> T:
    """`value`, as JSON or YAML give it, as `kind`."""
    try:
        found = msgspec.convert(value, kind, str_keys=True)  # keys of JSON are texts, those of mappings may be numbers
    except msgspec.ValidationError as problem:
        raise _explained(problem, value, kind, error, file) from None
    except (RecursionError, OverflowError) as problem:
        raise error(f"{file}: cannot be read ({_first_line(problem)})") from None
    _refuse_unknown(value, msgspec.inspect.type_info(kind), [], error, file)
    return found


def to_json(value: object) -> bytes:
    """The bytes of a JSON file: keys in the order of the types, numbers finite (ValueError), a newline at the end."""
    plain = msgspec.to_builtins(value, str_keys=True)
    return (json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "replace")


def _read(path: Path, error: type[GliomaError], file: str, limit: int = SIZE_LIMIT) -> bytes:
    try:
        with path.open("rb") as stream:
            raw = stream.read(limit + 1)  # not the size that the system states: a pipe has none
    except OSError as problem:
        raise error(f"{file}: cannot be read ({problem.strerror or problem})") from problem
    if len(raw) > limit:
        raise error(f"{file}: found a file of more than {limit} bytes, which are not read")
    return raw


def _first_line(problem: BaseException) -> str:
    return printable(" ".join(str(problem).split()))[:160] or type(problem).__name__


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Unclear(f"{printable(twice)}: found twice in one object, expected once")
    return result


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _Unclear(f"found the number {text[:40]}, expected finite numbers")
    return number


def _yaml_loader() -> type[yaml.SafeLoader]:
    """The safe loader, which refuses what is refused in JSON: keys given twice, numbers that are not finite."""
    import yaml

    class Loader(yaml.SafeLoader):
        """A class of its own, whose constructors are not everybody's."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
            _unique([(str(key.value), None) for key, _ in node.value])
            return super().construct_mapping(node, deep)

    def construct_float(loader: Loader, node: yaml.ScalarNode) -> float:
        return _finite(str(loader.construct_yaml_float(node)))

    def construct_date(_: Loader, node: yaml.ScalarNode) -> str:
        return str(node.value)  # as in JSON, where a date is a text

    Loader.add_constructor("tag:yaml.org,2002:float", construct_float)
    Loader.add_constructor("tag:yaml.org,2002:timestamp", construct_date)
    return Loader


def _explained(
    problem: msgspec.ValidationError, value: object, kind: object, error: type[GliomaError], file: str
) -> GliomaError:
    """The named error for msgspec's own, whose message says what is expected of which path."""
    message, _, path = str(problem).rpartition(" - at `")
    message = message or str(problem)
    on_key = path.startswith("key")  # "key in `$.files`": a mapping's key is at fault, not its value
    steps = _steps(path.partition("$")[2].rstrip("`"), value, kind, str(problem))
    found, node = value, msgspec.inspect.type_info(kind)
    for step in steps:
        found = found[step]  # type: ignore[index]
        node = _below(node, step)
    key = _key(steps)
    # msgspec wraps what a type's own checks raise, and says where in the file it was.
    if isinstance(cause := problem.__cause__, Mismatch):
        inner = f"{key}.{cause.key}" if key and cause.key else key or cause.key
        return mismatch(file, inner, cause.found, cause.expected, error)
    if field := re.fullmatch(r"Object missing required field `(.+)`", message):
        return mismatch(file, _key([*steps, field[1]]), None, _wanted(_below(node, field[1])), error)
    if field := re.fullmatch(r"Object contains unknown field `(.+)`", message, re.DOTALL):
        return error(f"{file}: {printable(_key([*steps, field[1]]))}: found an unknown key, {_known(node, field[1])}")
    if on_key:
        return error(f"{file}: {key}: found a key that is not {_wanted(_bare(node).key_type)}")  # type: ignore[attr-defined]
    return mismatch(file, key, found, _wanted(node), error)


def _steps(path: str, value: object, kind: object, message: str) -> list[str | int]:
    """The keys and indices of msgspec's path; it writes `[...]` for any key of a mapping, which is searched for."""
    steps: list[str | int] = []
    for name, index, _ in _PATH.findall(path):
        if name or index:
            steps.append(name or int(index))
            continue
        mapping = value
        for step in steps:
            mapping = mapping[step]  # type: ignore[index]
        if not isinstance(mapping, Mapping):  # a set or a tuple of any length
            break
        # Each value alone: the one at fault is the one that fails with the same message.
        for key, entry in mapping.items():
            try:
                msgspec.convert(_with(value, steps, {key: entry}), kind, str_keys=True)
            except msgspec.ValidationError as problem:
                if str(problem) == message:
                    steps.append(key)
                    break
    return steps


def _with(value: object, steps: list[str | int], new: object) -> object:
    """`value` with `new` at the end of a path."""
    if not steps:
        return new
    first, *rest = steps
    if isinstance(value, list):
        return [_with(entry, rest, new) if index == first else entry for index, entry in enumerate(value)]
    assert isinstance(value, Mapping)
    return {key: _with(entry, rest, new) if key == first else entry for key, entry in value.items()}


def _key(steps: list[str | int]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")


def _bare(node: object) -> msgspec.inspect.Type:
    """A type without its description, and without None where something else is allowed, too."""
    if isinstance(node, msgspec.inspect.Metadata):
        return _bare(node.type)
    if isinstance(node, msgspec.inspect.UnionType):
        return _bare(next(entry for entry in node.types if not isinstance(entry, msgspec.inspect.NoneType)))
    assert isinstance(node, msgspec.inspect.Type)
    return node


def _below(node: object, step: str | int) -> msgspec.inspect.Type:
    """The type of one key or item of a type."""
    bare = _bare(node)
    if isinstance(bare, msgspec.inspect.StructType | msgspec.inspect.DataclassType):
        return next((field.type for field in bare.fields if field.encode_name == step), bare)
    if isinstance(bare, msgspec.inspect.DictType):
        return bare.value_type
    if isinstance(bare, msgspec.inspect.TupleType):
        return bare.item_types[int(step)]
    if isinstance(bare, msgspec.inspect.ListType | msgspec.inspect.VarTupleType | msgspec.inspect.SetType):
        return bare.item_type
    return bare


def _refuse_unknown(value: object, node: object, steps: list[str | int], error: type[GliomaError], file: str) -> None:
    """Refuse keys that a dataclass does not have: an unknown key may change what the others mean.

    msgspec does this for its own structs only.
    """
    bare = _bare(node)
    if isinstance(value, dict):
        if isinstance(bare, msgspec.inspect.DataclassType):
            for key in value.keys() - {field.encode_name for field in bare.fields}:
                place = printable(_key([*steps, key]))
                raise error(f"{file}: {place}: found an unknown key, {_known(bare, key)}")
        elif not isinstance(bare, msgspec.inspect.DictType | msgspec.inspect.StructType):
            return
        for key, entry in value.items():
            _refuse_unknown(entry, _below(bare, key), [*steps, key], error, file)
    elif isinstance(value, list) and isinstance(
        bare, msgspec.inspect.TupleType | msgspec.inspect.ListType | msgspec.inspect.VarTupleType
    ):
        for index, entry in enumerate(value):
            _refuse_unknown(entry, _below(bare, index), [*steps, index], error, file)


def _known(node: object, found: str) -> str:
    """The known keys, the nearest first named."""
    bare = _bare(node)
    assert isinstance(bare, msgspec.inspect.StructType | msgspec.inspect.DataclassType)
    names = [field.encode_name for field in bare.fields]
    near = difflib.get_close_matches(found, names, 1)
    return f"expected only {', '.join(sorted(names))}" + (f" (did you mean {near[0]}?)" if near else "")


def _wanted(node: object) -> str:
    """Values that a type takes, in words."""
    if isinstance(node, msgspec.inspect.Metadata) and node.extra_json_schema:
        return str(node.extra_json_schema["description"])
    bare = _bare(node)
    inspect = msgspec.inspect
    if isinstance(bare, inspect.LiteralType):
        return f"one of {', '.join(map(str, bare.values))}" if len(bare.values) > 1 else shown(bare.values[0])
    if isinstance(bare, inspect.IntType | inspect.FloatType):
        return ("a whole number" if isinstance(bare, inspect.IntType) else "a number") + _bounds(bare)
    if isinstance(bare, inspect.TupleType):
        return f"a list of {len(bare.item_types)} values, each {_wanted(bare.item_types[0])}"
    if isinstance(bare, inspect.ListType | inspect.VarTupleType):
        least = f" of at least {bare.min_length}" * bool(bare.min_length)
        return f"a list{least}, each item {_wanted(bare.item_type)}"
    names = {inspect.StrType: "a text", inspect.BoolType: "true or false"}
    return names.get(type(bare), "an object")


def _bounds(number: msgspec.inspect.IntType | msgspec.inspect.FloatType) -> str:
    low, high = number.ge, number.le
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    parts = [(number.gt, "above"), (low, "of at least"), (number.lt, "below"), (high, "of at most")]
    return "".join(f" {word} {bound:g}" for bound, word in parts if bound is not None)
