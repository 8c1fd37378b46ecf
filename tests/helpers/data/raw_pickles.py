"""Raw pickles to convert, and what came of them."""

from __future__ import annotations

import hashlib
import json
import pickle
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.synthetic import make

Content = dict[str, Any]
SPLITS = ("train", "valid", "test")


def clean() -> Content:
    """40 synthetic clips without the -inf that they have on purpose, nor the marks of a synthetic
    set, nor the labels of single modalities, which MOSI has not."""
    made = make(40, seed=3)
    del made["synthetic"], made["vocabulary"]
    for split in SPLITS:
        for letter in "TAV":
            del made[split][f"regression_labels_{letter}"]
        made[split]["audio"] = np.nan_to_num(made[split]["audio"], neginf=0.5)
    return made


def save(content: Content, folder: Path, name: str = "mosi.pkl", protocol: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(pickle.dumps(content, protocol))
    return folder / name


def each(content: Content, change: Callable[[Content], Any]) -> Content:
    for split in SPLITS:
        change(content[split])
    return content


def read_back(folder: Path) -> dict[str, dict[str, Any]]:
    """Sample id -> its members, read with the standard library alone."""
    samples: dict[str, dict[str, Any]] = {}
    for tar in sorted(folder.glob("*.tar")):
        members: dict[str, dict[str, Any]] = {}
        with tarfile.open(tar) as file:
            for member in file:
                key, _, suffix = member.name.partition(".")
                body = file.extractfile(member).read()  # type: ignore[union-attr]
                if suffix == "json":
                    members.setdefault(key, {})["json"] = json.loads(body)
                elif suffix == "txt":
                    members.setdefault(key, {})["txt"] = body.decode()
                else:
                    array = np.load(BytesIO(body), allow_pickle=False)
                    members.setdefault(key, {})[suffix.removesuffix(".npy")] = array
        samples |= {sample["json"]["id"]: {"key": key, **sample} for key, sample in members.items()}
    return samples


def assert_same(left: dict[str, dict[str, Any]], right: dict[str, dict[str, Any]]) -> None:
    assert list(left) == list(right)
    for name in left:
        assert left[name].keys() == right[name].keys()
        for member in left[name]:
            np.testing.assert_array_equal(left[name][member], right[name][member])


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }
