"""One process for a folder: who is refused, who takes over, and what the refused one is told."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from paths import ROOT
from ranks import run_ranks
from small_models import small_run
from training_runs import environment

from core.command import NO_ROOM, RANK_LOST, Refused
from launch.config import override
from launch.monitor import lease
from launch.monitor.lease import NAME, Holder, InUse, held, held_by_first_rank
from launch.run_directory import find_run, record_run
from launch.session import prepare

HOLD = """
import signal, sys, time
from pathlib import Path
from launch.monitor import lease
lease.PERIOD = 0.05
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with lease.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(300)
"""


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lease, "PERIOD", 0.05)
    monkeypatch.setattr(lease, "STALE_AFTER", 1.0)
    monkeypatch.setattr(lease, "ENDING", 0.3)
    monkeypatch.setattr(lease, "SETTLING", 0.05)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds ``tmp_path``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def on_another_machine(pid: int = 77, beat: int = 0) -> Holder:
    return Holder("0" * 16, "far", "another kernel", pid, 1.0, "2026-01-02 03:04:05", beat)


def write(folder: Path, holder: Holder | str) -> None:
    text = holder if isinstance(holder, str) else json.dumps(asdict(holder))
    (folder / NAME).write_text(text)


@contextmanager
def beating(folder: Path) -> Iterator[None]:
    """A holder on another machine, which is heard of."""
    ended = threading.Event()

    def beat() -> None:
        number = 0
        while not ended.wait(0.05):
            number += 1
            write(folder, on_another_machine(beat=number))

    write(folder, on_another_machine())
    thread = threading.Thread(target=beat)
    thread.start()
    yield
    ended.set()
    thread.join()


def test_the_second_is_told_who_holds_the_folder_and_since_when(
    holder: subprocess.Popen[str], tmp_path: Path
):
    with pytest.raises(InUse) as refusal, held(tmp_path):
        pass
    found = lease.read(tmp_path / NAME)
    assert found is not None
    assert str(refusal.value) == (
        f"{tmp_path} is in use by process {holder.pid} on {found.host} since {found.since}; wait "
        "until it has ended, stop it, or give another run_dir"
    )
    assert lease.read(tmp_path / NAME) is not None  # the refused one takes nothing away


def test_a_second_training_is_told_who_has_the_directory_and_changes_nothing(
    holder: subprocess.Popen[str], tmp_path: Path, small_shards: Path
):
    run, run_dir = find_run(replace(small_run("hscl", small_shards), run_dir=str(tmp_path)))
    record_run(run, run_dir)
    (run_dir / "log.jsonl").write_text("the first one's\n")

    def contents() -> dict[str, bytes]:
        paths = [path for path in sorted(run_dir.rglob("*")) if path.name != NAME]
        return {str(path): path.read_bytes() for path in paths if path.is_file()}

    before = contents()
    for settings in ([], ["save_every=1"]):  # the same run, and one that may go on with it
        again = override(run, settings)
        with pytest.raises(InUse, match=f"in use by process {holder.pid} on .* since"):
            with prepare(again, quiet=True):
                pass
        assert contents() == before


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_folder_is_free_when_its_process_has_ended(
    holder: subprocess.Popen[str], tmp_path: Path, how: signal.Signals
):
    holder.send_signal(how)
    if how is signal.SIGTERM:
        holder.wait()
        assert not (tmp_path / NAME).exists()
    with held(tmp_path):
        found = lease.read(tmp_path / NAME)
        assert found is not None
        assert found.pid == os.getpid()
    assert not (tmp_path / NAME).exists()


def test_a_holder_elsewhere_that_is_heard_of_keeps_the_folder(tmp_path: Path):
    with (
        beating(tmp_path),
        pytest.raises(InUse, match="process 77 on far since 2026"),
        held(tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    "left",
    [on_another_machine(), "", "{", "[]", '{"token": 3}', "\0" * 400],
    ids=["silent", "empty", "cut off", "a list", "odd", "zeros"],
)
def test_what_does_not_change_for_long_is_taken_over(tmp_path: Path, left: Holder | str):
    write(tmp_path, left)
    said: list[str] = []
    started = time.monotonic()
    with held(tmp_path, said.append):
        assert time.monotonic() - started >= 1.0
        found = lease.read(tmp_path / NAME)
        assert found is not None
        assert found.pid == os.getpid()


def test_a_process_id_that_another_process_has_now_is_no_holder(tmp_path: Path):
    me = lease.Lease(tmp_path).holder
    assert not me.is_gone()
    assert replace(me, created=me.created - 60).is_gone()
    assert replace(me, pid=max(psutil.pids()) + 1000).is_gone()
    assert not replace(me, machine="another", created=0).is_gone()


def test_one_process_may_hold_a_folder_twice(tmp_path: Path):
    with held(tmp_path):
        with held(tmp_path / ".." / tmp_path.name):
            assert (tmp_path / NAME).exists()
        assert (tmp_path / NAME).exists()
    assert not (tmp_path / NAME).exists()


def test_the_beat_goes_on_and_who_finds_another_name_leaves(
    holder: subprocess.Popen[str], tmp_path: Path
):
    def beat() -> int:
        found = lease.read(tmp_path / NAME)
        return -1 if found is None else found.beat

    first = beat()
    until = time.monotonic() + 60
    while beat() < first + 2:
        assert time.monotonic() < until
        time.sleep(0.01)
    write(tmp_path, on_another_machine())
    _, errors = holder.communicate(timeout=60)
    assert holder.returncode == RANK_LOST
    assert errors.startswith(f"error: {tmp_path} was taken over by process 77 on far")


def test_of_several_that_take_over_one_gets_the_folder(tmp_path: Path):
    write(tmp_path, replace(lease.Lease(tmp_path).holder, created=1.0))
    contenders = [lease.Lease(tmp_path) for _ in range(4)]
    outcomes: list[str] = []

    def contend(contender: lease.Lease) -> None:
        try:
            contender.take(outcomes.append)
            outcomes.append("held")
        except InUse:
            outcomes.append("refused")

    threads = [threading.Thread(target=contend, args=[one]) for one in contenders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", "refused", "refused", "refused"]
    for contender in contenders:
        contender._closed.set()


def test_without_room_the_file_is_named_and_none_is_left(tmp_path: Path):
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, unlimited[1]))
    try:
        with pytest.raises(OSError, match="too large") as lack, held(tmp_path):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert lack.value.filename == str(tmp_path / NAME)
    assert not (tmp_path / NAME).exists()


def hold_on_ranks(folder: Path) -> str:
    from launch.engine.processes import init_processes, shutdown_processes

    init_processes()
    lease.ENDING = 0.3
    try:
        with held_by_first_rank(folder):
            said = "held"
    except Refused as error:
        said = str(error)
    shutdown_processes()
    return said


def meet_a_full_disk(folder: Path) -> list[Any]:
    """How each of several ranks ends when rank 0 has no room for its file."""
    from launch.engine.processes import init_processes, shutdown_processes
    from launch.monitor.rank_command import run_rank

    init_processes()
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def work() -> None:
        with held_by_first_rank(folder):
            pass

    resource.setrlimit(resource.RLIMIT_FSIZE, (10, most))
    try:
        with redirect_stderr(io.StringIO()) as heard:
            code = run_rank(work)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    shutdown_processes()
    return [code, heard.getvalue()]


def test_without_room_every_rank_ends_alike_and_one_says_why(tmp_path: Path):
    first, second = run_ranks(2, tmp_path / "ranks", meet_a_full_disk, tmp_path)
    assert (first[0], second[0]) == (NO_ROOM, NO_ROOM)
    assert f"{tmp_path / NAME}: a file may not become as large" in first[1]
    assert second[1] == ""


def test_rank_0_asks_for_all_and_all_hear_the_refusal(
    holder: subprocess.Popen[str], tmp_path: Path
):
    said = run_ranks(2, tmp_path / "ranks", hold_on_ranks, tmp_path)
    assert said[0] == said[1]
    assert f"is in use by process {holder.pid}" in said[0]
