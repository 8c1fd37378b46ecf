"""Asked to stop at any time, all ranks leave together with everything saved; a rank that is gone
ends the others."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ranks import Ranks, run_ranks
from small_models import small_run, small_words

from core.command import RANK_LOST, STOPPED
from launch.checkpoints.progress import Progress
from launch.checkpoints.store import Checkpoints, read_state
from launch.config import Run
from launch.monitor.interruptible_iterator import InterruptibleIterator


@pytest.fixture(scope="module")
def data(coded_shards: Path) -> Path:
    return coded_shards


def signalled(run: Run, place: str, number: int, times: int = 1) -> None:
    """On a rank: train through ``main``; rank 1 sends itself a signal when it is at ``place``."""
    from core import distributed
    from launch import loop
    from launch.config import to_dict
    from launch.tasks import sentiment
    from launch.train import main

    def send() -> None:
        if distributed.rank() == 1:
            for _ in range(times):
                os.kill(os.getpid(), number)

    def before(kind: Any, name: str) -> None:
        real, counted = getattr(kind, name), [0]

        def with_signal(*arguments: Any, **options: Any) -> Any:
            counted[0] += 1
            if counted[0] == 3:
                send()
            return real(*arguments, **options)

        setattr(kind, name, with_signal)

    if place == "data":  # the third batch never comes
        real = sentiment.SentimentTask.batches

        def hang(self: Any, epoch: int) -> Any:
            for count, parts in enumerate(real(self, epoch)):
                if count == 2:
                    send()
                    threading.Event().wait()
                yield parts

        sentiment.SentimentTask.batches = hang
    elif place == "step":
        before(loop, "mean_over_ranks")
    elif place == "save":
        before(Checkpoints, "begin")
    elif place == "evaluation":
        real_forward = sentiment.SentimentTask.evaluate

        def evaluate(self: Any, model: Any, split: str, device: Any) -> Any:
            send()
            return real_forward(self, model, split, device)

        sentiment.SentimentTask.evaluate = evaluate
    tree = {
        key: value
        for key, value in to_dict(run).items()
        if key in ("data", "run_dir", "save_every", "epochs")
    }
    words = [f"{key}={value}" for key, value in tree.items()]
    small = [*small_words("baseline"), "batch_size=8", "eval_batch_size=4"]
    raise SystemExit(main(["baseline/demo", *words, *small]))


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("data", signal.SIGUSR1),
        ("step", signal.SIGINT),
        ("save", signal.SIGTERM),
        ("evaluation", signal.SIGUSR1),
    ],
)
def test_a_signal_to_one_rank_saves_and_ends_all(
    data: Path, tmp_path: Path, place: str, number: int
):
    run = replace(small_run("baseline", data), run_dir=str(tmp_path / "run"), save_every=2)
    with Ranks(2, tmp_path / "ranks", signalled, run, place, number, 3) as started:
        codes = started.codes()
    assert codes == [STOPPED, STOPPED], started.output(0) + started.output(1)
    assert "everything is saved" in started.output(0)
    folder, complaints = Checkpoints(tmp_path / "run", Progress()).find("last")
    assert folder is not None
    assert complaints == []
    progress = read_state(folder).progress
    expected = {"data": (2, 0, 2), "step": (3, 0, 3), "evaluation": (5, 0, 5)}
    if place in expected:
        assert (progress.step, progress.epoch, progress.epoch_steps) == expected[place]
    assert not list((tmp_path / "run/checkpoints").glob(".*"))


def fall_silent(run: Run, how: str, lost_after: float, timeout: float) -> None:
    """On a rank: train; rank 1 stops at step 3, with its whole process or with its main thread
    only.

    The limits hold from that step on: how long it takes to start depends on what else the machine
    does.
    """
    from core import distributed
    from launch import loop
    from launch.engine.processes import init_processes
    from launch.loop import fit
    from launch.monitor import watchdog
    from launch.session import prepare

    init_processes(600.0, 60.0)
    real = loop.train_step

    def stay(*arguments: Any) -> Any:
        if arguments[0].progress.step == 3 and watchdog._watchdog is not None:
            watchdog._watchdog.stalled_after, watchdog._watchdog.lost_after = timeout, lost_after
        if distributed.rank() == 1 and arguments[0].progress.step == 3:
            time.sleep(2.5)  # the others have heard where it is
            if how == "process":
                os.kill(os.getpid(), signal.SIGSTOP)
            threading.Event().wait()
        return real(*arguments)

    loop.train_step = stay
    with prepare(run, quiet=True) as session:
        try:
            list(fit(session))
        except (
            RuntimeError
        ) as error:  # as the command does: the other rank may be gone before this one has heard why
            watchdog.wait_for_verdict(error)
            raise


def test_a_rank_that_stands_still_is_named_and_the_others_leave(data: Path, tmp_path: Path):
    run = replace(small_run("baseline", data), run_dir=str(tmp_path / "run"))
    with Ranks(2, tmp_path / "ranks", fall_silent, run, "process", 6.0, 600.0) as started:
        started.processes[0].join(240)
        assert started.processes[0].exitcode == RANK_LOST
        assert "rank 1 on" in started.output(0)
        assert "has not been heard of" in started.output(0)
        assert "at step 3" in started.output(0)


@pytest.mark.slow  # it waits for a deadline
def test_a_rank_that_never_reaches_the_collective_is_named_after_the_timeout(
    data: Path, tmp_path: Path
):
    run = replace(small_run("baseline", data), run_dir=str(tmp_path / "run"))
    with Ranks(2, tmp_path / "ranks", fall_silent, run, "thread", 60.0, 8.0) as started:
        codes = started.codes()
    assert codes == [RANK_LOST, RANK_LOST], started.output(1)
    (said,) = (line for line in started.output(0).splitlines() if "nothing has moved" in line)
    assert "rank 1 on" in said
    assert "stayed at step 3" in said
    assert "rank 0 on" not in said.partition(";")[0]


def give_up(run: Run) -> None:
    """On a rank: rank 1 ends with an error of its own."""
    from launch import session, train

    if os.environ["RANK"] == "1":

        def fail(*arguments: Any) -> Any:
            raise OSError("the disk of this machine is gone")

        session.build_model = fail
    words = [f"data={run.data}", f"run_dir={run.run_dir}", *small_words("baseline")]
    raise SystemExit(train.main(["baseline/demo", *words]))


def test_an_error_of_one_rank_is_told_by_the_others(data: Path, tmp_path: Path):
    run = replace(small_run("baseline", data), run_dir=str(tmp_path / "run"))
    with Ranks(2, tmp_path / "ranks", give_up, run) as started:
        codes = started.codes()
    assert codes == [RANK_LOST, 2]
    assert "rank 1 on" in started.output(0)
    assert "the disk of this machine is gone" in started.output(0)


def test_the_wait_for_a_batch_can_be_given_up_and_taken_up_again():
    gate = threading.Event()

    def source():
        yield 1
        gate.wait()
        yield 2

    batches = InterruptibleIterator(source())
    assert batches.next(lambda: False) == 1
    assert batches.next(lambda: True) is None
    assert batches.waiting
    gate.set()
    assert batches.next(lambda: False) == 2
    assert batches.next(lambda: False) is None
    assert not batches.waiting


def test_an_error_of_the_source_comes_through_and_the_source_is_closed():
    closed = threading.Event()

    def source():
        try:
            yield 1
            raise ValueError("bad shard")
        finally:
            closed.set()

    batches = InterruptibleIterator(source())
    assert batches.next(lambda: False) == 1
    with pytest.raises(ValueError, match="bad shard"):
        batches.next(lambda: False)
    early = threading.Event()

    def endless():
        try:
            while True:
                yield 1
        finally:
            early.set()

    batches = InterruptibleIterator(endless())
    batches.next(lambda: False)
    batches.close()
    assert closed.wait(60)
    assert early.wait(60)


def lonely(seconds: float) -> bool:
    """On a rank: stop watching without a reason, and see that the other lives on."""
    from core import distributed
    from launch.engine.processes import init_processes
    from launch.monitor import watchdog

    init_processes(lost_after=6)
    if distributed.rank() == 1:
        watchdog.leave()
    time.sleep(seconds)
    return True


def test_a_rank_that_leaves_at_the_end_of_its_work_alarms_nobody(tmp_path: Path):
    assert run_ranks(2, tmp_path, lonely, 9.0) == [True, True]
