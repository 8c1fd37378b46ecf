"""Reading pickles without executing anything."""

from __future__ import annotations

import os
import pickle
import struct
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards.shards.manifest import DataError
from data_shards.sources.pickles import load_pickle

CONTENT: dict[str, Any] = {
    "matrix": np.arange(12, dtype=np.float64).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "big endian": np.arange(3, dtype=">i4"),
    "empty": np.zeros((0, 5), np.float32),
    "flags": np.array([True, False]),
    "strings": np.array(["a", "bcd"]),
    "bytes": np.array([b"a", b"bcd"]),
    "objects": np.array([["x", None], [1.5, b"y"]], dtype=object),
    "scalar": np.float32(2.5),
    "list": [1, 2.5, "é", b"\xff", None, True],
    "tuple": (1, (2, 3)),
    "set": {1, 2},
    "ordered": OrderedDict(a=1),
    "default": defaultdict(list, {"b": [1]}),
    "bytearray": bytearray(b"xyz"),
    "nothing": b"",
    "complex": 1 + 2j,
}


def _load(tmp_path: Path, body: bytes) -> Any:
    path = tmp_path / "raw.pkl"
    path.write_bytes(body)
    return load_pickle(path)


def _same(left: Any, right: Any) -> None:
    if isinstance(right, np.ndarray):
        assert left.shape == right.shape
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    else:
        assert left == right


def _renamed(body: bytes, protocol: int) -> bytes:
    """The pickle as NumPy 1 would have written it: ``numpy.core`` for ``numpy._core``."""
    if protocol < 4:
        return body.replace(b"numpy._core", b"numpy.core")
    for name in (b"numpy._core.multiarray", b"numpy._core.numeric"):
        old = struct.pack("B", len(name)) + name
        new = struct.pack("B", len(name) - 1) + name.replace(b"_core", b"core")
        shorter = body.count(old)
        body = body.replace(old, new)
        body = (
            body[:3] + struct.pack("<Q", struct.unpack("<Q", body[3:11])[0] - shorter) + body[11:]
        )
    return body


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_and_containers_come_back_as_they_were(tmp_path: Path, protocol: int) -> None:
    loaded = _load(tmp_path, pickle.dumps(CONTENT, protocol))
    assert list(loaded) == list(CONTENT)
    for name, value in CONTENT.items():
        _same(loaded[name], value)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_numpy_1_spelling_is_read_too(tmp_path: Path, protocol: int) -> None:
    content = {"a": np.arange(6.0).reshape(2, 3), "b": np.float32(1.5)}
    body = _renamed(pickle.dumps(content, protocol), protocol)
    assert b"_core" not in body
    loaded = _load(tmp_path, body)
    _same(loaded["a"], content["a"])
    assert loaded["b"] == content["b"]


def test_python_2_strings_are_bytes_except_as_keys(tmp_path: Path) -> None:
    assert _load(tmp_path, b"\x80\x02}U\x02id]U\x03a\xc3\xa9as.") == {"id": [b"a\xc3\xa9"]}


def test_python_2_arrays_are_read(tmp_path: Path) -> None:
    body = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08" + np.array([1.5, -2], "<f4").tobytes() + b"tb."
    )
    _same(_load(tmp_path, body), np.array([1.5, -2], "<f4"))


def test_shared_parts_stay_shared(tmp_path: Path) -> None:
    """Else a few hundred bytes of nested pairs would unfold to more than any memory."""
    nested: Any = [1.0]
    for _ in range(25):
        nested = (nested, nested)
    loaded = _load(tmp_path, pickle.dumps(nested))
    assert loaded[0] is loaded[1]


