"""What a shard folder holds, and what is wrong with it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from data_shards.convert import convert
from data_shards.inspect import main, render
from data_shards.inspecting.contents import examine, simplify
from data_shards.shards.manifest import Labels, Manifest
from data_shards.sources.raw_dataset import Options
from data_shards.synthetic import make, write


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Manifest]:
    write(tmp_path / "made.pkl", 60)
    return tmp_path / "out", convert(tmp_path / "made.pkl", tmp_path / "out", shard_size=10)


def table(
    folder: Path,
    rows: list[tuple[str, str, float, str]],
    labels: str = "label",
    options: Options | None = None,
) -> Path:
    """A converted table of (id, split, label, video) with a one-number modality; empty videos are
    left out."""
    np.save(folder / "audio.npy", np.ones((len(rows), 1)))
    with (folder / "t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "split", labels, "video", "audio"])
        writer.writerows([*row, f"audio.npy[{i}]" if i else ""] for i, row in enumerate(rows))
    convert(folder / "t.csv", folder / "out", options or Options(labels=Labels(low=-3, high=3)))
    return folder / "out"


def test_counts_lengths_and_labels_are_those_of_the_data(made: tuple[Path, Manifest]) -> None:
    content = make(60)
    report = examine(made[0])
    for split, found in report.splits.items():
        part = content[split]
        assert found.samples == found.texts == len(part["id"])
        for modality in ("audio", "vision"):
            assert found.lengths[modality] == part[f"{modality}_lengths"]
        np.testing.assert_array_equal(found.labels, part["regression_labels"])
    assert report.corrupt == report.shared_videos() == report.like_ids() == []


def test_the_report_names_everything(
    made: tuple[Path, Manifest], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(made[0])]) == 0
    text = capsys.readouterr().out
    lengths = make(60)["train"]["vision_lengths"]
    row = f"36 0 {np.median(lengths):g}"
    assert "SYNTHETIC" in text
    assert "train  4       36" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]  # columns are as wide as needed
    assert any(line.startswith("vision float32 Tx20 train") and row in line for line in lines)
    assert f"{np.percentile(lengths, 95):g}" in text
    assert "repaired: 3 audio values not finite, set to 0" in text
    assert "leakage: none" in text
    assert "checksums: 7 of 7 shards are as the manifest says" in text
    zeros = int((make(60)["train"]["regression_labels"] == 0).sum())
    assert any(
        line.startswith("+0.00") and line.split()[2] == str(zeros) for line in text.splitlines()
    )


def test_damaged_shards_are_named_and_the_rest_is_read(
    made: tuple[Path, Manifest], capsys: pytest.CaptureFixture[str]
) -> None:
    path = made[0] / "train-000001.tar"
    body = bytearray(path.read_bytes())
    body[5000] ^= 1
    path.write_bytes(body)
    assert main([str(made[0])]) == 2
    captured = capsys.readouterr()
    assert "checksums: 6 of 7" in captured.out
    assert "train-000001.tar" in captured.out
    assert "has damaged shards" in captured.err.splitlines()[-1]
    report = examine(made[0])
    assert report.splits["train"].samples == 26


def test_a_folder_without_a_manifest_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert "has no manifest.json" in capsys.readouterr().err


def test_a_video_in_two_splits_is_leakage(tmp_path: Path) -> None:
    folder = table(
        tmp_path,
        [
            ("a", "train", 0, "v1"),
            ("b", "train", 1, "v2"),
            ("c", "valid", 1, "v3"),
            ("d", "test", 1, "v2"),
        ],
    )
    report = examine(folder)
    assert report.shared_videos() == ["v2"]
    assert "LEAKAGE: 1 videos are in more than one split: v2 in test and train" in render(report)


@pytest.mark.parametrize(
    ("left", "right"), [("v_1", "v-01"), ("Abc$_$3", "abc_3"), ("é 1", "e\u0301_1")]
)
def test_ids_that_differ_only_in_spelling_are_found(tmp_path: Path, left: str, right: str) -> None:
    report = examine(
        table(tmp_path, [(left, "train", 0, ""), (right, "test", 1, ""), ("other", "test", 1, "")])
    )
    assert report.like_ids() == [[("train", left), ("test", right)]]
    assert "LEAKAGE: 1 ids occur more than once" in render(report)


@pytest.mark.parametrize(
    ("left", "right"), [("v_11", "v1_1"), ("v_10", "v_1"), ("a", "b"), ("v_0", "v_")]
)
def test_ids_that_differ_in_more_are_not(left: str, right: str) -> None:
    assert simplify(left) != simplify(right)


def test_missing_modalities_and_videos_are_told(tmp_path: Path) -> None:
    text = render(
        examine(
            table(tmp_path, [("a", "train", 0, ""), ("b", "train", 1, ""), ("c", "test", 1, "")])
        )
    )
    assert any(
        line.split()[:5] == ["audio", "float32", "Tx1", "train", "1"] for line in text.splitlines()
    )
    assert "the samples name no videos" in text


def test_classes_have_a_line_each(tmp_path: Path) -> None:
    rows = [("a", "train", 0.0, "x"), ("b", "train", 1.0, "x"), ("c", "test", 1.0, "y")]
    text = render(examine(table(tmp_path, rows, "class", Options())))
    assert "labels: classes 0.0, 1.0" in text
    assert any(line.split() == ["1.0", "#" * 20, "1", "#" * 20, "1"] for line in text.splitlines())


def test_the_published_split_is_recognised_by_its_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        ("a", "train", 1.0, "x"),
        ("b", "valid", -1.0, "y"),
        ("c", "test", 0.0, "z"),
        ("d", "test", 2.0, "z"),
    ]
    folder = table(tmp_path, rows, options=Options(dataset="mosi"))
    text = render(examine(folder))
    assert (
        "WARNING: not the published split of mosi: sizes (1, 1, 2), published are (1284, 229, 686)"
        in text
    )
    assert "(0, 1, 1) negative, zero, positive test labels" in text
    monkeypatch.setitem(__import__("data_shards.inspect").inspect.KNOWN_SIZES, "mosi", (1, 1, 2))
    monkeypatch.setitem(__import__("data_shards.inspect").inspect.KNOWN_SIGNS, "mosi", (0, 1, 1))
    assert "split: the published one of mosi" in render(examine(folder))
