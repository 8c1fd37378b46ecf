"""The one place that knows pickles. Reading one executes nothing.

A pickle is a program for a small stack machine that may call anything by name. Here every name
resolves to one of the few functions below, which make only plain containers and inert stand-ins for
NumPy's arrays; any other name is refused. The stand-ins become arrays afterwards, through
``np.frombuffer`` with checked sizes, so that NumPy's own unpickling code, which trusts the state it
is given, never runs.
"""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from core.command import Refused
from core.file_access.budget import FREE, Budget
from core.file_access.packed_files import HEAD, check_not_packed
from core.file_access.regular_files import open_regular_file
from core.files import atomic_file
from data_shards.shards.manifest import DataError

DEEPEST = 32  # containers inside containers; the layouts in use have four levels
COPIES = 4  # of a file's bytes, that strings and containers made by calls may come to
POINTER, ENTRY = 8, 100  # bytes that an item takes in a list, and in a dict or set
PLAIN_KEYS = (str, bytes, int, float, complex, type(None), np.generic)
LARGE_READ = 1 << 16  # bytes; smaller reads need no look at what is left


class _Refused(Exception):
    """Something in the pickle that is not read, in words."""


class _Dtype:
    """Stands for ``numpy.dtype``; only fixed-size numbers and strings, and object, are known."""

    def __init__(self, _budget: Budget, spec: Any, *_: Any) -> None:
        if isinstance(spec, bytes):
            spec = spec.decode("ascii")
        if not isinstance(spec, str):
            raise _Refused(f"an array type given as {type(spec).__name__}")
        if spec in ("O", "O8", "O4", "|O"):
            spec = "O"
        self.dtype = np.dtype(spec)
        is_known = self.dtype.kind in "biufcSUO" and self.dtype.itemsize > 0
        if not is_known or self.dtype.shape or self.dtype.names:
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

    def __init__(self, budget: Budget, *_: Any) -> None:
        self.budget = budget

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
        if size == 0:  # an axis of no extent lets the others be of any
            extents = math.prod(max(extent, 1) for extent in self.shape)
            self.budget.claim(extents, f"an array of shape {self.shape}")
        if self.dtype.kind == "O":
            if not isinstance(data, list) or len(data) != size:
                raise _Refused(f"an object array of shape {self.shape} without its {size} objects")
        else:
            if isinstance(data, str):
                self.budget.claim(len(data), "an array")
                data = data.encode("latin1")
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


def _frombuffer(budget: Budget, data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array(budget)
    array._fill(shape, dtype, order == "F", data)
    return array


def _scalar(budget: Budget, dtype: Any, data: Any = b"") -> Any:
    return _frombuffer(budget, data, dtype, (1,), "C").resolve(_no_objects)[0]


def _no_objects(item: Any) -> Any:
    raise _Refused("an object scalar")


def _encode(budget: Budget, text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise _Refused(f"bytes in encoding {encoding!r}")
    budget.claim(len(text), "a string of bytes")
    return text.encode("latin1")


def _bytearray(budget: Budget, *parts: Any) -> bytearray:
    if not all(isinstance(part, str | bytes) for part in parts):
        raise _Refused("a bytearray made from a number")
    budget.claim(sum(map(len, parts)), "a bytearray")
    return bytearray(*parts)


def _of(container: type) -> Callable[..., Any]:
    hashes = container in (dict, set, frozenset)

    def make(budget: Budget, items: Any = ()) -> Any:
        budget.claim(len(items) * (ENTRY if hashes else POINTER), f"a {container.__name__}")
        if hashes:
            are_pairs = container is dict and not isinstance(items, dict)
            _check_keys([pair[0] for pair in items] if are_pairs else items)
        return container(items)

    return make


def _number(kind: type) -> Callable[..., Any]:
    return lambda _budget, *values: kind(*values)


def _check_keys(keys: Any) -> None:
    """To hash a tuple in a tuple in a tuple... would overflow the interpreter's stack."""
    for key in keys:
        if not isinstance(key, PLAIN_KEYS):
            raise _Refused(f"a {type(key).__name__} as a key or in a set")


# What a name in a pickle stands for, given the budget. numpy.core became numpy._core in NumPy 2;
# __builtin__ is Python 2's spelling.
_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): _of(dict),
    ("collections", "defaultdict"): lambda *_: {},
}
for _numpy in ("numpy.core", "numpy._core"):
    _KNOWN[f"{_numpy}.multiarray", "_reconstruct"] = _Array
    _KNOWN[f"{_numpy}.multiarray", "scalar"] = _scalar
    _KNOWN[f"{_numpy}.numeric", "_frombuffer"] = _frombuffer
