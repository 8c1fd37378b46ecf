"""A study as a user starts it: killed while it trains, it goes on and repeats nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from paths import ROOT
from small_models import small_words
from training_runs import environment, events, scores

ROWS = ("first", "other", "first-again")


def begin(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tune.studies.study", *words],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(path: Path, study: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 600
    while not path.exists():
        assert study.poll() is None, study.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture(scope="module")
def killed(
    small_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, list[int], dict[str, int]]:
    """The folder of a study that was killed in its second run and called again; what it said then;
    its processes when it was killed; and when the files of its first run were written."""
    folder = tmp_path_factory.mktemp("study")
    rows = "\n".join(f'[[rows]]\nname = "{name}"' for name in ROWS)
    rows = rows.replace('"other"', '"other"\n[rows.changes]\n"options.unimodal" = false\n')
    settings = small_words("hscl")
    (folder / "own.toml").write_text(f'title = "Own"\nrecipe = "hscl/demo"\n{rows}\n')
    out = folder / "out"
    words = [str(folder / "own.toml"), f"data={small_shards}", "seeds=3", "epochs=2", *settings]
    words += [f"run_dir={out}", "save_every=1"]
    study = begin(words)
    try:
        wait_for(out / "runs" / "other" / "3" / "checkpoints" / "last", study)
        processes = [child.pid for child in psutil.Process(study.pid).children(recursive=True)]
    finally:
        study.kill()
        study.communicate()
    first = out / "runs" / "first" / "3"
    written = {path.name: path.stat().st_mtime_ns for path in first.iterdir() if path.is_file()}
    again = begin(words)
    said, _ = again.communicate(timeout=600)
    assert again.returncode == 0, said
    return out, said, processes, written


def test_a_killed_study_takes_its_processes_along(killed):
    _, _, processes, _ = killed
    assert processes
    until = time.monotonic() + 60
    while any(psutil.pid_exists(pid) for pid in processes):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_it_goes_on_and_repeats_no_finished_run(killed):
    out, said, _, written = killed
    assert "3 runs, 1 are done" in said
    first = out / "runs" / "first" / "3"
    after = {path.name: path.stat().st_mtime_ns for path in first.iterdir() if path.is_file()}
    assert after == written
    assert "going on at" in (out / "workers" / "0" / "output.log").read_text()


def test_runs_in_one_process_do_not_depend_on_those_before(killed):
    out, _, _, _ = killed
    runs = out / "runs"
    assert scores(runs / "first" / "3") == scores(runs / "first-again" / "3")
    one = [event["loss"] for event in events(runs / "first" / "3", "train")]
    same = [event["loss"] for event in events(runs / "first-again" / "3", "train")]
    assert one == same
    assert scores(runs / "other" / "3") != scores(runs / "first" / "3")


def test_each_run_is_a_normal_run_directory(killed):
    out, _, _, _ = killed
    for name in ROWS:
        run = out / "runs" / name / "3"
        for file in ("config.json", "report.md", "report.html", "predictions.csv"):
            assert (run / file).is_file()
        command = json.loads((run / "config.json").read_text())["provenance"]["command"]
        assert command[:2] == ["launch.train", "hscl/demo"]


def test_the_table_is_there(killed):
    out, said, _, _ = killed
    assert "| first-again | 1 |" in said
    for file in ("table.md", "table.csv", "table.tex", "runs.csv", "report.html", "study.json"):
        assert (out / file).is_file()


@pytest.mark.slow
def test_what_cannot_train_is_named_and_the_others_are_trained(small_shards: Path, tmp_path: Path):
    text = (
        'title = "Own"\nrecipe = "hscl/demo"\n[[rows]]\nname = "bad"\n[rows.changes]\n'
        '"select" = "CCC"\n[[rows]]\nname = "good"\n'
    )
    (tmp_path / "own.toml").write_text(text)
    words = [str(tmp_path / "own.toml"), f"data={small_shards}", "seeds=3", "epochs=1"]
    words += [*small_words("hscl"), f"run_dir={tmp_path / 'out'}"]
    study = begin(words)
    said, _ = study.communicate(timeout=600)
    assert study.returncode == 3, said
    assert "bad, seed 3: select='CCC' is no score" in said
    assert "| good | 1 |" in said


@pytest.mark.slow
def test_a_study_that_is_asked_to_stop_saves_and_says_so(small_shards: Path, tmp_path: Path):
    words = ["hscl/demo", f"data={small_shards}", "seeds=3", "epochs=200", *small_words("hscl")]
    words += [f"run_dir={tmp_path / 'out'}", "patience=0"]
    study = begin(words)
    run = tmp_path / "out" / "runs" / "hscl-demo" / "3"
    try:
        wait_for(run / "checkpoints" / "last", study)
        os.kill(study.pid, signal.SIGTERM)
        said, _ = study.communicate(timeout=600)
    finally:
        study.kill()
    assert study.returncode == 75, said
    assert "the same command goes on" in said
    log = (tmp_path / "out" / "workers" / "0" / "output.log").read_text()
    assert "stopped on request; everything is saved" in log
