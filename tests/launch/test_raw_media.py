"""A run on words, sound and pictures as they are: trained, taken up again, exported, and scoring a
clip from its file."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from media_files import brightening, tone, write_clip
from rank_trainings import train_all as train_on_ranks
from ranks import run_ranks
from safetensors.torch import load_file, save_file
from tiny_media_models import save_vit, save_wav2vec2, save_whisper
from tiny_text_models import save_bert, save_decoder

from core import bundle
from core.command import Refused
from core.encoders.backbones.media_encoders import EncoderConfig
from core.encoders.inputs import InputConfig
from core.encoders.text import TextConfig
from core.models.baseline import Baseline
from core.models.hscl import HSCL
from data_shards.convert import convert
from data_shards.extract.__main__ import extract
from data_shards.extract.extractors.registry import choose
from data_shards.shards.manifest import Labels
from data_shards.sources.raw_dataset import Options
from launch.checkpoints.store import read_state
from launch.checkpoints.tensors import StoredTensors
from launch.config import Group, Optim, Run, override
from launch.engine.deepspeed_config import refuse_impossible
from launch.export import main as export
from launch.predict import main as predict
from launch.predicting.trained import open_run
from launch.tasks.build import build_model, build_task

LETTERS = "abcdefgh"


def write_clips(folder: Path, samples: int = 20) -> Path:
    """Clips, brighter, louder and with another letter the higher their score."""
    rows = []
    for number in range(samples):
        level = (number % 8) / 8
        seconds = 0.5 + 0.1 * (number % 3)
        write_clip(
            folder / f"c{number}.mp4",
            seconds,
            pictures=lambda frame, level=level: brightening(round(8 * level), 8, (64, 48)),
            sound=tone(seconds, 16_000, 0.1 + 0.5 * level),
            rate=16_000,
            fps=10,
        )
        split = ("train", "train", "train", "valid", "test")[number % 5]
        text = " ".join(LETTERS[number % 8] * (1 + number % 3))
        rows.append((f"c{number}", f"c{number}.mp4", split, 4 * level - 2, text))
    with open(folder / "table.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "file", "split", "label", "text"])
        writer.writerows(rows)
    return folder / "table.csv"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoders, clips and their shards."""
    folder = tmp_path_factory.mktemp("raw")
    savers = {
        "bert": save_bert,
        "decoder": save_decoder,
        "wav2vec2": save_wav2vec2,
        "whisper": save_whisper,
        "vit": save_vit,
    }
    for name, save in savers.items():
        save(folder / name)
    table = write_clips(folder / "clips")
    extractors = choose({"text": "given", "audio": "raw", "vision": "raw,fps=4,side=32"})
    extract(table, folder / "features", extractors, jobs=0)
    options = Options(labels=Labels(low=-3.0, high=3.0), tokenizer=str(folder / "bert"))
    convert(folder / "features" / "clips.csv", folder / "shards", options, shard_size=4)
    return folder


def run_of(folder: Path, name: str, **changes: Any) -> Run:
    """HSCL with matrices beside the encoders of words and sound, and a frozen one of pictures."""
    inputs = InputConfig(
        audio=EncoderConfig(source=str(folder / "wav2vec2"), train="lora", rank=2),
        vision=EncoderConfig(source=str(folder / "vit"), train="none"),
    )
    text = TextConfig(source=str(folder / "bert"), train="dora", rank=2, adapter_dropout=0.2)
    options = HSCL.Config(layers=1, projection_width=8, hidden=8, text=text, inputs=inputs)
    names = ("text", "audio", "vision", "audio_encoder", "main")
    groups = {name: Group(lr=2e-3 * number) for number, name in enumerate(names, 1)}
    run = Run(
        model="hscl",
        options=options,
        optim=Optim(groups=groups, clip=1.0),
        data=str(folder / "shards"),
        run_dir=str(folder / name),
        recipe="hscl/raw",
        batch_size=5,
        epochs=2,
        patience=0,
    )
    return replace(run, **changes)


def fit_all(runs: list[Run]) -> None:
    """On a rank: train each run to its end, or go on with it."""
    from launch.engine.processes import init_processes, shutdown_processes
    from launch.loop import fit
    from launch.session import prepare

    init_processes()
    for run in runs:
        with prepare(run, quiet=True) as session:
            list(fit(session))
    shutdown_processes()


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    run_ranks(1, folder / "ranks", fit_all, [run_of(folder, "run")])
    return folder / "run"


