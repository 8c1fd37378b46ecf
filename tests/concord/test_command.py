"""The command ``concord`` and the words that all commands share."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from concord.__main__ import COMMANDS, main
from core import command
from core.arguments import join_negative_values, split_settings
from launch import train
from launch.command_line import read, settings_parser
from launch.config import ConfigError, leaves, load_recipe, override, to_dict
from launch.monitor.rank_command import run_rank


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists_and_explains_itself(name: str, capsys: pytest.CaptureFixture[str]):
    assert callable(import_module(COMMANDS[name][0]).main)
    try:
        code = main([name, "--help"])
    except SystemExit as left:
        code = int(left.code or 0)
    assert code == 0
    assert len(capsys.readouterr().out) > 100


def test_the_overview_imports_nothing_heavy():
    code = (
        "import sys; from concord.__main__ import main; main(['--help']); "
        "heavy = {'torch', 'numpy', 'ray', 'deepspeed', 'pydantic', 'tyro'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert all(name in ended.stdout for name in COMMANDS)


def test_a_wrong_command_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]):
    assert main(["trian"]) == command.REFUSED
    assert "did you mean 'train'" in capsys.readouterr().err
    assert main([]) == command.REFUSED


def test_recipes_are_listed_with_first_line_and_score(capsys: pytest.CaptureFixture[str]):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert "hscl/mosi\n    HSCL on MOSI, unaligned features" in listed
    assert "Test MAE 0.739, Corr 0.739 with seed 1111 and a six-layer MiniLM" in listed


def test_help_of_a_recipe_explains_every_setting(capsys: pytest.CaptureFixture[str]):
    for recipe in ("hscl/demo", "mclea/dbp15k_zh_en"):
        with pytest.raises(SystemExit) as left:
            train.parse([recipe, "--help", "epochs=3"])
        assert left.value.code == 0
        said = " ".join(capsys.readouterr().out.split())  # in whatever lines
        for key in leaves(to_dict(load_recipe(recipe))):
            assert f"{key}=" in said or key == "task_options", key
        assert "epochs=INT > 0" in said
        assert "(default: 3)" in said
        assert "of one optimiser step, over all ranks and micro-batches" in said


def test_list_prints_the_recipes(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        train.parse(["--list"])
    assert "hscl/demo" in capsys.readouterr().out.splitlines()


def test_what_show_prints_is_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    changes = ["epochs=3", "optim.groups.text.lr=1e-5", "options.modalities=text", "data=a b"]
    for recipe in ("hscl/demo", "mclea/dbp15k_zh_en_iterative"):
        words = changes if recipe == "hscl/demo" else ["epochs=3"]
        with pytest.raises(SystemExit):
            train.parse([recipe, *words, "--show"])
        file = tmp_path / "settings.json"
        file.write_text(capsys.readouterr().out)
        assert train.parse([recipe, f"@{file}"]) == override(load_recipe(recipe), words)


def test_a_file_may_hold_lines_of_settings(tmp_path: Path):
    file = tmp_path / "settings.txt"
    file.write_text("# quick\nepochs=3\n\noptions.temperature=0.2\n")
    run = train.parse(["hscl/demo", f"@{file}", "epochs=4"])
    assert (run.epochs, run.options.temperature) == (4, 0.2)
    with pytest.raises(ConfigError, match="nowhere"):
        train.parse(["hscl/demo", "@nowhere"])


def test_settings_may_stand_anywhere():
    parser = settings_parser("export", "", "")
    parser.add_argument("--out")
    for words in (
        ["RUN", "--out", "B", "data=D"],
        ["data=D", "--out", "B", "RUN"],
        ["--out=B", "RUN", "data=D"],
        ["RUN", "data=D", "--local_rank=0", "--out", "B"],
    ):
        line = read(parser, words)
        assert (line.name("a run"), line.changes, line.options.out) == ("RUN", ["data=D"], "B")
    with pytest.raises(ConfigError, match="cannot read 'batch_size'"):
        read(parser, ["RUN", "batch_size"]).name("a run")


def test_options_may_be_written_as_settings():
    parser = settings_parser("evaluate", "", "")
    parser.add_argument("--split", default="test")
    assert read(parser, ["RUN", "split=valid"], also_settings=["split"]).options.split == "valid"


def test_values_may_begin_with_a_minus_sign():
    assert join_negative_values(["--labels", "-3:3:1/3", "--force"]) == [
        "--labels=-3:3:1/3",
        "--force",
    ]
    assert join_negative_values(["a", "-3", "--x=1", "-.5"]) == ["a", "-3", "--x=1", "-.5"]


def test_a_path_with_an_equals_sign_is_a_name():
    assert split_settings(["runs/lr=0.1", "lr=0.1", "@f"]) == (["runs/lr=0.1"], ["lr=0.1", "@f"])


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (command.Refused("no\n  such thing"), 2, "error: no such thing\n"),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "a.json"),
            2,
            "error: a.json: No such file\n",
        ),
        (
            OSError(errno.ENOSPC, "No space"),
            4,
            "error: the disk is full (No space); make room, then",
        ),
        (
            OSError(errno.ENOSPC, "No space", "runs/a/log.jsonl"),
            4,
            "error: runs/a/log.jsonl: the disk is full (No space); make room, then",
        ),
        (
            OSError(errno.EFBIG, "File too large", "runs/a/log.jsonl"),
            4,
            "error: runs/a/log.jsonl: a file may not become as large as this one has to (File too "
            "large); raise the limit (ulimit -f), then",
        ),
        (
            command.Refused("other data", ["  old  new", "* a    b"]),
            2,
            "error: other data\n  old  new\n* a    b\n",
        ),
        (KeyboardInterrupt(), 130, "\nstopped; run the same command again\n"),
    ],
)
def test_every_end_has_its_code_and_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
):
    def work() -> None:
        raise error

    assert command.run(work) == code
    assert capsys.readouterr().err.startswith(line)


def _raise(error: Exception) -> None:
    raise error


def test_an_error_may_carry_its_own_code():
    from launch.checkpoints.store import SaveError
    from launch.session import TrainingStopped

    assert command.run(lambda: _raise(SaveError("full"))) == command.NO_ROOM
    assert command.run(lambda: _raise(TrainingStopped("nan"))) == command.CANNOT_GO_ON
    assert command.run(lambda: command.DAMAGED) == command.DAMAGED


FAULTS = [RuntimeError("two\nlines"), KeyError("gone"), MemoryError(), TypeError("ü\ud800")]


@pytest.mark.parametrize("runs", [command.run, run_rank])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_what_nobody_foresaw_is_one_line_and_a_file_with_the_traceback(
    runs: Any, fault: Exception, tmp_path: Path, monkeypatch: Any, capsys: Any
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert runs(lambda: _raise(fault)) == command.FAULT
    said = capsys.readouterr().err
    (saved,) = tmp_path.iterdir()
    assert said.startswith(f"error: unforeseen {type(fault).__name__}")
    assert said.rstrip().endswith(
        f"test_command.py, line {_raise.__code__.co_firstlineno + 1}; "
        f"this is a fault of concord, please report it with {saved}"
    )
    assert said.count("\n") == 1
    assert "Traceback" not in said
    assert "Traceback (most recent call last)" in saved.read_text()
    assert "in _raise" in saved.read_text()
    assert saved.stat().st_mode & 0o077 == 0


def test_a_fault_is_told_also_where_nothing_can_be_written(monkeypatch: Any, capsys: Any):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    assert command.run(lambda: _raise(KeyError("gone"))) == command.FAULT
    assert "could not be saved: No such file" in capsys.readouterr().err


def test_a_caller_may_answer_faults_itself():
    with pytest.raises(RuntimeError):
        command.run(lambda: _raise(RuntimeError("a fault")), passed_on=(RuntimeError,))


def test_a_job_that_cannot_be_imported_is_a_fault_in_one_line(
    tmp_path: Path, monkeypatch: Any, capsys: Any
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setitem(COMMANDS, "verify", ("data_shards.nothing", ""))
    assert main(["verify", "x"]) == command.FAULT
    assert capsys.readouterr().err.startswith("error: unforeseen ModuleNotFoundError")


def test_the_notebook_names_are_there():
    import concord

    assert set(concord.__all__) == set(dir(concord))
    for name in concord.__all__:
        assert getattr(concord, name) is not None
    with pytest.raises(AttributeError):
        concord.nothing  # noqa: B018
    assert json.dumps(concord.__version__)
