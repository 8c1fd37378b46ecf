"""The environment in which the processes of a trial run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import core
import data_shards
import launch
import tune
from core.threads import CHOSEN, COUNT

PARENT = "CONCORD_PARENT"  # for each process: the id of the one that must outlive it
RESULTS = "CONCORD_RESULTS"  # for rank 0: descriptor of the pipe for results
FOLDER = "CONCORD_FOLDER"  # for each process: where it runs
LISTENER = "CONCORD_LISTENER"  # for rank 0: descriptor of a socket that listens on MASTER_PORT

# What a surrounding launcher or Ray has set must not reach the trial: its processes are a world by
# themselves.
FOREIGN_PREFIXES = (
    "RAY_",
    "TUNE_",
    "TORCHELASTIC_",
    "MASTER_",
    "GROUP_",
    "ROLE_",
    "OMPI_",
    "PMI_",
    "PMIX_",
)
FOREIGN_NAMES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "CROSS_RANK",
    "CROSS_SIZE",
    "LOCAL_SIZE",
    CHOSEN,  # of the search's own process
)


def package_folders() -> list[str]:
    """Folders that this process has the project's packages from; Ray may ship each into its own."""
    folders = []
    for package in (core, data_shards, launch, tune):
        folder = str(Path(str(package.__file__)).parents[1])
        if folder not in folders:
            folders.append(folder)
    return folders


def environment(threads: int) -> dict[str, str]:
    """The environment of a trial's processes. What Ray has set about visible GPUs stays."""
    variables = {name: value for name, value in os.environ.items() if not _is_foreign(name)}
    search_path = package_folders()
    if variables.get("PYTHONPATH"):
        search_path.append(variables["PYTHONPATH"])
    variables["PYTHONPATH"] = os.pathsep.join(search_path)
    variables[COUNT] = str(threads)
    loopback = "lo" if sys.platform == "linux" else "lo0"  # a trial stays on one machine
    variables["GLOO_SOCKET_IFNAME"] = loopback
    variables["NCCL_SOCKET_IFNAME"] = loopback
    variables[PARENT] = str(os.getpid())
    return variables


def _is_foreign(name: str) -> bool:
    return name.startswith(FOREIGN_PREFIXES) or name in FOREIGN_NAMES
