"""What is taken from an encoder's folder, and what is never run or opened."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from transformers import BertConfig, BertModel

from core.encoders import pretrained
from core.encoders.pretrained import Source, load_config, load_model, load_tokenizer
from data_shards.shards.manifest import DataError
from data_shards.sources.graphs.entity_views import encoded_names
from data_shards.sources.tokens import Tokenizer

KEY = "options.text.source="
# Modules that would leave a trace if they were imported.
CODE = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small BERT with a tokenizer, as transformers saves them."""
    made = tmp_path / "encoder"
    config = BertConfig(
        vocab_size=6,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    BertModel(config).save_pretrained(made)
    (made / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    (made / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    return made


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_sound_folder_is_loaded(folder: Path):
    source = Source(str(folder), KEY)
    assert load_config(source).hidden_size == 8
    assert load_model(source).config.vocab_size == 6
    assert load_tokenizer(source).encode("a") == [2, 5, 3]


LOADERS = {
    "config": lambda folder: load_config(Source(folder, KEY)),
    "model": lambda folder: load_model(Source(folder, KEY)),
    "tokenizer": lambda folder: load_tokenizer(Source(folder, "--tokenizer ")),
    "conversion": Tokenizer,
    "names": lambda folder: encoded_names({0: ["a"]}, 1, folder),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("model_type", ["bert", "a kind that nobody knows"])
def test_code_of_a_folder_is_never_run(
    folder: Path, loader: str, model_type: str, monkeypatch: pytest.MonkeyPatch
):
    classes = {
        "AutoConfig": "own.Config",
        "AutoModel": "own.Model",
        "AutoTokenizer": ["own.T", None],
    }
    change_json(folder / "config.json", auto_map=classes, model_type=model_type)
    change_json(folder / "tokenizer_config.json", auto_map=classes)
    (folder / "own.py").write_text(CODE)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(
        ValueError, match=r"json asks for Python code of its own \(auto_map\), .*never run"
    ):
        LOADERS[loader](str(folder))
    assert not (folder / "ran").exists()


def test_a_tokenizer_with_code_beside_a_sound_model(folder: Path):
    change_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.T", None]})
    with pytest.raises(
        DataError, match=r"--tokenizer .*tokenizer_config.json asks for Python code"
    ):
        Tokenizer(str(folder))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "w.pt"])
def test_pickled_weights_are_refused_by_name(folder: Path, name: str):
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(ValueError, match=rf"{name} is a pickle.*never read.*safetensors.*DIR"):
        load_model(Source(str(folder), KEY))
    assert load_config(Source(str(folder), KEY)).hidden_size == 8


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda folder: (folder / "config.json").unlink(),
            "must hold config.json and model.safetens",
        ),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            "must hold config.json and model.sa",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is no usable JSON"),
        (
            lambda folder: (folder / "config.json").write_text("[1]"),
            "holds a list, and an object",
        ),
    ],
    ids=["no config", "no weights", "cut off", "a list"],
)
def test_a_folder_that_lacks_something_says_what(folder: Path, change, said: str):
    change(folder)
    with pytest.raises(ValueError, match=said):
        load_model(Source(str(folder), KEY))


@pytest.fixture
def silent_server():
    """Takes connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_hub_that_is_silent_offline_or_absent_is_named_in_one_line(
    silent_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(pretrained, "HUB_ANSWERS_WITHIN", 0.3)
    needs = (
        r"options.text.source=bert-base-uncased is no folder, and no hub answers \({}\); give "
        "options.text.source=DIR, a folder that holds config.json and model.safetensors"
    )
    for hub, reason in (
        (silent_server, f"{silent_server}: (no answer within 0.3 s|timed out)"),
        ("http://127.0.0.1:9", "http://127.0.0.1:9: .*refused"),
    ):
        monkeypatch.setenv("HF_ENDPOINT", hub)
        with pytest.raises(ValueError, match=needs.format(reason)):
            load_config(Source("bert-base-uncased", KEY))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        load_tokenizer(Source("bert-base-uncased", "--text-encoder "))
    with pytest.raises(
        DataError, match="--text-encoder bert-base-uncased is no folder, and no hub"
    ):
        encoded_names({0: ["a"]}, 1, "bert-base-uncased")
    with pytest.raises(
        ValueError, match="no such folder; it must hold config.json and model.safet"
    ):
        load_config(Source(str(tmp_path / "nowhere"), KEY))


@pytest.mark.timeout(120)
def test_training_without_a_network_ends_with_one_line(small_shards: Path, tmp_path: Path):
    arguments = [
        "hscl/demo",
        f"data={small_shards}",
        "options.text.source=bert-base-uncased",
        f"run_dir={tmp_path / 'run'}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "launch.train", *arguments],
        cwd=ROOT,
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "no hub answers" in errors[0]
    assert "Traceback" not in done.stderr
