"""A search on a full disk: it stops as a whole, nothing ends as failed, and it goes on later."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from searches import alone, begin, finish, journal, run_module

from launch.config import ConfigError
from launch.monitor.lease import InUse, held
from tune import cluster
from tune.journal import NO_ROOM, Journal
from tune.search import search_for
from tune.settings import load_search
from tune.trial_progress import ProgressCallback, StopWithoutRoom
from tune.tuner import SearchOutOfRoom, room_error
from tune.workers.trial_processes import ProcessEnded

FULL = OSError(errno.ENOSPC, "No space left on device", "run/log.jsonl")


class Processes:
    """What a trial starts; it ends as it is told to."""

    error: BaseException

    def __init__(self, *_: Any, **__: Any):
        if isinstance(self.error, OSError):
            raise self.error

    def next(self) -> dict[str, Any]:
        raise self.error

    wait = next

    def close(self) -> None:
        pass


@pytest.mark.parametrize("test", [False, True])
@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (ProcessEnded(0, 4, "checkpoint x could not be written"), NO_ROOM, "checkpoint x"),
        (FULL, NO_ROOM, "run/log.jsonl: No space left on device"),
        (OSError(errno.EDQUOT, "Quota", "run/a"), NO_ROOM, "run/a: Quota"),
        (OSError(errno.EFBIG, "File too large", "run/a"), NO_ROOM, "run/a: File too large"),
        (ProcessEnded(0, 2, "no such data"), "failed", "no such data"),
        (ProcessEnded(0, 3, "loss became nan"), "diverged", "loss became nan"),
    ],
)
def test_a_trial_tells_a_full_disk_from_its_own_failure(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    state: str,
    reason: str,
    test: bool,
):
    monkeypatch.setattr(Processes, "error", error, raising=False)
    monkeypatch.setattr("tune.trial.Processes", Processes)
    result = alone(tmp_path, "shards", number=1, test=test).step()
    assert result["state"] == state
    assert result["reason"].startswith(reason)
    assert result["done"]


def test_a_trial_without_room_for_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any, **__: Any) -> None:
        raise FULL

    monkeypatch.setattr("tune.trial.Path.mkdir", full)
    trial = alone(tmp_path, "shards", number=1)
    monkeypatch.undo()
    assert trial.step()["state"] == NO_ROOM


def a_trial(number: int, **result: Any) -> Any:
    config = {"number": number, "options.alpha": 0.5}
    return SimpleNamespace(config=config, last_result=result, error_file=f"/none/{number}")


def result(epoch: int, **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "objective": 1.0 / epoch, "scores": {"MAE": 1.0}, "state": "", **more}


def test_after_a_full_disk_all_trials_stay_open(tmp_path: Path):
    with Journal(tmp_path / "journal.jsonl") as events:
        progress = ProgressCallback(events, trials=4, select="MAE", sign=1.0)
        stopper = StopWithoutRoom(progress)
        first, second, third = (a_trial(number) for number in (1, 2, 3))
        for trial in (first, second):
            progress.on_trial_start(0, [], trial)
            progress.on_trial_result(0, [], trial, result(1))
        progress.on_trial_complete(0, [], a_trial(1, state="finished"))
        assert not stopper.stop_all()
        full = result(2, state=NO_ROOM, reason="no space")
        progress.on_trial_result(0, [], second, full)
        assert stopper.stop_all()
        assert not stopper("any", full)
        progress.on_trial_complete(0, [], a_trial(2, **full))
        progress.on_trial_start(0, [], third)
        progress.on_trial_result(0, [], third, result(1))
        progress.on_trial_complete(0, [], a_trial(3, state="finished"))
        assert progress.no_room == "trial 2: no space"
    assert [record.state for record in journal(tmp_path).trials()] == ["finished", "running"]


def test_a_journal_that_cannot_be_written_stops_the_search_and_stays_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with Journal(tmp_path / "journal.jsonl") as events:
        progress = ProgressCallback(events, trials=4, select="MAE", sign=1.0)
        progress.on_trial_start(0, [], a_trial(1))

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("tune.journal.os.fsync", full)
        progress.on_trial_complete(0, [], a_trial(1, state="finished"))
        monkeypatch.undo()
        assert progress.no_room == f"{tmp_path / 'journal.jsonl'}: No space left on device"
        assert StopWithoutRoom(progress).stop_all()
    assert journal(tmp_path).trials()[0].number == 1


def test_an_actor_that_died_of_a_full_disk_does_not_fail_its_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    text = f"OSError: [Errno 28] {os.strerror(errno.ENOSPC)}: '/x'"
    monkeypatch.setattr("tune.trial_progress.error_of", lambda trial: text)
    with Journal(tmp_path / "journal.jsonl") as events:
        progress = ProgressCallback(events, trials=4, select="MAE", sign=1.0)
        progress.on_trial_start(0, [], a_trial(1))
        progress.on_trial_error(0, [], a_trial(1))
        assert StopWithoutRoom(progress).stop_all()
    assert journal(tmp_path).unfinished()[0].number == 1


def test_an_error_of_rays_own_writing_is_known_by_what_it_came_from():
    wrapped = RuntimeError("experiment failed")
    wrapped.__cause__ = FULL
    assert "No space left" in room_error(wrapped)
    assert room_error(RuntimeError("another fault")) == ""
    search = SimpleNamespace(folder=Path("searches/a"))
    error = SearchOutOfRoom(search, "trial 1: no space")  # type: ignore[arg-type]
    assert error.exit_code == 4
    assert "still open. Make room, then go on with: python -m tune.search --resume searches/a" in (
        str(error)
    )


def test_a_folder_is_searched_in_by_one_process(
    small_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from tune.settings import read_search, write_search

    folder = tmp_path / "search"
    write_search(read_search(["hscl/demo", f"data={small_shards}", f"run_dir={folder}"]))
    asked: list[Path] = []

    def refuse(path: Path) -> Any:
        asked.append(path)
        raise InUse("another process has it")

    monkeypatch.setattr("tune.search.held", refuse)
    with pytest.raises(InUse):
        search_for(load_search(folder))
    assert asked == [folder]
    assert sorted(path.name for path in folder.iterdir()) == ["search.json"]


@pytest.mark.parametrize("content", ["", "[]", "{", "null", '{"trials": 3}', '{"recipe": 3}'])
def test_an_odd_record_of_a_search_is_refused_by_name(tmp_path: Path, content: str):
    (tmp_path / "search.json").write_text(content)
    with pytest.raises(ConfigError, match="search.json"):
        load_search(tmp_path)


@pytest.mark.parametrize(
    ("folder", "is_short"),
    [("/tmp", True), ("/tmp/" + "x" * 30, True), ("/tmp/" + "x" * 31, False)],
)
def test_a_folder_too_deep_for_rays_sockets_is_replaced_by_a_short_one(
    monkeypatch: pytest.MonkeyPatch, folder: str, is_short: bool
):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", folder)
    own = cluster.short_folder()
    assert (own == "") == is_short
    if own:
        assert len(own) <= cluster.LONGEST_FOLDER
        os.rmdir(own)

        def full(**_: Any) -> str:
            raise OSError(errno.EROFS, "Read-only")

        monkeypatch.setattr("tune.cluster.tempfile.mkdtemp", full)
        with pytest.raises(ConfigError, match="set RAY_TMPDIR to a folder whose path has at most"):
            cluster.short_folder()


# a program that every Python starts with: trials find a limit on the size of files, while it is
# there
LIMIT = """
import os, resource, sys
is_trial = "tune.workers.worker" in sys.orig_argv
if is_trial and os.path.exists(os.environ["LIMIT_OF_TRIALS"]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
"""


@pytest.mark.slow
def test_a_search_on_a_full_disk_goes_on_when_there_is_room(small_shards: Path, tmp_path: Path):
    program, limit = tmp_path / "program", tmp_path / "limit"
    program.mkdir()
    (program / "sitecustomize.py").write_text(LIMIT)
    limit.touch()
    path = os.pathsep.join([str(program), os.environ.get("PYTHONPATH", "")])
    deep = tmp_path / ("deep" * 15)
    deep.mkdir()
    around = {"PYTHONPATH": path, "LIMIT_OF_TRIALS": str(limit), "TMPDIR": str(deep)}
    words = ["trials=2", "search=random", "confirm=0", "epochs=2", "scheduler=none"]
    folder = tmp_path / "search"
    output = finish(begin(small_shards, folder, *words, **around), code=4)
    assert "still open. Make room, then go on with" in output
    assert "Traceback" not in output
    opened = journal(folder).trials()
    assert opened
    assert {record.state for record in opened} == {"running"}
    limit.unlink()
    with held(folder):
        pass  # the search has let it go
    finish(run_module(["--resume", str(folder)], **around))
    assert [record.state for record in journal(folder).trials()] == ["finished", "finished"]
