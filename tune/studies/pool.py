"""Runs of a study in kept processes: one after the other in each, and as many side by side as there
are GPUs, or as asked for."""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.command import CANNOT_GO_ON, NO_ROOM, RANK_LOST, STOPPED
from core.environment.threads import CHOSEN, COUNT, available_cores, share_of_cores
from tune.studies.plan import StudyRun
from tune.workers.trial_processes import ProcessEnded, Processes

MODULE = "tune.studies.kept_worker"
RUNS_PER_PROCESS = (
    40  # then a new one: what libraries keep of earlier runs does not add up for ever
)
TRIES = 2  # of a run whose process was killed from outside
PATIENCE = 120.0  # seconds in which a training may save and leave


@dataclass(frozen=True)
class Ended:
    """What became of a run."""

    run: StudyRun
    seconds: float
    reason: str = ""  # why it has no scores; empty when it has
    diverged: bool = False


class StudyStopped(RuntimeError):
    """Asked to stop; what was under way is saved."""

    exit_code = STOPPED


class StudyOutOfRoom(RuntimeError):
    """A full disk: no other run would fare better."""

    exit_code = NO_ROOM


class KeptProcess:
    """One place where runs are trained, started when its first run comes.

    Args:
        gpus: numbers of those that its runs see; empty: all, or none.
    """

    def __init__(self, folder: Path, ranks: int, threads: int, gpus: str, extensions: str):
        self.folder, self.ranks, self.threads = folder, ranks, threads
        self.gpus, self.extensions = gpus, extensions
        self.processes: Processes | None = None
        self.done = 0  # runs of the present process
        self.is_leaving = False

    def train(self, run: StudyRun) -> Ended:
        """Bring a run to its end.

        Raises:
            StudyStopped: its process was asked to leave.
            StudyOutOfRoom: the disk is full.
        """
        started = time.monotonic()
        reason = ""
        for _ in range(TRIES):
            try:
                self._process().next(json.dumps({"words": run.words(), "command": run.command}))
                self.done += 1
                return Ended(run, time.monotonic() - started)
            except ProcessEnded as ended:
                self.close()
                reason = ended.reason
                if ended.code == STOPPED or self.is_leaving:
                    raise StudyStopped(
                        "a run was asked to stop; everything is saved, and the same command goes on"
                    ) from None
                if ended.code == NO_ROOM:
                    raise StudyOutOfRoom(
                        f"{reason}; make room, then run the same command"
                    ) from None
                was_killed = ended.code < 0 or ended.code == RANK_LOST
                if not was_killed:
                    diverged = ended.code == CANNOT_GO_ON
                    return Ended(run, time.monotonic() - started, reason, diverged)
        return Ended(run, time.monotonic() - started, reason)

    def _process(self) -> Processes:
        if self.processes is not None and self.done >= RUNS_PER_PROCESS:
            self.close()
        if self.processes is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            more = {"CUDA_VISIBLE_DEVICES": self.gpus} if self.gpus else {}
            self.done = 0
            self.processes = Processes(
                [],
                module=MODULE,
                count=self.ranks,
                threads=self.threads,
                output=self.folder / "output.log",
                folder=os.getcwd(),
                extensions=self.extensions,
                more=more,
            )
        return self.processes

    def stop(self) -> None:
        """Ask the run under way to save and leave, from another thread."""
        self.is_leaving = True
        if self.processes is not None:
            self.processes.ask_to_stop()

    def close(self) -> None:
        if self.processes is not None:
            self.processes.close()
            self.processes = None


class Pool:
    """Places that take the next run whenever they are free."""

    def __init__(self, places: list[KeptProcess]):
        self.places = places

    def train(self, runs: list[StudyRun], heard: Callable[[Ended], None]) -> None:
        """All runs; ``heard`` is called in this thread as each comes to its end.

        Raises:
            StudyStopped, StudyOutOfRoom: the first that a place met; the others have stopped too.
        """
        waiting: queue.SimpleQueue[StudyRun] = queue.SimpleQueue()
        for run in runs:
            waiting.put(run)
        results: queue.SimpleQueue[Ended | BaseException | None] = queue.SimpleQueue()
        leaving = threading.Event()
        threads = []
        for place in self.places:
            thread = threading.Thread(
                target=_work, args=(place, waiting, results, leaving), daemon=True
            )
            thread.start()
            threads.append(thread)
        try:
            open_threads = len(threads)
            while open_threads:
                result = results.get()
                if result is None:
                    open_threads -= 1
                elif isinstance(result, BaseException):
                    raise result
                else:
                    heard(result)
        finally:
            leaving.set()
            self._end(threads)

    def _end(self, threads: list[threading.Thread]) -> None:
        """Ask what is under way to save, wait for it, then end all processes."""
        if any(thread.is_alive() for thread in threads):
            for place in self.places:
                place.stop()
            deadline = time.monotonic() + PATIENCE
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
        for place in self.places:
            place.close()


def _work(
    place: KeptProcess,
    waiting: queue.SimpleQueue[StudyRun],
    results: queue.SimpleQueue[Ended | BaseException | None],
    leaving: threading.Event,
) -> None:
    """One place's thread: runs until there are no more, or it is told to leave."""
    try:
        while not leaving.is_set():
            try:
                run = waiting.get_nowait()
            except queue.Empty:
                break
            results.put(place.train(run))
    except BaseException as error:
        results.put(error)
    results.put(None)


def threads_of_each(processes: int) -> int:
    """CPU threads of each of so many processes: what the user says by OMP_NUM_THREADS, or a share of
    the cores."""
    said = os.environ.get(COUNT, "")
    if said.isdecimal() and int(said) and CHOSEN not in os.environ:
        return int(said)
    return share_of_cores(available_cores(), processes)


def make_pool(folder: Path, workers: int, ranks: int, extensions: str) -> Pool:
    """As many places as asked for; by default one for each set of GPUs that a run needs, or one."""
    import torch  # not at the top: the plan of a study needs none

    gpus = torch.cuda.device_count()
    count = workers or max(1, gpus // ranks)
    threads = threads_of_each(count * ranks)
    places = []
    for number in range(count):
        first = number * ranks % gpus if gpus else 0
        seen = ",".join(str((first + rank) % gpus) for rank in range(ranks)) if gpus else ""
        place = folder / "workers" / str(number)
        places.append(KeptProcess(place, ranks, threads, seen, extensions))
    return Pool(places)
