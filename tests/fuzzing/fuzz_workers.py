"""Many cases of the fuzz suite, in processes that may die: ``python -m fuzz_workers --door pickles
--seed 7``."""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

DOORS = ("pickles", "tables", "graphs", "shards", "tars", "runs", "words")
CHUNK = 40  # cases that a worker takes at a time
SILENCE = 150.0  # seconds that a worker may be at one case before it is ended
OPENING = 900.0  # or at its imports and the valid inputs of a door, on a busy machine


@dataclass
class Fault:
    """A case that ended as none may."""

    door: str
    seed: int
    what: str
    detail: str = ""

    def __str__(self) -> str:
        again = f"make fuzz DOOR={self.door} SEED={self.seed} CASES=1"
        what = self.what.encode("utf-8", "backslashreplace").decode()
        return f"{self.door}, seed {self.seed}: {what}\n    again: {again}"


@dataclass
class Tally:
    """What came of the cases of one door."""

    cases: int = 0
    refused: int = 0
    faults: list[Fault] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.cases += other.cases
        self.refused += other.refused
        self.faults += other.faults


class Workers:
    """Processes that run cases. Their scratch folders are in memory where the machine has such a
    place."""

    def __init__(self, count: int = 2):
        self.context = multiprocessing.get_context("spawn")
        memory = Path("/dev/shm")
        parent = memory if os.access(memory, os.W_OK) else None
        self.scratch = Path(tempfile.mkdtemp(prefix="fuzz-", dir=parent))
        self.workers = [_Worker(self.context, self.scratch / str(i)) for i in range(count)]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.end()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def run(self, door: str, seeds: Iterable[int]) -> Tally:
        """All cases of a door by their seeds."""
        waiting = deque(seeds)
        tally = Tally()
        while waiting or any(worker.seeds for worker in self.workers):
            for worker in self.workers:
                if not worker.seeds and waiting:
                    chunk = [waiting.popleft() for _ in range(min(CHUNK, len(waiting)))]
                    worker.give(door, chunk)
            ready = wait([worker.pipe for worker in self.workers if worker.seeds], timeout=5.0)
            for worker in self.workers:
                if worker.pipe in ready or worker.is_lost():
                    done, left = worker.answer(door)
                    tally.add(done)
                    waiting.extendleft(reversed(left))
        return tally


class _Worker:
    """One process, and the seeds that it is at."""

    def __init__(self, context: Any, scratch: Path):
        self.context, self.scratch = context, scratch
        self.at = context.Value("q", -1)  # the seed in hand
        self.seeds: list[int] = []
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = self.context.Pipe()
        self.process = self.context.Process(
            target=_work, args=(theirs, self.at, self.scratch), daemon=True
        )
        self.process.start()
        theirs.close()

    def give(self, door: str, seeds: list[int]) -> None:
        self.seeds, self.seen, self.since, self.at.value = seeds, -1, time.monotonic(), -1
        self.pipe.send((door, seeds))

    def is_lost(self) -> bool:
        if not self.seeds:
            return False
        if self.at.value != self.seen:
            self.seen, self.since = self.at.value, time.monotonic()
        patience = OPENING if self.seen == -1 else SILENCE
        return time.monotonic() - self.since > patience or not self.process.is_alive()

    def answer(self, door: str) -> tuple[Tally, list[int]]:
        """What came of the chunk, and the seeds that it did not reach."""
        seeds, self.seeds = self.seeds, []
        try:
            if self.pipe.poll(0.2):
                done = self.pipe.recv()
                if isinstance(done, str):
                    raise RuntimeError(f"the suite itself failed at seed {self.at.value}:\n{done}")
                return done, []
        except EOFError:
            pass
        self.process.kill()
        self.process.join()
        at = seeds.index(self.at.value) if self.at.value in seeds else 0
        what = (
            f"its process ended with code {self.process.exitcode}, or was silent for {SILENCE:g} s"
        )
        self._start()
        # what came of the cases before it is lost with it, so they are run again
        return Tally(1, 0, [Fault(door, seeds[at], what)]), seeds[:at] + seeds[at + 1 :]

    def end(self) -> None:
        self.pipe.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()


def _work(pipe: Connection, at: Any, scratch: Path) -> None:
    """Of a worker: run the chunks that come through the pipe, until it is closed."""
    # a case may name a model of a hub, which would be looked up; set before anything is imported, and
    # in the worker only: tests of the hub share the process that starts the workers
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["XDG_CACHE_HOME"] = str(scratch / "cache")
    from fuzzing import Watch

    os.fsync = lambda descriptor: None  # nothing here must outlast a power cut
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "outside").mkdir(parents=True)
    os.chdir(scratch / "outside")
    tempfile.tempdir = str(scratch)
    watch = Watch()
    opened: dict[str, Any] = {}
    while True:
        try:
            name, seeds = pipe.recv()
        except EOFError:
            return
        try:
            if name not in opened:
                opened[name] = _open(name, scratch)
            pipe.send(_run_chunk(name, opened[name], seeds, at, scratch, watch))
        except Exception:  # of the suite itself
            pipe.send(traceback.format_exc())


def _open(name: str, scratch: Path) -> Any:
    """A door with its valid inputs made; each goes through once, so that everything is imported."""
    from fuzzing import put

    door = importlib.import_module(f"doors.{name}").open_door(scratch / f"valid-{name}")
    for number, case in enumerate(door.valid()):
        folder = scratch / f"first-{name}-{number}"
        folder.mkdir()
        put(case, folder)
        door.enter(folder, case)
    return door


def _run_chunk(name: str, door: Any, seeds: list[int], at: Any, scratch: Path, watch: Any) -> Tally:
    from fuzzing import run_case

    tally = Tally()
    for seed in seeds:
        at.value = seed
        end = run_case(door, seed, scratch, watch)
        tally.cases += 1
        tally.refused += end.refused
        if end.fault:
            tally.faults.append(Fault(name, seed, end.fault, end.detail))
    return tally


def _one_of_a_kind(faults: list[Fault]) -> list[Fault]:
    """The first of those that say the same but for numbers and what is quoted."""
    kinds: dict[str, Fault] = {}
    for fault in faults:
        kinds.setdefault(re.sub(r"'[^']*'|\"[^\"]*\"|[\d.]+", "", fault.what)[:120], fault)
    return list(kinds.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--door", choices=["all", *DOORS], default="all")
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--cases", type=int, default=100, help="of each door")
    parser.add_argument(
        "--shown", type=int, default=20, help="faults of a door that are shown, of each kind one"
    )
    options = parser.parse_args()
    total = 0
    with Workers(min(2, options.cases)) as workers:
        for door in DOORS if options.door == "all" else [options.door]:
            started = time.monotonic()
            tally = workers.run(door, range(options.seed, options.seed + options.cases))
            total += len(tally.faults)
            for fault in _one_of_a_kind(tally.faults)[: options.shown]:
                print(fault, f"\n{fault.detail}" if options.cases == 1 else "")
            print(
                f"{door}: {tally.cases} cases, {tally.refused} refused, {len(tally.faults)} faults, "
                f"{time.monotonic() - started:.1f} s",
                flush=True,
            )
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
