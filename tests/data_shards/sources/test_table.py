"""The table layout, and the two public data sets that the examples bring into it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from paths import ROOT, SHARED_DATA

from data_shards.convert import convert
from data_shards.reading.contents import examine
from data_shards.reading.reader import Reader
from data_shards.reading.storage import open_store
from data_shards.shards.manifest import DataError, Field, Labels, Manifest
from data_shards.sources.base import KNOWN_LABELS, Options, known_resolution

SCORES = Options(labels=Labels(low=-3, high=3))
RNG = np.random.default_rng(0)
AUDIO = RNG.normal(size=(4, 7, 3)).astype(np.float32)
VISION = RNG.normal(size=(4, 2))

Rows = list[dict[str, Any]]


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """Four rows that point to arrays in every way there is."""
    np.savez(tmp_path / "some.npz", first=AUDIO[0], stack=AUDIO)
    np.save(tmp_path / "vision.npy", VISION)
    (tmp_path / "deep").mkdir()
    np.save(tmp_path / "deep" / "frames.npy", AUDIO.reshape(-1, 3))
    return [
        {
            "id": "a",
            "split": "train",
            "label": 1.5,
            "text": "fine",
            "audio": "some.npz#first",
            "vision": "vision.npy[0]",
        },
        {
            "id": "b",
            "split": "train",
            "label": -3,
            "text": "no",
            "audio": "some.npz#stack[1]",
            "vision": "",
        },
        {
            "id": "7",
            "split": "dev",
            "label": 0,
            "text": "",
            "audio": "deep/frames.npy[15:17]",
            "vision": "vision.npy[2]",
        },
        {
            "id": 'd,\n"é',
            "split": "test",
            "label": 3,
            "text": "x",
            "audio": "",
            "vision": "vision.npy[3]",
        },
    ]


def write_csv(rows: Rows, path: Path) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def write_json(rows: Rows, path: Path) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    return path


def write_parquet(rows: Rows, path: Path) -> Path:
    cleaned = [
        {name: None if value == "" else value for name, value in row.items()} for row in rows
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(cleaned), path)
    return path


def samples(folder: Path, manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Sample id -> its arrays, its split and its record."""
    found: dict[str, dict[str, Any]] = {}
    for split, shards in manifest.splits.items():
        reader = Reader(open_store(folder), shards, manifest.fields, keep=1, threads=0)
        for number, shard in enumerate(shards):
            for row, arrays in enumerate(reader.iter_views(number, range(shard.samples))):
                record = reader.record(number, row)
                found[record["id"]] = {**arrays, "record": record, "split": split}
    return found


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("t.csv", write_csv),
        ("t.jsonl", write_json),
        ("t.ndjson", write_json),
        ("t.parquet", write_parquet),
    ],
)
def test_every_kind_of_table_and_reference_gives_the_same_samples(
    rows: Rows, tmp_path: Path, name: str, write: Callable[[Rows, Path], Path]
) -> None:
    manifest = convert(write(rows, tmp_path / name), tmp_path / "out", SCORES)
    assert manifest.fields == {
        "audio": Field("float32", (None, 3)),
        "vision": Field("float32", (None, 2)),
        "label": Field("float32", ()),
    }
    found = samples(tmp_path / "out", manifest)
    assert list(found) == ["a", "b", "7", 'd,\n"é']
    assert [sample["split"] for sample in found.values()] == ["train", "train", "valid", "test"]
    assert [float(sample["label"]) for sample in found.values()] == [1.5, -3, 0, 3]
    assert [sample["record"].get("text") for sample in found.values()] == ["fine", "no", None, "x"]
    np.testing.assert_array_equal(found["a"]["audio"], AUDIO[0])
    np.testing.assert_array_equal(found["b"]["audio"], AUDIO[1])
    np.testing.assert_array_equal(found["7"]["audio"], AUDIO.reshape(-1, 3)[15:17])
    np.testing.assert_array_equal(found["a"]["vision"], VISION[:1].astype(np.float32))
    assert "vision" not in found["b"]
    assert "audio" not in found['d,\n"é']


def test_other_modalities_labels_per_modality_and_notes_are_kept(
    rows: Rows, tmp_path: Path
) -> None:
    for row in rows:
        row.update(
            gaze=row.pop("vision"),
            label_audio="" if row["id"] == "a" else "0.5",
            speaker="S1",
            video="v",
        )
    manifest = convert(write_csv(rows, tmp_path / "t.csv"), tmp_path / "out", SCORES)
    assert list(manifest.fields) == ["audio", "gaze", "label", "label_audio"]
    found = samples(tmp_path / "out", manifest)
    assert "label_audio" not in found["a"]
    assert found["b"]["label_audio"] == 0.5
    assert found["a"]["record"] == {"id": "a", "text": "fine", "speaker": "S1", "video": "v"}


