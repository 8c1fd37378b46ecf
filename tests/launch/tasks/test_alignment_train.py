"""Alignment as a user runs it: convert, train on one and two processes, evaluate, write the
pairs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from graph_folder import SECOND, write_folder
from training_runs import ROOT, environment, losses, scores, train

CHANGES = [
    "epochs=5",
    "batch_size=7",
    "options.hidden=12",
    "options.feedforward=16",
    "optim.step_epochs=3",
    "task_options.iterate_from=1",
    "task_options.propose_every=1",
    "task_options.restart_every=3",
    "task_options.commit_every=3",
]


def call(module: str, *arguments: str) -> str:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_commands_train_score_and_align_the_same_on_any_number_of_processes(
    tmp_path: Path,
) -> None:
    shards = tmp_path / "shards"
    call(
        "data_shards.convert",
        str(write_folder(tmp_path / "raw")),
        "--out",
        str(shards),
        "--train-ratio",
        "0.5",
    )
    runs = [tmp_path / "one", tmp_path / "two"]
    for processes, run_dir in enumerate(runs, 1):
        recipe = "meaformer/dbp15k_zh_en_iterative"
        done = train(recipe, f"data={shards}", f"run_dir={run_dir}", *CHANGES, processes=processes)
        assert done.returncode == 0, done.stderr
        assert "links and trained on them" in (run_dir / "report.md").read_text(encoding="utf-8")
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=1e-4)
    assert scores(runs[1])["test"] == pytest.approx(scores(runs[0])["test"], abs=1e-3)

    again = call("launch.evaluate", str(runs[0]))
    assert json.loads(again[again.index("{") :])["test"] == pytest.approx(scores(runs[0])["test"])
    for method in ("mutual", "assignment"):
        out = tmp_path / f"{method}.csv"
        call(
            "launch.align",
            str(runs[0]),
            "--out",
            str(out),
            "--method",
            method,
            "--entities",
            "test",
        )
        pairs = pd.read_csv(out)
        assert pairs["left"].is_unique
        assert pairs["right"].is_unique
        assert pairs["similarity"].is_monotonic_decreasing
        assert (pairs["right"] == pairs["left"] + SECOND).mean() > 0.8
