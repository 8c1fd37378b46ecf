"""Foreign tars with a stated tokenizer or classes, and keys with blanks or dots."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_tars import clips, write_tars

from data_shards.index import main as index
from data_shards.shards.manifest import read_manifest
from data_shards.sources.tokens import Tokenizer
from data_shards.stream import Stream
from data_shards.synthetic import write_tokenizer
from data_shards.verify import main as verify
from launch.config import load_recipe, override
from launch.tasks.build import build_task

# webdataset leaves its file to the collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def test_a_stated_tokenizer_and_stated_classes_are_those_of_a_table(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    write_tokenizer(tokenizer)
    size = Tokenizer(str(tokenizer)).facts["vocab_size"]
    made = clips("class")
    for arrays in (arrays for samples in made.values() for arrays in samples):
        arrays["text"] = arrays["text"] % size
    folder = write_tars(made, tmp_path / "tars")
    words = ["--tokenizer", str(tokenizer), "--classes", "no,perhaps,yes"]
    assert not index([str(folder), *words])
    manifest = read_manifest(folder)
    assert manifest.tokenizer == Tokenizer(str(tokenizer)).facts
    assert (manifest.labels.kind, manifest.labels.names) == ("classes", ("no", "perhaps", "yes"))
    settings = [f"data={folder}", "metrics=classes", "select=Macro_F1", "goal=max"]
    task = build_task(override(load_recipe("baseline/demo"), settings))
    assert (task.data.vocab_size, task.data.num_classes) == (size, 3)
    assert task.data.unknown_id == Tokenizer(str(tokenizer)).facts["special"]["unk"]


def test_token_ids_beyond_a_stated_tokenizer_are_refused_by_sample(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tmp_path / "tokenizer"
    write_tokenizer(tokenizer)
    made = clips()
    made["train"][3]["text"] = np.array([5, 5000])
    folder = write_tars(made, tmp_path / "tars")
    assert index([str(folder), "--tokenizer", str(tokenizer)]) == 2
    assert re.search(r"sample 'train_\d+': text: token \d is", capsys.readouterr().err)


@pytest.mark.parametrize("key", ["clip 1", "a/b c/1", "ü 視"])
def test_keys_with_blanks_are_read(tmp_path: Path, key: str) -> None:
    made = clips()
    folder = write_tars(made, tmp_path, key=f"{key} ")
    assert not index([str(folder)])
    assert not verify([str(folder), "--deep"])
    stream = Stream(folder, "train", global_batch=24, shuffle=False)
    next(stream.epoch(0))
    assert stream.ids(torch.arange(1)) == [f"{key} train_0000"]
    stream.close()


def test_a_key_with_dots_is_named_with_its_tar_and_where_a_key_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert index([str(write_tars(clips(), tmp_path, key="talk.v1."))]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "valid-000000.tar, sample 'talk': this key is in train-000000.tar already" in said
    assert "a key ends at its first dot" in said
    assert "manifest.json" not in said
