"""Processes that hold the model and analyse one thing at a time each. One that takes too long is
ended, and another takes its place."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from core.command import Refused

STARTS_WITHIN = 300.0  # seconds
ENDS_WITHIN = 5.0

# Unlike a fork, a new interpreter has no locks of the server's threads.
_CONTEXT = multiprocessing.get_context("spawn")


class TimeUp(Exception):
    """A job took longer than it may."""


class WorkerLost(Exception):
    """The process of a job has ended, for lack of memory perhaps."""


@dataclass(frozen=True)
class ModelChoice:
    """Which model the workers open."""

    source: str
    tokenizer: str | None = None
    folders: dict[str, str] = field(default_factory=dict)


class Worker:
    """One process, started anew whenever it was ended."""

    def __init__(self, choice: ModelChoice):
        self.choice = choice
        self.about: dict[str, Any] = {}
        self._start()

    def _start(self) -> None:
        here, there = _CONTEXT.Pipe()
        self.connection: Connection = here
        self.process = _CONTEXT.Process(target=_work, args=(there, self.choice), daemon=True)
        self.process.start()
        there.close()
        self.is_ready = False

    def wait_until_ready(self) -> None:
        """Refused where the model cannot be opened."""
        if self.is_ready:
            return
        answer = self._receive(STARTS_WITHIN)
        if "refused" in answer:
            raise Refused(answer["refused"])
        self.about = answer["about"]
        self.is_ready = True

    def ask(self, job: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The report of a job.

        Raises:
            Refused: what is asked for cannot be.
            TimeUp, WorkerLost: another process has taken this one's place.
        """
        self.wait_until_ready()
        try:
            answer = self._answer_to(job, seconds)
        except (TimeUp, WorkerLost):
            self.end()
            self._start()
            raise
        if "refused" in answer:
            raise Refused(answer["refused"])
        return answer["report"]

    def _answer_to(self, job: dict[str, Any], seconds: float) -> dict[str, Any]:
        try:
            self.connection.send_bytes(json.dumps(job).encode("utf-8"))
        except OSError:
            raise WorkerLost from None
        return self._receive(seconds)

    def _receive(self, seconds: float) -> dict[str, Any]:
        if not self.connection.poll(seconds):
            raise TimeUp
        try:
            body: dict[str, Any] = json.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            raise WorkerLost from None
        return body

    def end(self) -> None:
        """End the process, whatever it does."""
        self.connection.close()
        self.process.kill()
        self.process.join(ENDS_WITHIN)


class Workers:
    """All workers; jobs wait for one that is free."""

    def __init__(self, choice: ModelChoice, count: int):
        self.all = [Worker(choice) for _ in range(count)]
        try:
            for worker in self.all:
                worker.wait_until_ready()
        except BaseException:
            self.close()
            raise
        self.about = self.all[0].about
        self._free: asyncio.Queue[Worker] | None = None

    async def run(self, job: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The report of a job; ``TimeUp`` also where no worker becomes free within ``seconds``."""
        if self._free is None:
            self._free = asyncio.Queue()
            for worker in self.all:
                self._free.put_nowait(worker)
        try:
            worker = await asyncio.wait_for(self._free.get(), seconds)
        except asyncio.TimeoutError:
            raise TimeUp from None
        asking = asyncio.ensure_future(asyncio.to_thread(worker.ask, job, seconds))
        free = self._free
        # also when the caller has gone away meanwhile: the worker is free once it has answered
        asking.add_done_callback(lambda _: free.put_nowait(worker))
        return await asyncio.shield(asking)

    def close(self) -> None:
        """End all of them."""
        for worker in self.all:
            worker.end()


def _work(connection: Connection, choice: ModelChoice) -> None:
    """The life of a worker."""
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
    try:
        analyst = _open(choice)
    except (ValueError, OSError) as problem:
        _send(connection, {"refused": str(problem)})
        return
    _send(connection, {"about": analyst.about()})
    while True:
        try:
            job = json.loads(connection.recv_bytes())
        except (EOFError, OSError, KeyboardInterrupt):
            return  # the server has ended
        answer: dict[str, Any]
        try:
            answer = {"report": report_of(analyst, job)}
        except (ValueError, OSError) as problem:
            answer = {"refused": " ".join(str(problem).split())}
        _send(connection, answer)


def _open(choice: ModelChoice) -> Any:
    import torch

    from launch.predicting.trained import open_trained
    from launch.serving.analysis import Analyst

    torch.set_num_threads(1)  # one worker, one core
    tokenizer = Path(choice.tokenizer) if choice.tokenizer else None
    return Analyst(open_trained(choice.source, (), tokenizer), choice.folders)


def report_of(analyst: Any, job: dict[str, Any]) -> dict[str, Any]:
    """What an analyst says of a job."""
    if job["kind"] == "sentence":
        return analyst.sentence(job["text"])
    return analyst.clip(Path(job["file"]), job["transcript"])


def _send(connection: Connection, answer: dict[str, Any]) -> None:
    try:
        connection.send_bytes(json.dumps(answer).encode("utf-8"))
    except OSError:
        return  # the server has ended
