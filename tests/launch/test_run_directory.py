"""A run's directory: what is written when, where its data are, and a start that fails."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_models import small_run

from data_shards.shards.manifest import DataError
from launch.config import ConfigError, Run, load_recipe, to_dict
from launch.evaluate import read_run
from launch.monitor.preemption import Stop
from launch.run_directory import find_run, record_run
from launch.session import prepare


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return replace(
        load_recipe("hscl/demo"), data=str(tmp_path / "shards"), run_dir=str(tmp_path / "run")
    )


def recorded(run: Run) -> Path:
    found, run_dir = find_run(run)
    run_dir.mkdir()
    record_run(found, run_dir)
    return run_dir


def test_a_local_folder_is_kept_as_an_absolute_path_and_a_url_as_it_is(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    folder = recorded(replace(run, data="shards"))
    assert read_run(folder).data == str(tmp_path / "shards")
    assert find_run(replace(run, data="s3://bucket/mosi", run_dir="other"))[0].data == (
        "s3://bucket/mosi"
    )


def test_a_directory_with_relative_data_still_opens(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    folder = recorded(run)
    body = json.loads((folder / "config.json").read_text())
    body["run"]["data"] = "shards"  # as earlier versions wrote it
    (folder / "config.json").write_text(json.dumps(body))
    assert find_run(replace(run, data="shards"))[1] == folder
    assert read_run(folder).data == "shards"


def test_a_directory_of_an_earlier_version_goes_on(run: Run):
    folder = recorded(run)
    body = json.loads((folder / "config.json").read_text())
    settings = body["run"]
    settings["on_damage"] = settings.pop("on_corrupt")
    settings["damage_budget"] = settings.pop("max_skipped_fraction")
    settings["missing"]["modalities"] = ["text", "audio", "vision"]
    settings["options"]["projection"] = settings["options"].pop("projection_width")
    del settings["loading"]["empty"], settings["roles"], settings["threads"]
    (folder / "config.json").write_text(json.dumps(body))
    assert find_run(run)[1] == folder
    with pytest.raises(ConfigError, match="another missing"):
        find_run(replace(run, missing=replace(run.missing, modalities=("audio",))))


def test_another_run_is_refused_and_the_same_goes_on(run: Run):
    folder = recorded(run)
    assert to_dict(find_run(run)[0]) == to_dict(read_run(folder))
    find_run(replace(run, zero_stage=3, save_every=7))  # where it computes may change
    with pytest.raises(ConfigError, match="holds a run with another batch_size, epochs"):
        find_run(replace(run, batch_size=7, epochs=3))


def test_a_start_that_fails_does_not_block_the_corrected_command(
    small_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Stop, "listen", lambda self: self)  # leaves the tests' signals alone
    good = replace(small_run("hscl", small_shards), run_dir=str(tmp_path / "run"))
    with pytest.raises(DataError), prepare(replace(good, data=str(tmp_path / "nowhere"))):
        pass
    assert not (tmp_path / "run").exists()

    def refuse(*_: object) -> None:
        raise ConfigError("no such model")

    monkeypatch.setattr("launch.session.build_model", refuse)
    with pytest.raises(ConfigError, match="no such model"), prepare(replace(good, epochs=2)):
        pass
    assert not (tmp_path / "run").exists()
    assert find_run(good)[1] == tmp_path / "run"
