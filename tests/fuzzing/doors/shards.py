"""Shard folders, tar, index and manifest, through ``Stream``, ``inspect``, ``verify`` and
``load_graphs``."""

from __future__ import annotations

import hashlib
import json
import pickle
import tempfile
from io import BytesIO
from pathlib import Path
from random import Random
from tarfile import open as open_tar
from typing import Any

import numpy as np
from fuzzing import Case, Files, Special, names_of, pass_command, put, take
from mutations import spoil_bytes, spoil_tree
from safetensors.numpy import load, save

from data_shards import convert, inspect, verify
from data_shards.graph import load_graphs
from data_shards.indexing.tar_indexer import index_tar
from data_shards.shards.manifest import DataError
from data_shards.stream import Stream
from doors import graphs, pickles, tars

MANIFEST = "manifest.json"


def sentiment(scratch: Path, layout: str = "tokens") -> Files:
    """Shards of six clips."""
    scratch.mkdir(parents=True)
    raw = scratch / "mosi.pkl"
    content = pickles.content(np.random.default_rng(0), layout)
    raw.write_bytes(pickle.dumps(content))
    pass_command(convert.main, [str(raw), "--out", str(scratch / "out"), "--shard-size", "1"])
    return take(scratch / "out")


def alignment(scratch: Path) -> Files:
    """Shards of two small graphs."""
    (case, *_) = graphs.Graphs().valid()
    put(case, scratch)
    graphs.Graphs().enter(scratch, case)
    return take(scratch / "out")


def signed(manifest: dict[str, Any]) -> bytes:
    """A manifest with the checksum that it needs to be believed."""
    body = json.loads(json.dumps(manifest, default=str, skipkeys=True))
    body.pop("checksum", None)
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    body["checksum"] = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return json.dumps(body).encode()


def _vouched(files: Files) -> Files:
    """The files with a manifest that knows their sizes and checksums."""
    manifest = json.loads(_body(files, MANIFEST))
    for shards in manifest["splits"].values():
        for shard in shards:
            tar, index = _body(files, shard["name"]), _body(files, shard["name"][:-4] + ".idx")
            shard |= {"bytes": len(tar), "sha256": hashlib.sha256(tar).hexdigest()}
            shard["index_sha256"] = hashlib.sha256(index).hexdigest()
    return files | {MANIFEST: signed(manifest)}


def _body(files: Files, name: str) -> bytes:
    content = files[name]
    assert isinstance(content, bytes)
    return content


def _spoil_index(rng: Random, body: bytes) -> bytes:
    tensors: dict[str, Any] = dict(load(body))
    if rng.random() < 0.4:
        header = spoil_tree(rng, json.loads(tensors["header"].tobytes()))
        text = json.dumps(header, default=str, skipkeys=True).encode("utf-8", "surrogatepass")
        tensors["header"] = np.frombuffer(text, np.uint8)
    elif rng.random() < 0.6:
        table = tensors["table"].copy()
        numbers = (0, -1, 1, 511, 2**31, 2**40, 2**62, -(2**63), 2**63 - 1)
        table[rng.randrange(len(table)), rng.randrange(table.shape[1])] = rng.choice(numbers)
        tensors["table"] = table
    else:
        tensors = spoil_tree(rng, tensors)
    try:
        arrays = {str(name): np.ascontiguousarray(array) for name, array in tensors.items()}
        return save(arrays)
    except Exception:  # of what safetensors cannot hold
        return spoil_bytes(rng, body)


def _spoil_members(rng: Random, files: Files, name: str) -> Files:
    """Another tar with an index that fits it, where the indexer makes one."""
    members = []
    with open_tar(fileobj=BytesIO(_body(files, name))) as archive:
        for member in archive:
            members.append((member.name, archive.extractfile(member).read()))  # type: ignore[union-attr]
    try:
        body = tars.tar(tars.spoil_members(rng, members))
    except ValueError:
        body = spoil_bytes(rng, _body(files, name))
    changed = files | {name: body}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(body)
        try:
            changed[name[:-4] + ".idx"] = index_tar(path).index.to_bytes()
        except DataError:
            pass
    return changed


class Shards:
    def __init__(self, scratch: Path):
        self.folders = {
            "sentiment": sentiment(scratch / "clips"),
            "alignment": alignment(scratch / "graphs"),
        }
        # verify starts processes otherwise, which no case may
        verify.ProcessPoolExecutor = verify.ThreadPoolExecutor  # type: ignore[misc,attr-defined]

    def valid(self) -> list[Case]:
        ways = [("sentiment", "stream"), ("sentiment", "inspect"), ("sentiment", "verify")]
        ways += [("alignment", "graphs"), ("alignment", "verify"), ("alignment", "inspect")]
        return [_case(self.folders[task], way) for task, way in ways]

    def spoilt(self, rng: Random) -> Case:
        task = rng.choice(("sentiment", "sentiment", "alignment"))
        before = self.folders[task]
        files = dict(before)
        way = rng.choice(("stream" if task == "sentiment" else "graphs", "inspect", "verify"))
        tar = rng.choice([name for name in files if name.endswith(".tar")])
        index = tar[:-4] + ".idx"
        kind = rng.random()
        if kind < 0.25:
            files[MANIFEST] = signed(_tree(spoil_tree(rng, json.loads(_body(files, MANIFEST)))))
        elif kind < 0.35:
            name = rng.choice((MANIFEST, tar, index))
            files[name] = spoil_bytes(rng, _body(files, name))
        elif kind < 0.5:
            name = rng.choice((tar, index))
            files = _vouched(files | {name: spoil_bytes(rng, _body(files, name))})
        elif kind < 0.7:
            files = _vouched(files | {index: _spoil_index(rng, _body(files, index))})
        elif kind < 0.9:
            files = _vouched(_spoil_members(rng, files, tar))
        elif kind < 0.94:
            del files[rng.choice((MANIFEST, tar, index))]
        elif kind < 0.98:
            other = rng.choice(list(files))
            files[tar], files[other] = files[other], files[tar]
        else:
            files[rng.choice((MANIFEST, tar, index))] = rng.choice(list(Special))
        return _case(files, way, before)

    def enter(self, folder: Path, case: Case) -> None:
        shards = folder / "shards"
        (way,) = case.words
        if way == "inspect":
            pass_command(inspect.main, [str(shards)])
        elif way == "stream":
            _stream(shards)
        elif way == "graphs":
            load_graphs(shards)
        else:
            _verify(shards, case)


def _stream(folder: Path) -> None:
    for split in ("train", "valid", "test"):
        stream = Stream(folder, split, global_batch=2, prefetch=0)
        try:
            for parts in stream.epoch(0):
                for part in parts:
                    stream.ids(part.index)
        finally:
            stream.close()


def _verify(folder: Path, case: Case) -> None:
    findings = verify.verify(folder, deep=True, workers=1)
    wrong = [finding.corruption for finding in findings if finding.corruption]
    unnamed = [line for line in wrong if not any(name in line for name in case.names)]
    for line in [*unnamed, *wrong]:
        raise DataError(line)


def _tree(tree: Any) -> dict[str, Any]:
    return tree if isinstance(tree, dict) else {"was": tree}


def _case(files: Files, way: str, before: Files | None = None) -> Case:
    names = names_of(files) | names_of(before or {})
    return Case({f"shards/{name}": body for name, body in files.items()}, [way], names)


def open_door(scratch: Path) -> Shards:
    return Shards(scratch)
