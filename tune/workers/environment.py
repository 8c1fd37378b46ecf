"""The environment in which the processes of a trial run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import core
import data_shards
import launch
import tune

PARENT = "CONCORD_PARENT"  # for each process: the id of the one that must outlive it
RESULTS = "CONCORD_RESULTS"  # for rank 0: descriptor of the pipe for results
FOLDER = "CONCORD_FOLDER"  # for each process: where it runs
LISTENER = "CONCORD_LISTENER"  # for rank 0: descriptor of a socket that listens on MASTER_PORT
# what a surrounding launcher or Ray has set must not reach the trial, whose processes are a world of their own
FOREIGN = ("RAY_", "TORCHELASTIC_", "MASTER_", "GROUP_", "ROLE_", "OMPI_", "PMI_", "PMIX_", "TUNE_")
OWN = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "CROSS_RANK",
    "CROSS_SIZE",
    "LOCAL_SIZE",
)


def homes() -> list[str]:
    """Folders of this project's packages where this process has them from; Ray ships each into one of its own."""
    return list(
        dict.fromkeys(
            str(Path(str(m.__file__)).parents[1]) for m in (core, data_shards, launch, tune)
        )
    )


def environment(threads: int) -> dict[str, str]:
    """The environment of a trial's processes. What Ray has said about visible GPUs stays."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(FOREIGN) and key not in OWN
    }
    before = [kept["PYTHONPATH"]] if kept.get("PYTHONPATH") else []
    kept["PYTHONPATH"] = os.pathsep.join([*homes(), *before])
    kept["OMP_NUM_THREADS"] = str(threads)
    kept["GLOO_SOCKET_IFNAME"] = kept["NCCL_SOCKET_IFNAME"] = (
        "lo" if sys.platform == "linux" else "lo0"
    )
    kept[PARENT] = str(os.getpid())
    return kept
