"""The processes of a trial, with small programs in place of training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from paths import ROOT

from tune.workers import operators
from tune.workers.environment import environment
from tune.workers.trial_processes import ProcessEnded, Processes

SAY = """
import json, os, sys, time
rank = int(os.environ["RANK"])
out = os.fdopen(int(os.environ["CONCORD_RESULTS"]), "w") if rank == 0 else None
def orders():
    yield from (line.strip() for line in sys.stdin)
def say(**body):
    out.write(json.dumps(body) + chr(10)); out.flush()
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Processes]:
    """Start a program as the ranks of a trial; whatever is left of it is ended after the test."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("tune.workers.trial_processes.GRACE", 1.0)
    started: list[Processes] = []

    def begin(program: str, *arguments: str, count: int = 1) -> Processes:
        (tmp_path / "program_of_a_trial.py").write_text(SAY + textwrap.dedent(program))
        output = tmp_path / "output.log"
        started.append(
            Processes(arguments, module="program_of_a_trial", count=count, output=output)
        )
        return started[-1]

    yield begin
    for one in started:
        one.close()


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_result_comes_for_every_order(start):
    trial = start("for number, order in enumerate(orders()): say(order=order, number=number)")
    assert [trial.next() for _ in range(3)] == [
        {"order": "go", "number": number} for number in range(3)
    ]
    trial.close()
    assert trial.processes[0].returncode == 0  # it left by itself when no more orders came


def test_ranks_know_their_world_and_nothing_of_the_one_around(start, monkeypatch):
    for name in (
        "RAY_ADDRESS",
        "WORLD_SIZE",
        "MASTER_PORT",
        "TORCHELASTIC_RUN_ID",
        "OMPI_COMM_WORLD_SIZE",
        "CONCORD_THREADS",
    ):
        monkeypatch.setenv(name, "999")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    program = "if rank == 0:\n    next(orders()); say(**os.environ)\nelse:\n    time.sleep(60)"
    seen = start(program, count=2).next()
    assert (seen["RANK"], seen["WORLD_SIZE"], seen["LOCAL_WORLD_SIZE"]) == ("0", "2", "2")
    assert seen["CUDA_VISIBLE_DEVICES"] == "3"  # what Ray has given to the trial
    assert seen["MASTER_PORT"] != "999"
    assert not {
        "RAY_ADDRESS",
        "TORCHELASTIC_RUN_ID",
        "OMPI_COMM_WORLD_SIZE",
        "CONCORD_THREADS",
    } & set(seen)
    assert environment(threads=3)["OMP_NUM_THREADS"] == "3"


def test_two_trials_never_share_a_port(start):
    program = "next(orders()); say(port=os.environ['MASTER_PORT']); next(orders())"
    assert start(program).next()["port"] != start(program).next()["port"]


@pytest.mark.parametrize(
    ("program", "code", "reason"),
    [
        ("sys.exit('error: no such shard')", 1, "no such shard"),
        ("print('error: loss became nan'); sys.exit(3)", 3, "loss became nan"),
        (
            "raise MemoryError('cannot allocate')",
            1,
            "ended with code 1: MemoryError: cannot allocate",
        ),
        ("os.kill(os.getpid(), 9)", -9, "SIGKILL .the system may have run out of memory"),
        ("os.kill(os.getpid(), 11)", -11, "SIGSEGV"),
        ("pass", 0, "left before its last epoch"),
    ],
)
def test_a_process_that_ends_is_told_with_its_reason(start, program: str, code: int, reason: str):
    with pytest.raises(ProcessEnded, match=reason) as caught:
        start(program).next()
    assert caught.value.code == code


def test_the_rank_that_was_killed_is_named_and_not_those_that_miss_it(start):
    program = """
    if rank == 1:
        os.kill(os.getpid(), 9)
    time.sleep(0.5)
    sys.exit(76)
    """
    with pytest.raises(ProcessEnded, match="rank 1 was ended by SIGKILL"):
        start(program, count=3).next()


@pytest.mark.slow
def test_nothing_that_a_trial_started_outlives_it(start):
    program = """
    import subprocess
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    if rank == 0:
        next(orders()); say(pids=[os.getpid(), child.pid])
    time.sleep(600)
    """
    trial = start(program, count=2)
    pids = [*trial.next()["pids"], *(process.pid for process in trial.processes)]
    trial.processes[0].kill()  # close() does not wait for those that will not leave by themselves
    trial.close()
    wait_until(lambda: all(gone(pid) for pid in pids))


@pytest.mark.slow  # its deadlines want an idle machine
def test_the_processes_end_when_the_one_that_started_them_is_killed(tmp_path: Path):
    """SIGKILL of the parent, which no handler sees."""
    (tmp_path / "sleeper.py").write_text(
        "import os, sys, time\nfrom tune.workers.child import die_with_parent\ndie_with_parent()\n"
        f"open(r'{tmp_path}/' + os.environ['RANK'], 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    )
    parent = (
        "import time\nfrom pathlib import Path\nfrom tune.workers.trial_processes import Processes\n"
        f"Processes([], module='sleeper', count=2, output=Path(r'{tmp_path}') / 'log')\ntime.sleep(600)\n"
    )
    root = str(ROOT)
    path = os.pathsep.join([root, str(tmp_path)])
    started = subprocess.Popen(
        [sys.executable, "-c", parent], env={**os.environ, "PYTHONPATH": path}, cwd=root
    )
    try:
        files = [tmp_path / "0", tmp_path / "1"]
        wait_until(lambda: all(file.is_file() and file.read_text() for file in files))
        pids = [int(file.read_text()) for file in files]
    finally:
        started.send_signal(signal.SIGKILL)
        started.wait()
    wait_until(lambda: all(gone(pid) for pid in pids))


def test_every_process_has_its_own_copy_of_what_is_compiled(tmp_path: Path):
    built = tmp_path / "built" / "op"
    built.mkdir(parents=True)
    (built / "op.so").write_bytes(b"code")
    os.utime(
        built / "op.so", (1e9, 1e9)
    )  # ninja compiles again when times differ from those in its log
    (built / "lock").touch()
    for _ in range(2):
        seen = operators.copy(str(tmp_path / "built"), tmp_path / "trial" / "0")
        copied = Path(seen["TORCH_EXTENSIONS_DIR"]) / "op" / "op.so"
        assert copied.read_bytes() == b"code"
        assert copied.stat().st_mtime == 1e9
        assert not (copied.parent / "lock").exists()
        (copied.parent / "lock").touch()  # of a process that is killed
    assert operators.copy("", tmp_path / "none") == {}
    assert operators.copy(str(tmp_path / "elsewhere"), tmp_path / "none") == {}