class _Touch:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_foreign_function_is_named_and_never_called(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"raw\.pkl holds a (posix|nt)\.mkdir, and only NumPy arrays"
    ):
        _load(tmp_path, pickle.dumps({"train": _Touch(tmp_path / "called")}))
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins eval",
        "builtins getattr",
        "os system",
        "numpy load",
        "numpy._core.multiarray fromfile",
        "torch._utils _rebuild_tensor_v2",
        "pandas.core.frame DataFrame",
        "copyreg _reconstructor",
        "functools partial",
    ],
)
def test_any_other_name_is_refused(tmp_path: Path, name: str) -> None:
    module, _, attribute = name.partition(" ")
    with pytest.raises(DataError, match=f"holds a {module}.{attribute}"):
        _load(tmp_path, f"c{module}\n{attribute}\n.".encode())


def _array(shape: bytes, spec: bytes, order: bytes, data: bytes) -> bytes:
    """A hand-written protocol 2 pickle of an array."""
    return (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + shape
        + b"cnumpy\ndtype\n"
        + spec
        + b"K\x00K\x01\x87R(K\x03"
        + order
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + data
        + b"tb."
    )


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (_array(b"K\x02\x85", b"U\x01O", b"U\x01|", b"U\x10" + bytes(16)), "without its 2 objects"),
        (_array(b"K\x03\x85", b"U\x02f4", b"U\x01<", b"U\x08" + bytes(8)), "do not fit"),
        (
            _array(b"J\xff\xff\xff\x7f\x85", b"U\x02f4", b"U\x01<", b"U\x08" + bytes(8)),
            "do not fit",
        ),
        (
            _array(b"J\xff\xff\xff\xff\x85", b"U\x02f4", b"U\x01<", b"U\x00"),
            "no proper type or shape",
        ),
        (_array(b"K\x01\x85", b"U\x05f4,i4", b"U\x01|", b"U\x08" + bytes(8)), "an array of type"),
        (_array(b"K\x01\x85", b"U\x02M8", b"U\x01<", b"U\x08" + bytes(8)), "an array of type"),
        (
            b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
            "a bytearray made from a number",
        ),
        (
            b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.",
            "bytes in encoding",
        ),
        (b"\x80\x02cnumpy\ndtype\n.", "a type or function"),
        (b"\x80\x02]q\x00h\x00a.", "contains itself"),
        (b"\x80\x02" + b"]" * 100 + b"a" * 99 + b".", "nested deeper"),
        (b"\x80\x02" + b"]" * 20000 + b"a" * 19999 + b".", "nested deeper"),
    ],
)
def test_what_cannot_be_an_array_or_container_is_refused(
    tmp_path: Path, body: bytes, what: str
) -> None:
    with pytest.raises(DataError, match=what):
        _load(tmp_path, body)


def test_a_pickle_cannot_change_what_its_names_stand_for(tmp_path: Path) -> None:
    """BUILD sets attributes on whatever lies on the stack, here on the function for ``list``."""
    poison = b"\x80\x02cbuiltins\nlist\nN}X\x0c\x00\x00\x00__defaults__)s\x86b0]."
    assert _load(tmp_path, poison) == []
    assert _load(tmp_path, b"\x80\x02cbuiltins\nlist\n)R.") == []


@pytest.mark.parametrize("body", [b"", b"not a pickle", b"\x80\x05", pickle.dumps(CONTENT)[:-40]])
def test_damaged_files_are_refused_by_name(tmp_path: Path, body: bytes) -> None:
    with pytest.raises(DataError, match=r"raw\.pkl is damaged or no pickle"):
        _load(tmp_path, body)


def test_mutated_pickles_are_read_or_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    bodies = [pickle.dumps(CONTENT, protocol) for protocol in (2, 4, 5)]
    read = refused = 0
    for _ in range(600):
        body = bytearray(bodies[rng.integers(len(bodies))])
        for place in rng.integers(0, len(body), rng.integers(1, 4)):
            body[place] = rng.integers(256)
        try:
            _load(tmp_path, bytes(body))
        except DataError as error:
            refused += "raw.pkl" in str(error)
        else:
            read += 1
    assert refused > 50
    assert read + refused == 600
