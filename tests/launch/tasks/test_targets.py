"""Several scores per sample in one run: from the columns of a table to losses, metrics and the
report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from raw_tables import write_json
from small_models import SENTIMENT, small_options, small_run, small_words
from training_runs import train_in_turn

from core.losses.labels import task_loss
from core.metrics.regression import scores
from core.model import DataSpec
from data_shards.codebook import write as write_codebook
from data_shards.convert import convert, main
from data_shards.inspect import main as inspect
from data_shards.shards.manifest import DataError, Labels, read_manifest
from data_shards.sources.raw_dataset import Options
from data_shards.sources.table_targets import parse_targets
from launch.config import ConfigError, Run, override
from launch.tasks.build import build_model, build_task
from launch.tasks.target_scores import target_baselines, target_collapses, target_scores

TARGETS = ("joy", "anger", "fear")
NEED_HUMAN_LABELS = ("mlf_dnn", "mlmf", "mtfn")
SAMPLES = 40


def written(folder: Path, **changes: Any) -> Path:
    """A table whose sound says all three targets; ``changes`` are cells of its sixth row, None for
    an empty one."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 10, (SAMPLES, 3)) / 3
    sound = np.concatenate([values, rng.normal(size=(SAMPLES, 2))], axis=1)
    np.save(folder / "audio.npy", sound.astype(np.float32)[:, None].repeat(3, 1))
    np.save(folder / "vision.npy", rng.normal(size=(SAMPLES, 2, 4)).astype(np.float32))
    rows = []
    for number in range(SAMPLES):
        row = {
            "id": f"s{number}",
            "split": ("train", "train", "valid", "test")[number % 4],
            **dict(zip(TARGETS, values[number].tolist(), strict=True)),
            "tokens": [2, 5, 6, 3],
            "audio": f"audio.npy[{number}]",
            "vision": f"vision.npy[{number}]",
        }
        rows.append(row | (changes if number == 5 else {}))
    return write_json(rows, folder / "emotions.jsonl")


def converted(folder: Path, **changes: Any) -> Path:
    options = Options(labels=Labels(low=0, high=3, resolution=1 / 3), targets=TARGETS)
    convert(written(folder, **changes), folder / "shards", options)
    return folder / "shards"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = converted(tmp_path_factory.mktemp("targets"))
    write_codebook(folder, clusters=4)
    return folder


def run_of(shards: Path, *changes: str) -> Run:
    return override(small_run("baseline", shards), ["metrics=phq", *changes])


def test_columns_become_one_label(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(shards)
    assert manifest.fields["label"].shape == (3,)
    assert manifest.labels.names == TARGETS
    task = build_task(run_of(shards))
    assert task.data.target_names == TARGETS
    assert task.data.num_outputs == 3
    batch: Any = next(iter(task.batches(0)))[0]
    assert batch.label.shape == (13, 3)
    sound = batch.frames["audio"][:, 0, :3]
    torch.testing.assert_close(batch.label, sound)  # each number in its place
    assert inspect([str(shards)]) == 0
    said = capsys.readouterr().out
    assert "scores from 0 to 3, annotated in steps of 0.333, of 3 targets: joy, anger, fear" in said
    assert "fear    test" in said


def test_the_command_takes_targets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, out = written(tmp_path), tmp_path / "out"
    words = [str(table), "--out", str(out), "--labels", "0:3", "--targets", "joy, fear"]
    assert main(words) == 0
    assert read_manifest(out).labels.names == ("joy", "fear")
    assert main([*words[:-1], "joy", "--force"]) == 2
    assert "name two or more columns" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fear": None}, "no number in 'fear', which --targets names"),
        ({"anger": 3.5}, "anger: 3.5 is outside the label range 0 to 3"),
        ({"joy": "much"}, "joy: 'much'"),
        ({"label": 1.0}, "has a 'label' beside the columns of --targets"),
    ],
)
def test_rows_without_all_numbers_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="line 6 .*'s5'") as refused:
        converted(tmp_path, **changes)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "text", ["joy", "joy,joy", "joy,label_text", "joy,text", "joy,a b", "joy,"]
)
def test_targets_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="--targets"):
        parse_targets(text)


