"""Which split a tar belongs to, by its name or by what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_shards.shards.manifest import DataError
from data_shards.shards.split_names import (
    check_needed,
    check_parts,
    in_order,
    split_called,
    split_in_name,
    tars_by_split,
)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-000000", "train"),
        ("Train-0", "train"),
        ("TRAIN", "train"),
        ("train0", "train"),
        ("train-00000-of-00002", "train"),
        ("cc3m-train-0000", "train"),
        ("mosi.train.3", "train"),
        ("my_train_set", "train"),
        ("val-0", "valid"),
        ("dev", "valid"),
        ("validation", "valid"),
        ("valid_00", "valid"),
        ("sims-dev-00001-of-00004", "valid"),
        ("test-1", "test"),
    ],
)
def test_the_word_in_a_name_tells_the_split(name: str, split: str) -> None:
    assert split_in_name(Path(f"{name}.tar")) == split


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("7", "its name names no split"),
        ("shard-7", "its name names no split"),
        ("training-0", "its name names no split.*--split 'training-0=train'"),
        ("untrained-0", "its name names no split"),
        ("train-val-0", "the splits train and valid"),
        ("test-dev", "the splits test and valid"),
    ],
)
def test_a_name_of_no_split_or_of_two_is_refused(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_in_name(Path(f"{name}.tar"))


def paths(*names: str) -> list[Path]:
    return [Path(f"{name}.tar") for name in names]


def names(splits: dict[str, list[Path]]) -> dict[str, list[str]]:
    return {split: [path.stem for path in tars] for split, tars in splits.items()}


@pytest.mark.parametrize(
    ("stated", "splits"),
    [
        (["a*=train", "b0=val"], {"train": ["a0", "a1"], "valid": ["b0"]}),
        (["train", "b*.tar=dev"], {"train": ["a0", "a1"], "valid": ["b0"]}),
        (["b0.tar=Test", "train"], {"train": ["a0", "a1"], "test": ["b0"]}),
        (["a0=train", "a1=valid", "b0=extra"], {"train": ["a0"], "valid": ["a1"], "extra": ["b0"]}),
        (["all"], {"all": ["a0", "a1", "b0"]}),
    ],
)
def test_what_is_said_comes_before_names(stated: list[str], splits: dict[str, list[str]]) -> None:
    found = tars_by_split(paths("a0", "a1", "b0"), stated, split_in_name)
    assert names(found) == splits


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (["a*=train", "c*=valid", "train"], r"--split: 'c\*' matches no tar"),
        (["=valid"], "expected SPLIT, or PATTERN=SPLIT"),
        (["a*="], "expected SPLIT, or PATTERN=SPLIT"),
        (["a*=a/b"], "expected SPLIT, or PATTERN=SPLIT"),
        (["a*=train"], "b0.tar: its name names no split"),
    ],
)
def test_what_cannot_be_meant_is_refused(stated: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        tars_by_split(paths("a0", "a1", "b0"), stated, split_in_name)


@pytest.mark.parametrize(
    ("splits", "lacking"),
    [(["train", "test"], "valid"), (["valid"], "train"), (["things"], "train")],
)
def test_the_splits_that_training_needs_must_be_there(splits: list[str], lacking: str) -> None:
    found = {split: paths(f"{split}-0", f"{split}-1") for split in splits}
    with pytest.raises(
        DataError, match=f"no tar is of the split {lacking}.*{splits[0]}-0.tar and 1"
    ) as refused:
        check_needed(found, Path("data"))
    assert f"--split 'PATTERN={lacking}'" in str(refused.value)


@pytest.mark.parametrize(
    ("found", "missing"),
    [
        (["train-00000-of-00002", "val-0"], "train-00001-of-00002.tar is missing, one of 1 of 2"),
        (["t-2-of-3"], "t-1-of-3.tar is missing, one of 2 of 3"),
        (["a-0-of-2", "a-1-of-2", "b-1-of-2"], "b-2-of-2.tar is missing"),
    ],
)
def test_parts_that_were_not_fetched_are_named(found: list[str], missing: str) -> None:
    with pytest.raises(DataError, match=missing):
        check_parts(paths(*found))


def test_all_parts_are_enough() -> None:
    check_parts(paths("t-1-of-2", "t-2-of-2", "u-0-of-1", "train-0"))


def test_numbers_are_ordered_by_their_value() -> None:
    unordered = paths("train-10", "train-2", "dev-1", "train-1")
    assert [path.stem for path in in_order(unordered)] == [
        "dev-1",
        "train-1",
        "train-2",
        "train-10",
    ]


@pytest.mark.parametrize("name", [["train"], {"a": 1}, 3, None, float("nan"), "other"])
def test_what_is_no_name_is_no_split(name: object) -> None:
    assert split_called(name) is None
