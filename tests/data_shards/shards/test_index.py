"""Indexing tars that other tools wrote, and refusing those that nobody should read."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from data_shards.index import main
from data_shards.indexing.folder_indexer import Stated, index_folder, restore_indexes
from data_shards.indexing.tar_indexer import index_tar
from data_shards.shards.index_table import Index
from data_shards.shards.manifest import DataError, read_manifest
from data_shards.shards.tar import members
from data_shards.stream import Stream

ARRAYS = Stated(task="arrays")


def npy(array: np.ndarray, **options: bool) -> bytes:
    out = io.BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


def write(
    path: Path, files: dict[str, bytes], form: int = tarfile.PAX_FORMAT, **facts: object
) -> Path:
    """A tar of ``files`` with ``facts`` on every header."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            for fact, value in facts.items():
                setattr(info, fact, value)
            tar.addfile(info, io.BytesIO(body))
    return path


def audio(length: int) -> np.ndarray:
    return np.arange(3 * length, dtype=np.float32).reshape(length, 3)


LONG = "a-folder/" + "long" * 40
KEYS = ("plain", "with blank", "ünïcode/文", LONG)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_pax_and_gnu_tars_with_any_names_are_read(tmp_path, form):
    files: dict[str, bytes] = {}
    for i, key in enumerate(KEYS):
        files |= {f"{key}.audio.npy": npy(audio(i + 1)), f"{key}.label.npy": npy(np.float32(i))}
        files |= {f"{key}.json": json.dumps({"id": f"id {i}"}).encode(), f"{key}.txt": b"hi"}
    write(
        tmp_path / "things-7.tar", files, form, mtime=1234.5
    )  # a fraction of a second needs one more header
    manifest = index_folder(tmp_path, ARRAYS)
    assert manifest.fields["audio"].shape == (None, 3)
    assert manifest.max_length == {"audio": 4}
    stream = Stream(tmp_path, "things", global_batch=4, shuffle=False)
    (part,) = next(stream.epoch(0))
    assert part.lengths["audio"].tolist() == [1, 2, 3, 4]
    for i in range(4):
        np.testing.assert_array_equal(part.arrays["audio"][i, : i + 1].numpy(), audio(i + 1))
    assert stream.ids(range(4)) == ["id 0", "id 1", "id 2", "id 3"]
    assert stream.reader.shard(0).index.keys() == list(KEYS)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # it leaves its file to the collector
def test_what_webdatasets_own_writer_wrote_is_read(tmp_path):
    with wds.TarWriter(str(tmp_path / "train-000000.tar"), encoder=True) as sink:
        for i in range(5):
            sink.write(
                {
                    "__key__": f"s{i}",
                    "audio.npy": audio(i + 1),
                    "json": {"id": i},
                    "cls": i,
                    "jpg": b"\xff\xd8" * i,
                }
            )
    manifest = index_folder(tmp_path, ARRAYS)
    assert manifest.samples("train") == 5
    assert {name: (field.dtype, field.shape) for name, field in manifest.fields.items()} == {
        "audio": ("float32", (None, 3)),
        "cls": ("uint8", (None,)),
        "jpg": ("uint8", (None,)),
    }
    (part,) = next(Stream(tmp_path, "train", global_batch=5, shuffle=False).epoch(0))
    assert part.lengths["jpg"].tolist() == [0, 2, 4, 6, 8]
    assert bytes(part.arrays["cls"][:, 0].tolist()) == b"01234"


def test_an_index_made_again_is_the_one_that_was_written(make_shards, tmp_path):
    make_shards(tmp_path, (4, 3))
    for path in sorted(tmp_path.glob("*.tar")):
        tar = index_tar(path)
        assert tar.index.to_bytes() == path.with_suffix(".idx").read_bytes()
        assert tar.without_suffix == 0


def test_missing_and_damaged_indexes_are_made_again(make_shards, tmp_path, capsys):
    make_shards(tmp_path, (4, 3, 2))
    whole = {path: path.read_bytes() for path in tmp_path.glob("*.idx")}
    (tmp_path / "train-000000.idx").unlink()
    (tmp_path / "train-000002.idx").write_bytes(b"nonsense")
    assert main([str(tmp_path)]) == 0
    assert "made again: train-000000.idx, train-000002.idx" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in whole} == whole
    assert restore_indexes(tmp_path) == []


def test_no_index_is_made_for_a_shard_that_changed(make_shards, tmp_path):
    make_shards(tmp_path, (4,))
    make_shards(tmp_path / "other", (4,), seed=1)
    (tmp_path / "other" / "train-000000.tar").replace(tmp_path / "train-000000.tar")
    (tmp_path / "train-000000.idx").unlink()
    with pytest.raises(DataError, match="the tar is not the one that manifest.json knows"):
        restore_indexes(tmp_path)


