"""Spoiling valid inputs: bytes, and trees of plain containers and arrays. All chance comes from the
given generator."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

OUTSIDE = "../outside"  # beside the folder of a case; nothing may be read or written there

NUMBERS: list[Any] = [
    0, 1, -1, 3, 127, 128, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1,
    10**30, 10**400, 0.5, -0.0, 1e-320, 1e38, 1e39, 1e308, float("nan"), float("inf"), float("-inf"),
]  # fmt: skip
WORDS: list[Any] = [
    "", " ", "\t", "\n", "0", "-1", "1.5", "1,5", "nan", "inf", "1e999", "0x10", "٣", "½", "1_000", "true", "None",
    "train", "val", "id", "label", "a.b", "a b", "a/b", "é", "\u202e", "\ufeff", "\0", "\x1b[31m", "\ud800",
    "x" * 300, "x" * 100_000, "[]", "{}", "[1, 2]", "#", "=", "..", "../..", OUTSIDE, f"{OUTSIDE}/array.npy",
    f"{OUTSIDE}/array.npz#a", "/etc/passwd", "/dev/zero", "file:///etc/passwd", "~", "$HOME", "%s", "{0}", "*",
    "some.npz#first[1:0]", "vision.npy[99999999999]", "some.npz#nokey", ".npy", "con.npy", "9" * 5000,
]  # fmt: skip
CONTAINERS: list[Any] = [
    None, True, False, [], {}, [[]], [None], {"": 0}, {"a": {"b": []}}, [1, "a", None], [0.5, [1]], ["train"],
]  # fmt: skip
MAGIC = [
    b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\x1f\x8b\x08\0\0\0\0\0", b"BZh91AY&SY", b"\x28\xb5\x2f\xfd",
    b"\xfd7zXZ\0", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\x93NUMPY\x01\0", b"PAR1", b"\x80\x04", b"\x80\x05\x95",
    b"{", b"[", b"null", b"[[[[[[[[" * 2000, b"<html>", b"%PDF-1.4", b"\x89HDF\r\n\x1a\n", b"version https://git-lfs",
]  # fmt: skip
INTEGERS = [
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**63,
    2**64 - 1,
]


def value(rng: Random) -> Any:
    """Something that stands where something else is expected."""
    kind = rng.random()
    if kind < 0.35:
        return rng.choice(NUMBERS)
    if kind < 0.7:
        return rng.choice(WORDS)
    if kind < 0.95:
        return copy.deepcopy(rng.choice(CONTAINERS))
    return _nested(rng.choice([3, 40, 400]))


def _nested(depth: int) -> Any:
    nested: Any = 1
    for _ in range(depth):
        nested = [nested]
    return nested


def spoil_bytes(rng: Random, body: bytes) -> bytes:
    """One change, or a few."""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        body = rng.choice(BYTE_CHANGES)(rng, body)
    return body


def _span(rng: Random, body: bytes) -> tuple[int, int]:
    start = rng.randrange(len(body) + 1)
    return start, min(len(body), start + rng.choice((1, 2, 4, 8, 16, 64, 512, 4096)))


def _flip(rng: Random, body: bytes) -> bytes:
    if not body:
        return b"\0"
    changed = bytearray(body)
    for _ in range(rng.choice((1, 1, 3, 20))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _flip_near_an_end(rng: Random, body: bytes) -> bytes:
    """Where headers and directories are."""
    size = min(len(body), 256)
    if rng.random() < 0.5:
        return _flip(rng, body[:size]) + body[size:]
    return body[: len(body) - size] + _flip(rng, body[len(body) - size :])


def _cut(rng: Random, body: bytes) -> bytes:
    return body[: rng.randrange(len(body) + 1)]


def _drop(rng: Random, body: bytes) -> bytes:
    start, end = _span(rng, body)
    return body[:start] + body[end:]


def _repeat(rng: Random, body: bytes) -> bytes:
    start, end = _span(rng, body)
    return body[:end] + body[start:end] * rng.choice((1, 2, 10)) + body[end:]


def _swap(rng: Random, body: bytes) -> bytes:
    start, end = _span(rng, body)
    place = rng.randrange(len(body) + 1)
    rest = body[:start] + body[end:]
    return rest[:place] + body[start:end] + rest[place:]


def _insert(rng: Random, body: bytes) -> bytes:
    place = rng.randrange(len(body) + 1)
    return body[:place] + rng.randbytes(rng.choice((1, 4, 64))) + body[place:]


def _overwrite_number(rng: Random, body: bytes) -> bytes:
    size = rng.choice((1, 2, 4, 8))
    place = rng.randrange(len(body) + 1)
    number = (rng.choice(INTEGERS) % 2 ** (8 * size)).to_bytes(size, rng.choice(("little", "big")))
    return body[:place] + number + body[place + size :]


def _overwrite_digits(rng: Random, body: bytes) -> bytes:
    """A number written out, as in JSON and in the headers of tars and arrays."""
    places = [place for place, byte in enumerate(body[:4096]) if 48 <= byte <= 57]
    if not places:
        return _flip(rng, body)
    place = rng.choice(places)
    end = place
    while end < len(body) and 48 <= body[end] <= 57:
        end += 1
    number = rng.choice((b"0", b"1", b"-1", b"99", b"7777777", b"1e9", b"999999999999", b"NaN"))
    return body[:place] + number + body[end:]


def _foreign(rng: Random, body: bytes) -> bytes:
    """As if it were of another kind."""
    magic = rng.choice(MAGIC)
    return magic if rng.random() < 0.4 else magic + body[len(magic) :]


BYTE_CHANGES: list[Callable[[Random, bytes], bytes]] = [
    _flip, _flip_near_an_end, _cut, _drop, _repeat, _swap, _insert, _overwrite_number, _overwrite_digits, _foreign,
]  # fmt: skip


def spoil_lines(rng: Random, body: bytes) -> bytes:
    """A line or a cell of a text file dropped, repeated, moved, replaced."""
    lines = body.decode("utf-8", "surrogateescape").split("\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(lines) + 1)
        here = lines[place % len(lines)]
        separator = "\t" if "\t" in here else ","
        cells = here.split(separator)
        change = rng.randrange(7)
        if change == 0:
            lines.insert(place, here)
        elif change == 1 and len(lines) > 1:
            lines.pop(place % len(lines))
        elif change == 2:
            rng.shuffle(lines)
        elif change == 3:
            lines.insert(place, rng.choice(("", " ", "\t", "\r", "#", '"', "\ufeff", "\0")))
        elif change == 4:
            other = rng.choice(lines).split(separator)
            cells[rng.randrange(len(cells))] = rng.choice(other)
        elif change == 5:
            cells.insert(rng.randrange(len(cells) + 1), rng.choice(cells))
        else:
            cells[rng.randrange(len(cells))] = str(value(rng))
        if change >= 4:
            lines[place % len(lines)] = separator.join(cells)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def spoil_tree(rng: Random, tree: Any) -> Any:
    """A copy of dicts, lists, arrays and scalars with one place changed, or a few."""
    changed = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        levels = _levels(changed)
        if not levels:
            return value(rng)
        container, key = rng.choice(rng.choice(levels))
        _spoil_place(rng, container, key)
    return changed


def _levels(tree: Any) -> list[list[tuple[Any, Any]]]:
    """(container, key) of its places by depth: what is near the root is chosen as often as what
    lies deep."""
    levels = []
    nodes = [tree]
    while nodes:
        places: list[tuple[Any, Any]] = []
        for node in nodes:
            if isinstance(node, dict):
                places += [(node, key) for key in node]
            elif isinstance(node, list):
                places += [(node, key) for key in range(len(node))]
        if places:
            levels.append(places)
        nodes = [container[key] for container, key in places[:500]]
    return levels


def _spoil_place(rng: Random, container: Any, key: Any) -> None:
    here = container[key]
    if isinstance(here, np.ndarray) and rng.random() < 0.7:
        container[key] = spoil_array(rng, here)
        return
    change = rng.randrange(8)
    other = rng.choice(list(container) if isinstance(container, dict) else range(len(container)))
    if change == 0:
        del container[key]
    elif change == 1:
        container[key], container[other] = container[other], here
    elif change == 2:
        container[key] = rng.choice(([here], {"a": here}, [here, here], str(here)[:200]))
    elif change == 3 and isinstance(container, list):
        container.insert(int(other), here)
    elif change == 3:
        names = [f"{key}_", str(key).upper(), "", 0, None, b"id", "label", "class", "a.b", "\ud800"]
        container[rng.choice(names)] = container.pop(key)
    elif change == 4 and isinstance(here, list):
        container[key] = rng.choice((here[:-1], here * 2, here[::-1], tuple(here), []))
    else:
        container[key] = value(rng)


def spoil_array(rng: Random, array: np.ndarray) -> Any:
    """Another shape, type or content."""
    array = np.atleast_1d(array)
    change = rng.randrange(8)
    if change == 0 and array.dtype.names is None:
        kinds = (
            ("O", "S4", "U3")
            if array.dtype.kind not in "biuf"
            else ("f2", ">f4", "f8", "i1", "u8", "c8", "O", "S4", "?")
        )
        with np.errstate(all="ignore"):
            return array.astype(rng.choice(kinds))
    if change == 1:
        return rng.choice(
            (array.ravel(), array[None], array[..., None], array.T, array[:0], array[:-1])
        )
    if change == 2:
        return rng.choice(
            (np.zeros(()), np.zeros(0), np.zeros((0, 3)), np.zeros((2, 0)), array.tolist())
        )
    if change == 3:
        kinds = np.dtype([("a", "f4"), ("b", "i4")])
        return rng.choice(
            (
                np.zeros(3, kinds),
                np.array(["a", None], object),
                np.array("x"),
                np.datetime64(3, "D"),
            )
        )
    spoilt = array.astype("f8") if change < 6 and array.dtype.kind in "biuf" else array.copy()
    if spoilt.size and spoilt.dtype.kind in "fiu":
        places = [rng.randrange(spoilt.size) for _ in range(rng.choice((1, 3)))]
        numbers = (float("nan"), float("inf"), -1e30, 1e300, 0.5, -1.0, 2.0**31, 2.0**40)
        with np.errstate(all="ignore"):
            spoilt.flat[places] = np.float64(rng.choice(numbers)).astype(spoilt.dtype)
    return spoilt


def as_json(rng: Random, tree: Any) -> bytes:
    """The tree as JSON, sometimes with a key that stands there twice. What JSON has not becomes
    text."""
    text = json.dumps(tree, default=str, skipkeys=True)
    if rng.random() < 0.15 and isinstance(tree, dict) and tree:
        key = json.dumps(str(rng.choice(list(tree))))
        text = "{" + f"{key}: {json.dumps(value(rng))}, " + text[1:]
    if rng.random() < 0.05:
        text = (
            rng.choice(("\ufeff", " \n", "//\n", "[", ""))
            + text
            + rng.choice(("", ",", "{}", "\0"))
        )
    return text.encode("utf-8", "surrogatepass")
