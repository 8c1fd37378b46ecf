"""``concord predict``: the scores of evaluation again, from shards, tables and sentences."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import ROOT
from ranks import run_ranks
from trained_models import untrained_bundle
from training_runs import environment

from data_shards.reading.reader import Arrays
from data_shards.shards.manifest import MANIFEST, read_manifest
from data_shards.stream import Stream
from data_shards.synthetic import write_tokenizer
from launch.export import main as export
from launch.predict import main as predict
from launch.predicting import rows_file
from launch.predicting.scorer import NOTHING_SEEN, Scorer

Rows = list[dict[str, str]]


def rows_of(path: Path) -> Rows:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def json_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words") / "tokenizer"
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def bundle(finished: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run whose shards cannot be found any more."""
    folder = tmp_path_factory.mktemp("bundles")
    moved = folder / "run"
    shutil.copytree(finished / "one", moved)
    config = json.loads((moved / "config.json").read_text())
    config["run"]["data"] = str(folder / "gone")
    (moved / "config.json").write_text(json.dumps(config))
    words = [str(moved), "--out", str(folder / "bundle"), "--tokenizer", str(tokenizer)]
    assert export(words) == 0
    return folder / "bundle"


def stored_samples(shards: Path, split: str) -> Iterator[tuple[str, dict[str, np.ndarray], str]]:
    """Id, arrays and transcript of each sample."""
    stream = Stream(shards, split, global_batch=1, shuffle=False)
    for (part,) in stream.epoch(0):
        assert isinstance(part, Arrays)
        (record,) = stream.records(part.index.tolist())
        arrays = {}
        for name, length in part.lengths.items():
            array = part.arrays[name][0].numpy()
            kept = array[0] if array.ndim == 2 and name == "text" else array
            arrays[name] = kept[: int(length)]
        yield str(record["id"]), arrays, str(record.get("text", ""))
    stream.close()


