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
from typing import ClassVar, Final, cast

import numpy as np
from numpy.typing import NDArray

from inference.errors import UsageError
from inference.text import printable

LARGEST: Final = 64 * 2**20
"""Most bytes of a pickle that is read."""
# Truth values, whole numbers, numbers, objects and texts, as numpy's dtype pickles its name.
_KINDS: Final = r"[|<>=]?(b1|[iu][1248]|f[248]|O8?|[US]\d{1,5})"
# Python's unpickler raises all of these for bytes that are no pickle; the fuzz test shows where one is missing.
_DAMAGED: Final = (
    pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError, OverflowError,
    RecursionError, MemoryError, struct.error,
)  # fmt: skip


class _Unknown(Exception):  # noqa: N818 (it is turned into a UsageError)
    """A pickle holds what is not known here; the text says what."""


class Estimator:
    """An object of a class that is known by name only: its attributes, and no behaviour."""

    name: str = ""
    """Its class, without the module."""
    state: Mapping[str, object] = {}
    """Its attributes."""

    def __init__(self, *_: object) -> None:
        # pickle calls classes with what they were made from, or not at all.
        pass

    def take_state(self, state: object) -> None:
        """Its attributes, as pickle's BUILD hands them over."""
        self.state = state if isinstance(state, dict) else {}


class _Dtype:
    """Stands for `numpy.dtype`: a type's short name, and its byte order."""

    def __init__(self, name: object, *_: object) -> None:
        if not isinstance(name, str) or not re.fullmatch(_KINDS, name):
            raise _Unknown(f"an array of type {shown(name)}")
        self._name = name.lstrip("|<>=")
        self._order = "="

    def take_state(self, state: object) -> None:
        """Version and byte order come first; fields of structured arrays would follow."""
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
        """Version, shape, type, order and bytes, or a list of objects, as numpy's `ndarray.__setstate__` takes them."""
        _, shape, dtype, fortran, data = _fields(state, 5)[:5]
        sizes = _fields(shape, 0)
        if not isinstance(dtype, _Dtype) or any(type(size) is not int for size in sizes):
            raise _Unknown("an array whose contents are not told")
        if dtype.real().hasobject and isinstance(data, list):
            flat: NDArray[np.float64] = np.empty(len(data), dtype.real())
            flat[:] = data
        elif isinstance(data, bytes):
            # Raises for objects, whose bytes would be pointers.
            flat = np.frombuffer(data, dtype.real())
        else:
            raise _Unknown(f"an array of {type(data).__name__}")
        self.value = flat.reshape([int(str(size)) for size in sizes], order="F" if fortran else "C")


def _fields(state: object, least: int) -> list[object]:
    """The fields of a tuple."""
    if not isinstance(state, tuple) or len(state) < least:
        raise _Unknown("an array whose contents are not told")
    return list(state)


def _scalar(dtype: object, data: object) -> object:
    """Stands for `numpy.core.multiarray.scalar`, which makes a number of its bytes."""
    if not isinstance(dtype, _Dtype) or dtype.real().hasobject or not isinstance(data, bytes):
        raise _Unknown("a number that is none")
    return np.frombuffer(data, dtype.real())[0].item()


def _estimator(name: str) -> type[Estimator]:
    return type(name, (Estimator,), {"name": name})


# All that a pickle may name, and what stands for it here. numpy 2 renamed its core.
_MULTIARRAY: Final = ("numpy._core.multiarray", "numpy.core.multiarray")
_KNOWN: Final[Mapping[tuple[str, str], object]] = {
    **{(module, "_reconstruct"): _Array for module in _MULTIARRAY},
    **{(module, "scalar"): _scalar for module in _MULTIARRAY},
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("collections", "OrderedDict"): dict,
    ("sklearn.preprocessing._data", "Normalizer"): _estimator("Normalizer"),
    ("sklearn.decomposition._pca", "PCA"): _estimator("PCA"),
    ("sklearn.cluster._kmeans", "KMeans"): _estimator("KMeans"),
    ("pandas.core.indexes.base", "Index"): _estimator("Index"),
    ("pandas.core.indexes.base", "_new_Index"): _estimator("Index"),
}


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
        if not isinstance(place, (_Array, _Dtype, Estimator)):
            raise _Unknown(f"contents of {type(place).__name__}")
        place.take_state(state)

    dispatch[pickle.BUILD[0]] = cast("Callable[[pickle.Unpickler], None]", load_build)


def read_pickle(raw: bytes, path: str) -> object:
    """Plain values, arrays and :class:`Estimator` objects of the pickle in the file at `path`.

    Raises UsageError for one that names anything else, is damaged or too large.
    """
    if len(raw) > LARGEST:
        raise UsageError(f"{path}: found more than {LARGEST} bytes, expected a smaller pickle")
    try:
        return _plain(_Restricted(io.BytesIO(raw)).load(), {})
    except _Unknown as error:
        named = printable(str(error)[:100])
        raise UsageError(f"{path}: found {named} in it, expected plain values: refused") from error
    except _DAMAGED as error:
        raise UsageError(f"{path}: found no pickle that can be read (damaged, or another kind of file)") from error


def _plain(value: object, done: dict[int, object]) -> object:
    """A value with arrays in the place of what stood for them; what occurs twice is made once."""
    if isinstance(value, _Array):
        return value.value
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, dict):
        done[id(value)] = plain = dict[object, object]()
        plain.update((key, _plain(item, done)) for key, item in value.items())
        return plain
    if isinstance(value, (list, tuple)):
        # A list may hold itself, and would be followed without end.
        done[id(value)] = None
        done[id(value)] = copied = type(value)(_plain(item, done) for item in value)
        return copied
    if isinstance(value, Estimator):
        done[id(value)] = value
        value.take_state(_plain(value.state, done))
    return value


def shown(value: object) -> str:
    """A value from outside on one line of an error, however large or deep it is."""
    try:
        return printable(reprlib.repr(value))[:120]
    except ValueError:  # a number of more digits than Python writes
        return type(value).__name__
