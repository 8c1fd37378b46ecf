"""MMSA pickles through ``convert``: spoilt as trees, as bytes, and as programs of a hostile
author."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fuzzing import OUTSIDE_FILE, Case, Special, pass_command
from mutations import spoil_bytes, spoil_tree

from data_shards import convert

SPLITS = ("train", "valid", "test")


class Call:
    """Pickled as a call of ``function``: what a hostile pickle does."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.parts


def _array(shape: tuple[int, ...], dtype: str, data: Any = b"") -> Call:
    """An array that states what it likes."""
    state = (1, shape, np.dtype(dtype), False, data)
    return Call(np._core.multiarray._reconstruct, np.ndarray, (0,), b"b", state=state)  # type: ignore[attr-defined]


def _hostile(rng: Random) -> Any:
    touch = f"touch {OUTSIDE_FILE}"
    return rng.choice(
        [
            Call(os.system, touch),
            Call(eval, f"__import__('os').system({touch!r})"),
            Call(exec, f"open({OUTSIDE_FILE!r}, 'w')"),
            Call(open, OUTSIDE_FILE, "w"),
            Call(getattr, "a", "join"),
            Call(bytearray, 2**33),
            Call(bytearray, 6 * 10**9),
            Call(list, Call(bytearray, 2**31)),
            Call(np.zeros, 2**33),
            Call(np.load, OUTSIDE_FILE, None, True),
            Call(int, "9" * 100_000),
            Call(set, [[1]]),
            Call(dict, 3),
            Call(np.dtype, "f4"),
            Call(np.dtype, "V8"),
            Call(np._core.multiarray.scalar, np.dtype("f8"), b"12345678"),  # type: ignore[attr-defined]
            Call(np._core.multiarray.scalar, np.dtype("O"), []),  # type: ignore[attr-defined]
            _array((2 * 10**9,), "S0"),
            _array((2**62,), "U0"),
            _array((2**40, 0), "f4"),
            _array((0, 2**40), "f8"),
            _array((2, 3), "f4", b"1"),
            _array((2,), "O", [[], {}]),
            _array((-1,), "f4", b"1234"),
            _array((), "f8", b"12345678"),
            print,
            np.float32,
        ]
    )


def _programs() -> list[bytes]:
    """Whole pickles that ask for memory, or for what is not there."""
    sizes = [(6 * 10**9).to_bytes(8, "little"), b"\xff" * 7 + b"\x7f", b"\xff" * 8]
    programs = [
        b"\x80\x05" + code + size + b"."
        for code in (b"\x96", b"\x8e", b"\x8d", b"\x95")
        for size in sizes
    ]
    programs += [
        b"\x80\x04" + code + b"\xff\xff\xff\x7f."
        for code in (b"\x8b", b"B", b"X", b"T", b"G", b"j", b"r")
    ]
    programs += [
        b"\x80\x02]r\xff\xff\xff\x7fj\xff\xff\xff\x7f.",
        b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".",
    ]
    programs += [
        b"(" * 100_000,
        b"\x80\x04" + b"(" * 50_000 + b"l" * 50_000 + b".",
        b"cos\nsystem\n(S'true'\ntR.",
    ]
    programs += [
        b"I" + b"9" * 100_000 + b"\n.",
        b"L" + b"1" * 200_000 + b"L\n.",
        b"Pid\n.",
        b"\x82\x01.",
        b"\x97.",
    ]
    # a list that is doubled again and again
    doubled = b"".join(b"h%c\x86R" % i + b"q%c" % (i + 1) for i in range(60))
    programs.append(b"\x80\x02cbuiltins\nlist\n]K\x01aq\x00" + doubled + b".")
    programs.append(b"\x80\x02]q\x00(h\x00h\x00eq\x01" + b"(" + b"h\x01" * 1000 + b"l.")
    return programs


def content(rng: np.random.Generator, layout: str) -> dict[str, Any]:
    """Two clips a split, in one of the layouts."""
    whole: dict[str, Any] = {}
    for split in SPLITS:
        part: dict[str, Any] = {
            "id": [f"{split}v$_${i}" for i in range(2)],
            "raw_text": ["the film was fine", "no"],
            "annotations": ["Positive", "Negative"],
            "audio": rng.normal(size=(2, 4, 5)).astype(np.float32),
            "vision": rng.normal(size=(2, 6, 20)),
            "regression_labels": np.array([1.0, -0.4]),
        }
        if layout == "tokens":
            part["text_bert"] = np.stack([[[101, 7, 102, 0], [1, 1, 1, 0], [0] * 4]] * 2).astype(
                np.float64
            )
            part["audio_lengths"] = [4, 3]
            part["vision_lengths"] = [6, 6]
        elif layout == "views":
            part["text"] = rng.normal(size=(2, 4, 3)).astype(np.float32)
            for letter in "TAV":
                part[f"regression_labels_{letter}"] = np.array([0.2, -1.0], np.float32)
        else:
            part["labels"] = part.pop("regression_labels").reshape(2, 1, 1)
            part["id"] = np.array([[b"v1", b"0", b"1"], [b"v2", b"0", b"1"]])
            part = {
                name: value
                for name, value in part.items()
                if name not in ("raw_text", "annotations")
            }
        whole[split] = part
    if layout == "tokens":
        whole |= {"synthetic": True, "vocabulary": [f"w{i}" for i in range(103)]}
    return whole


class Pickles:
    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.trees = [content(rng, layout) for layout in ("tokens", "views", "originals")]
        self.programs = _programs()

    def valid(self) -> list[Case]:
        return [
            _case(pickle.dumps(tree, protocol))
            for tree, protocol in zip(self.trees, (2, 4, 5), strict=True)
        ]

    def spoilt(self, rng: Random) -> Case:
        tree = rng.choice(self.trees)
        kind = rng.random()
        if kind < 0.02:
            return _case(rng.choice(list(Special)))
        if kind < 0.07:
            return _case(rng.choice(self.programs))
        if kind < 0.65:
            tree = spoil_tree(rng, tree)
        if 0.5 < kind < 0.65 and isinstance(tree, dict):
            part = tree.get(rng.choice(SPLITS))
            place = part if isinstance(part, dict) and rng.random() < 0.7 else tree
            place[rng.choice([*place, "id", "text"])] = _hostile(rng)
        body = pickle.dumps(tree, rng.choice((0, 2, 3, 4, 5)))
        return _case(body if kind < 0.65 else spoil_bytes(rng, body))

    def enter(self, folder: Path, case: Case) -> None:
        words = [str(folder / "mosi.pkl"), "--out", str(folder / "out"), *case.words]
        pass_command(convert.main, words)


def _case(content: bytes | Special) -> Case:
    return Case({"mosi.pkl": content}, [], {"mosi.pkl"})


def open_door(scratch: Path) -> Pickles:
    return Pickles()