@pytest.mark.parametrize(("names", "expected"), [("no yes", ("no", "yes")), ("10 9", ("9", "10"))])
def test_classes_are_numbered_in_order(
    rows: Rows, tmp_path: Path, names: str, expected: tuple[str, ...]
) -> None:
    for row, name in zip(rows, [*names.split(), *names.split()], strict=True):
        del row["label"]
        row["class"] = name
    manifest = convert(write_json(rows, tmp_path / "t.jsonl"), tmp_path / "out")
    assert manifest.labels == Labels(kind="classes", low=0, high=1, names=expected)
    assert manifest.fields["class"] == Field("int64", ())
    assert [
        expected[sample["class"]] for sample in samples(tmp_path / "out", manifest).values()
    ] == names.split() * 2


def test_token_ids_are_taken_as_given(rows: Rows, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array([5, 6], np.int64))
    for row, tokens in zip(rows, ["[1, 2, 3]", "ids.npy", "", "[99]"], strict=True):
        row["tokens"] = tokens
    manifest = convert(write_csv(rows, tmp_path / "t.csv"), tmp_path / "out", SCORES)
    assert manifest.fields["text"] == Field("int32", (None,))
    assert manifest.tokenizer == {"name": "unknown", "vocab_size": 100}
    found = samples(tmp_path / "out", manifest)
    assert [sample["text"].tolist() for sample in found.values() if "text" in sample] == [
        [1, 2, 3],
        [5, 6],
        [99],
    ]


def test_values_that_are_not_finite_are_counted(rows: Rows, tmp_path: Path) -> None:
    np.save(tmp_path / "vision.npy", np.array([[np.nan, 1], [0, 0], [0, np.inf], [2, 3]]))
    manifest = convert(write_csv(rows, tmp_path / "t.csv"), tmp_path / "out", SCORES)
    assert manifest.repairs == {"vision values not finite, set to 0": 2}


def _cell(i: int, column: str, value: Any) -> Callable[[Rows], None]:
    return lambda rows: rows[i].update({column: value})


def _drop(column: str) -> Callable[[Rows], None]:
    return lambda rows: [row.pop(column) for row in rows] and None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_cell(1, "id", "a"), r"t\.csv, line 3 \('a'\): this id is already in the table"),
        (_cell(1, "id", ""), r"t\.csv, line 3: no 'id'"),
        (_drop("split"), "line 2: no 'split'"),
        (_drop("label"), r"\('a'\): needs either a label or a class"),
        (_cell(0, "split", "holdout"), r"\('a'\): split 'holdout' is none of train"),
        (_cell(0, "label", "good"), r"\('a'\): label: 'good' is no number"),
        (_cell(0, "label", "3.5"), r"\('a'\): label: 3.5 is outside the label range -3 to 3"),
        (_cell(0, "label", "nan"), r"\('a'\): label: nan is outside"),
        (_cell(1, "audio", "../secret.npy"), "'../secret.npy' lies outside the table's folder"),
        (_cell(1, "audio", "link.npy"), "'link.npy' lies outside the table's folder"),
        (_cell(1, "audio", "/etc/secret.npy"), "lies outside the table's folder"),
        (_cell(1, "audio", "gone.npy"), "there is no file 'gone.npy'"),
        (_cell(1, "audio", "some.npz"), "an .npz needs a #KEY"),
        (_cell(1, "audio", "vision.npy#x"), "an .npy has no keys"),
        (_cell(1, "audio", "some.npz#other"), "some.npz has no key 'other'"),
        (_cell(1, "audio", "some.npz#stack[4]"), "points past the end of an array of shape"),
        (_cell(1, "audio", "deep/frames.npy[20:30]"), "points past the end"),
        (_cell(1, "audio", "frames"), "neither FILE.npy nor FILE.npz#KEY"),
        (
            _cell(1, "audio", "vision.npy"),
            r"\('b'\): audio: has 2 features, and samples before it have 3",
        ),
        (_cell(1, "audio", "some.npz#stack"), "frames are"),
        (
            _cell(0, "audio", "objects.npy"),
            r"\('a'\): audio: cannot read objects.npy: .*Python objects",
        ),
        (_cell(0, "audio", "cut.npy"), "cannot read cut.npy"),
        (_cell(0, "audio", "cut.npz#first"), "cannot read cut.npz"),
        (_cell(0, "audio", "words.npy"), "no array of numbers"),
        (_cell(0, "audio", "zip.npy"), "cannot read zip.npy"),
        (_cell(0, "audio", "array.npz#first"), "cannot read array.npz"),
        (
            _cell(0, "audio", "objects.npz#first"),
            "cannot read objects.npz: Object arrays cannot be loaded",
        ),
        (
            lambda rows: [row.update({"bad name": row.pop("audio")}) for row in rows] and None,
            "cannot be the name",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_by_row(
    rows: Rows, tmp_path: Path, change: Callable[[Rows], None], message: str
) -> None:
    np.save(tmp_path.parent / "secret.npy", AUDIO[0])
    (tmp_path / "link.npy").symlink_to(tmp_path.parent / "secret.npy")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "vision.npy").read_bytes()[:100])
    (tmp_path / "cut.npz").write_bytes((tmp_path / "some.npz").read_bytes()[:-30])
    (tmp_path / "zip.npy").write_bytes((tmp_path / "some.npz").read_bytes())
    (tmp_path / "array.npz").write_bytes((tmp_path / "vision.npy").read_bytes())
    np.savez(tmp_path / "objects.npz", first=np.array([{}], dtype=object))
    change(rows)
    with pytest.raises(DataError, match=message):
        convert(write_csv(rows, tmp_path / "t.csv"), tmp_path / "out", SCORES)


