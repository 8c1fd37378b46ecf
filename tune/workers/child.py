"""What each process of a trial does first: tie its life to its parent's, offer the store.

Run as a program, it goes on as ``launch.train``. So a run of the confirmation is finished: the test
split is evaluated once, and the report written. It is not part of ``tune.workers.worker``, where
the test split must be out of reach.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from tune.workers.environment import FOLDER, LISTENER, PARENT

_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def run_as_child(main: Callable[[list[str]], int]) -> int:
    """The exit code of ``main``, called with the command line in a process of a trial."""
    die_with_parent()
    enter_folder()
    store = serve_store()
    code = main(sys.argv[1:])
    del store  # only now: the ranks part through it
    return code


def die_with_parent() -> None:
    """Have the kernel end this process when its parent ends, however that happens (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    if PARENT in os.environ and os.getppid() != int(os.environ[PARENT]):
        os._exit(1)  # the parent ended before the line above


def enter_folder() -> None:
    """Go to where the run is to be: relative paths in its settings are meant from there."""
    if FOLDER in os.environ:
        os.chdir(os.environ[FOLDER])


def serve_store() -> Any:
    """On rank 0, the store through which the ranks meet, on a socket bound before they started.

    A port that is looked up first and bound later can be taken by another trial in between. The
    ranks are told by ``TORCHELASTIC_USE_AGENT_STORE`` that the store is there already. Keep it
    until the ranks have parted.
    """
    if LISTENER not in os.environ:
        return None
    from launch.engine.stores import serve

    bound = socket.socket(fileno=int(os.environ[LISTENER]))
    return serve(bound, int(os.environ["WORLD_SIZE"]))


if __name__ == "__main__":
    from launch.train import main

    sys.exit(run_as_child(main))
