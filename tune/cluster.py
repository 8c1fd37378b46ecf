"""Ray itself: started on this machine for one search, or joined where a cluster runs."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from core.environment.threads import share_of_cores
from launch.config import ConfigError
from tune.settings import Search
from tune.workers import operators

OBJECT_STORE = 100 * 2**20  # bytes; hardly anything goes through it
# bytes of the path of the folder for temporary files: of the 107 that the path of a socket may
# have, Ray takes 68 for /ray/session_<date>_<process>/sockets/plasma_store, and a few more for its
# number
LONGEST_FOLDER = 35
# Ray has this for the firewalls of other systems: 0 makes 127.0.0.1 the only address that any of
# its processes binds
LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
PACKAGES = ("core", "data_shards", "launch", "tune")
RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial without GPUs sees none
    "RAY_DEDUP_LOGS": "0",
    "RAY_worker_niceness": "0",  # trials are what the machine is for
    "RAY_AIR_NEW_OUTPUT": "0",  # tune.trial_progress says what happens
    "TUNE_GLOBAL_CHECKPOINT_S": "15",  # copies what TensorBoard reads into the search's folder
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_THRESHOLD_S": "30",
}


@dataclass(frozen=True)
class Capacity:
    """What the trials of a search can have."""

    gpus: float  # per process
    concurrent: int  # trials at the same time
    threads: int = 1  # per process
    extensions: str = ""  # compiled operators of DeepSpeed


@contextlib.contextmanager
def cluster(search: Search) -> Iterator[Capacity]:
    """Ray for the time of a search, and the operators that its trials load.

    A local one listens on the loopback interface only, has no dashboard, and wants a token that
    this process has made up and tells nobody. One that is joined gets the code with the job.

    Raises:
        ConfigError: a trial needs more than there is.
    """
    os.environ.update(RAY_SETTINGS)
    if not search.address:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
        os.environ[LOOPBACK_ONLY] = "0"
    extensions = operators.build()
    import ray  # not at the top: it reads the variables above when it is imported

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"ray\..*")
    warnings.filterwarnings(
        "ignore", message="Consider boosting PBT performance", category=UserWarning
    )
    own_folder = "" if search.address else short_folder()
    if search.address:
        join(search.address)
    else:
        ray.init(
            "local",  # else it would join whatever cluster it finds on this machine
            _temp_dir=own_folder or None,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    try:
        yield replace(capacity(search, ray.cluster_resources()), extensions=extensions)
    finally:
        ray.shutdown()
        if own_folder:
            shutil.rmtree(own_folder, ignore_errors=True)


def short_folder() -> str:
    """A folder of this search's own for Ray, where the usual one is too deep for its sockets; else
    empty.

    Raises:
        ConfigError: and no other can be made.
    """
    usual = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(os.fsencode(usual)) <= LONGEST_FOLDER:
        return ""
    for place in ("/tmp", "/var/tmp", "/dev/shm"):
        try:
            return tempfile.mkdtemp(prefix="concord-", dir=place)
        except OSError:
            continue
    raise ConfigError(
        f"TMPDIR={usual} is too long for Ray, whose sockets lie in it, and /tmp takes no files; "
        f"set RAY_TMPDIR to a folder whose path has at most {LONGEST_FOLDER} bytes"
    )


def join(address: str) -> None:
    """Connect to a cluster, and ship this project's code to it."""
    import ray

    with tempfile.TemporaryDirectory() as folder:
        copy_code(Path(folder))
        ray.init(
            address,
            runtime_env={"working_dir": folder},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


def copy_code(folder: Path) -> None:
    """This project's packages, for Ray to ship.

    As a working directory: what is shipped as modules comes after the folder in which the driver
    was started, and a machine that has an older checkout at that path would run that one.
    """
    root = Path(__file__).parents[1]
    ignore = shutil.ignore_patterns("__pycache__")
    for package in PACKAGES:
        shutil.copytree(root / package, folder / package, ignore=ignore)


def capacity(search: Search, available: dict[str, float]) -> Capacity:
    """How many trials run side by side on what Ray has: ``CPU`` and ``GPU``.

    Raises:
        ConfigError: not even one.
    """
    cpus, gpus = available.get("CPU", 0.0), available.get("GPU", 0.0)
    gpus_per_process = search.gpus if search.gpus >= 0 else min(1.0, gpus)
    cpus_needed = search.processes * search.cpus
    gpus_needed = search.processes * gpus_per_process
    # three processes with a third of a CPU each fit, whatever the rounding
    fit = int(cpus / cpus_needed + 1e-9)
    if gpus_needed:
        fit = min(fit, int(gpus / gpus_needed + 1e-9))
    if fit < 1:
        raise ConfigError(
            f"a trial of {search.processes} process(es) needs {cpus_needed:g} CPUs and "
            f"{gpus_needed:g} GPUs, but there are {cpus:g} and {gpus:g}; "
            "give fewer processes=, or a part of one with cpus=0.5 or gpus=0.5"
        )
    concurrent = min(fit, search.concurrent or fit, search.trials)
    threads = max(1, int(search.cpus))
    if not search.address:  # of a cluster, nobody here knows which machines a trial comes to
        threads = max(threads, share_of_cores(cpus, concurrent * search.processes))
    return Capacity(gpus_per_process, concurrent, threads)