@pytest.fixture(scope="module")
def table(small_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test split as a table without labels, its text as token ids."""
    folder = tmp_path_factory.mktemp("table")
    with (folder / "new.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "tokens", "audio", "vision"])
        for number, (name, arrays, _) in enumerate(stored_samples(small_shards, "test")):
            cells = [name, json.dumps(arrays["text"].tolist())]
            for modality in ("audio", "vision"):
                np.save(folder / f"{modality}{number}.npy", arrays[modality])
                cells.append(f"{modality}{number}.npy" if len(arrays[modality]) else "")
            writer.writerow(cells)
    return folder / "new.csv"


def test_the_scores_are_those_of_the_evaluation(
    finished: Path, bundle: Path, small_shards: Path, table: Path, tmp_path: Path
):
    evaluated = rows_of(finished / "one" / "predictions.csv")
    sources = {
        "run": [str(finished / "one"), str(small_shards), "--split", "test"],
        "bundle": [str(bundle), str(small_shards), "--split", "test"],
        "table": [str(bundle), str(table), "--batch-size", "7"],
    }
    for name, words in sources.items():
        out = tmp_path / f"{name}.csv"
        assert predict([*words, "--out", str(out)]) == 0
        rows = rows_of(out)
        assert [row["id"] for row in rows] == [row["id"] for row in evaluated]
        found = np.array([float(row["score"]) for row in rows])
        wanted = np.array([float(row["prediction"]) for row in evaluated])
        np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=0)
        assert {row["seen"] for row in rows} == {"text+audio+vision"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{n}.csv" for n in sorted(sources)]


def test_classes_come_with_probabilities(finished: Path, small_shards: Path, tmp_path: Path):
    out = tmp_path / "classes.jsonl"
    words = [str(finished / "signs"), str(small_shards), "--split", "test", "--out", str(out)]
    assert predict(words) == 0
    for row, wanted in zip(
        json_rows(out), rows_of(finished / "signs/predictions.csv"), strict=True
    ):
        assert (row["id"], row["class"]) == (wanted["id"], wanted["prediction"])
        for name in ("negative", "neutral", "positive"):
            assert row[f"p_{name}"] == pytest.approx(float(wanted[f"p_{name}"]), abs=1e-5)


def test_all_splits_one_after_the_other_on_two_ranks(
    finished: Path, small_shards: Path, tmp_path: Path
):
    words = [str(finished / "one"), str(small_shards), "--batch-size", "10", "--out"]
    alone, together = tmp_path / "alone.csv", tmp_path / "together.csv"
    assert predict([*words, str(alone)]) == 0
    assert run_ranks(2, tmp_path / "ranks", predict, [*words, str(together)]) == [0, 0]
    manifest = read_manifest(small_shards)
    assert len(rows_of(alone)) == sum(manifest.samples(split) for split in manifest.splits)
    for one, two in zip(rows_of(alone), rows_of(together), strict=True):
        assert float(one.pop("score")) == pytest.approx(float(two.pop("score")), abs=1e-5)
        assert one == two


def test_sentences_have_the_tokens_of_the_conversion(
    bundle: Path, small_shards: Path, table: Path, tmp_path: Path, capsys: Any
):
    sentences = [text for _, _, text in stored_samples(small_shards, "test")][:5]
    file = tmp_path / "said.txt"
    file.write_text("\n".join(sentences) + "\n")
    assert predict([str(bundle), str(file), "--out", str(tmp_path / "said.jsonl")]) == 0
    without = tmp_path / "text.csv"
    lines = [",".join(["id", "tokens"])]
    with table.open(newline="") as rows:
        for row in list(csv.DictReader(rows))[:5]:
            lines.append(f'{row["id"]},"{row["tokens"]}"')
    without.write_text("\n".join(lines) + "\n")
    assert predict([str(bundle), str(without), "--out", str(tmp_path / "tokens.jsonl")]) == 0
    said, tokens = json_rows(tmp_path / "said.jsonl"), json_rows(tmp_path / "tokens.jsonl")
    assert [row["score"] for row in said] == [row["score"] for row in tokens]
    assert all(row["seen"] == ["text"] for row in said)
    capsys.readouterr()
    assert predict([str(bundle), "--text", "zyx qwerty asdf", "--text", sentences[0]]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert "3 of 3 tokens of the text are unknown" in first["warning"]
    assert second["score"] == pytest.approx(said[0]["score"], abs=1e-5)


def test_what_is_far_or_missing_is_said(bundle: Path, tmp_path: Path):
    np.save(tmp_path / "far.npy", np.full((6, 5), 1000, np.float32))
    (tmp_path / "new.csv").write_text(
        "id,text,audio\nfar,the film was great,far.npy\nnothing,,\nempty,the film was bad,[]\n"
    )
    assert (
        predict([str(bundle), str(tmp_path / "new.csv"), "--out", str(tmp_path / "o.jsonl")]) == 0
    )
    far, nothing, empty = json_rows(tmp_path / "o.jsonl")
    assert far["warning"].startswith("audio lies far from the training data (distance ")
    assert far["seen"] == ["text", "audio"]
    assert (nothing["score"], nothing["seen"], nothing["warning"]) == (None, [], NOTHING_SEEN)
    assert (empty["seen"], empty["warning"]) == (["text"], None)
    assert isinstance(empty["score"], float)


def test_heads_of_single_modalities_have_a_score(tmp_path: Path):
    folder = untrained_bundle(tmp_path / "bundle", "self_mm")
    np.save(tmp_path / "a.npy", np.zeros((4, 5), np.float32))
    (tmp_path / "new.csv").write_text("id,text,audio\na,the film was great,a.npy\n")
    assert predict([str(folder), str(tmp_path / "new.csv"), "--out", str(tmp_path / "o.csv")]) == 0
    (row,) = rows_of(tmp_path / "o.csv")
    assert float(row["score_text"])
    assert float(row["score_audio"])
    assert row["score_vision"] == ""


def test_a_stopped_command_goes_on_where_it_was(
    bundle: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, out = tmp_path / "whole.csv", tmp_path / "scores.csv"
    words = [str(bundle), str(table), "--batch-size", "5", "--out"]
    assert predict([*words, str(whole)]) == 0
    scored: list[int] = []
    real = Scorer.__call__

    def some(self: Scorer, batch: Any) -> Any:
        if len(scored) == 3:
            raise KeyboardInterrupt
        scored.append(len(batch))
        return real(self, batch)

    monkeypatch.setattr(Scorer, "__call__", some)
    assert predict([*words, str(out)]) == 130
    assert not out.exists()
    (rows,) = [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    with rows.open("ab") as file:
        file.write(b'{"id": "half of a li')  # as a killed process leaves it
    scored.clear()
    monkeypatch.setattr(Scorer, "__call__", lambda self, b: scored.append(len(b)) or real(self, b))
    assert predict([*words, str(out)]) == 0
    assert sum(scored) == len(rows_of(whole)) - 15
    assert not rows.exists()
    for one, two in zip(rows_of(out), rows_of(whole), strict=True):
        assert float(one.pop("score")) == pytest.approx(float(two.pop("score")), abs=1e-5)
        assert one == two


def test_after_kill_9_the_same_command_goes_on(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    said, out, whole = (tmp_path / name for name in ("said.txt", "scores.csv", "whole.csv"))
    said.write_text("the film was great\nthe film was bad\n" * 2000)
    words = [str(bundle), str(said), "--out"]
    command = [sys.executable, "-m", "launch.predict", *words, str(out), "--batch-size", "1"]
    rows = tmp_path / ".scores.csv.rows"
    with subprocess.Popen(command, cwd=ROOT, env=environment()) as running:
        while not rows.exists() or rows.read_bytes().count(b"\n") < 6:
            assert running.poll() is None
            time.sleep(0.01)
        running.kill()
    assert running.returncode == -signal.SIGKILL
    assert not out.exists()
    kept = rows.read_bytes().count(b"\n") - 1  # the first line says what the rows are of
    scored: list[int] = []
    real = Scorer.__call__
    monkeypatch.setattr(Scorer, "__call__", lambda self, b: scored.append(len(b)) or real(self, b))
    assert predict([*words, str(out)]) == 0
    assert sum(scored) == 4000 - kept
    assert not rows.exists()
    assert predict([*words, str(whole)]) == 0
    for one, two in zip(rows_of(out), rows_of(whole), strict=True):
        assert float(one.pop("score")) == pytest.approx(float(two.pop("score")), abs=1e-5)
        assert one == two


def test_rows_of_another_input_are_not_gone_on_with(
    bundle: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    out = tmp_path / "scores.csv"
    real = rows_file.RowsFile.finish
    monkeypatch.setattr(rows_file.RowsFile, "finish", lambda self: 1 / 0)
    assert predict([str(bundle), str(table), "--out", str(out)]) == 70
    monkeypatch.setattr(rows_file.RowsFile, "finish", real)
    (tmp_path / "one.txt").write_text("the film was great\n")
    assert predict([str(bundle), str(tmp_path / "one.txt"), "--out", str(out)]) == 2
    assert "holds rows of another model, input or option" in capsys.readouterr().err
    assert predict([str(bundle), str(table), "--out", str(out)]) == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('id,tokens\na,"[3,900]"\n', "token id 900, and"),
        ("id,audio\na,wide.npy\n", "audio has shape (4, 7), and"),
        ("id,audio\na,nan.npy\n", "numbers that are not finite"),
        ("id,audio\na,nowhere.npy\n", "there is no file 'nowhere.npy'"),
        ("id,score\na,1\n", "has none of the columns that"),
        ("id,text\na,x\na,y\n", "this id is already in the table"),
        ("id,text\n", "holds no rows"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_by_name(
    bundle: Path, tmp_path: Path, content: str, said: str, capsys: Any
):
    np.save(tmp_path / "wide.npy", np.zeros((4, 7), np.float32))
    np.save(tmp_path / "nan.npy", np.full((4, 5), np.inf, np.float32))
    (tmp_path / "new.csv").write_text(content)
    assert predict([str(bundle), str(tmp_path / "new.csv"), "--out", str(tmp_path / "o.csv")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "new.csv" in error
    assert not (tmp_path / "o.csv").exists()


@pytest.mark.parametrize(
    ("labels", "row"),
    [
        (
            {"low": -1.0, "high": 1.0, "resolution": None},
            "* labels scores from -3 to 3 scores from",
        ),
    ],
)
def test_shards_of_another_kind_are_refused_with_both_sides(
    bundle: Path, small_shards: Path, tmp_path: Path, labels: Any, row: str, capsys: Any
):
    other = tmp_path / "other"
    shutil.copytree(small_shards, other)
    manifest = read_manifest(other)
    tokenizer = {**(manifest.tokenizer or {}), "sha256": "ab" * 32}
    changed = replace(manifest, labels=replace(manifest.labels, **labels), tokenizer=tokenizer)
    (other / MANIFEST).write_text(changed.to_json())
    assert predict([str(bundle), str(other), "--out", str(tmp_path / "o.csv")]) == 2
    line, *shown = capsys.readouterr().err.splitlines()
    assert "(vocabulary, labels differ)" in line
    assert any(" ".join(text.split()).startswith(row) for text in shown)


def test_words_that_cannot_be_used_are_refused(
    finished: Path, bundle: Path, table: Path, tmp_path: Path, capsys: Any
):
    out = ["--out", str(tmp_path / "o.csv")]
    (tmp_path / "a.txt").write_text("good\n")
    (tmp_path / "a.pkl").write_bytes(b"")
    other = tmp_path / "tokenizer"
    other.mkdir()
    (other / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nword\n")
    (other / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    run, new = str(finished / "one"), str(table)
    for words, said in [
        ([run, str(tmp_path / "a.txt"), *out], "holds no tokenizer"),
        ([run, "--text", "good", "--tokenizer", str(other)], "has another vocabulary"),
        ([str(bundle), str(tmp_path / "a.pkl"), *out], "convert the file first"),
        ([str(bundle), str(tmp_path / "nothing.mp4"), *out], "does not exist"),
        ([str(bundle), new], "--out FILE says where"),
        ([str(bundle), new, "--out", str(tmp_path / "o.txt")], "write a name that ends in"),
        ([str(bundle), new, "--windows", "5", *out], "no column 'file' of clips"),
        ([str(bundle), new, "epochs=3", *out], "has no settings"),
        ([str(bundle), new, *out, "--batch-size", "0"], "at least 1"),
        ([str(tmp_path), new, *out], "holds no exported model"),
        (["no/such", new, *out], "no hub answers"),
        ([str(bundle), *out], "name a run or an exported model"),
    ]:
        assert predict(words) == 2, words
        assert said in capsys.readouterr().err, words


def test_another_command_that_writes_the_same_is_refused(tmp_path: Path):
    with rows_file.RowsFile(tmp_path / "o.csv", {"a": 1}) as first:
        first.add([{"id": "a", "score": 1.0, "warning": None}])
        second = rows_file.RowsFile(tmp_path / "o.csv", {"a": 1})
        with pytest.raises(ValueError, match="another command is writing"):
            second.__enter__()
