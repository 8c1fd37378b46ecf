"""What conversion refuses, leaves out or asks for, and how it says so."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw_pickles import Content, each, save

from data_shards import convert as entry
from data_shards.convert import convert, parse_labels
from data_shards.shards.manifest import MANIFEST, DataError, Labels, read_manifest
from data_shards.sources.raw_dataset import Options
from data_shards.synthetic import make, write


def _set(split: str, name: str, i: int, value: Any) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        content[split][name][i] = value

    return change


def _pop(split: str, name: str) -> Callable[[Content], None]:
    return lambda content: content[split].pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _set("test", "regression_labels", 1, 3.4),
            r"test, sample 1 \('synthetic\d+\$_\$1'\): label: 3.4 is outside",
        ),
        (
            _set("valid", "regression_labels", 0, np.nan),
            r"valid, sample 0 .*label: nan is no finite number",
        ),
        (
            lambda content: content.pop("valid"),
            r"needs the splits train, valid and test, and has \['test', 'train'\]",
        ),
        (lambda content: content.update(train_mix=content.pop("train")), "supervised task"),
        (
            lambda content: content.update(dev=content["valid"]),
            "'valid' and 'dev' are both the valid split; remove one",
        ),
        (
            lambda content: content.update(Train=content["train"]),
            "'train' and 'Train' are both the train split; remove one",
        ),
        (
            _pop("train", "regression_labels"),
            r"train has no 'regression_labels', only \['annotations'",
        ),
        (_pop("test", "id"), "test has no 'id'"),
        (
            lambda content: content["train"].update(id=content["train"]["id"][:-1]),
            "has 24 entries for 23 ids",
        ),
        (lambda content: content.update(train=[1]), "train is a list, not a dict"),
        (
            lambda content: content["train"].update(audio="x"),
            "'audio' is a str, not one entry per sample",
        ),
        (
            lambda content: content["test"].update(audio=np.ones((12, 60, 4))),
            "has 4 features, and samples before it",
        ),
        (lambda content: content["test"].update(audio=np.ones((12, 6, 5, 2))), "frames are"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(
    content: Content, tmp_path: Path, change: Callable[[Content], Any], message: str
) -> None:
    change(content)
    with pytest.raises(DataError, match=message):
        convert(save(content, tmp_path), tmp_path / "out")
    assert not (tmp_path / "out" / MANIFEST).exists()


@pytest.mark.parametrize(
    ("row", "value", "message"),
    [
        (0, 1.5, "holds 1.5, which is no token id"),
        (0, -1, "holds -1, which is no token id"),
        (1, 2, "attention mask of text_bert holds 2"),
        (1, 0, "attention mask of text_bert has holes"),
        (2, 1, "token types of text_bert"),
    ],
)
def test_impossible_token_rows_are_refused_with_their_id(
    content: Content, tmp_path: Path, row: int, value: float, message: str
) -> None:
    content["train"]["text_bert"][5, row, 2] = value
    with pytest.raises(DataError, match=message) as caught:
        convert(save(content, tmp_path), tmp_path / "out")
    assert repr(content["train"]["id"][5]) in str(caught.value)


def test_an_unknown_label_range_is_asked_for(content: Content, tmp_path: Path) -> None:
    each(content, lambda part: part.update(audio=part["audio"][..., :4]))
    raw = save(content, tmp_path, "mine.pkl")
    with pytest.raises(DataError, match="label range is not known; add --labels"):
        convert(raw, tmp_path / "out")
    manifest = convert(raw, tmp_path / "out", Options(labels=Labels(low=-4, high=4)))
    assert manifest.labels == Labels(low=-4, high=4)
    assert manifest.name == "mine"


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("-3:3", Labels(low=-3, high=3)),
        ("-3:3:1/3", Labels(low=-3, high=3, resolution=1 / 3)),
        ("1:5:.5", Labels(low=1, high=5, resolution=0.5)),
    ],
)
def test_label_ranges_are_parsed(text: str, labels: Labels) -> None:
    assert parse_labels(text) == labels


@pytest.mark.parametrize(
    "text", ["", "3", "3:-3", "a:b", "0:1:2", "0:1:0", "0:1:1/0", "0:1:1:1", "nan:1"]
)
def test_other_label_ranges_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="expected LOW:HIGH"):
        parse_labels(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(text="features"), "has no 'text', which --text features needs"),
        (Options(text="tokenize"), "needs --tokenizer"),
        (Options(text="tokens", tokenizer="somewhere"), "--tokenizer has no effect"),
        (Options(max_tokens=5), "--max-tokens has no effect"),
        (Options(tokenizer="nowhere"), "no such folder"),
    ],
)
def test_options_that_contradict_are_refused(
    content: Content, tmp_path: Path, options: Options, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        convert(save(content, tmp_path), tmp_path / "out", options)


def test_what_lies_beside_the_splits_is_named(
    content: Content, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content["train_mix"] = {"mask": [0, 1]}
    raw = save(content, tmp_path)
    assert entry.main([str(raw), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("left out: 'train_mix', which is none of the splits")
    assert read_manifest(tmp_path / "out").source["left out"] == ["train_mix"]


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("gone.pkl", None, "gone.pkl does not exist"),
        ("data.h5", b"x", "is of no known kind"),
        ("bad.pkl", b"x", "is damaged or no pickle"),
        ("foreign.pkl", b"cos\nsystem\n(S'true'\ntR.", "holds a os.system"),
        ("number.pkl", pickle.dumps(5), "holds a int, not a dict of splits"),
    ],
)
def test_the_command_ends_with_one_line_for_what_it_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, body: bytes | None, message: str
) -> None:
    if body is not None:
        (tmp_path / name).write_bytes(body)
    assert entry.main([str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_was_repaired_and_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "made.pkl", 60)
    assert entry.main([str(tmp_path / "made.pkl"), "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "repaired: 3 audio values not finite, set to 0"
    assert lines[-1].startswith("SYNTHETIC data: 36 train, 6 valid, 18 test samples are in")
    assert lines[-1].endswith(f"python -m data_shards.inspect {tmp_path / 'out'}")


ODD: list[Any] = [
    None,
    5,
    "x",
    [],
    {},
    [None] * 24,
    ["x"] * 24,
    [{}] * 24,
    [[]] * 24,
    [[[1, 2], [3]]] * 24,
    np.array(3.0),
    np.zeros((24, 0)),
    np.zeros((24, 0, 5)),
    np.zeros((24, 3, 0)),
    np.zeros((24, 1, 1, 1)),
    np.full((24, 3, 4), np.nan),
    np.array([None] * 24, dtype=object),
    np.array(["a"] * 24),
    np.array([1 + 2j] * 24),
    [b"\xff"] * 24,
]


@pytest.mark.parametrize("name", list(make(10)["train"]))
def test_odd_values_in_any_place_are_read_or_refused(
    content: Content, tmp_path: Path, name: str
) -> None:
    """Whatever stands under a key: a data error that names the file, or one sample per id."""
    for odd in ODD:
        raw = save(content | {"train": content["train"] | {name: odd}}, tmp_path)
        try:
            source = entry.read(raw, Options())
            made = [source.sample(row, Counter()) for _, row in source.rows()]
        except DataError as error:
            refused = str(error)
        else:
            refused = ""
            assert len(made) == sum(source.counts.values()) == 40
        assert refused == "" or str(raw) in refused
