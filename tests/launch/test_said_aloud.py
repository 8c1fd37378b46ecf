"""What a run says of itself: losses that teach nothing, a missing teacher, answers that have
collapsed, exit codes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from paths import ROOT
from small_models import small_options, small_run

from core import command
from core.model import DataSpec, Model
from core.models import MODELS
from launch.checkpoints.progress import Progress
from launch.config import load_recipe
from launch.monitor.epoch_checks import warn_of_idle_losses
from launch.reports.run_log import RunLog
from launch.tasks.build import build_task
from launch.tasks.predictions import Predictions
from launch.tasks.sentiment import SentimentTask
from tune.workers.worker import epoch_result

FRAME_RECIPES = ["mosi", "mosei", "sims", "simsv2", "avec2019", "demo", "mosi_simam", "demo_simam"]


def warnings_after(model: Model, sums: dict[str, float], epoch: int, run_dir: Path) -> list[str]:
    """What the loop warns of after an epoch whose losses had these sums."""
    progress = Progress()
    progress.epoch, progress.epoch_steps, progress.sums = epoch, 3, sums
    model.begin_epoch(epoch)
    with RunLog(run_dir, quiet=True) as log:
        session: Any = SimpleNamespace(progress=progress, model=model, log=log)
        warn_of_idle_losses(session)
    events = map(json.loads, (run_dir / "log.jsonl").read_text().splitlines())
    return [event["text"] for event in events if event["kind"] == "warning"]


@pytest.mark.parametrize(
    ("name", "losses"),
    [
        ("tfr_net", ["rebuild_text", "rebuild_audio", "moments_vision"]),
        ("self_mm", ["text", "audio"]),
    ],
)
def test_losses_that_are_zero_all_epoch_are_named_unless_they_rest(
    name: str,
    losses: list[str],
    spec: DataSpec,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = MODELS[name](small_options(name), spec)
    sums = {"task": 2.0, **dict.fromkeys(losses, 0.0)}
    assert warnings_after(model, sums, 0, tmp_path) == []
    (said,) = warnings_after(model, sums, 1, tmp_path)
    assert f"in every step of epoch 2 these losses were 0: {', '.join(losses)}." in said
    assert f"warning: {said}" in capsys.readouterr().err
    assert len(warnings_after(model, dict.fromkeys(sums, 0.5), 2, tmp_path)) == 1  # none more


def test_any_loss_of_any_model_is_watched(spec: DataSpec, tmp_path: Path) -> None:
    model = MODELS["hscl"](small_options("hscl"), spec)
    (said,) = warnings_after(model, {"task": 1.0, "unimodal": 0.0}, 0, tmp_path)
    assert "unimodal" in said


@pytest.mark.parametrize("name", FRAME_RECIPES)
def test_recipes_of_tfr_net_have_something_to_rebuild(name: str) -> None:
    run = load_recipe(f"tfr_net/{name}")
    assert (run.missing.protocol, run.missing.rate) == ("frames", 0.2)
    assert run.options.simam == ("conv" if name.endswith("_simam") else "none")


def test_the_memory_as_printed_has_recipes() -> None:
    for name in ("mosi_printed", "demo_printed"):
        options = load_recipe(f"cenet/{name}").options
        assert options.memory_mode == "replace"
        plain = load_recipe(f"cenet/{name.removesuffix('_printed')}").options
        assert replace(options, memory_mode="residual") == plain


def test_tate_says_when_it_has_no_teacher(spec: DataSpec) -> None:
    (said,) = MODELS["tate"](small_options("tate"), spec).remarks()
    assert "without a teacher" in said
    assert "launch/distill.py" in said
    for options in (small_options("tate", teacher="folder"), small_options("tate", forward=0.0)):
        assert MODELS["tate"](options, spec).remarks() == []


@pytest.fixture
def signs(small_shards: Path) -> SentimentTask:
    run = small_run("tate", small_shards, classes="sign", metrics="classes", select="Macro_F1")
    task = build_task(replace(run, goal="max"))
    assert isinstance(task, SentimentTask)
    return task


@pytest.mark.parametrize("collapsed", [True, False])
def test_a_run_that_answers_one_class_for_all_says_so(
    collapsed: bool, signs: SentimentTask
) -> None:
    label = np.array([0.0, 1.0, 2.0, 2.0])
    logits = np.eye(3)[[2, 2, 2, 2] if collapsed else [0, 1, 2, 2]]
    remarks = signs._remarks(Predictions(np.arange(4), logits, label), "test")
    assert any("the model has collapsed: all 4 answers" in said for said in remarks) == collapsed


def test_only_metrics_count_as_scores_in_a_search() -> None:
    task = SimpleNamespace(objective=lambda scores: scores["MAE"])
    session: Any = SimpleNamespace(task=task)
    event = {"epoch": 2, "MAE": 0.5, "csls/MRR": 0.25, "loss_task": 1.0, "skipped_samples": 3.0}
    result = epoch_result(session, event | {"seconds": 2.0, "samples_per_second": 9.0}, last=True)
    assert result == {
        "epoch": 3,
        "objective": 0.5,
        "scores": {"MAE": 0.5, "csls/MRR": 0.25},
        "last": True,
    }


def test_the_readme_lists_every_exit_code() -> None:
    said = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    listed = said.split("Exit codes: ")[1].split("130")[0] + "130 "
    named = {
        value
        for name, value in vars(command).items()
        if name.isupper() and not name.startswith("_") and type(value) is int
    }
    assert len(named) >= 9
    assert {int(code) for code in re.findall(r"(?:^|, )(\d+) ", listed)} == named
