"""Training as a user starts it: the files it leaves, one process and two, going on, and every
refusal."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ranks import free_port
from small_models import small_words
from training_runs import LONG, ROOT, command, environment, events, losses, scores, train

SMALL = small_words("hscl")


@pytest.fixture(scope="module")
def one(finished: Path) -> Path:
    """A finished run of two epochs by one process."""
    return finished / "one"


def test_a_run_leaves_everything_in_its_folder(one: Path):
    for name in (
        "config.json",
        "log.jsonl",
        "scores.json",
        "predictions.csv",
        "report.md",
        "tensorboard",
    ):
        assert (one / name).exists(), name
    config = json.loads((one / "config.json").read_text())
    assert config["run"]["recipe"] == "hscl/demo"
    assert config["provenance"]["packages"]["torch"]
    assert {"valid", "test"} == set(scores(one))
    report = (one / "report.md").read_text()
    assert "synthetic" in report
    for picture in one.glob("*.png"):
        assert f"({picture.name})" in report
    assert list(one.glob("tensorboard/events.*"))


def test_predictions_give_the_scores_again(one: Path, small_shards: Path):
    table = pd.read_csv(one / "predictions.csv")
    said = scores(one)["test"]
    assert table.id.is_unique
    assert np.abs(table.prediction - table.label).mean() == pytest.approx(said["MAE"], abs=1e-6)
    assert np.corrcoef(table.prediction, table.label)[0, 1] == pytest.approx(said["Corr"], abs=1e-6)


def test_evaluation_from_the_checkpoint_alone_gives_the_same_scores(one: Path):
    from launch.evaluate import evaluate

    again = evaluate(one, [], "test")
    assert again == pytest.approx(scores(one)["test"], abs=1e-9)


def test_two_processes_train_to_the_same_losses_and_scores(
    one: Path, small_shards: Path, tmp_path: Path
):
    run_dir = tmp_path / "two"
    arguments = ["hscl/demo", f"data={small_shards}", f"run_dir={run_dir}", *SMALL, "epochs=2"]
    launcher = ["--num_gpus", "2", "--master_port", str(free_port())]
    done = subprocess.run(
        ["deepspeed", *launcher, "launch/train.py", *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert losses(run_dir)[:20] == pytest.approx(losses(one)[:20], rel=1e-4)
    for split, values in scores(one).items():
        assert scores(run_dir)[split] == pytest.approx(values, abs=5e-4)


def test_the_same_seed_gives_the_same_result_and_another_seed_another(finished: Path, one: Path):
    assert losses(finished / "same") == losses(one)
    assert scores(finished / "same") == scores(one)
    assert losses(finished / "other") != losses(one)


def test_interrupting_saves_and_the_same_command_goes_on_to_the_same_end(
    finished: Path, small_shards: Path, tmp_path: Path
):
    whole = finished / "long"
    run_dir = f"run_dir={tmp_path / 'cut'}"
    arguments = ["hscl/demo", f"data={small_shards}", run_dir, *SMALL, *LONG]
    process = subprocess.Popen(
        command(*arguments), cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "cut" / "log.jsonl"
    while process.poll() is None and not (log.is_file() and log.read_text().count("\n") >= 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 75, said
    assert "goes on from here" in said
    assert "Traceback" not in said
    assert not (tmp_path / "cut" / "scores.json").exists()
    taken = len(events(tmp_path / "cut", "train"))
    done = train(*arguments)
    assert done.returncode == 0, done.stderr
    assert "going on at epoch" in done.stderr
    assert 0 < taken < len(losses(whole))
    assert losses(tmp_path / "cut") == losses(whole)
    assert scores(tmp_path / "cut") == scores(whole)


REFUSALS = {
    "recipe": (["hscl/dmeo", "data={shards}"], "did you mean 'hscl/demo'"),
    "key": (["hscl/demo", "data={shards}", "epoch=3"], "did you mean 'epochs'"),
    "no data": (["hscl/demo"], "data=DIR"),
    "no folder": (["hscl/demo", "data={shards}/nowhere"], "data_shards.convert"),
    "select": (
        ["hscl/demo", "data={shards}", "select=MEA"],
        "is no score of metrics=mosi; there are MAE",
    ),
    "deepspeed file": (
        ["hscl/demo", "data={shards}", "deepspeed={contradiction}"],
        "train_batch_size = 7",
    ),
    "modality": (["hscl/demo", "data={shards}", "options.modalities=text,smell"], "smell"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_run_ends_with_one_line_that_says_why(
    case: str, small_shards: Path, tmp_path: Path, capfd
):
    from launch.train import main

    arguments, message = REFUSALS[case]
    contradiction = tmp_path / "deepspeed.json"
    contradiction.write_text(json.dumps({"train_batch_size": 7}))
    arguments = [
        word.format(shards=small_shards, contradiction=contradiction) for word in arguments
    ]
    assert main([*arguments, f"run_dir={tmp_path / 'run'}"]) == 2
    said = capfd.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "scores.json").exists()
    assert not torch.distributed.is_initialized()


def test_a_damaged_shard_ends_training_with_its_name(small_shards: Path, tmp_path: Path):
    damaged = tmp_path / "shards"
    shutil.copytree(small_shards, damaged)
    tar = next(damaged.glob("train-*.tar"))
    body = bytearray(tar.read_bytes())
    body[len(body) // 2] ^= 1
    tar.write_bytes(body)
    done = train("hscl/demo", f"data={damaged}", f"run_dir={tmp_path / 'run'}", *SMALL, "epochs=1")
    assert done.returncode == 2
    assert tar.name in done.stderr
    assert "Traceback" not in done.stderr


def test_another_run_is_not_overwritten(one: Path, small_shards: Path):
    before = (one / "scores.json").read_text()
    done = train(
        "hscl/demo", f"data={small_shards}", f"run_dir={one}", *SMALL, "epochs=2", "batch_size=8"
    )
    assert done.returncode == 2
    assert "another batch_size" in done.stderr
    assert (one / "scores.json").read_text() == before


def test_a_deepspeed_file_fills_in_what_it_says(finished: Path, one: Path):
    assert losses(finished / "zero2") == pytest.approx(losses(one), rel=1e-4)


def test_scores_can_be_learnt_as_classes_of_their_signs(finished: Path):
    table = pd.read_csv(finished / "signs" / "predictions.csv")
    assert set(table.label) <= {"negative", "neutral", "positive"}
    said = scores(finished / "signs")["test"]
    assert (table.label == table.prediction).mean() == pytest.approx(said["Accuracy"])
    assert table.filter(like="p_").sum(axis=1).to_numpy() == pytest.approx(np.ones(len(table)))
