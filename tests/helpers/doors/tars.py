"""Tars that something else wrote, through ``index`` and then ``inspect`` and ``verify``."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fuzzing import Case, Files, Special, names_of, pass_command
from mutations import as_json, spoil_bytes, spoil_tree, value
from spoilt_arrays import npy, spoil_npy

from data_shards import index, inspect

Members = list[tuple[str, bytes]]
TARS = {"train-000000.tar": 3, "train-000001.tar": 2, "valid-000000.tar": 2, "test-000000.tar": 2}
TYPES = (
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.CHRTYPE,
    tarfile.FIFOTYPE,
    tarfile.DIRTYPE,
    b"S",
    b"V",
    b"Z",
)


def _members(name: str, count: int, target: str) -> Members:
    rng = np.random.default_rng(len(name))
    members: Members = []
    for i in range(count):
        key = f"{name[:-4]}-{i}"
        label = {"label": np.float32(i - 1), "class": np.int64(i % 2)}[target]
        members.append((f"{key}.audio.npy", npy(rng.normal(size=(3 + i, 4)).astype(np.float32))))
        members.append((f"{key}.json", json.dumps({"id": f"id-{key}", "video": name}).encode()))
        members.append((f"{key}.{target}.npy", npy(label)))
        members.append((f"{key}.text.npy", npy(np.arange(5, dtype=np.int32))))
        members.append((f"{key}.txt", b"fine"))
    return members


def tar(members: Members, form: int = tarfile.USTAR_FORMAT, odd: bytes | None = None) -> bytes:
    """The bytes of a tar; with ``odd`` its second member is of that type."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for place, (name, body) in enumerate(members):
            header = tarfile.TarInfo(name)
            header.size = len(body)
            if odd is not None and place == 1:
                header.type, header.linkname = odd, "../../outside/touched"
            archive.addfile(header, io.BytesIO(body))
    return file.getvalue()


def spoil_members(rng: Random, members: Members) -> Members:
    members = list(members)
    place = rng.randrange(len(members))
    name, body = members[place]
    key, _, suffix = name.partition(".")
    change = rng.randrange(8)
    if change == 0:
        del members[place]
    elif change == 1:
        members.insert(rng.randrange(len(members)), (name, body))
    elif change == 2:
        rng.shuffle(members)
    elif change == 3:
        suffixes = (
            "label.npy",
            "class.npy",
            "json",
            "txt",
            "npy",
            "cls",
            "jpg",
            "vision.npy",
            "a b.npy",
            "AUDIO.npy",
            "",
        )
        members[place] = (f"{key}.{rng.choice(suffixes)}", body)
    elif change == 4:
        odd = (
            f"../{name}",
            f"/{name}",
            f"a/{name}",
            f"./{name}",
            f"{'k' * 150}.{suffix}",
            f"é.{suffix}",
            suffix,
            name[:-4],
        )
        members[place] = (rng.choice(odd), body)
    elif suffix.endswith("npy"):
        label = rng.choice((float("nan"), 1e30, 7.5, [1.0], [[1.0]], [], "word", 2**40, True, -1))
        array = np.load(io.BytesIO(body))
        members[place] = (
            name,
            npy(label, pickled=True) if array.ndim == 0 and change == 5 else spoil_npy(rng, array),
        )
    elif suffix == "json":
        members[place] = (name, as_json(rng, spoil_tree(rng, json.loads(body))))
    else:
        members[place] = (
            name,
            rng.choice((b"", b"\xff\xfe", b"\0", str(value(rng)).encode("utf-8", "replace"))),
        )
    return members


class Tars:
    def __init__(self) -> None:
        self.folders = {
            target: {name: _members(name, count, target) for name, count in TARS.items()}
            for target in ("label", "class")
        }

    def valid(self) -> list[Case]:
        return [
            _case({name: tar(part) for name, part in parts.items()}, target)
            for target, parts in self.folders.items()
        ]

    def spoilt(self, rng: Random) -> Case:
        target = rng.choice(("label", "label", "class"))
        parts = self.folders[target]
        files: Files = {name: tar(part) for name, part in parts.items()}
        name = rng.choice(list(files))
        body = files[name]
        assert isinstance(body, bytes)
        form = rng.choice((tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
        kind = rng.random()
        if kind < 0.55:
            files[name] = _tar_of(spoil_members(rng, parts[name]), form, body)
        elif kind < 0.6:
            files[name] = _tar_of(parts[name], form, body, rng.choice(TYPES))
        elif kind < 0.85:
            files[name] = spoil_bytes(rng, body)
        elif kind < 0.95:  # another folder
            names = (
                "val-0.tar",
                "dev.tar",
                "Train-0.tar",
                "cc3m-train-0000.tar",
                "0.tar",
                "-.tar",
                "é.tar",
                "x.tar",
                "a b.tar",
            )
            files[rng.choice(names)] = files.pop(name)
        elif kind < 0.97:
            files[name] = rng.choice(list(Special))
        else:
            del files[name]
        return _case(files, target, {name: body})

    def enter(self, folder: Path, case: Case) -> None:
        pass_command(index.main, [str(folder / "tars"), "--processes", "1", *case.words])
        pass_command(inspect.main, [str(folder / "tars")])


def _tar_of(members: Members, form: int, otherwise: bytes, odd: Any = None) -> bytes:
    try:
        return tar(members, form, odd)
    except ValueError:  # a name that this format cannot hold
        return otherwise[: len(otherwise) // 2]


def _case(files: Files, target: str, before: Files | None = None) -> Case:
    names = names_of(files) | names_of(before or {}) | {"manifest.json"}
    return Case({f"tars/{name}": body for name, body in files.items()}, _options(target), names)


def _options(target: str) -> list[str]:
    """What must be said of the labels, as far as the command asks for it."""
    words = {"label": ["--labels", "-3:3"], "class": ["--classes", "no,yes"]}[target]
    return words if _knows_labels() else []


def _knows_labels() -> bool:
    return "--labels" in Path(index.__file__).read_text(encoding="utf-8")


def open_door(scratch: Path) -> Tars:
    return Tars()
