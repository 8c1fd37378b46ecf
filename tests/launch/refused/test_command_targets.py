"""Every command that writes looks at its target first, and a lack of room ends it with one line."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from paths import ROOT
from training_runs import environment

from core.command import Refused
from data_shards.codebook import main as codebook
from data_shards.convert import main as convert
from data_shards.extract.__main__ import main as extract
from data_shards.synthetic import main as synthetic
from launch.align import main as align
from launch.config import load_recipe
from launch.distill import distill
from launch.export import main as export
from launch.monitor.preemption import Stop
from launch.predict import main as predict
from launch.robustness import main as robustness
from launch.session import prepare
from tune.settings import read_search, write_search

NOWHERE = Path("/proc/concord")  # takes no files, not even from root
Words = Callable[[Path, Path], list[str]]

COMMANDS: dict[str, tuple[Callable[[list[str]], int], Words]] = {
    "synthetic": (synthetic, lambda folder, out: [str(out)]),
    "convert": (convert, lambda folder, out: [str(folder / "none.pkl"), "--out", str(out)]),
    "export": (export, lambda folder, out: [str(folder / "none"), "--out", str(out)]),
    "predict": (
        predict,
        lambda folder, out: [str(folder / "none"), "new.csv", "--out", f"{out}.csv"],
    ),
    "extract": (
        extract,
        lambda folder, out: [
            *(str(folder / "none"), "--out", str(out), "--audio", "none", "--vision", "none"),
        ],
    ),
    "align": (align, lambda folder, out: [str(folder / "none"), "--out", str(out)]),
    "robustness": (robustness, lambda folder, out: [str(folder / "none"), "--out", str(out)]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_target_that_takes_no_files_is_found_before_the_input_is_looked_at(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    main, words = COMMANDS[name]
    assert main(words(tmp_path, NOWHERE / "x" if name == "synthetic" else NOWHERE)) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert str(NOWHERE) in errors[0]
    assert "cannot be written" in errors[0]


def begin_training(run_dir: str) -> None:
    with prepare(replace(load_recipe("baseline/demo"), data="none", run_dir=run_dir)):
        pass


def begin_search(run_dir: str) -> None:
    write_search(read_search(["baseline/demo", "data=none", f"run_dir={run_dir}"]))


BEGIN: dict[str, Callable[[str], object]] = {
    "train": begin_training,
    "distill": lambda run_dir: distill(
        replace(load_recipe("tate/demo"), data="none", run_dir=run_dir)
    ),
    "search": begin_search,
}


@pytest.mark.parametrize("name", BEGIN)
def test_a_run_directory_that_takes_no_files_is_found_before_the_data_are_looked_at(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Stop, "listen", lambda self: self)
    with pytest.raises(Refused, match=f"{NOWHERE}/run cannot be written"):
        BEGIN[name](str(NOWHERE / "run"))


@pytest.mark.parametrize("name", ["synthetic", "align"])
def test_a_folder_where_a_file_is_to_be(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    main, words = COMMANDS[name]
    assert main(words(tmp_path, tmp_path)) == 2
    assert "is a folder; give the name of a file in it" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["convert", "robustness"])
def test_a_file_where_a_folder_is_to_be(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    main, words = COMMANDS[name]
    assert main(words(tmp_path, tmp_path / "file")) == 2
    assert "is no folder; give the name of one" in capsys.readouterr().err


def test_codebook_finds_the_folder_closed_before_it_computes(
    small_shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system", "probe")

    def computed(*_: object) -> None:
        raise AssertionError("it computed first")

    monkeypatch.setattr("core.file_access.targets.tempfile.TemporaryFile", read_only)
    monkeypatch.setattr("data_shards.codebook.cluster", computed)
    assert codebook([str(small_shards)]) == 2
    line = f"error: {small_shards / 'codebook.npz'} cannot be written: Read-only file system"
    assert line in capsys.readouterr().err


def test_synthetic_asks_for_room_for_all_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    free = os.statvfs(tmp_path)
    too_many = free.f_bavail * free.f_frsize // 7000
    assert synthetic([str(tmp_path / "a.pkl"), "--samples", str(too_many)]) == 4
    assert "a.pkl: the disk is full" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


LOG = """
import sys
from pathlib import Path
from core import command
from launch.reports.run_log import RunLog
def work():
    with RunLog(Path(sys.argv[1]), quiet=True) as log:
        for step in range(1000):
            log.event("train", step, {"note": "x" * 100})
sys.exit(command.run(work))
"""


def test_a_limit_on_files_that_the_log_meets_names_the_log(tmp_path: Path):
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run(
        [sys.executable, "-c", LOG, str(tmp_path)],
        cwd=ROOT,
        env=environment(),
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 4, done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        f"error: {tmp_path / 'log.jsonl'}: a file may not become as large as this one has to"
    )
    assert "Traceback" not in done.stderr
