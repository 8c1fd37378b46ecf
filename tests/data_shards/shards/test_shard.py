"""Writing shards, their indexes, and reading manifests."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile

import numpy as np
import pytest
import webdataset as wds

from data_shards.shards.index_table import ABSENT, CRC, END, Index
from data_shards.shards.manifest import DataError, Field, Manifest, Sample, Shard, read_manifest
from data_shards.shards.writer import write_shard


def sample(place: int = 0, **arrays: np.ndarray) -> tuple[str, Sample]:
    arrays = arrays or {
        "audio": np.full((place + 1, 3), place, np.float32),
        "label": np.array(place, np.float32),
    }
    return f"train_{place:08d}", Sample(f"clip$_${place}", arrays, "zwölf", {"place": place})


def test_the_same_samples_give_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_shard(tmp_path / folder, "train-000000.tar", (sample(i) for i in range(5)))
    for name in ("train-000000.tar", "train-000000.idx"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_order_of_a_samples_arrays_does_not_matter(tmp_path):
    a, b = np.zeros(2, np.float32), np.ones(3, np.int64)
    one = write_shard(tmp_path, "x-0.tar", [sample(0, a=a, b=b)])
    two = write_shard(tmp_path, "x-1.tar", [sample(0, b=b, a=a)])
    assert (one.sha256, one.index_sha256) == (two.sha256, two.index_sha256)


def test_members_are_plain_ustar_sorted_and_contiguous(tmp_path):
    write_shard(tmp_path, "train-000000.tar", (sample(i) for i in range(3)))
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == [
        f"train_{i:08d}.{suffix}"
        for i in range(3)
        for suffix in ("audio.npy", "json", "label.npy", "txt")
    ]
    for member in members:
        assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (
            0,
            0,
            0,
            "",
            "",
        )
        assert member.mode == 0o644
        assert not member.pax_headers
    assert (tmp_path / "train-000000.tar").stat().st_size % 10240 == 0


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # it leaves its file to the collector
def test_stock_webdataset_reads_what_was_written(tmp_path):
    written = [sample(i) for i in range(4)]
    write_shard(tmp_path, "train-000000.tar", written)
    read = list(wds.WebDataset(str(tmp_path / "train-000000.tar"), shardshuffle=False).decode())
    assert [item["__key__"] for item in read] == [key for key, _ in written]
    for item, (_, expected) in zip(read, written, strict=True):
        np.testing.assert_array_equal(item["audio.npy"], expected.arrays["audio"])
        assert item["json"] == {"id": expected.id, **expected.extra}
        assert item["txt"] == expected.text


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint16", "int64", "float16", "float64", "complex64"]
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3)])
def test_the_index_says_where_the_numbers_are(tmp_path, dtype, shape):
    array = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape).astype(dtype)
    record = write_shard(
        tmp_path, "x-0.tar", [sample(0, other=np.zeros(1)), sample(1, a=array, other=np.ones(1))]
    )
    body = (tmp_path / "x-0.tar").read_bytes()
    index = Index.from_bytes((tmp_path / "x-0.idx").read_bytes(), "x-0.idx")
    column = index.column("a")
    assert index.table[0, column] == ABSENT
    offset, *extents = index.table[1, column : column + 1 + array.ndim].tolist()
    assert tuple(extents) == shape
    np.testing.assert_array_equal(
        np.frombuffer(body, dtype, array.size, offset).reshape(shape), array
    )
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        member = tar.getmember("train_00000001.a.npy")
        loaded = np.load(io.BytesIO(tar.extractfile(member).read()), allow_pickle=False)
    np.testing.assert_array_equal(loaded, array)
    assert (record.samples, record.bytes) == (2, len(body))
    assert index.keys() == ["train_00000000", "train_00000001"]


def test_an_array_that_is_not_contiguous_is_stored_as_its_values(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    write_shard(tmp_path, "x-0.tar", [sample(0, a=array)])
    with tarfile.open(tmp_path / "x-0.tar") as tar:
        np.testing.assert_array_equal(
            np.load(io.BytesIO(tar.extractfile("train_00000000.a.npy").read())), array
        )


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "no samples"),
        ([("a.b", Sample("x", {}))], "dots"),
        ([("a/b", Sample("x", {}))], "slashes"),
        ([("", Sample("x", {}))], "empty"),
        ([sample(0), sample(0)], "already in the shard"),
        ([sample(0, a=np.array([{}], object))], "never objects"),
        ([sample(0, a=np.zeros(2, "f4,i4"))], "never objects"),
        ([sample(0, a=np.array(["x"]))], "never objects"),
        ([sample(0, a=np.zeros(2, ">f4"))], "big-endian"),
        ([sample(0, **{"a.b": np.zeros(2)})], "letters, digits"),
        ([sample(0, a=np.zeros(2, np.float32)), sample(1, a=np.zeros(2))], "before"),
        ([sample(0, a=np.zeros(2)), sample(1, a=np.zeros((2, 2)))], "axes"),
        ([("k", Sample("x", {}, extra={"id": 3}))], "'id'"),
        ([("k", Sample("x", {}, extra={"v": float("nan")}))], "plain JSON"),
        ([("k", Sample("x", {}, extra={"v": {1, 2}}))], "plain JSON"),
        ([("k", Sample("x", {}, "\ud800"))], "Unicode"),
        ([("k" * 300, Sample("x", {}))], "does not fit a tar header"),
    ],
)
def test_what_would_not_be_read_back_is_refused_and_leaves_nothing(tmp_path, samples, message):
    with pytest.raises(DataError, match=message):
        write_shard(tmp_path, "x-0.tar", samples)
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_fails_half_way_leaves_nothing(tmp_path):
    def failing():
        yield sample(0)
        raise RuntimeError("the source is gone")

    with pytest.raises(RuntimeError, match="the source is gone"):
        write_shard(tmp_path, "x-0.tar", failing())
    assert list(tmp_path.iterdir()) == []


def test_both_files_are_on_disk_before_either_has_its_name(tmp_path, monkeypatch):
    happened = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: happened.append("fsync"))
    rename = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (happened.append(b.name), rename(a, b)))
    write_shard(tmp_path, "x-0.tar", [sample(0)])
    assert happened == ["fsync", "x-0.idx", "fsync", "fsync", "x-0.tar", "fsync"]


@pytest.mark.parametrize("name", ["x-0", "../x-0.tar", ".x-0.tar"])
def test_a_shard_has_a_plain_name(tmp_path, name):
    with pytest.raises(DataError, match="must end in .tar"):
        write_shard(tmp_path, name, [sample(0)])


def built(change) -> bytes:
    """The bytes of an index of two samples after ``change`` to its table."""
    index = Index.build(
        {"a": ("float32", 1)},
        ["k0", "k1"],
        [[0, 2048, 1, 512, 9, ABSENT, ABSENT], [2048, 4096, 2, ABSENT, ABSENT, ABSENT, ABSENT]],
        [{"a": (1664, 4)}, {"a": (2688, 8)}],
        10240,
    )
    change(index.table)
    return index.to_bytes()


def test_an_index_survives_its_file():
    index = Index.from_bytes(built(lambda table: None), "x.idx")
    assert index.keys() == ["k0", "k1"]
    assert index.table[1, index.column("a") :].tolist() == [2688, 8]


@pytest.mark.parametrize(
    ("row", "column", "value"),
    [
        (1, END, 20480),  # past the tar
        (1, 0, 1024),  # over the sample before
        (0, 3, 2040),  # a record over the end of its sample
        (0, 4, -5),
        (0, CRC, -1),
        (0, 7, 2047),  # an array over the end of its sample
        (1, 7, 512),  # in another sample
        (0, 8, 1 << 62),  # a size whose bytes wrap around
        (0, 8, -1),
    ],
)
def test_an_index_that_points_outside_is_refused(row, column, value):
    def change(table: np.ndarray) -> None:
        table[row, column] = value

    with pytest.raises(DataError, match=r"x\.idx"):
        Index.from_bytes(built(change), "x.idx")


def manifest(**changes) -> dict:
    shards = (Shard("train-000000.tar", 3, 10240, "a" * 64, "b" * 64),)
    whole = Manifest(
        "x",
        "sentiment",
        {"audio": Field("float32", (None, 5))},
        {"train": shards},
        moments={"audio": ([0.5], [1.0])},
    )
    return json.loads(whole.to_json()) | changes


def text(body: dict) -> str:
    """A manifest whose checksum is right, whatever it says."""
    body.pop("checksum", None)
    compact = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return json.dumps({**body, "checksum": hashlib.sha256(compact.encode()).hexdigest()})


def test_a_manifest_survives_its_file(make_shards, tmp_path):
    written = make_shards(tmp_path, [3, 2])
    assert read_manifest(tmp_path) == written
    assert written.samples("train") == 5
    assert Manifest.from_json(text(manifest()), "m").moments == {"audio": ([0.5], [1.0])}


def test_a_manifest_laid_out_differently_is_the_same(make_shards, tmp_path):
    written = make_shards(tmp_path, [3])
    assert (
        Manifest.from_json(json.dumps(json.loads(written.to_json()), sort_keys=True), "m")
        == written
    )


def test_a_changed_manifest_is_refused(make_shards, tmp_path):
    changed = make_shards(tmp_path, [3]).to_json().replace('"low": -3.0', '"low": -2.0')
    with pytest.raises(DataError, match=r"m\.json was changed"):
        Manifest.from_json(changed, "m.json")


SHARD = {
    "name": "a.tar",
    "samples": 1,
    "bytes": 10240,
    "sha256": "a" * 64,
    "index_sha256": "b" * 64,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "no manifest"),
        ({"name": 5}, "name: expected str"),
        ({"surprise": 1}, "unknown 'surprise'"),
        ({"task": "speech"}, "unknown task"),
        ({"fields": {"a": {"dtype": "object", "shape": []}}}, "only numbers"),
        ({"fields": {"a": {"dtype": "int8"}}}, "'shape' is missing"),
        ({"fields": {"a": {"dtype": "int8", "shape": [None, None]}}}, "shape"),
        ({"fields": {"a": {"dtype": "int8", "shape": [-2]}}}, "shape"),
        ({"fields": {"a": {"dtype": "int8", "shape": [True]}}}, "expected int"),
        ({"splits": {"train": [SHARD | {"name": "../a.tar"}]}}, "plain file name"),
        ({"splits": {"train": [SHARD | {"name": "a/b.tar"}]}}, "plain file name"),
        ({"splits": {"train": [SHARD | {"samples": -1}]}}, "-1 samples"),
        ({"splits": {"train": [SHARD | {"samples": 10**30}]}}, "samples"),
        ({"splits": {"train": [SHARD | {"samples": True}]}}, "expected int"),
        ({"splits": {"train": [SHARD | {"sha256": "abc"}]}}, "SHA-256"),
        ({"splits": {"train": [SHARD, SHARD]}}, "listed twice"),
        ({"splits": {"train": [SHARD], "test": [SHARD]}}, "listed twice"),
        ({"splits": {"tr/ain": [SHARD]}}, "plain name"),
        ({"labels": {"kind": "ranks"}}, "labels: unknown kind 'ranks'; expected 'regression' or"),
        ({"moments": {"audio": [[1.0], [1.0, 2.0]]}}, "1 means, 2 deviations"),
        ({"moments": {"audio": [[1.0]]}}, "moments: audio: value 2 is missing"),
        ({"moments": {"audio": [[1.0], [1.0], []]}}, "moments: audio: .* at most 2 items"),
        ({"moments": {"audio": [[1.0], ["x"]]}}, "moments: audio: 1: 0: expected float, found 'x'"),
        ({"repairs": {"audio": -1}}, "negative"),
    ],
)
def test_a_manifest_that_cannot_be_right_is_refused(changes, message):
    with pytest.raises(DataError, match=message) as refused:
        Manifest.from_json(text(manifest(**changes)), "folder/manifest.json")
    assert "folder/manifest.json" in str(refused.value)


@pytest.mark.parametrize(
    "body", ["", "[]", "{", "null", '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 100000]
)
def test_what_is_no_manifest_is_refused(body):
    with pytest.raises(DataError, match=r"m\.json"):
        Manifest.from_json(body, "m.json")


def test_a_folder_without_manifest_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"python -m data_shards\.convert"):
        read_manifest(tmp_path)