@pytest.mark.parametrize("tokens", ["[1.5]", "[-1]", "1 2", "[[1]]", '["a"]', "[4294967296]"])
def test_impossible_token_ids_are_refused(rows: Rows, tmp_path: Path, tokens: str) -> None:
    for row in rows:
        row["tokens"] = tokens
    with pytest.raises(DataError, match="token ids"):
        convert(write_csv(rows, tmp_path / "t.csv"), tmp_path / "out", SCORES)


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("t.csv", b"id,split,label\na,train\n", "not as many cells"),
        ("t.csv", b"id,split,label\n\xff,train,1\n", "no CSV in UTF-8"),
        ("t.csv", b"", "holds no rows"),
        ("t.csv", b'id,split,label\n"a,train,1\n', "no CSV"),
        ("t.jsonl", b'{"id": 1}\n{"id"\n', "line 1"),
        ("t.jsonl", b"[1]\n", "a list, not an object"),
        ("t.jsonl", b"{\n", "line 1: not JSON"),
        ("t.parquet", b"PAR1", "damaged or no Parquet"),
    ],
)
def test_damaged_tables_are_refused_by_name(
    tmp_path: Path, name: str, body: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(body)
    with pytest.raises(DataError, match=message) as caught:
        convert(tmp_path / name, tmp_path / "out", SCORES)
    assert name in str(caught.value)


def test_the_label_range_must_be_stated(rows: Rows, tmp_path: Path) -> None:
    table = write_csv(rows, tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"labels are from -3 to 3\); add --labels"):
        convert(table, tmp_path / "out")
    assert convert(table, tmp_path / "out", Options(dataset="mosi")).labels.low == -3


def test_memory_does_not_grow_with_the_source(tmp_path: Path) -> None:
    """40 arrays of 2 MB take no more than 10 of them."""
    lines = ["id,split,label,audio"]
    for number in range(40):
        np.save(tmp_path / f"{number}.npy", np.full((25_000, 20), number, np.float32))
        lines.append(f"{number},train,0,{number}.npy")
    code = (
        "import resource, sys; from data_shards.convert import main; code = main(sys.argv[1:]);"
        " print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
    )
    most = []
    for count in (10, 40):
        table = tmp_path / f"{count}.csv"
        table.write_text("\n".join(lines[: count + 1]) + "\n")
        arguments = [
            str(table),
            "--out",
            str(tmp_path / f"out-{count}"),
            "--labels=-3:3",
            "--shard-size",
            "4",
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        said = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert said.returncode == 0, said.stderr
        most.append(int(said.stdout.split()[-1]) / 1e3)  # MB
    assert most[1] - most[0] < 20, most


def test_more_rows_than_a_shard_interleaved_and_in_many_processes(tmp_path: Path) -> None:
    np.save(tmp_path / "audio.npy", RNG.normal(size=(90, 4, 3)))
    rows = [
        {
            "id": i,
            "split": ("train", "test", "valid")[i * i % 3],
            "label": i % 5 - 2,
            "audio": f"audio.npy[{i}]",
        }
        for i in range(90)
    ]
    table = write_json(rows, tmp_path / "t.jsonl")
    one = convert(table, tmp_path / "one", SCORES, shard_size=8)
    many = convert(table, tmp_path / "many", SCORES, shard_size=8, processes=3)
    assert one == many
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "many" / path.name).read_bytes()
    found = samples(tmp_path / "one", one)
    for split in ("train", "test"):
        assert [name for name in found if found[name]["split"] == split] == [
            str(row["id"]) for row in rows if row["split"] == split
        ]


def test_changed_arrays_are_not_taken_for_those_of_an_interrupted_conversion(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is the same, so only size and time of the files that it points to tell."""
    table = write_csv(rows, tmp_path / "t.csv")
    with monkeypatch.context() as patch:
        patch.setattr("data_shards.convert._sweep", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(table, tmp_path / "out", SCORES)
    np.save(tmp_path / "vision.npy", VISION + 1)
    manifest = convert(table, tmp_path / "out", SCORES)
    found = samples(tmp_path / "out", manifest)
    np.testing.assert_array_equal(found["a"]["vision"], (VISION[:1] + 1).astype(np.float32))


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _example(name: str, *arguments: Any) -> None:
    command = [sys.executable, ROOT / "examples" / name, *arguments]
    subprocess.run([*map(str, command)], check=True, capture_output=True, timeout=120)


@pytest.mark.skipif(
    not SHARED_DATA.exists(), reason="the public data sets are not beside the repository"
)
def test_mosi_at_utterance_level_comes_in_through_a_table(tmp_path: Path) -> None:
    source = SHARED_DATA / "mosi_utterance" / "mosi_utterance.npz"
    _example("mosi_utterance.py", source, tmp_path, "--split", "bclstm")
    manifest = convert(tmp_path / "mosi.csv", tmp_path / "out", Options(dataset="mosi"))
    report = examine(tmp_path / "out")
    assert report.shared_videos() == report.like_ids() == report.corrupt == []
    assert manifest.samples("test") == 752
    assert manifest.samples("train") + manifest.samples("valid") == 1447
    means = {split: np.mean(found.labels) for split, found in report.splits.items()}
    assert means["valid"] == pytest.approx(means["train"], abs=0.1)
    found = samples(tmp_path / "out", manifest)
    with np.load(source) as npz:
        for i in (0, 1000, 2198):
            sample = found[str(npz["utt_id"][i])]
            np.testing.assert_array_equal(sample["audio"], npz["audio"][i : i + 1])
            np.testing.assert_array_equal(sample["vision"], npz["video"][i : i + 1])
            assert sample["record"]["text"] == npz["transcript"][i]
            assert sample["label"] == npz["label"][i]


@pytest.mark.skipif(
    not SHARED_DATA.exists(), reason="the public data sets are not beside the repository"
)
def test_mmmo_comes_in_through_a_table_with_its_missing_text(tmp_path: Path) -> None:
    source = SHARED_DATA / "mfn_sequences" / "mmmo.npz"
    _example("mmmo.py", source, tmp_path)
    options = Options(labels=Labels(low=1, high=5, resolution=0.5), text="features")
    manifest = convert(tmp_path / "mmmo.csv", tmp_path / "out", options)
    assert manifest.fields["text"] == Field("float32", (None, 300))
    found = samples(tmp_path / "out", manifest)
    assert sum("text" in sample for sample in found.values()) == 120
    assert "text" not in found["train_0"]
    with np.load(source) as npz:
        for name, sample in found.items():
            split, _, number = name.partition("_")
            whole = npz[f"video_{split}"][int(number)]
            kept = whole[whole.any(axis=1)]
            if len(kept):
                assert sample["vision"][[0, -1]].any(axis=1).all()
                np.testing.assert_array_equal(sample["vision"][sample["vision"].any(axis=1)], kept)
            else:
                assert "vision" not in sample


@pytest.mark.parametrize(
    ("labels", "step"),
    [
        ([0.2, -1.4, 3], 0.2),
        ([0.2, 0.25], 0.05),
        ([0.2, 1 / 3, 0.25], 1 / 60),
        ([0.2, 0.123], None),
    ],
)
def test_the_step_of_a_known_data_set_becomes_one_that_all_labels_fit(
    labels: list[float], step: float | None
):
    found = known_resolution(KNOWN_LABELS["mosi"], np.array(labels)).resolution
    assert found == (None if step is None else pytest.approx(step))