def test_many_tars_many_splits_and_many_processes(tmp_path, capsys):
    for name in ("train-000.tar", "train-001.tar", "valid_00.tar", "9.tar"):
        write(tmp_path / name, {f"{name[:-4]}x{i}.a.npy": npy(np.full(2, i)) for i in range(3)})
    assert main([str(tmp_path), "--processes", "2", "--task", "arrays"]) == 0
    manifest = read_manifest(tmp_path)
    assert {split: len(shards) for split, shards in manifest.splits.items()} == {
        "train": 3,
        "valid": 1,
    }
    assert "9 train, 3 valid samples" in capsys.readouterr().out


def test_members_that_belong_to_no_sample_are_counted(tmp_path):
    files = {"README": b"x", "a.x.npy": npy(np.zeros(2)), "folder/.hidden": b"x"}
    write(tmp_path / "t.tar", files)
    manifest = index_folder(tmp_path, ARRAYS)
    assert manifest.source["members without suffix"] == 2


def test_a_field_can_be_left_out(tmp_path):
    write(
        tmp_path / "t.tar",
        {"a.x.npy": npy(np.zeros(2)), "a.bad.npy": npy(np.array([{}]), allow_pickle=True)},
    )
    with pytest.raises(DataError, match="never objects"):
        index_folder(tmp_path, ARRAYS)
    assert list(index_folder(tmp_path, Stated("arrays", leave_out=["bad"])).fields) == ["x"]


def test_fields_of_two_varying_axes_are_refused(tmp_path):
    write(tmp_path / "t.tar", {"a.x.npy": npy(np.zeros((2, 3))), "b.x.npy": npy(np.zeros((4, 5)))})
    with pytest.raises(DataError, match=r"'x' varies along more than one axis .*--leave-out x"):
        index_folder(tmp_path, ARRAYS)


def test_the_same_field_must_be_of_one_kind_in_all_tars(tmp_path):
    write(tmp_path / "t-0.tar", {"a.x.npy": npy(np.zeros(2, np.float32))})
    write(tmp_path / "t-1.tar", {"b.x.npy": npy(np.zeros(2, np.int32))})
    with pytest.raises(DataError, match=r"t-1\.tar.*'x' is int32.*but float32"):
        index_folder(tmp_path, ARRAYS)


class Touch:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_nothing_in_a_tar_is_ever_executed(tmp_path):
    mark = tmp_path / "executed"
    folder = tmp_path / "data"
    folder.mkdir()
    body = pickle.dumps(Touch(mark))
    write(
        folder / "t.tar", {"a.pyd": body, "a.pkl": body, "a.pth": body, "a.x.npy": npy(np.zeros(2))}
    )
    index_folder(folder, ARRAYS)
    (part,) = next(Stream(folder, "t", global_batch=1).epoch(0))
    assert bytes(part.arrays["pyd"][0].tolist()) == body
    hidden = npy(np.array([Touch(mark)], object), allow_pickle=True)
    write(folder / "t.tar", {"a.x.npy": hidden})
    with pytest.raises(DataError, match="never objects"):
        index_folder(folder, ARRAYS)
    assert not mark.exists()


