"""Alignment folders through ``convert``: tab-separated files, names as JSON, images as npz, npy or
a pickle."""

from __future__ import annotations

import pickle
from pathlib import Path
from random import Random

import numpy as np
from fuzzing import Case, Files, Special, names_of, pass_command
from mutations import as_json, spoil_bytes, spoil_lines, spoil_tree, value
from spoilt_arrays import npy, npz, spoil_npy, spoil_npz

from data_shards import convert

PAIRS, SECOND = 12, 100  # ids of the right graph begin at SECOND


def _text(rows: list) -> bytes:  # type: ignore[type-arg]
    return "\n".join("\t".join(map(str, row)) for row in rows).encode("utf-8", "surrogatepass")


def _folder(layout: str) -> Files:
    """Two graphs of twelve entities each; partner of id i is SECOND + i."""
    rng = np.random.default_rng(0)
    files: Files = {}
    for digit, first, relation in (("1", 0, 0), ("2", SECOND, 4)):
        files[f"ent_ids_{digit}"] = _text(
            [(first + i, f"http://{digit}/e{i}") for i in range(PAIRS)]
        )
        ends = rng.integers(PAIRS, size=(30, 2))
        triples = [(first + h, relation + i % 4, first + t) for i, (h, t) in enumerate(ends)]
        files[f"triples_{digit}"] = _text(triples)
        attributes = [
            (f"http://{digit}/e{i}", f"shared{i % 3}", f"own{digit}") for i in range(PAIRS)
        ]
        files[f"training_attrs_{digit}"] = _text(attributes)
        files[f"numeric_{digit}"] = _text([(first + i, f"n{digit}", 3.5 * i) for i in range(PAIRS)])
        files[f"has_image_{digit}"] = _text([(first + i,) for i in range(PAIRS) if i % 3])
    links = [(i, SECOND + i) for i in range(PAIRS)]
    if layout == "all":
        files["ill_ent_ids"] = _text(links)
    else:
        files["sup_ent_ids"], files["ref_ent_ids"] = _text(links[:6]), _text(links[6:])
    files["translated_ent_name.json"] = as_json(Random(1), _names())
    files |= {"glove.txt": b"ab 0.5 1\nbc 1 2\nthe 0 1\n"}
    return files | {f"images.{_suffix(layout)}": _images(layout)}


def _names() -> list[list[object]]:
    return [[first + i, [f"ab{i}", "The"]] for first in (0, SECOND) for i in range(PAIRS)]


def _vectors() -> tuple[list[int], np.ndarray]:
    ids = [first + i for first in (0, SECOND) for i in range(PAIRS) if i % 3]
    return ids, np.random.default_rng(2).normal(size=(len(ids), 4)).astype(np.float32)


def _suffix(layout: str) -> str:
    return {"all": "npz", "split": "pkl", "matrix": "npy"}[layout]


def _images(layout: str) -> bytes:
    ids, vectors = _vectors()
    if layout == "all":
        return npz({"ids": np.array(ids), "vectors": vectors})
    if layout == "split":
        return pickle.dumps(dict(zip(ids, vectors, strict=True)))
    return npy(np.random.default_rng(3).normal(size=(2 * PAIRS, 4)).astype(np.float32))


def _spoil_images(rng: Random, layout: str) -> bytes:
    ids, vectors = _vectors()
    if layout == "all":
        return spoil_npz(rng, {"ids": np.array(ids), "vectors": vectors})
    if layout == "split":
        return pickle.dumps(spoil_tree(rng, dict(zip(ids, vectors, strict=True))))
    return spoil_npy(rng, np.ones((2 * PAIRS, 4), np.float32))


class Graphs:
    layouts = ("all", "split", "matrix")

    def __init__(self) -> None:
        self.folders = {layout: _folder(layout) for layout in self.layouts}

    def valid(self) -> list[Case]:
        return [_case(self.folders[layout], layout) for layout in self.layouts]

    def spoilt(self, rng: Random) -> Case:
        layout = rng.choice(self.layouts)
        files = dict(self.folders[layout])
        name = rng.choice(list(files))
        body = files[name]
        assert isinstance(body, bytes)
        kind = rng.random()
        if kind < 0.02:
            files[name] = rng.choice(list(Special))
        elif kind < 0.07:
            del files[name]
        elif kind < 0.1:
            other = rng.choice(list(files))
            files[name], files[other] = files[other], body
        elif name.startswith("images") and kind < 0.8:
            files[name] = _spoil_images(rng, layout)
        elif name.endswith(".json") and kind < 0.8:
            files[name] = as_json(rng, spoil_tree(rng, _names()))
        elif kind < 0.8:
            files[name] = spoil_lines(rng, body)
        elif kind < 0.85:
            files[name] = _text(
                [(value(rng), value(rng), value(rng))[: rng.choice((1, 2, 3))]] * rng.choice((1, 3))
            )
        else:
            files[name] = spoil_bytes(rng, body)
        return _case(files, layout, self.folders[layout])

    def enter(self, folder: Path, case: Case) -> None:
        words = [
            "--images",
            str(folder / "raw" / case.words[0]),
            "--train-ratio",
            "0.5",
            "--valid-ratio",
            "0.4",
        ]
        if case.words[0].endswith(".npz"):
            words += ["--word-vectors", str(folder / "raw" / "glove.txt")]
        pass_command(convert.main, [str(folder / "raw"), "--out", str(folder / "out"), *words])


def _case(files: Files, layout: str, before: Files | None = None) -> Case:
    names = names_of(files) | names_of(before or {})
    return Case(
        {f"raw/{name}": body for name, body in files.items()}, [f"images.{_suffix(layout)}"], names
    )


def open_door(scratch: Path) -> Graphs:
    return Graphs()
