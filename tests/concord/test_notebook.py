"""Training and loading from Python."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_models import small_words
from training_runs import scores

import concord
from launch.config import ConfigError


def test_training_returns_the_scores_and_the_run_loads(small_shards: Path, tmp_path: Path):
    folder = tmp_path / "run"
    returned = concord.train(
        "hscl/demo", *small_words("hscl"), "epochs=1", data=str(small_shards), run_dir=str(folder)
    )
    assert returned == scores(folder)
    model, data = concord.load(folder)
    assert not model.training
    assert data.features.keys() == {"text", "audio", "vision"}
    from launch.export import main as export

    assert export([str(folder), "--out", str(tmp_path / "bundle")]) == 0
    again, _ = concord.load(tmp_path / "bundle")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)


def test_wrong_words_are_refused_before_anything_starts():
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        concord.train("hscl/demo", epoch=3)
    with pytest.raises(ConfigError, match="no recipe"):
        concord.train("hscl/dmo")


def test_a_refusal_of_the_training_is_an_error_here(tmp_path: Path):
    with pytest.raises(concord.TrainingFailed, match=r"exit code 2: error: .*manifest") as failed:
        concord.train("hscl/demo", data=str(tmp_path / "nowhere"), run_dir=str(tmp_path / "run"))
    assert failed.value.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_neither_run_nor_bundle_is_said(tmp_path: Path):
    with pytest.raises(ValueError, match="holds no exported model"):
        concord.load(tmp_path)