def test_only_a_table_has_columns_of_targets(tmp_path: Path) -> None:
    from data_shards.synthetic import write

    write(tmp_path / "made.pkl", 20)
    with pytest.raises(DataError, match="is no table, and --targets names columns of one"):
        convert(tmp_path / "made.pkl", tmp_path / "out", Options(targets=TARGETS))


def test_the_loss_is_the_mean_over_targets() -> None:
    score, label = torch.randn(5, 3), torch.randn(5, 3)
    torch.testing.assert_close(task_loss(score, label), (score - label).abs().mean(1))
    torch.testing.assert_close(task_loss(score, label, True), (score - label).square().mean(1))


def refusal_of(run: Run, data: DataSpec) -> str:
    """What is said when the model cannot be built; empty where it can."""
    try:
        build_model(run, data)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("model", SENTIMENT)
def test_a_model_answers_all_targets(model: str, shards: Path) -> None:
    run = replace(run_of(shards), model=model, options=small_options(model))
    task = build_task(run)
    said = refusal_of(run, task.data)
    if model in NEED_HUMAN_LABELS:
        assert "learns from human labels of" in said
        return
    assert not said
    network = build_model(run, task.data)
    batch: Any = next(iter(task.batches(0)))[0]
    batch = replace(batch, loss_denominators=network.loss_denominators(batch))
    output = network(batch)
    assert output.score.shape == (13, 3)
    losses = network.losses(output, batch)
    squared = getattr(run.options, "squared", False)
    errors = (
        (output.score - batch.label).square() if squared else (output.score - batch.label).abs()
    )
    torch.testing.assert_close(losses["task"], batch.mean(errors.mean(1)))


def test_scores_are_of_each_target_and_their_mean() -> None:
    rng = np.random.default_rng(1)
    label, prediction = rng.uniform(0, 3, (20, 3)), rng.uniform(0, 3, (20, 3))
    found = target_scores(prediction, label, "phq", TARGETS)
    for number, target in enumerate(TARGETS):
        for name, value in scores(prediction[:, number], label[:, number], "phq").items():
            assert found[f"{target}/{name}"] == value
    assert found["MAE"] == pytest.approx(np.abs(prediction - label).mean())
    mean = target_baselines(label, "phq", TARGETS)["mean"]
    assert mean["MAE"] == pytest.approx(np.abs(label - label.mean(0)).mean())
    prediction[:, 1] = 1.0
    (warning,) = target_collapses(prediction, label, "phq", TARGETS)
    assert warning.startswith("anger: the model has collapsed")


@pytest.mark.parametrize("changes", [["metrics=classes", "select=Accuracy"], ["classes=sign"]])
def test_targets_are_no_classes(changes: Sequence[str], shards: Path) -> None:
    with pytest.raises(ConfigError, match="targets joy, anger, fear"):
        build_task(run_of(shards, *changes))


def test_a_run_learns_all_of_them_and_reports_each(shards: Path, tmp_path: Path) -> None:
    words = ["baseline/demo", f"data={shards}", f"run_dir={tmp_path / 'run'}", "epochs=2"]
    settings = ["metrics=phq", "select=fear/MAE", "batch_size=10", *small_words("baseline")]
    train_in_turn([*words, *settings])
    said = json.loads((tmp_path / "run" / "scores.json").read_text())["test"]
    table = pd.read_csv(tmp_path / "run" / "predictions.csv")
    errors = {t: np.abs(table[f"prediction_{t}"] - table[f"label_{t}"]).mean() for t in TARGETS}
    assert {t: said[f"{t}/MAE"] for t in TARGETS} == pytest.approx(errors, abs=1e-6)
    assert said["MAE"] == pytest.approx(np.mean(list(errors.values())), abs=1e-6)
    report = (tmp_path / "run" / "report.md").read_text()
    assert "| target | MAE | RMSE | CCC | Corr |" in report
    assert f"| anger | {said['anger/MAE']:.4f} |" in report
    assert "(test_targets.png)" in report
