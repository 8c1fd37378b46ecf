"""Starting and ending the processes of a run, and the lock that a killed build of DeepSpeed leaves
behind."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psutil
import torch

from core.environment.caches import choose_caches
from launch.config import ConfigError
from launch.engine import operator_cache, stores
from launch.engine.deepspeed_engine import init_deepspeed
from launch.engine.rendezvous import own_port
from launch.monitor import control_plane, watchdog

COMPILERS = {"ninja", "c++", "g++", "clang++", "cc1plus", "nvcc", "cicc"}
# What a launcher sets; the port becomes one that is free.
ONLY_PROCESS = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": stores.LOOPBACK,
    "MASTER_PORT": "0",
}

_found: dict[str, str | None] | None = None  # those variables, before this process set them


def init_processes(timeout: float = 1800.0, lost_after: float = watchdog.LOST_AFTER) -> None:
    """Join the processes that a launcher started (``deepspeed``, ``torchrun``), or be the only one.

    Args:
        timeout: seconds that the ranks may wait for one of them.
        lost_after: seconds of silence after which a rank counts as gone.
    """
    choose_caches()
    if not torch.cuda.is_available():
        # otherwise DeepSpeed warns that it found no GPU
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed's own
    warnings.filterwarnings(
        "ignore", message=".*is deprecated. Please use.*", category=FutureWarning
    )
    _use_own_ninja()
    operator_cache.use_own_folder()
    if "RANK" not in os.environ:
        _be_the_only_process()
    refuse_stale_build_lock()
    _say_if_it_compiles()
    # the watchdog names the rank that is missing and should be first; the collectives' own time-out
    # is the second net
    patience = timedelta(seconds=timeout + 60)
    if stores.is_one_machine():
        stores.stay_on_this_machine()
    with own_port(timeout), stores.meeting_place(), _build_lock_watched():
        init_deepspeed(patience)
    control_plane.open_group(patience)
    watchdog.begin(timeout, lost_after)


def _say_if_it_compiles() -> None:
    """Once per environment, and only on a CPU, does DeepSpeed compile before the first run."""
    on_cpu = os.environ.get("DS_ACCELERATOR") == "cpu"
    if on_cpu and os.environ.get("LOCAL_RANK", "0") == "0" and not operator_cache.is_compiled():
        print(
            "DeepSpeed compiles an operator now, once for this Python environment; that takes up "
            f"to two minutes and is kept in {operator_cache.own_folder()}",
            file=sys.stderr,
            flush=True,
        )


def shutdown_processes() -> None:
    """Leave together, at the end of the work."""
    if torch.distributed.is_initialized():
        control_plane.any_rank(False)
        watchdog.leave()
        _meet()
        torch.distributed.destroy_process_group()
        stores.close()
    _no_longer_the_only_process()


def _meet() -> None:
    """A barrier, which NCCL wants to hear the device of."""
    on_gpu = torch.distributed.get_backend() == "nccl"
    torch.distributed.barrier(device_ids=[torch.cuda.current_device()] if on_gpu else None)


def abandon_processes() -> None:
    """Leave at an end at which the others may not be met. NCCL complains of a group that is left
    behind, and would wait for others if it were asked to end it in order.

    A process that is the only one has nobody to wait for, and leaves nothing to what follows in it.
    """
    if torch.distributed.is_initialized():
        is_alone = torch.distributed.get_world_size() == 1
        if torch.distributed.get_backend() == "nccl":
            torch.distributed.distributed_c10d._abort_process_group()
        elif is_alone:
            torch.distributed.destroy_process_group()
        if is_alone:
            stores.close()
    _no_longer_the_only_process()


def _be_the_only_process() -> None:
    """Set what a launcher would, until this process leaves."""
    global _found
    _found = {name: os.environ.get(name) for name in ONLY_PROCESS}
    os.environ.update(ONLY_PROCESS)


def _no_longer_the_only_process() -> None:
    """What is started from here later, such as a launcher in a notebook, must not take itself for
    rank 0 of this run."""
    global _found
    for name, value in (_found or {}).items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    _found = None


def _use_own_ninja() -> None:
    """Put the ninja of this Python first: one of another version cannot read its records, takes
    DeepSpeed's operator for outdated, and compiles it again for two minutes while all other runs on
    the machine wait."""
    folder = Path(sys.executable).parent
    search_path = os.environ.get("PATH", "")
    is_first = search_path.split(os.pathsep)[0] == str(folder)
    if (folder / "ninja").is_file() and not is_first:
        os.environ["PATH"] = f"{folder}{os.pathsep}{search_path}"


@contextmanager
def _build_lock_watched(period: float = 30.0) -> Iterator[None]:
    """End this process, with the lock's name, when the build that it waits for was killed
    meanwhile."""
    done = threading.Event()
    threading.Thread(target=_end_at_stale_lock, args=(done, period), daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _end_at_stale_lock(done: threading.Event, period: float) -> None:
    while not done.wait(period):
        try:
            refuse_stale_build_lock(idle=300, busy=math.inf)
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            os._exit(2)


def refuse_stale_build_lock(
    root: Path | None = None, *, idle: float = 5, busy: float = 300
) -> None:
    """Name the lock that a process leaves when it is killed while it compiles an operator of
    DeepSpeed: every later run would wait for it, forever and without a word.

    Args:
        idle: seconds after which a lock is stale when no compiler runs on this machine.
        busy: the same when one does; a build takes two minutes.

    Raises:
        ConfigError: with the command that removes it.
    """
    root = root or operator_cache.own_folder()
    for lock in [*root.glob("*/lock"), *root.glob("*/*/lock")]:
        try:
            age = time.time() - lock.stat().st_mtime
        except FileNotFoundError:  # the build has ended
            continue
        if age > busy or (age > idle and not _compiler_runs()):
            raise ConfigError(
                f"{lock} was left {age:.0f} s ago by an interrupted build of a DeepSpeed operator, "
                "and every run would wait for it forever; if no machine is compiling there now, "
                f"remove it: rm {lock}"
            )


def _compiler_runs() -> bool:
    return any(process.info["name"] in COMPILERS for process in psutil.process_iter(["name"]))
