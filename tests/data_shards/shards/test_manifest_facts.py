"""Parts of a manifest that hold other facts in each data set: what is read of them is of its
declared kind, or refused with the file, the key and the value."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_shards.inspect import main as inspect
from data_shards.shards.manifest import DataError, Manifest, _checksum, read_manifest
from data_shards.verify import main as verify

Change = Callable[[Manifest], Manifest]


def tokenizer(**facts: Any) -> Change:
    return lambda it: replace(it, tokenizer={**(it.tokenizer or {}), **facts})


def source(**facts: Any) -> Change:
    return lambda it: replace(it, source={**it.source, **facts})


def extras(**facts: Any) -> Change:
    return lambda it: replace(it, extras={**it.extras, **facts})


ODD: list[tuple[Change, str]] = [
    (tokenizer(vocab_size={"a": 1}), "tokenizer: vocab_size: expected int, found \"{'a': 1}\""),
    (tokenizer(vocab_size="60"), "tokenizer: vocab_size: expected int, found '60'"),
    (tokenizer(vocab_size=-1), "tokenizer: vocab_size: Input should be greater than or equal to 0"),
    (tokenizer(vocab_size=10**12), "tokenizer: vocab_size: Input should be less than or equal to"),
    (tokenizer(special=[3]), "tokenizer: special: expected dict, found '[3]'"),
    (tokenizer(special={"unk": "no"}), "tokenizer: special: unk: expected int, found 'no'"),
    (tokenizer(special={"unk": 10**6}), "tokenizer: special: unk is 1000000, outside its"),
    (tokenizer(name=["a"]), "tokenizer: name: expected str, found \"['a']\""),
    (source(dataset=["mosi"]), "source: dataset: expected str"),
    (source(file={}), "source: file: expected str, found '{}'"),
    (source(files=3), "source: files: expected dict, found '3'"),
    (source(**{"left out": "valid"}), "source: left out: expected list, found 'valid'"),
    (
        source(**{"no arrays": {"jpg": "many"}}),
        "source: no arrays: jpg: expected int, found 'many'",
    ),
    (extras(noted="once"), "extras: noted: expected list, found 'once'"),
    (extras(**{"codebook.npz": "0" * 63}), "extras: codebook.npz: String should match pattern"),
]


@pytest.fixture
def folder(small_shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_shards, tmp_path / "data"))


@pytest.mark.parametrize(("change", "message"), ODD, ids=[case[1] for case in ODD])
def test_a_fact_of_another_kind_is_refused(folder: Path, change: Change, message: str) -> None:
    path = folder / "manifest.json"
    path.write_text(change(read_manifest(folder)).to_json())
    with pytest.raises(DataError) as refused:
        read_manifest(folder)
    assert f"{path}: {message}" in str(refused.value)


def test_every_command_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "manifest.json"
    path.write_text(tokenizer(vocab_size=[60])(read_manifest(folder)).to_json())
    for command in (inspect, verify):
        assert command([str(folder)]) == 2
        assert f"error: {path}: tokenizer: vocab_size" in capsys.readouterr().err


def test_facts_that_nobody_reads_may_be_anything(folder: Path) -> None:
    path = folder / "manifest.json"
    for change in (source(note=[1, {}]), extras(license={"a": None}), tokenizer(lower=True)):
        before = read_manifest(folder)
        path.write_text(change(before).to_json())
        assert read_manifest(folder) != before


def said(folder: Path, **labels: Any) -> Path:
    """A manifest that says so of the labels, with the checksum of what it says."""
    path = folder / "manifest.json"
    body = json.loads(path.read_text())
    body["labels"] |= labels
    del body["checksum"]
    path.write_text(json.dumps({**body, "checksum": _checksum(body)}))
    return path


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"low": 3.0, "high": -3.0}, "from 3 to -3 is no range of scores"),
        ({"low": 1.0, "high": 1.0}, "from 1 to 1 is no range of scores"),
        ({"low": -1e308, "high": 1e308}, r"from -1e\+308 to 1e\+308 is no range of scores"),
        ({"resolution": -1e-320}, "a range of 6 has no steps of -9.9"),
        ({"resolution": 0.0}, "a range of 6 has no steps of 0"),
        ({"resolution": 7.0}, "a range of 6 has no steps of 7"),
        ({"resolution": "word"}, "expected float"),
        ({"low": [1]}, "expected float"),
        ({"names": "joy"}, "expected list"),
        ({"kind": "stars"}, "unknown kind 'stars'"),
    ],
)
def test_labels_that_cannot_be_are_refused(
    folder: Path, labels: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = said(folder, **labels)
    with pytest.raises(DataError, match=rf"^{path}: labels.*{message}"):
        read_manifest(folder)
    assert inspect([str(folder)]) == 2
    assert f"error: {path}: labels" in capsys.readouterr().err


def test_classes_without_names_are_found_unfit(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(folder, kind="classes", names=[])
    assert inspect([str(folder)]) == 2
    assert "UNFIT" in capsys.readouterr().out


@pytest.mark.parametrize("digits", ["1e999", "-1e999", "NaN", "Infinity"])
def test_a_number_without_an_end_is_no_json(folder: Path, digits: str) -> None:
    path = folder / "manifest.json"
    body = json.loads(path.read_text())
    body["labels"]["high"] = "HERE"
    path.write_text(json.dumps(body).replace('"HERE"', digits))
    with pytest.raises(DataError, match=f"{path} is not JSON"):
        read_manifest(folder)