def header(name: str = "a.x", size: bytes = b"00000000000\0", kind: bytes = b"0") -> bytes:
    """A header with a right checksum, whatever it says."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157], block[148:156] = size, kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


END = bytes(1024)
GNU_HUGE = b"\x80" + (2**70).to_bytes(11, "big")
GNU_NEGATIVE = b"\xff" * 12


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (header(kind=b"1") + END, "no plain file"),
        (header(kind=b"2") + END, "no plain file"),
        (header(kind=b"3") + END, "no plain file"),
        (header(kind=b"6") + END, "no plain file"),
        (header(kind=b"S") + END, "no plain file"),
        (header("/etc/a.x") + END, "leaves the archive"),
        (header("../a.x") + END, "leaves the archive"),
        (header("b/../../a.x") + END, "leaves the archive"),
        (header(size=b"77777777777\0") + END, "past the end"),
        (header(size=GNU_HUGE) + END, "past the end"),
        (header(size=GNU_NEGATIVE) + END, "no octal number"),
        (header(size=b"-0000000001\0") + END, "no octal number"),
        (header(size=b"00000000009\0") + END, "no octal number"),
        (header()[:-1] + b"x" + END, "checksum"),
        (header(), "cut off"),
        (header() + bytes(512), "end mark is not whole"),
        (header()[:300], "cut off"),
        (END + header() + END, "a hole"),
        (header(size=b"00010000001\0", kind=b"L") + bytes(3 << 20), "a header of 2097153 bytes"),
        (
            header(size=b"00000000020\0", kind=b"x")
            + b"99 path=a".ljust(512, b"\0")
            + header()
            + END,
            "PAX",
        ),
        (
            header(size=b"00000000011\0", kind=b"x") + b"9 path=a\n".ljust(512, b"\0") + END,
            "end mark is not whole",
        ),
        (
            header(size=b"00000000014\0", kind=b"x")
            + b"12 size=-99\n".ljust(512, b"\0")
            + header()
            + END,
            "size",
        ),
        (
            header(size=b"00000000017\0", kind=b"x")
            + b"15 size=999999\n".ljust(512, b"\0")
            + header()
            + END,
            "past",
        ),
        (
            header(size=b"00000000014\0", kind=b"x")
            + b"12 path=/a.x".ljust(512, b"\0")
            + header()
            + END,
            "leaves",
        ),
        (
            header(size=b"00000000013\0", kind=b"g")
            + b"11 path=a.x".ljust(512, b"\0")
            + header()
            + END,
            "global header",
        ),
        (END, "no samples"),
        (b"", "empty"),
        (b"nonsense" * 200, "octal|checksum"),
    ],
)
def test_a_hostile_or_broken_tar_is_refused_by_name(tmp_path, body, message):
    path = tmp_path / "evil.tar"
    path.write_bytes(body)
    with pytest.raises(DataError, match=message) as refused:
        index_tar(path)
    assert "evil.tar" in str(refused.value)


def changed_npy(change: Callable[[bytes], bytes]) -> dict[str, bytes]:
    return {"a.x.npy": change(npy(np.arange(6, dtype=np.float32).reshape(2, 3)))}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.x.npy": npy(np.asfortranarray(np.ones((2, 3))))}, "Fortran"),
        ({"a.x.npy": npy(np.ones(3, ">f4"))}, "little-endian"),
        ({"a.x.npy": npy(np.zeros(2, "f4,i4"))}, "dtype"),
        ({"a.x.npy": b"\x93NUMPY"}, "not a readable .npy"),
        ({"a.x.npy": b""}, "not a readable .npy"),
        (changed_npy(lambda body: body[:-1]), "does not fit"),
        (changed_npy(lambda body: body + b"x"), "does not fit"),
        (changed_npy(lambda body: body.replace(b"(2, 3)", b"(2, 4)")), "does not fit"),
        (
            changed_npy(lambda body: body.replace(b"(2, 3)", b"(-2,3)")),
            "does not fit|not a readable",
        ),
        (changed_npy(lambda body: body.replace(b"(2, 3)", b"(9**9)")), "not a readable"),
        (
            changed_npy(lambda body: body[:8] + struct.pack("<H", 65535) + body[10:]),
            "not a readable",
        ),
        (changed_npy(lambda body: body[:6] + b"\x09" + body[7:]), "not a readable"),
        (
            {"a.x.npy": npy(np.zeros(2)), "b.x.npy": npy(np.zeros(2)), "a.y.npy": npy(np.zeros(2))},
            "appeared before",
        ),
        ({"a.x.npy": npy(np.zeros(2)), "a.X.npy": npy(np.zeros(2))}, "already"),
        ({"a.json": b"{}", "a.JSON": b"{}"}, "already"),
        ({"a.x.npy": npy(np.zeros(2)), "b.x.npy": npy(np.zeros(2, np.int8))}, "before"),
        ({"README": b""}, "no samples"),
    ],
)
def test_members_that_would_be_read_wrong_are_refused_by_name(tmp_path, files, message):
    with pytest.raises(DataError, match=message) as refused:
        index_tar(write(tmp_path / "evil.tar", files))
    assert "evil.tar" in str(refused.value)


def test_the_walk_agrees_with_pythons_on_a_good_tar(tmp_path):
    files = {f"d{i}/" + "n" * i + ".bin": bytes(i * 37 % 1500) for i in range(1, 140, 7)}
    for form in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        usable = {
            name: body
            for name, body in files.items()
            if form != tarfile.USTAR_FORMAT or len(name) < 100
        }
        path = write(tmp_path / "t.tar", usable, form)
        body = path.read_bytes()
        with tarfile.open(path) as tar:
            expected = [(info.name, info.offset, info.offset_data, info.size) for info in tar]
        found = [(m.name, m.start, m.offset, m.size) for m in members(body, "t")]
        assert found == expected


def test_a_folder_without_tars_is_told_apart(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "holds no .tar files" in capsys.readouterr().err


def test_folders_and_directories_inside_a_tar_do_not_matter(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        directory = tarfile.TarInfo("./images")
        directory.type = tarfile.DIRTYPE
        tar.addfile(directory)
        info = tarfile.TarInfo("./images/a.x.npy")
        body = npy(np.ones(2))
        info.size = len(body)
        tar.addfile(info, io.BytesIO(body))
    index = index_tar(tmp_path / "t.tar").index
    assert index.keys() == ["images/a"]
    assert Index.from_bytes(index.to_bytes(), "t").keys() == ["images/a"]
