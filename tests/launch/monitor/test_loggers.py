"""Services that a run's numbers go to: what they are told, and that none of them can end a training."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from small_models import small_words
from training_runs import train

from core.command import Refused
from launch.config import ConfigError, load_recipe, override
from launch.reports.loggers import interface
from launch.reports.loggers.interface import artefacts_of, open_loggers
from launch.reports.run_log import RunLog

HAS_BOTH = find_spec("wandb") is not None and find_spec("mlflow") is not None


class Heard:
    """A service that remembers, and fails when it is told to."""

    def __init__(self) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []
        self.kept: list[str] = []
        self.closed = False
        self.failure: Exception | None = None

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        if self.failure is not None:
            raise self.failure
        self.told.append((step, dict(values)))

    def files(self, paths: Sequence[Path]) -> None:
        self.kept += [path.name for path in paths]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    service = Heard()
    monkeypatch.setattr(
        "launch.reports.run_log.open_loggers", lambda run, run_dir: {"wandb": service}
    )
    return service


def test_services_hear_the_names_of_tensorboard(heard: Heard, tmp_path: Path):
    run = load_recipe("hscl/demo")
    with RunLog(tmp_path, run=run) as log:
        log.event("epoch", 3, {"MAE": 0.5, "best": True, "text": "words", "steps": 2})
        log.event("warning", 3, {"text": "words"})
        (tmp_path / "scores.json").write_text("{}")
        log.keep_files(artefacts_of(tmp_path))
    assert heard.told == [(3, {"epoch/MAE": 0.5, "epoch/steps": 2.0})]
    assert heard.kept == ["scores.json"]
    assert heard.closed


def test_a_service_that_fails_is_said_and_left_out(heard: Heard, tmp_path: Path, capsys):
    run = load_recipe("hscl/demo")
    with RunLog(tmp_path, run=run) as log:
        heard.failure = ConnectionError("https://me:geheim@host.example is gone")
        log.event("epoch", 1, {"MAE": 0.5})
        heard.failure = None
        log.event("epoch", 2, {"MAE": 0.4})
    assert heard.told == []
    said = capsys.readouterr().err
    assert said.count("log=wandb failed") == 1
    assert "geheim" not in said
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_without_its_package_a_service_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, interface.HOMES[name][0], raising=False)
    run = override(load_recipe("hscl/demo"), [f"log={name}"])
    with pytest.raises(Refused, match=rf"log={name} needs a package"):
        open_loggers(run, tmp_path)


def test_other_names_are_refused_where_settings_are_read():
    with pytest.raises(ConfigError, match="log"):
        override(load_recipe("hscl/demo"), ["log=aim"])
    assert replace(load_recipe("hscl/demo")).log == ()


@pytest.mark.slow
@pytest.mark.skipif(not HAS_BOTH, reason="needs the extra log")
def test_both_services_keep_a_run_without_a_network(
    small_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # for what reads it back, below
    run_dir = tmp_path / "runs" / "one"
    words = ["hscl/demo", f"data={small_shards}", *small_words("hscl"), "log=wandb,mlflow"]
    words += [f"run_dir={run_dir}"]
    for attempt in (1, 2):  # the second finds the run ended, there and here
        done = train(*words, "epochs=1", WANDB_MODE="offline")
        assert done.returncode == 0, done.stderr
        assert "failed, and gets nothing more" not in done.stderr, attempt
    from mlflow.tracking import MlflowClient

    record = json.loads((run_dir / "mlflow.json").read_text())
    client = MlflowClient(tracking_uri=record["address"])
    kept = client.get_run(record["id"])
    scores = json.loads((run_dir / "scores.json").read_text())["test"]
    assert kept.data.metrics["test/MAE"] == pytest.approx(scores["MAE"])
    assert kept.data.params["seed"] == "1111"
    assert "report.html" in {file.path for file in client.list_artifacts(record["id"])}
    assert list((run_dir / "wandb").glob("offline-run-*/run-*.wandb"))
