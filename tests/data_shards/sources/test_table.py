"""The table layout, and the two public data sets that the examples bring into it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import ROOT, SHARED_DATA
from raw_tables import (
    AUDIO,
    SCORES,
    VISION,
    Rows,
    write_arrays,
    write_csv,
    write_json,
    write_parquet,
)

from data_shards.convert import convert
from data_shards.inspecting.contents import examine
from data_shards.inspecting.label_leakage import leakage_lines
from data_shards.reading.reader import Reader
from data_shards.reading.storage import open_store
from data_shards.shards.label_statistics import known_resolution
from data_shards.shards.manifest import Field, Labels, Manifest
from data_shards.sources.raw_dataset import KNOWN_LABELS, Options


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    return write_arrays(tmp_path)


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
    np.save(tmp_path / "audio.npy", np.random.default_rng(1).normal(size=(90, 4, 3)))
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
        patch.setattr("data_shards.convert._remove_leftovers", _interrupt)
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
    _example("mosi_utterance.py", source, tmp_path)
    manifest = convert(tmp_path / "mosi.csv", tmp_path / "out", Options(dataset="mosi"))
    report = examine(tmp_path / "out")
    assert report.shared_videos() == report.like_ids() == report.corrupt == []
    assert manifest.samples("train") == 1447
    assert manifest.samples("test") + manifest.samples("valid") == 752
    validation = [video for video, splits in report.videos.items() if splits == {"valid"}]
    assert len(validation) == 10
    means = {split: np.mean(found.labels) for split, found in report.splits.items()}
    assert means["valid"] == pytest.approx(means["test"], abs=0.1)
    said = leakage_lines(report.mean_frames)
    assert not any(line.startswith("LEAKAGE") for line in said)
    assert any(line.startswith("WARNING: 'vision' finds the labels of held-out") for line in said)
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


@pytest.mark.parametrize(("write", "name"), [(write_csv, "t.csv"), (write_json, "t.jsonl")])
def test_a_byte_order_mark_is_no_part_of_a_table(
    rows: Rows, tmp_path: Path, write: Callable[[Rows, Path], Path], name: str
) -> None:
    table = write(rows, tmp_path / name)
    before = convert(table, tmp_path / "before", SCORES)
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    after = convert(table, tmp_path / "after", SCORES)
    assert (after.splits, after.fields) == (before.splits, before.fields)
