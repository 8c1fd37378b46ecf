"""Small inputs that claim to be large: each door counts before it allocates, and refuses."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from measured import measured

MB = 1 << 20
MOST = 100  # MB that a refusal may take; what the input itself holds is in it
DTYPE = (
    b"cnumpy\ndtype\n(U\x02%sK\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
)


def _array(shape: bytes, spec: bytes, data: bytes) -> bytes:
    return (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01" + shape + DTYPE % spec + b"\x89" + data + b"tb."
    )


def _repeated(function: bytes, argument: bytes, times: int) -> bytes:
    """A pickle that calls a function again and again on one argument, and keeps all results."""
    call = b"h\x00h\x01\x85R"
    return b"\x80\x02" + function + b"q\x000" + argument + b"q\x010](" + call * times + b"e."


def _text(size: int) -> bytes:
    return b"X" + struct.pack("<I", size) + b"a" * size


NONES = b"](" + b"N" * MB + b"e"  # a list of a million
DEEP_TUPLE = b"N" + b"\x85" * 300_000
SIZE_8 = struct.pack("<Q", 6 * 10**9)
INT_2E9 = b"J" + struct.pack("<i", 2 * 10**9)

PICKLES = {
    "bytearray": b"\x80\x05\x96" + SIZE_8 + b"abc.",
    "bytes": b"\x80\x04\x8e" + SIZE_8 + b"abc.",
    "text": b"\x80\x04\x8d" + SIZE_8 + b"abc.",
    "frame": b"\x80\x04\x95" + SIZE_8 + b"abc.",
    "bytes of 2 GB": b"\x80\x03B\xff\xff\xff\x7fabc.",
    "text of 2 GB": b"\x80\x03X\xff\xff\xff\x7fabc.",
    "long": b"\x80\x02\x8b\xff\xff\xff\x7fabc.",
    "memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "bytearrays": _repeated(b"cbuiltins\nbytearray\n", b"B" + struct.pack("<I", MB) + bytes(MB), 900),
    "lists": _repeated(b"cbuiltins\nlist\n", NONES, 900),
    "tuples": _repeated(b"cbuiltins\ntuple\n", NONES, 900),
    "lists of text": _repeated(b"cbuiltins\nlist\n", _text(MB), 900),
    "sets of text": _repeated(b"cbuiltins\nset\n", _text(MB), 900),
    "encoded": b"\x80\x02c_codecs\nencode\nq\x000" + _text(MB) + b"q\x010X\x06\x00\x00\x00latin1q\x020]("
    + b"h\x00h\x01h\x02\x86R" * 900 + b"e.",
    "S0": _array(INT_2E9 + b"\x85", b"S0", b"U\x00"),
    "U0": _array(INT_2E9 + b"\x85", b"U0", b"U\x00"),
    "long axis": _array(INT_2E9 + b"K\x00\x86", b"f4", b"U\x00"),
    "objects": _array(INT_2E9 + b"K\x00\x86", b"O8", b"]"),
    "key": b"\x80\x02}" + DEEP_TUPLE + b"Ns.",
    "keys": b"\x80\x02}(" + DEEP_TUPLE + b"Nu.",
    "dict": b"\x80\x02(" + DEEP_TUPLE + b"Nd.",
    "set": b"\x80\x04\x8f(" + DEEP_TUPLE + b"\x90.",
    "frozenset": b"\x80\x04(" + DEEP_TUPLE + b"\x91.",
    "set by call": b"\x80\x02cbuiltins\nset\n](" + DEEP_TUPLE + b"e\x85R.",
    "dict by call": b"\x80\x02cbuiltins\ndict\n](" + DEEP_TUPLE + b"N\x86e\x85R.",
}  # fmt: skip


def _nested(levels: int) -> list:
    """Lists that each hold one list ten times: 10^levels numbers in a few hundred bytes."""
    value: list = [1.0]
    for _ in range(levels):
        value = [value] * 10
    return value


def _clips(**columns: object) -> bytes:
    part = {"id": ["a"], "regression_labels": [0.5], "audio": [np.ones((2, 5))], **columns}
    return pickle.dumps({"train": part, "valid": part, "test": part})


CLIPS = {
    "frames": _clips(audio=[_nested(11)]),
    "token ids": _clips(text_bert=[_nested(11)]),
    "a largest token id": _clips(text_bert=[[[2**31 - 1], [1], [0]]]),
    "ids": _clips(id=np.zeros((2**40, 0))),
    "labels": _clips(regression_labels=np.zeros((2**40, 0))),
    "an id of lists": _clips(id=[_nested(11)]),
    "a label of lists": _clips(regression_labels=[_nested(11)]),
}

CONVERT = """
from pathlib import Path
from data_shards.convert import convert
from data_shards.sources.raw_dataset import Options
from data_shards.shards.manifest import Labels
options = Options(labels=Labels(low=-3, high=3))
for path in sorted(Path(sys.argv[1]).iterdir()):
    if path.suffix in (".pkl", ".csv", ".jsonl", ".parquet"):
        measure(path.name, lambda: convert(path, Path(sys.argv[2]) / path.name, options))
