"""Real ranks for the tests: processes forked from one that has imported everything, so that
starting them is cheap.

A rank runs a function at the top level of any file, and returns what it returns.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import inspect
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tune.workers.operators import build, copy

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
# There is ninja, which DeepSpeed asks for when it loads its operator.
_BIN = str(Path(sys.executable).parent)
os.environ["PATH"] = os.pathsep.join([_BIN, os.environ.get("PATH", "")])
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["deepspeed", "launch.train", "launch.tasks.sentiment", "launch.tasks.alignment"]
)


def free_port() -> int:
    """A port that nobody uses, below those that the system deals out, so that it stays free for a
    while."""
    while True:
        with socket.socket() as probe:
            port = random.SystemRandom().randrange(15_000, 32_000)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port


class Start(NamedTuple):
    """What a forked process needs to become a rank."""

    rank: int
    world_size: int
    port: int
    folder: Path  # of what it prints and returns
    operators: dict[str, str]  # environment variables that lead to its copy of them
    file: str  # that holds the function
    function: str
    arguments: tuple[Any, ...]


class Ranks:
    """Processes 0 to ``ranks - 1`` running ``function(*arguments)``; use as a context manager."""

    def __init__(self, ranks: int, folder: Path, function: Callable[..., Any], *arguments: Any):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        file, name = inspect.getfile(function), function.__name__
        self.processes = []
        for rank in range(ranks):
            # A rank that is killed may leave a lock on the operators that it loads, which would
            # hinder other tests: each has a copy.
            operators = copy(_operators(), folder / f"operators-{rank}")
            start = Start(rank, ranks, port, folder, operators, file, name, arguments)
            self.processes.append(_CONTEXT.Process(target=_run, args=(start,)))

    def __enter__(self) -> Ranks:
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid or 0, signal.SIGABRT)  # it writes where it was
            process.join(5)
            if process.is_alive():
                process.kill()
            process.join()

    def codes(self, timeout: float = 600) -> list[int | None]:
        """Exit codes, once all have ended; None for one that has not within ``timeout`` seconds for
        each."""
        for process in self.processes:
            process.join(timeout)
        return [process.exitcode for process in self.processes]

    def output(self, rank: int) -> str:
        """What a rank wrote to its standard error."""
        return (self.folder / f"rank-{rank}.txt").read_text(encoding="utf-8")

    def results(self) -> list[Any]:
        """What the function returned on each rank. However long it takes: the test's own time-out
        ends it."""
        codes = self.codes(timeout=10_000)
        ranks = range(len(codes))
        assert codes == [0] * len(codes), "\n".join(self.output(rank)[-3000:] for rank in ranks)
        return [json.loads((self.folder / f"rank-{rank}.json").read_text()) for rank in ranks]


def run_ranks(ranks: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``function(*arguments)`` returns on each rank, as JSON gives it back."""
    with Ranks(ranks, folder, function, *arguments) as started:
        return started.results()


@cache
def _operators() -> str:
    """The folder of DeepSpeed's operators, compiled."""
    return build()


def _run(start: Start) -> None:
    """The life of a rank, from the fork to its exit."""
    os.environ |= start.operators
    os.environ |= {
        "RANK": str(start.rank),
        "LOCAL_RANK": str(start.rank),
        "WORLD_SIZE": str(start.world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(start.port),
    }
    output = (start.folder / f"rank-{start.rank}.txt").open("a", encoding="utf-8")
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    import torch

    torch.set_num_threads(1)
    faulthandler.enable()  # says where it is when it is aborted
    code = 0
    try:
        result = _load(start.file, start.function)(*start.arguments)
        (start.folder / f"rank-{start.rank}.json").write_text(json.dumps(result))
    except SystemExit as left:
        code = int(left.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _load(path: str, name: str) -> Callable[..., Any]:
    """A function of a file: test files are no modules that another process could import by name."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)
