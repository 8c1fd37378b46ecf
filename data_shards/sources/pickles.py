"""The one place that knows pickles. Reading one executes nothing.

A pickle is a program for a small stack machine that may call anything by name. Here every name
resolves to one of the few functions below, which make only plain containers and inert stand-ins for
NumPy's arrays; any other name is refused. The stand-ins become arrays afterwards, through
``np.frombuffer`` with checked sizes, so that NumPy's own unpickling code, which trusts the state it
is given, never runs.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from core.files import atomic_file
from data_shards.shards.manifest import DataError

DEEPEST = 32  # containers inside containers; the layouts in use have four levels


class _Refused(Exception):
    """Something in the pickle that is not read, in words."""


class _Dtype:
    """Stands for ``numpy.dtype``; only fixed-size numbers and strings, and object, are known."""

    def __init__(self, spec: Any, *_: Any) -> None:
        if isinstance(spec, bytes):
            spec = spec.decode("ascii")
        if not isinstance(spec, str):
            raise _Refused(f"an array type given as {type(spec).__name__}")
        if spec in ("O", "O8", "O4", "|O"):
            spec = "O"
        self.dtype = np.dtype(spec)
        if self.dtype.kind not in "biufcSUO" or self.dtype.shape or self.dtype.names:
            raise _Refused(f"an array of type {spec!r}")

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if isinstance(order, bytes):
            order = order.decode("ascii")
        subarray_names_fields = state[2:5]
        if any(item is not None for item in subarray_names_fields):
            raise _Refused("a structured array")
        if self.dtype.kind != "O" and order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for an ``ndarray`` between its creation and the arrival of its contents."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    data: Any

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, data = state
        self._fill(shape, dtype, bool(fortran), data)

    def _fill(self, shape: Any, dtype: Any, fortran: bool, data: Any) -> None:
        if isinstance(shape, int):
            shape = (shape,)
        is_shape = all(isinstance(extent, int) and extent >= 0 for extent in shape)
        if not isinstance(dtype, _Dtype) or not is_shape:
            raise _Refused("an array with no proper type or shape")
        self.shape = tuple(shape)
        self.dtype = dtype.dtype
        self.fortran = fortran
        size = math.prod(self.shape)
        if self.dtype.kind == "O":
            if not isinstance(data, list) or len(data) != size:
                raise _Refused(f"an object array of shape {self.shape} without its {size} objects")
        else:
            data = data.encode("latin1") if isinstance(data, str) else data
            if not isinstance(data, bytes | bytearray) or len(data) != size * self.dtype.itemsize:
                raise _Refused(
                    f"a {self.dtype} array of shape {self.shape} whose bytes do not fit that shape"
                )
        self.data = data

    def resolve(self, inner: Callable[[Any], Any]) -> np.ndarray:
        order: Any = "F" if self.fortran else "C"
        if self.dtype.kind == "O":
            flat = np.empty(len(self.data), dtype=object)
            for i, item in enumerate(self.data):
                flat[i] = inner(item)
            return flat.reshape(self.shape, order=order)
        if not self.data:
            return np.zeros(self.shape, self.dtype)
        return np.frombuffer(self.data, self.dtype).reshape(self.shape, order=order)


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array._fill(shape, dtype, order == "F", data)
    return array


def _scalar(dtype: Any, data: Any = b"") -> Any:
    return _frombuffer(data, dtype, (1,), "C").resolve(_no_objects)[0]


def _no_objects(item: Any) -> Any:
    raise _Refused("an object scalar")


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise _Refused(f"bytes in encoding {encoding!r}")
    return text.encode("latin1")


def _bytearray(*parts: Any) -> bytearray:
    if not all(isinstance(part, str | bytes) for part in parts):
        raise _Refused("a bytearray made from a number")
    return bytearray(*parts)


def _of(container: type) -> Callable[..., Any]:
    return lambda items=(): container(items)


# What a name in a pickle stands for. numpy.core became numpy._core in NumPy 2; __builtin__ is
# Python 2's spelling.
_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): lambda *_: _Array(),
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): _of(dict),
    ("collections", "defaultdict"): lambda *_: {},
}
for _numpy in ("numpy.core", "numpy._core"):
    _KNOWN[f"{_numpy}.multiarray", "_reconstruct"] = lambda *_: _Array()
    _KNOWN[f"{_numpy}.multiarray", "scalar"] = _scalar
    _KNOWN[f"{_numpy}.numeric", "_frombuffer"] = _frombuffer
for _builtins in ("builtins", "__builtin__"):
    _KNOWN[_builtins, "bytearray"] = _bytearray
    _KNOWN[_builtins, "bytes"] = lambda: b""  # protocol 2 writes empty bytes as this call
    for _container in (list, dict, set, frozenset, tuple):
        _KNOWN[_builtins, _container.__name__] = _of(_container)
    for _number in (int, float, complex):
        _KNOWN[_builtins, _number.__name__] = _number


class _Unpickler(
    pickle._Unpickler
):  # in Python: the one in C allocates what a hostile memo index asks for
    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module, name))
        if known is None:
            raise _Refused(
                f"a {module}.{name}, and only NumPy arrays and plain containers are read "
                "(nothing was executed); save it again with plain dicts, lists and arrays, "
                "or describe the data as a table (docs/data.md)"
            )
        # A pickle may set attributes on what it gets; a fresh function keeps that from lasting.
        return lambda *values: known(*values)


def load_pickle(path: Path) -> Any:
    """The contents of a pickle of any protocol, Python 2's included: plain containers, scalars and
    read-only arrays.

    ``str`` written by Python 2 comes back as bytes, except as a key of a dict.
    """
    try:
        with path.open("rb") as file:
            loaded = _Unpickler(file, encoding="bytes").load()
        return _resolve(loaded, {}, 0)
    except _Refused as refusal:
        raise DataError(f"{path} holds {refusal}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except MemoryError:
        raise DataError(f"{path} does not fit into memory, or is damaged") from None
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        detail = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path} is damaged or no pickle ({detail}); fetch or write it again"
        ) from None


def save_pickle(content: Any, path: Path) -> None:
    """Write a raw file; it appears complete or not at all."""
    with atomic_file(path) as file:
        pickle.dump(content, file, protocol=4)


def _resolve(value: Any, done: dict[int, Any], depth: int) -> Any:
    """``value`` with every stand-in replaced by its array; ``done`` keeps shared parts shared."""
    if not isinstance(value, list | tuple | dict | set | frozenset | _Array):
        if isinstance(value, _Dtype) or callable(value):
            raise _Refused("a type or function where data should be")
        return value
    if depth > DEEPEST:
        raise _Refused(f"containers nested deeper than {DEEPEST} levels")
    if id(value) in done:
        if done[id(value)] is _Refused:
            raise _Refused("a container that contains itself")
        return done[id(value)]
    done[id(value)] = _Refused

    def inner(item: Any) -> Any:
        return _resolve(item, done, depth + 1)

    result: Any
    if isinstance(value, _Array):
        result = value.resolve(inner)
    elif isinstance(value, dict):
        result = {_key(key): inner(item) for key, item in value.items()}
    else:
        result = type(value)(inner(item) for item in value)
    done[id(value)] = result
    return result


def _key(key: Any) -> Any:
    return key.decode("utf-8") if isinstance(key, bytes) else key
