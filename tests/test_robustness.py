"""Scores over rates of missing data, and a student that learns under them from a teacher."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT, environment, events, scores

from core.metrics.robustness import auilc
from launch.config import ConfigError
from launch.robustness import main, parse_rates


def test_the_area_is_that_of_the_trapezoid_rule():
    assert auilc([0, 0.1, 0.2, 0.3], [0.8, 0.7, 0.6, 0.4]) == pytest.approx(0.19)
    assert auilc([0.0, 0.5], [1.0, 1.0]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="rise"):
        auilc([0, 0.2, 0.1], [1, 1, 1])


def test_rates_are_read_as_a_grid_or_a_list():
    assert parse_rates("0:1:0.1") == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
    assert parse_rates("0,0.3,0.5") == [0, 0.3, 0.5]
    for wrong in ("0:1:0", "a,b", "0.5", "0.2,0.1", "0,2"):
        with pytest.raises(ConfigError, match="rates="):
            parse_rates(wrong)


def test_one_run_is_scored_at_every_rate(finished: Path, tmp_path: Path):
    assert main([str(finished / "one"), "rates=0,0.5,1", f"out={tmp_path}"]) == 0
    body = json.loads((tmp_path / "robustness.json").read_text())
    (curve,) = body["curves"]
    at_zero = {name: values[0] for name, values in curve["scores"].items()}
    assert at_zero == pytest.approx(scores(finished / "one")["test"], abs=1e-9)
    assert curve["scores"]["MAE"][0] != curve["scores"]["MAE"][1]
    assert curve["auilc"]["MAE"] == pytest.approx(auilc([0, 0.5, 1], curve["scores"]["MAE"]))
    assert set(body["floors"]) == {"median", "negative", "positive"}
    assert "AUILC" in (tmp_path / "robustness.md").read_text()
    assert (tmp_path / "robustness.png").stat().st_size > 5000


def test_a_teacher_on_complete_data_comes_before_its_student(small_shards: Path, tmp_path: Path):
    small = ["epochs=1", "options.width=16", "options.text.width=16", "missing.rate=0.5"]
    done = subprocess.run(
        [sys.executable, "-m", "launch.teach", "tate/demo", f"data={small_shards}", f"run_dir={tmp_path}", *small],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "teacher" / "weights.safetensors").is_file()
    assert "loss_forward" not in events(tmp_path / "teacher" / "run", "train")[0]
    assert events(tmp_path, "train")[0]["loss_forward"] > 0
    assert json.loads((tmp_path / "config.json").read_text())["run"]["missing"]["rate"] == 0.5
    assert scores(tmp_path)["test"]["MAE"] > 0
