"""How many threads a process computes with, decided once, before a library makes a pool of them.

One number serves all pools: torch's and BLAS's read OMP_NUM_THREADS, and the compiled loops of
``core.kernels`` ask torch. It follows from the cores that this process may use and from the ranks
beside it, unless the user says otherwise:

    threads=2 (a setting of the run)  >  OMP_NUM_THREADS  >  cores / local ranks

A search divides the cores between its trials in the same way, and tells each by OMP_NUM_THREADS.
And no pool spins while it waits: it would take the core from a process beside it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

COUNT = "OMP_NUM_THREADS"
CHOSEN = "CONCORD_THREADS"  # the number that this module has put there; a child decides anew
# torchrun and Ray; DeepSpeed's launcher
LOCAL_RANKS = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")
SLEEP = {
    "OMP_WAIT_POLICY": "passive",
    "KMP_BLOCKTIME": "0",
}  # GNU's and any OpenMP; LLVM's, Intel's


def settle() -> None:
    """Decide for this process, in the variables that libraries read when they are loaded.

    A program that has loaded torch before is in charge of its threads itself.
    """
    if "torch" in sys.modules:
        return
    os.environ.update(choose(os.environ, _environment_of_launcher(), available_cores()))


def choose(
    environment: Mapping[str, str], launcher: Mapping[str, str] | None, cores: float
) -> dict[str, str]:
    """The variables that a process is to set.

    Args:
        launcher: the environment that the parent process was started with; None if it cannot be
            read.
    """
    chosen = {name: value for name, value in SLEEP.items() if name not in environment}
    if not _user_has_said(environment, launcher):
        count = str(share_of_cores(cores, local_ranks(environment)))
        chosen |= {COUNT: count, CHOSEN: count}
    return chosen


def use(threads: int) -> None:
    """Compute with so many threads from now on; 0: as it was settled."""
    import torch  # not at the top: it reads the variables above when it is loaded

    if threads:
        torch.set_num_threads(threads)


def share_of_cores(cores: float, processes: int) -> int:
    """Threads of each of several processes that compute side by side."""
    return max(1, int(cores / processes + 1e-9))


def available_cores(groups: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores that this process may use: by its affinity, and by the quotas of its control groups."""
    if hasattr(os, "sched_getaffinity"):
        cores = float(len(os.sched_getaffinity(0)))
    else:
        cores = float(os.cpu_count() or 1)
    return min([cores, *_quotas(groups, _control_group())])


def local_ranks(environment: Mapping[str, str]) -> int:
    """Processes that a launcher has started on this machine for the same run."""
    for name in LOCAL_RANKS:
        if environment.get(name, "").isdigit():
            return max(1, int(environment[name]))
    return 1


def _user_has_said(environment: Mapping[str, str], launcher: Mapping[str, str] | None) -> bool:
    """Whether OMP_NUM_THREADS comes from the user, or from the search that this process is a trial
    of."""
    count = environment.get(COUNT, "")
    if not count or count == environment.get(CHOSEN):
        return False
    # torchrun puts a 1 where the user has put nothing
    by_torchrun = "TORCHELASTIC_RUN_ID" in environment and count == "1"
    return not (by_torchrun and launcher is not None and COUNT not in launcher)


def _environment_of_launcher() -> dict[str, str] | None:
    try:
        words = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    variables = {}
    for word in words:
        name, _, value = os.fsdecode(word).partition("=")
        variables[name] = value
    return variables


def _control_group() -> str:
    """The path of this process's group in the unified hierarchy; "" where there is none."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    for line in lines:
        if line.startswith("0::"):
            return line.removeprefix("0::").strip("/")
    return ""


def _quotas(groups: Path, group: str) -> list[float]:
    """Cores that the group and those around it may use, as far as they are limited."""
    quotas = []
    folder = groups / group
    for place in [folder, *folder.parents]:
        if place.is_relative_to(groups):
            quotas.append(_quota(place / "cpu.max"))
    quotas.append(_quota(groups / "cpu/cpu.cfs_quota_us", groups / "cpu/cpu.cfs_period_us"))
    return [quota for quota in quotas if quota > 0]


def _quota(*files: Path) -> float:
    """Microseconds of CPU by microseconds of time; 0 if there is no limit."""
    try:
        words = " ".join(file.read_text(encoding="utf-8") for file in files).split()
        return int(words[0]) / int(words[1])
    except (OSError, ValueError, IndexError):  # no such file; "max"
        return 0.0