for _builtins in ("builtins", "__builtin__"):
    _KNOWN[_builtins, "bytearray"] = _bytearray
    _KNOWN[_builtins, "bytes"] = lambda _budget: b""  # protocol 2 writes empty bytes as this call
    for _container in (list, dict, set, frozenset, tuple):
        _KNOWN[_builtins, _container.__name__] = _of(_container)
    for _kind in (int, float, complex):
        _KNOWN[_builtins, _kind.__name__] = _number(_kind)


class _CheckedFile:
    """A file that is never asked for more than it has: the answer would be allocated first."""

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self.readline = file.readline

    def read(self, size: int) -> bytes:
        if size > LARGE_READ and size > self.size - self.file.tell():
            raise EOFError(
                f"it announces {size} bytes, and {self.size - self.file.tell()} are left"
            )
        return self.file.read(size)


_InPython: Any = pickle._Unpickler  # the one in C allocates what a hostile memo index asks for


class _Unpickler(_InPython):
    stack: list[Any]  # since the last mark
    dispatch = dict(_InPython.dispatch)

    def __init__(self, file: IO[bytes], budget: Budget):
        super().__init__(_CheckedFile(file), encoding="bytes")
        self.budget = budget

    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module, name))
        if known is None:
            raise _Refused(
                f"a {module}.{name}, and only NumPy arrays and plain containers are read "
                "(nothing was executed); save it again with plain dicts, lists and arrays, "
                "or describe the data as a table (docs/data.md)"
            )
        # A pickle may set attributes on what it gets; a fresh function keeps that from lasting.
        return lambda *values: known(self.budget, *values)

    def _load_bytearray(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(size)))  # pickle's own makes room for it before it reads

    dispatch[pickle.BYTEARRAY8[0]] = _load_bytearray


def _with_plain_keys(load: Callable[[Any], None], keys: slice) -> Callable[[Any], None]:
    def check_and_load(unpickler: _Unpickler) -> None:
        _check_keys(unpickler.stack[keys])
        load(unpickler)

    return check_and_load


# What hashes, and where on the stack the keys are.
_HASHING = {
    pickle.SETITEM: slice(-2, -1),
    pickle.SETITEMS: slice(None, None, 2),
    pickle.DICT: slice(None, None, 2),
    pickle.ADDITEMS: slice(None),
    pickle.FROZENSET: slice(None),
}
for _opcode, _keys in _HASHING.items():
    _load = _Unpickler.dispatch[_opcode[0]]
    _Unpickler.dispatch[_opcode[0]] = _with_plain_keys(_load, _keys)


def load_pickle(path: Path) -> Any:
    """The contents of a pickle of any protocol, Python 2's included: plain containers, scalars and
    read-only arrays.

    ``str`` written by Python 2 comes back as bytes, except as a key of a dict.
    """
    with open_regular_file(path) as file:
        check_not_packed(file.read(HEAD), path)
        file.seek(0)
        budget = Budget(FREE + COPIES * os.fstat(file.fileno()).st_size, str(path))
        try:
            return _resolve(_Unpickler(file, budget).load(), {}, 0)
        except _Refused as refusal:
            raise DataError(f"{path} holds {refusal}") from None
        except Refused:
            raise
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from None
        except MemoryError:
            raise DataError(f"{path} does not fit into memory, or is damaged") from None
        except Exception as error:  # damaged bytes make the unpickler raise nearly anything
            detail = " ".join(str(error).split())[:200] or type(error).__name__
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
        if len(result) < len(value):
            raise _Refused("a dict with one key as text and as bytes")
    else:
        result = type(value)(inner(item) for item in value)
    done[id(value)] = result
    return result


def _key(key: Any) -> Any:
    return key.decode("utf-8") if isinstance(key, bytes) else key
