"""Plain values out of pickles from outside: nothing that a pickle names is imported, and nothing in it is run.

Of all that a pickle can name, only what nnU-Net v1's plans and a scikit-learn model need is known here, each by a
stand-in of ours. What other pickles would import or call is refused by its name.
"""

from __future__ import annotations

import io
import pickle
import re
import reprlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, cast

import numpy as np
from numpy.typing import NDArray

from inference.errors import UsageError
from inference.text import printable

LARGEST: Final = 64 * 2**20
"""Most bytes of a pickle that is read."""
_KINDS: Final = r"[|<>=]?(b1|[iu][1248]|f[248]|O8?|[US]\d{1,5})"
"""Types of arrays: truth values, whole numbers, numbers, objects and texts."""
_DAMAGED: Final = (
    pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError, OverflowError,
    RecursionError, MemoryError, struct.error,
)  # fmt: skip
"""What Python's unpickler raises for bytes that are no pickle."""


@dataclass
class Estimator:
    """An object of a class that is known by name only: its attributes, and no behaviour."""

    name: str
    """Its class, without the module."""
    state: Mapping[str, object]
    """Its attributes."""


class _Unknown(Exception):  # noqa: N818 (it is turned into a UsageError)
    """A pickle holds what is not known here; the text says what."""


class _Dtype:
    """Stands for `numpy.dtype`: a type's short name, and its byte order."""

    def __init__(self, name: object, *_: object) -> None:
        if not isinstance(name, str) or not re.fullmatch(_KINDS, name):
            raise _Unknown(f"an array of type {shown(name)}")
        self._name = name.lstrip("|<>=")
        self._order = "="

    def take_state(self, state: object) -> None:
        """As pickle's BUILD hands it over: version and byte order come first, no fields follow."""
        _, order, *fields = _fields(state, 5)
        if fields[:3] != [None] * 3:
            raise _Unknown("an array with fields")
        if order not in ("<", ">", "|", "="):
            raise _Unknown("an array without a byte order")
        self._order = str(order)

    def real(self) -> np.dtype[np.float64]:
        """The type that it stands for: one of several, of which mypy need know but one."""
        return cast("np.dtype[np.float64]", np.dtype(self._order + self._name if self._name[0] != "O" else "O"))


class _Array:
    """Stands for an array until the pickle has told its contents."""

    def __init__(self, *_: object) -> None:
        self.value: NDArray[np.float64] | None = None

    def take_state(self, state: object) -> None:
        """Version, shape, type, order and bytes, or a list of objects."""
        _, shape, dtype, fortran, data = _fields(state, 5)[:5]
        sizes = _fields(shape, 0)
        if not isinstance(dtype, _Dtype) or any(type(size) is not int for size in sizes):
            raise _Unknown("an array whose contents are not told")
        if dtype.real().hasobject and isinstance(data, list):
            flat: NDArray[np.float64] = np.empty(len(data), dtype.real())
            flat[:] = data
        elif isinstance(data, bytes):
            flat = np.frombuffer(data, dtype.real())
        else:
            raise _Unknown(f"an array of {type(data).__name__}")
        self.value = flat.reshape([int(str(size)) for size in sizes], order="F" if fortran else "C")


def _fields(state: object, least: int) -> list[object]:
    """The fields of a tuple."""
    fields = list(cast("tuple[object, ...]", state)) if isinstance(state, tuple) else []
    if not isinstance(state, tuple) or len(fields) < least:
        raise _Unknown("an array whose contents are not told")
    return fields


def _scalar(dtype: object, data: object) -> object:
    if not isinstance(dtype, _Dtype) or dtype.real().hasobject or not isinstance(data, bytes):
        raise _Unknown("a number that is none")
    return np.frombuffer(data, dtype.real())[0].item()


class _Inert:
    """Stands for an object of a known class."""

    name = ""

    def __init__(self, *_: object) -> None:
        self.state: object = {}

    def take_state(self, state: object) -> None:
        """Its attributes."""
        self.state = state


def _inert(name: str) -> type[_Inert]:
    return type(name, (_Inert,), {"name": name})


_MULTIARRAY: Final = ("numpy._core.multiarray", "numpy.core.multiarray")
_KNOWN: Final[Mapping[tuple[str, str], object]] = {
    **{(module, "_reconstruct"): _Array for module in _MULTIARRAY},
    **{(module, "scalar"): _scalar for module in _MULTIARRAY},
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("collections", "OrderedDict"): dict,
    ("sklearn.preprocessing._data", "Normalizer"): _inert("Normalizer"),
    ("sklearn.decomposition._pca", "PCA"): _inert("PCA"),
    ("sklearn.cluster._kmeans", "KMeans"): _inert("KMeans"),
    ("pandas.core.indexes.base", "Index"): _inert("Index"),
    ("pandas.core.indexes.base", "_new_Index"): _inert("Index"),
}
"""All that a pickle may name, and what stands for it here."""


class _Restricted(pickle._Unpickler):  # noqa: SLF001 (there is no public name for it)
    """Python's own unpickler, which, unlike the one in C, makes no room for what a pickle merely announces."""

    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)  # noqa: SLF001
    stack: list[object]

    def find_class(self, module: str, name: str, /) -> object:
        """Our stand-in for a name."""
        if (module, name) not in _KNOWN:
            raise _Unknown(f"{module}.{name}")
        return _KNOWN[module, name]

    def load_build(self) -> None:
        """Tell an object its contents, and nothing but our own stand-ins: pickle would set any attribute."""
        state = self.stack.pop()
        place = self.stack[-1]
        if not isinstance(place, (_Array, _Dtype, _Inert)):
            raise _Unknown(f"contents of {type(place).__name__}")
        place.take_state(state)

    dispatch[pickle.BUILD[0]] = cast("Callable[[pickle.Unpickler], None]", load_build)


def read_pickle(path: Path) -> object:
    """Read a pickle, of plain values, arrays and :class:`Estimator` objects.

    Raises UsageError for one that names anything else, is damaged or too large.
    """
    size = path.stat().st_size
    if size > LARGEST:
        raise UsageError(f"{path}: found {size} bytes, expected a pickle of at most {LARGEST}")
    try:
        return _plain(_Restricted(io.BytesIO(path.read_bytes())).load(), {})
    except _Unknown as error:
        named = printable(str(error)[:100])
        raise UsageError(f"{path}: found {named} in it, expected plain values: refused") from error
    except _DAMAGED as error:
        raise UsageError(f"{path}: found no pickle that can be read (damaged, or another kind of file)") from error


def _plain(value: object, done: dict[int, object]) -> object:
    """A value with arrays and estimators in the place of what stood for them; what occurs twice is made once."""
    if isinstance(value, _Array):
        return value.value
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, dict):
        done[id(value)] = plain = dict[object, object]()
        plain.update((key, _plain(item, done)) for key, item in value.items())
        return plain
    if isinstance(value, (list, tuple)):
        done[id(value)] = None
        done[id(value)] = copied = type(value)(_plain(item, done) for item in value)
        return copied
    if isinstance(value, _Inert):
        done[id(value)] = None
        state = _plain(value.state, done)
        made = Estimator(value.name, state if isinstance(state, dict) else {})
        done[id(value)] = made
        return made
    return value


def shown(value: object) -> str:
    """A value from outside on one line of an error, however large or deep it is."""
    try:
        return printable(reprlib.repr(value))[:120]
    except ValueError:  # a number of more digits than Python writes
        return type(value).__name__