def checkpoint(run_dir: Path, number: int) -> Path:
    """The checkpoint behind an epoch."""
    (found,) = (run_dir / "checkpoints").glob(f"step-*-epoch-{number}")
    return found


def test_checkpoints_hold_what_is_trained_alone(folder: Path, trained: Path):
    last = checkpoint(trained, 2)
    names = StoredTensors(last).names("param")
    assert any("lora_A" in name for name in names)
    in_backbones = [name for name in names if ".backbone." in name]
    assert all("lora_" in name for name in in_backbones)
    assert not any("media_encoders.vision.backbone" in name for name in names)
    bases = read_state(last).bases
    assert {name: Path(base["source"]).name for name, base in bases.items()} == {
        "text": "bert",
        "media_encoders.audio": "wav2vec2",
        "media_encoders.vision": "vit",
    }


def test_a_run_that_was_cut_short_ends_as_one_that_was_not(folder: Path, trained: Path):
    again = folder / "again"
    shutil.copytree(trained, again)
    shutil.rmtree(checkpoint(again, 2))
    (again / "checkpoints" / "last").write_text(checkpoint(again, 1).name)
    run_ranks(1, folder / "more", fit_all, [run_of(folder, "again")])
    expected, found = StoredTensors(checkpoint(trained, 2)), StoredTensors(checkpoint(again, 2))
    for kind in ("param", "exp_avg", "buffer"):
        assert expected.names(kind) == found.names(kind)
        for name in expected.names(kind):
            assert torch.equal(expected.whole(kind, name), found.whole(kind, name)), name
    assert any(
        not torch.equal(expected.whole("param", name), first)
        for name, first in _whole(checkpoint(trained, 1)).items()
        if "lora_A" in name
    )


def _whole(folder: Path) -> dict[str, torch.Tensor]:
    stored = StoredTensors(folder)
    return {name: stored.whole("param", name) for name in stored.names("param")}


def test_another_encoder_below_what_was_trained_is_refused(folder: Path, trained: Path):
    moved = folder / "moved"
    shutil.copytree(folder / "bert", moved)
    tensors = load_file(moved / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][5, 0] += 1e-3
    save_file(tensors, moved / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        Refused, match=r"on top of the encoder .*bert \(SHA-256 .*here it is .*moved"
    ):
        open_run(trained, [f"options.text.source={moved}"])
    again = open_run(trained, [f"options.text.source={folder / 'bert'}"])
    assert again.run.options.text.source == str(folder / "bert")


def scores_in(path: Path) -> dict[str, float]:
    with open(path, encoding="utf-8") as file:
        return {row["id"]: float(row["score"]) for row in csv.DictReader(file)}