"""


def _all_refused(answers: dict, names: set[str]) -> None:
    assert set(answers) == names
    for name, answer in answers.items():
        assert answer["said"].startswith(("DataError: ", "Refused: ")), (name, answer)
        assert name.rpartition("/")[2] in answer["said"], (name, answer)
        assert answer["MB"] < MOST, (name, answer)


@pytest.mark.parametrize("bodies", [PICKLES, CLIPS], ids=["pickles", "clips"])
def test_pickles_that_claim_more_than_they_hold_are_refused(tmp_path: Path, bodies: dict):
    raw = tmp_path / "raw"
    raw.mkdir()
    for name, body in bodies.items():
        (raw / f"{name}.pkl").write_bytes(body)
    answers = measured(CONVERT, raw, tmp_path / "out")
    _all_refused(answers, {f"{name}.pkl" for name in bodies})


def _npy(shape: tuple[int, ...], descr: str = "<f4", body: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + body


def _npz(body: bytes, packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as archive:
        archive.writestr("x.npy", body)
    return buffer.getvalue()


def _lying_npz() -> bytes:
    """An archive whose directory claims 6 GB for a stored member of a hundred bytes."""
    body = bytearray(_npz(_npy((10**9,)), zipfile.ZIP_STORED))
    directory = body.rindex(b"PK\x01\x02")
    body[directory + 20 : directory + 28] = struct.pack("<II", 4 * 10**9, 4 * 10**9)
    return bytes(body)


ARRAYS = {
    "terabytes.npy": _npy((2**40,)),
    "long.npy": _npy((2**62, 0)),
    "axes.npy": _npy((2**20, 2**20, 2**20, 0)),
    "S0.npy": _npy((2 * 10**9,), "|S0"),
    "U0.npy": _npy((2 * 10**9,), "<U0"),
    "U.npy": _npy((1,), "<U500000000"),
    "header.npy": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 5000,
    "deep.npy": b"\x93NUMPY\x01\x00\x10\x27" + b"(" * 10000,
    "zeros.npz": b"",  # written by the test
    "terabytes.npz": _npz(_npy((2**40,))),
    "lying.npz": _lying_npz(),
    "S0.npz": _npz(_npy((2 * 10**9,), "|S0")),
}


def _inflating_npz(path: Path, size: int) -> None:
    """A member of ``size`` zeros, which deflate packs a thousandfold."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("x.npy", "w") as member:
            member.write(_npy((size // 4,)))
            for _ in range(size // MB):
                member.write(bytes(MB))


def test_arrays_that_claim_more_than_they_hold_are_refused(tmp_path: Path):
    raw = tmp_path / "raw"
    raw.mkdir()
    _inflating_npz(raw / "zeros.npz", 256 * MB)
    names = set()
    for name, body in ARRAYS.items():
        if body:
            (raw / name).write_bytes(body)
        cell = f"{name}#x" if name.endswith(".npz") else name
        (raw / f"{name}.csv").write_text(f"id,split,label,audio\na,train,1,{cell}\n")
        names.add(f"{name}.csv")
    answers = measured(CONVERT, raw, tmp_path / "out")
    _all_refused(answers, names)
    assert "save it with np.savez, which does not pack" in answers["zeros.npz.csv"]["said"]


def test_an_honest_packed_array_is_read(tmp_path: Path):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((2000, 100, 5), np.float32))
    (tmp_path / "a.csv").write_text("id,split,label,audio\na,train,1,a.npz#x[7]\n")
    answers = measured(CONVERT, tmp_path, tmp_path / "out")
    assert answers["a.csv"]["said"] == "done"


def test_tables_that_claim_more_than_they_hold_are_refused(tmp_path: Path):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "line.jsonl").write_bytes(b'{"id": "' + b"a" * (20 * MB))
    (raw / "cell.csv").write_bytes(b"id,split,label\n" + b"a" * (20 * MB) + b",train,1\n")
    rows = 10 * MB  # of one value: a few bytes in the file
    column = pyarrow.DictionaryArray.from_arrays(np.zeros(rows, np.int8), ["a" * 10])
    pyarrow.parquet.write_table(
        pyarrow.table({"id": column}), raw / "rows.parquet", row_group_size=rows
    )
    packed = pyarrow.table({"id": ["a" * (80 * MB)], "split": ["train"]})
    pyarrow.parquet.write_table(packed, raw / "text.parquet", compression="zstd")
    answers = measured(CONVERT, raw, tmp_path / "out")
    _all_refused(answers, {"line.jsonl", "cell.csv", "rows.parquet", "text.parquet"})


SHARDS = """
from pathlib import Path
from data_shards.shards.index_table import Index
from data_shards.shards.manifest import read_manifest
from data_shards.indexing.tar_indexer import index_tar
for path in sorted(Path(sys.argv[1]).iterdir()):
    if path.suffix == ".tar":
        measure(path.name, lambda: index_tar(path))
    elif path.suffix == ".idx":
        measure(path.name, lambda: Index.from_bytes(path.read_bytes(), str(path)))
    else:
        measure(f"{path.name}/manifest.json", lambda: read_manifest(path))
"""


def _tar(size: int, kind: bytes = tarfile.REGTYPE, pax: dict | None = None) -> bytes:
    info = tarfile.TarInfo("a.x.npy")
    info.size, info.type = size, kind
    if pax:
        info.pax_headers = pax
        return info.tobuf(tarfile.PAX_FORMAT) + bytes(1024)
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def _index(**changes: object) -> bytes:
    """A safetensors file of one tensor whose header says what ``changes`` say."""
    tensor = {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]} | changes
    header = json.dumps({"table": tensor}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


def _npy_tar(body: bytes) -> bytes:
    return _tar(len(body))[:512] + body + bytes(-len(body) % 512 + 1024)


FILES = {
    "terabyte.tar": _tar(2**40),
    "long name.tar": _tar(2**40, tarfile.GNUTYPE_LONGNAME),
    "pax.tar": _tar(3, pax={"size": str(2**50)}),
    "pax header.tar": _tar(2**40, tarfile.XHDTYPE),
    "npy.tar": _npy_tar(_npy((2**40,))),
    "npy S0.tar": _npy_tar(_npy((2 * 10**9,), "|S0")),
    "header.idx": struct.pack("<Q", 2**40) + b"{}",
    "shape.idx": _index(shape=[2**40]),
    "offsets.idx": _index(data_offsets=[0, 2**40]),
    "empty axis.idx": _index(shape=[2**40, 0], data_offsets=[0, 0]),
}


def test_tars_and_indexes_that_claim_more_than_they_hold_are_refused(tmp_path: Path):
    for name, body in FILES.items():
        (tmp_path / name).write_bytes(body)
    (tmp_path / "folder").mkdir()
    with (tmp_path / "folder" / "manifest.json").open("wb") as file:
        file.truncate(10**10)  # a hole of ten gigabytes
    answers = measured(SHARDS, tmp_path)
    _all_refused(answers, {*FILES, "folder/manifest.json"})
