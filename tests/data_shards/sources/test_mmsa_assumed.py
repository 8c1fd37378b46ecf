"""What is taken for granted of an MMSA file is said, can be overruled, and never makes scores of
class numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw_pickles import Content, save

from data_shards import convert as entry
from data_shards.convert import convert
from data_shards.shards.manifest import DataError, Labels, Manifest
from data_shards.sources.raw_dataset import Options

RNG = np.random.default_rng(0)
FRACTIONS = np.array([0.4, -1.2, 2.8, -0.2], np.float32)


def _clips(widths: tuple[int, int], scores: Any, **more: Any) -> Content:
    """Four clips per split, of these widths of sound and vision and with these labels."""
    audio, vision = (RNG.normal(size=(4, 3, width)).astype(np.float32) for width in widths)
    content = {}
    for split in ("train", "valid", "test"):
        ids = [f"{split}{i}$_$1" for i in range(4)]
        part = {"id": ids, "audio": audio, "vision": vision, "regression_labels": scores}
        content[split] = part | more
    return content


def _convert(content: Content, folder: Path, name: str = "x.pkl", **options: Any) -> Manifest:
    return convert(save(content, folder, name), folder / "out", Options(**options))


CLASSES: list[Any] = [
    np.arange(4),
    np.arange(4.0),
    np.array([0, 0, 0, 0]),
    [0, 1, 2, 3],
    ["0", "1", "2", "3"],
    np.array([-1, 0, 1, 1]),
    [np.array([1]), np.array([2]), np.array([0]), np.array([3])],
]


@pytest.mark.parametrize("labels", CLASSES, ids=repr)
@pytest.mark.parametrize(("widths", "name"), [((74, 35), "x.pkl"), ((6, 7), "my_mosei.pkl")])
def test_whole_numbers_are_not_taken_for_scores(
    tmp_path: Path, labels: Any, widths: tuple[int, int], name: str
):
    low, high = (int(f(float(np.squeeze(value)) for value in labels)) for f in (min, max))
    with pytest.raises(
        DataError,
        match=rf"{name}: by .* it seems to be mosei, .* whole numbers from {low} to {high}, as "
        rf".* say so: --dataset mosei, or --labels {low}:{high}:1",
    ):
        _convert(_clips(widths, labels), tmp_path, name)


def test_whoever_says_that_whole_numbers_are_scores_is_believed(tmp_path: Path):
    content = _clips((74, 35), np.arange(4))
    stated = _convert(content, tmp_path / "a", dataset="mosei")
    assert (stated.labels.low, stated.labels.high) == (-3, 3)
    ranged = _convert(content, tmp_path / "b", labels=Labels(low=0, high=3, resolution=1))
    assert (ranged.labels.low, ranged.labels.high) == (0, 3)
    with pytest.raises(DataError, match="outside the label range -1 to 1"):
        _convert(content, tmp_path / "c", dataset="sims")


@pytest.mark.parametrize(
    ("widths", "name", "dataset", "reason"),
    [
        ((74, 35), "x.pkl", "mosei", "by the widths of sound and vision, 74 and 35, this is mosei"),
        ((5, 20), "x.pkl", "mosi", "by the widths of sound and vision, 5 and 20, this is mosi"),
        ((6, 7), "MOSI_own.pkl", "mosi", "by its name 'MOSI_own.pkl' this is mosi"),
    ],
)
def test_what_was_assumed_is_said_and_kept(
    tmp_path: Path, capsys: Any, widths: tuple[int, int], name: str, dataset: str, reason: str
):
    raw = save(_clips(widths, FRACTIONS), tmp_path, name)
    assert entry.main([str(raw), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert f"assumed: {reason}, so labels are scores from -3 to 3; where that is wrong, say" in said
    assert "--dataset NAME or --labels LOW:HIGH[:STEP]" in said
    manifest = convert(raw, tmp_path / "out")
    assert manifest.source["dataset"] == dataset
    assert manifest.source["assumed"].startswith(reason)


def test_what_is_stated_is_not_assumed(tmp_path: Path, capsys: Any):
    raw = save(_clips((74, 35), FRACTIONS), tmp_path)
    words = [str(raw), "--out", str(tmp_path / "out")]
    assert entry.main([*words, "--dataset", "mosi"]) == 0
    assert "assumed" not in capsys.readouterr().out
    assert entry.main([*words, "--labels", "-3:3", "--force"]) == 0
    assert "labels are scores" not in capsys.readouterr().out


WORDS = ["[PAD]", "[UNK]", "a", "b"]
IDS = np.tile(np.array([[2, 3, 0], [1, 1, 0], [0, 0, 0]], np.float32), (4, 1, 1))


@pytest.mark.parametrize(
    "vocabulary", [WORDS, tuple(WORDS), np.array(WORDS), {word: i for i, word in enumerate(WORDS)}]
)
def test_a_vocabulary_may_be_words_in_order_or_a_mapping(tmp_path: Path, vocabulary: Any):
    content = _clips((5, 20), FRACTIONS, text_bert=IDS) | {"vocabulary": vocabulary}
    manifest = _convert(content, tmp_path)
    assert manifest.tokenizer["vocab_size"] == 4
    assert manifest.tokenizer["special"] == {"pad": 0, "unk": 1}


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (7, "a int; it must be a list of words by token id, or a dict from word to id"),
        ("abc", "a str; it must be a list"),
        (None, "a NoneType; it must be a list"),
        (np.float32(1), "a float32; it must be a list"),
        (np.zeros((2, 2)), "a ndarray; it must be a list"),
        ({"a": 0, "b": 2}, "a dict must give each word its own id, from 0 on"),
        ({"a": 0, "b": "x"}, "a dict must give each word its own id"),
        ({"a": 0, "b": [1]}, "a dict must give each word its own id"),
        (["a", ["b"]], "word 1: a list where text should be"),
        (["a", "\ud800"], r"word 1: '\\ud800' is no valid Unicode"),
        (["a"], "1 words, but there is a token id 3"),
    ],
)
def test_any_other_vocabulary_is_refused(tmp_path: Path, vocabulary: Any, message: str):
    content = _clips((5, 20), FRACTIONS, text_bert=IDS) | {"vocabulary": vocabulary}
    with pytest.raises(DataError, match=rf"x\.pkl: vocabulary: {message}"):
        _convert(content, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": FRACTIONS}, r"x\.pkl: train has both 'labels' and 'regression_labels'"),
        (
            {"regression_labels": [0.2, 10**400, 1, 1]},
            "sample 1 .*: label: 1000.* is larger than any",
        ),
        ({"regression_labels": [0.2, 10**5000, 1, 1]}, "sample 1 .*: label: a int too large to"),
        ({"regression_labels": [0.2, "good", 1, 1]}, "sample 1 .*: label: 'good' is no number"),
        ({"regression_labels": [0.2, None, 1, 1]}, "sample 1 .*: label: None is no number"),
        ({"regression_labels": [0.2, True, 1, 1]}, "sample 1 .*: label: True is no number"),
        ({"regression_labels_T": ["x"] * 4}, "sample 0 .*: label_text: 'x' is no number"),
        ({"audio": [[[10**400]]] * 4}, "sample 0 .*: audio: no array of numbers"),
        ({"audio": [[["a"]]] * 4}, "sample 0 .*: audio: no array of numbers"),
        ({"audio": [[[1.0], [1.0, 2.0]]] * 4}, "sample 0 .*: audio: no array of numbers"),
        ({"id": [10**5000, "b", "c", "d"]}, "id of sample 0: a int too large to show where text"),
        ({"raw_text": ["\ud800"] * 4}, r"sample 0 .*: raw_text: '\\ud800' is no valid Unicode"),
        ({"raw_text": [{}] * 4}, "sample 0 .*: raw_text: a dict where text should be"),
    ],
)
def test_an_entry_of_another_kind_is_refused_with_its_place(
    tmp_path: Path, change: dict[str, Any], message: str
):
    with pytest.raises(DataError, match=rf"x\.pkl.*{message}|{message}") as caught:
        _convert(_clips((5, 20), FRACTIONS, **change), tmp_path)
    assert "x.pkl" in str(caught.value)


def test_two_names_of_one_split_are_refused(tmp_path: Path):
    content = _clips((5, 20), FRACTIONS)
    content["dev"] = content["valid"]
    with pytest.raises(DataError, match=r"x\.pkl: 'valid' and 'dev' are both the valid split"):
        _convert(content, tmp_path)
