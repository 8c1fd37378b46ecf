"""What is refused in a file of settings, a log or a search names that file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import concord
from core.command import Refused
from launch.command_line import expand
from launch.config import ConfigError, load_recipe, override
from launch.export import _scores
from launch.reports.event_log import read_events
from tune.settings import load_search, read_search, write_search


@pytest.mark.parametrize(
    ("name", "body", "problem"),
    [
        ("settings.json", '{"batch_size": "many"}', "batch_size='many'"),
        ("settings.json", '{"optim": {"groups": 3}}', "optim.groups=3"),
        ("settings.json", '{"batchsize": 8}', "no option 'batchsize'"),
        ("lines", "seed=3\nepochs=none\n", "epochs='none'"),
    ],
)
def test_a_setting_from_a_file_is_refused_with_the_file(
    tmp_path: Path, name: str, body: str, problem: str
):
    (tmp_path / name).write_text(body)
    with pytest.raises(ConfigError, match=f"{name}\\)$") as refused:
        override(load_recipe("hscl/demo"), expand([f"@{tmp_path / name}", "keep=3"]))
    assert str(refused.value).startswith(problem)


def test_a_setting_of_the_command_line_is_not_blamed_on_the_file(tmp_path: Path):
    (tmp_path / "lines").write_text("seed=3\n")
    with pytest.raises(ConfigError) as refused:
        override(load_recipe("hscl/demo"), expand([f"@{tmp_path / 'lines'}", "seed=x"]))
    assert "lines" not in str(refused.value)


def test_a_long_value_is_not_repeated_whole():
    with pytest.raises(ConfigError) as refused:
        override(load_recipe("hscl/demo"), [f"batch_size={'9' * 4000}"])
    assert len(str(refused.value)) < 300


def test_half_a_line_of_a_log_is_passed_over_and_no_event_refused(tmp_path: Path):
    event = {"kind": "epoch", "step": 3}
    log = tmp_path / "log.jsonl"
    log.write_bytes(json.dumps(event).encode() + b'\n{"kind": "ep\xff')
    assert read_events(tmp_path) == {"epoch": [event]}
    log.write_text(json.dumps(event) + '\n{"step": 4}\n')
    with pytest.raises(ConfigError, match="log.jsonl, line 2"):
        read_events(tmp_path)


def test_a_search_whose_changes_no_longer_fit_names_its_file(tmp_path: Path):
    words = ["hscl/demo", "data=shards", f"run_dir={tmp_path / 'search'}"]
    write_search(read_search(words))
    path = tmp_path / "search" / "search.json"
    content = json.loads(path.read_text())
    for odd, reason in (
        ({"changes": {"epochs": "many"}}, "epochs='many'"),
        ({"trials": 0}, "trials=0: at least 1"),
        ({"trials": "x" * 5000}, "trials=x{80}:"),
        ({"cpus": 0}, "cpus=0: a process needs some part of a CPU"),
        ({"\ud800": 3}, "settings="),
        ({"recipe": None}, "recipe=None: "),
    ):
        path.write_text(json.dumps(content | odd))
        with pytest.raises(ConfigError, match=f"search.json cannot be read: .*{reason}"):
            load_search(tmp_path / "search")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('{"test": {"\\ud800": 1.0}}', "is no name of a score"),
        ('{"\\u0000": {"MAE": 1.0}}', "is no name of a score"),
        ('{"test": {"MAE": "low"}}', "test.MAE is no score"),
        ('{"test": 3}', "test is no score"),
        ("[1]", "holds a list"),
    ],
)
def test_odd_scores_of_a_run_are_not_exported(tmp_path: Path, body: str, problem: str):
    (tmp_path / "scores.json").write_text(body)
    with pytest.raises(Refused, match=f"scores.json.*{problem}"):
        _scores(tmp_path)


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[1]"])
def test_a_config_that_is_none_is_named_when_it_is_loaded(tmp_path: Path, body: bytes):
    (tmp_path / "config.json").write_bytes(body)
    with pytest.raises(ValueError, match="config.json"):
        concord.load(tmp_path)