def test_the_bundle_scores_a_clip_as_the_run_scores_it_in_shards(
    folder: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "bundle"
    assert export([str(trained), "--out", str(out), "--tokenizer", str(folder / "bert")]) == 0
    assert {path.name for path in (out / "audio").iterdir()} == {
        "config.json",
        "preprocessor_config.json",
    }
    elsewhere = tmp_path / "clips"
    shutil.copytree(folder / "clips", elsewhere)
    words = [str(trained), str(folder / "shards"), "--split", "test"]
    assert predict([*words, "--out", str(tmp_path / "shards.csv")]) == 0
    monkeypatch.chdir(tmp_path)
    # as on a machine that has none of the encoders
    for name in ("bert", "wav2vec2", "vit"):
        (folder / name).rename(folder / f"{name}-away")
    try:
        clips = [str(out), str(elsewhere / "table.csv"), "--split", "test"]
        assert predict([*clips, "--out", str(tmp_path / "clips.csv")]) == 0
        model, spec = bundle.load(out)
    finally:
        for name in ("bert", "wav2vec2", "vit"):
            (folder / f"{name}-away").rename(folder / name)
    assert spec.media == {"audio": "sound", "vision": "pictures"}
    assert spec.features["audio"] == 1
    expected, found = scores_in(tmp_path / "shards.csv"), scores_in(tmp_path / "clips.csv")
    assert expected.keys() == found.keys()
    assert found == pytest.approx(expected, abs=1e-4)
    assert len(set(found.values())) > 1


def test_settings_are_written_by_role_and_groups_get_a_rate(folder: Path):
    run = run_of(folder, "none")
    changed = override(
        run,
        [
            "options.audio.train=none",
            "options.vision.pool=mean",
            "optim.groups.vision_encoder.lr=3e-5",
            "optim.groups.vision_encoder.layer_decay=0.5",
        ],
    )
    assert changed.options.inputs.audio.train == "none"
    assert changed.options.inputs.vision.pool == "mean"
    assert changed.optim.groups["vision_encoder"] == Group(lr=3e-5, layer_decay=0.5)
    assert json.loads(json.dumps(changed.options.inputs.audio.source)) == str(folder / "wav2vec2")


def test_layers_below_learn_more_slowly(folder: Path):
    from launch.engine.optimizer import optimizer_for, set_learning_rates

    text = TextConfig(source=str(folder / "decoder"))
    run = run_of(folder, "none", options=Baseline.Config(modalities=("text",), text=text))
    groups = {"text": Group(lr=0.1, layer_decay=0.5), "main": Group(lr=0.3)}
    run = replace(run, model="baseline", optim=Optim(groups=groups))
    model = build_model(run, build_task(run).data)
    optimizer = optimizer_for(model, run)
    assert set_learning_rates(optimizer, run, 1.0) == {"text": 0.1, "main": 0.3}
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    rates = {name: rate_of[id(value)] for name, value in model.named_parameters()}
    assert rates["text.backbone.layers.1.mlp.up_proj.weight"] == 0.1
    assert rates["text.backbone.layers.0.mlp.up_proj.weight"] == 0.05
    assert rates["text.backbone.embed_tokens.weight"] == 0.025
    assert rates["predict.1.weight"] == 0.3


def test_a_group_without_a_rate_says_how_to_give_it(folder: Path):
    from launch.engine.optimizer import optimizer_for

    run = run_of(folder, "none", optim=Optim())
    model = build_model(run, build_task(run).data)
    with pytest.raises(Refused, match=r"with optim.groups.text.lr=1e-5"):
        optimizer_for(model, run)


@pytest.mark.slow
def test_one_process_and_many_give_one_result(folder: Path, tmp_path: Path):
    base = run_of(folder, "none")
    names = ("text", "audio", "vision", "audio_encoder", "vision_encoder", "main")
    groups = {name: Group(lr=1e-3) for name in names}
    inputs = InputConfig(
        audio=EncoderConfig(source=str(folder / "whisper"), pool="mean"),
        vision=EncoderConfig(source=str(folder / "vit"), train="top", top_layers=1),
    )
    text = TextConfig(source=str(folder / "decoder"), train="lora", adapter_dropout=0.3)
    other = replace(
        base,
        options=replace(base.options, text=text, inputs=inputs),
        optim=Optim(groups=groups, clip=1.0),
    )
    lora = replace(base.options.text, train="lora")  # stage 3 cannot cut up what DoRA reads
    base = replace(base, options=replace(base.options, text=lora))
    runs = [replace(run, zero_stage=stage) for run in (base, other) for stage in (0, 1, 2, 3)]
    (expected, *_) = run_ranks(1, tmp_path / "one", train_on_ranks, [base, other], 4)
    (found, *_) = run_ranks(2, tmp_path / "two", train_on_ranks, runs, 4)
    for place, result in enumerate(found):
        wanted = expected[place // 4]
        assert result["losses"] == pytest.approx(wanted["losses"], rel=1e-4), runs[place].zero_stage
        assert result["norms"] == pytest.approx(wanted["norms"], rel=1e-3)
        assert result["scores"] == pytest.approx(wanted["scores"], abs=1e-4)


def test_waiting_for_media_says_how_many_cores_would_keep_up(folder: Path):
    task: Any = build_task(run_of(folder, "none"))
    list(task.batches(0))
    assert task.train.reader.decode_seconds > 0
    task.waiting_remarks(0.0, 1.0)  # of this epoch
    task.train.reader.decode_seconds += 30.0
    (said,) = task.waiting_remarks(25.0, 40.0)
    assert said == (
        "62% of the epoch waited for data: decoding takes 30 s of a core and computing 15 s, so 2 "
        "cores for each rank would keep up"
    )
    assert task.waiting_remarks(25.0, 40.0) == []  # nothing was decoded since
    task.train.reader.decode_seconds += 30.0
    assert task.waiting_remarks(1.0, 40.0) == []


def test_stage_3_and_dora_are_refused_together(folder: Path):
    run = run_of(folder, "none", zero_stage=3)
    with pytest.raises(Refused, match=r"train=dora does not work with zero_stage=3.*train=lora"):
        refuse_impossible(run, gpu=True, dora=True)
