"""Scores over rates of missing data, and a student that learns under them from a teacher."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from training_runs import ROOT, environment, events, scores

from core.metrics.regression import auilc
from launch.config import ConfigError
from launch.evaluate import read_run
from launch.robustness import main, parse_rates, usual_rates


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


def test_areas_of_sims_end_at_one_half(finished: Path):
    run = read_run(finished / "one")
    assert usual_rates(run) == parse_rates("0:1:0.1")
    assert usual_rates(replace(run, metrics="sims")) == [0, 0.1, 0.2, 0.3, 0.4, 0.5]


def test_one_run_is_scored_at_every_rate(finished: Path, tmp_path: Path):
    assert main([str(finished / "one"), "rates=0,0.5,1", f"out={tmp_path}"]) == 0
    body = json.loads((tmp_path / "robustness.json").read_text())
    (curve,) = body["curves"]
    at_zero = {name: values[0] for name, values in curve["scores"].items()}
    assert at_zero == pytest.approx(scores(finished / "one")["test"], abs=1e-9)
    assert curve["scores"]["MAE"][0] != curve["scores"]["MAE"][1]
    assert curve["auilc"]["MAE"] == pytest.approx(auilc([0, 0.5, 1], curve["scores"]["MAE"]))
    assert curve["means"]["MAE"] == pytest.approx(sum(curve["scores"]["MAE"][:2]) / 2)
    assert set(body["floors"]) == {"median", "negative", "positive"}
    assert "AUILC" in (tmp_path / "robustness.md").read_text()
    assert (tmp_path / "robustness.png").stat().st_size > 5000


def run_of_a_rate(run_dir: Path, copy: Path, rate: float) -> None:
    """A finished run as if it had been trained with ``rate`` of its frames missing."""
    shutil.copytree(run_dir, copy)
    config = json.loads((copy / "config.json").read_text())
    config["run"]["missing"] |= {"protocol": "frames", "rate": rate}
    config["run"]["run_dir"] = str(copy)
    (copy / "config.json").write_text(json.dumps(config))


def test_runs_of_several_rates_make_a_curve_and_several_curves_a_picture(
    finished: Path, tmp_path: Path
):
    for model in ("one", "other"):
        for rate in (0.0, 0.5):
            run_of_a_rate(finished / model, tmp_path / model / f"{rate}", rate)
    folders = [str(tmp_path / model) for model in ("one", "other")]
    assert main([*folders, "protocol=A", f"out={tmp_path / 'found'}"]) == 0
    body = json.loads((tmp_path / "found" / "robustness.json").read_text())
    assert [(curve["name"], curve["rates"]) for curve in body["curves"]] == [
        ("one", [0, 0.5]),
        ("other", [0, 0.5]),
    ]
    for curve in body["curves"]:
        first, second = curve["scores"]["MAE"]
        assert first == pytest.approx(scores(finished / curve["name"])["test"]["MAE"], abs=1e-9)
        assert first != second
    assert (tmp_path / "found" / "robustness.md").read_text().count("the area's width is 0.5") == 2


def test_what_cannot_be_compared_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert (
        main([str(finished / "one"), str(finished / "signs"), "rates=0,1", f"out={tmp_path}"]) == 2
    )
    assert "signs has other scores than one" in capsys.readouterr().err
    assert main([str(tmp_path), "protocol=A"]) == 2
    assert "needs runs of two or more rates" in capsys.readouterr().err
    assert main([str(finished / "one"), "protocol=C"]) == 2
    assert "neither A" in capsys.readouterr().err


def test_a_teacher_on_complete_data_comes_before_its_student(small_shards: Path, tmp_path: Path):
    small = ["epochs=1", "options.width=16", "options.text.width=16", "missing.rate=0.5"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "launch.distill",
            "tate/demo",
            f"data={small_shards}",
            f"run_dir={tmp_path}",
            *small,
        ],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "teacher" / "weights.safetensors").is_file()
    assert "loss_forward" not in events(tmp_path / "teacher" / "run", "train")[0]
    assert events(tmp_path, "train")[0]["loss_forward"] > 0
    assert json.loads((tmp_path / "config.json").read_text())["run"]["missing"]["rate"] == 0.5
    assert scores(tmp_path)["test"]["MAE"] > 0
