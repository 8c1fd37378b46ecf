"""A run exported, and loaded again without DeepSpeed, without the data and without its text
encoder's source."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from small_models import small_run

from core import bundle
from core.encoders.text import TextConfig
from core.models import MODELS
from launch.checkpoints.progress import Progress
from launch.checkpoints.store import Checkpoints, read_state
from launch.checkpoints.tensors import load_weights
from launch.config import Group, Run
from launch.export import main as export
from launch.run_directory import find_run, record_run
from launch.tasks.build import build_model, build_task


@pytest.fixture(scope="module")
def data(coded_shards: Path, graph_shards: Path) -> dict[str, Path]:
    return {"sentiment": coded_shards, "alignment": graph_shards}


def train_all(runs: list[Run]) -> None:
    """On a rank: an epoch of each run."""
    from launch.engine.processes import init_processes, shutdown_processes
    from launch.loop import fit
    from launch.session import prepare

    init_processes()
    for run in runs:
        with prepare(run, quiet=True) as session:
            list(fit(session))
    shutdown_processes()


@pytest.fixture(scope="module")
def trained(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run directories of every model after one epoch, and "bert" with a pretrained text encoder."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("trained")
    vocabulary = json.loads((data["sentiment"] / "manifest.json").read_text())["tokenizer"][
        "vocab_size"
    ]
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    BertModel(BertConfig(vocab_size=vocabulary, **sizes)).save_pretrained(folder / "source")
    runs = {name: small_run(name, data[MODELS[name].task]) for name in MODELS}
    text = TextConfig(source=str(folder / "source"))
    runs["bert"] = replace(runs["baseline"], options=replace(runs["baseline"].options, text=text))
    runs["bert"] = replace(
        runs["bert"], optim=replace(runs["bert"].optim, groups={"main": Group(), "text": Group()})
    )
    runs = {name: replace(run, run_dir=str(folder / name), epochs=1) for name, run in runs.items()}
    for run in runs.values():
        found, run_dir = find_run(run)
        run_dir.mkdir()
        record_run(found, run_dir)
    run_ranks(1, folder / "ranks", train_all, list(runs.values()))
    return {name: folder / name for name in runs}


def outputs(model: object, name: str, folder: Path) -> torch.Tensor:
    run = small_run(name, folder)
    task = build_task(run)
    with torch.no_grad():
        (part,) = next(iter(task.batches(0)))
        output = model(part)  # type: ignore[operator]
    return output.joint if MODELS[name].task == "alignment" else output.score


@pytest.mark.parametrize("name", MODELS)
def test_every_model_comes_back_as_it_was(
    name: str, data: dict[str, Path], trained: dict[str, Path], tmp_path: Path
):
    run_dir = trained[name]
    assert export([str(run_dir), "--out", str(tmp_path / "out")]) == 0
    model, spec = bundle.load(tmp_path / "out")
    assert not model.training
    shards = data[MODELS[name].task]
    run = small_run(name, shards)
    again = build_model(run, build_task(run).data)
    folder, _ = Checkpoints(run_dir, Progress()).find("best")
    assert folder is not None
    load_weights(folder, read_state(folder).shapes, again)
    assert torch.equal(outputs(model, name, shards), outputs(again.eval(), name, shards))
    assert spec.features == build_task(run).data.features


def test_the_folder_says_what_data_it_wants(
    data: dict[str, Path], trained: dict[str, Path], tmp_path: Path
):
    run_dir = trained["cenet"]
    assert export([str(run_dir), "--out", str(tmp_path / "out")]) == 0
    config = json.loads((tmp_path / "out/config.json").read_text())
    manifest = json.loads((data["sentiment"] / "manifest.json").read_text())
    assert config["model"] == "cenet"
    assert config["schema"]["tokenizer"] == manifest["tokenizer"]
    assert config["schema"]["fields"].keys() == manifest["fields"].keys()
    assert config["data"]["label_range"] == [-3.0, 3.0]
    assert config["data"]["moments"].keys() == manifest["moments"].keys()
    _, spec = bundle.load(tmp_path / "out")
    with np.load(data["sentiment"] / "codebook.npz") as codebook:
        assert all(np.array_equal(codebook[name], spec.codebooks[name]) for name in codebook.files)
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\n")
    assert "synthetic" in card


def test_scores_of_one_split_alone_are_in_the_card(trained: dict[str, Path], tmp_path: Path):
    run_dir = tmp_path / "run"
    shutil.copytree(trained["baseline"], run_dir)
    scores = {"valid": {"MAE": 1.0}, "test": {"Corr": 0.5}, "held": {}}
    (run_dir / "scores.json").write_text(json.dumps(scores))
    assert export([str(run_dir), "--out", str(tmp_path / "out")]) == 0
    lines = (tmp_path / "out/README.md").read_text().splitlines()
    start = lines.index("| split | MAE | Corr |")
    assert lines[start + 2 : start + 5] == [
        "| valid | 1.0000 |  |",
        "| test |  | 0.5000 |",
        "| held |  |  |",
    ]


LARGE = [
    ({"hidden": 10**12}, "(step|best)-.* is of another model"),
    ({"text": {"layers": 10**7}}, "config.json describes a model of more than"),
    ({"text": {"width": 2**20}}, "(step|best)-.* is of another model"),
    ({"text": {"width": 2**60}}, "model 'baseline' cannot be built"),
    ({"text": {"heads": 5}}, r"text.heads=5 does not .*its settings are those of .*config.json"),
]


@pytest.mark.parametrize(("options", "message"), LARGE, ids=[case[1] for case in LARGE])
def test_settings_of_another_model_are_refused_before_memory_is_taken(
    trained: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    message: str,
):
    run_dir = tmp_path / "run"
    shutil.copytree(trained["baseline"], run_dir)
    path = run_dir / "config.json"
    content = json.loads(path.read_text())
    for name, value in options.items():
        known = content["run"]["options"]
        known[name] = {**known[name], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(content))
    assert export([str(run_dir), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert not (tmp_path / "out").exists()


def test_a_pretrained_text_encoder_needs_its_source_no_more(
    data: dict[str, Path], trained: dict[str, Path], tmp_path: Path
):
    from transformers import BertModel

    source = trained["bert"].parent / "source"
    assert export([str(trained["bert"]), "--out", str(tmp_path / "out")]) == 0
    before = bundle.load(tmp_path / "out")[0]
    moved = source.rename(tmp_path / "elsewhere")
    try:
        after = bundle.load(tmp_path / "out")[0]
        untrained = BertModel.from_pretrained(moved).embeddings.word_embeddings.weight
    finally:
        moved.rename(source)
    scores = outputs(before, "baseline", data["sentiment"])
    assert torch.equal(scores, outputs(after, "baseline", data["sentiment"]))
    (embedding,) = (
        value for name, value in after.state_dict().items() if "word_embeddings" in name
    )
    assert not torch.equal(embedding, untrained)


def test_loading_needs_no_deepspeed(trained: dict[str, Path], tmp_path: Path):
    run_dir = trained["baseline"]
    assert export([str(run_dir), "--out", str(tmp_path / "out")]) == 0
    code = (
        "import sys; from core.bundle import load; load(sys.argv[1]); "
        "print(sorted({'deepspeed', 'ray', 'launch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_folder_that_is_there_or_whose_parts_do_not_fit_is_refused(
    trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run_dir = trained["baseline"]
    assert export([str(run_dir), "--out", str(tmp_path / "out")]) == 0
    assert export([str(run_dir), "--out", str(tmp_path / "out")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert export([str(tmp_path), "--out", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()
    config = json.loads((tmp_path / "out/config.json").read_text())
    config["options"]["text"]["width"] = 32
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not fit the model of config.json"):
        bundle.load(tmp_path / "out")
    with pytest.raises(ValueError, match="holds no exported model"):
        bundle.load(run_dir)
