"""The port on which the ranks of one machine meet: their own, not the one that every launcher
proposes.

``deepspeed`` gives every run port 29500, so that a second run on a machine would fail, or meet the
ranks of the first. Where all ranks are on this machine, rank 0 takes a free port and leaves its
number in a file that only ranks of the same launcher look for.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from core.command import Refused

PROPOSED = "29500"  # by deepspeed and torch
TAKEN = ("eaddrinuse", "address already in use")


def free_port() -> int:
    """One of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def own_port(patience: float) -> Iterator[None]:
    """``MASTER_PORT`` is this run's own within the block, in which all ranks join.

    Args:
        patience: seconds that the other ranks wait for rank 0 to choose.

    Raises:
        Refused: the port is taken, and was asked for or cannot be agreed on anew.
    """
    file = None
    if _may_choose():
        is_first = os.environ["RANK"] == "0"
        shared = _file_of_launcher()
        if not is_first:
            port = _wait_for(shared, patience)
        else:
            port = str(free_port())
            if os.environ["WORLD_SIZE"] != "1":
                _leave(shared, port)
                file = shared
        os.environ["MASTER_PORT"] = port
    try:
        yield
    except RuntimeError as error:  # torch's own errors of the network are such
        if not any(words in str(error).lower() for words in TAKEN):
            raise
        raise Refused(
            f"port {os.environ['MASTER_PORT']} of {os.environ['MASTER_ADDR']} is taken, perhaps by "
            "another run; give this one another: deepspeed --master_port 29501, or torchrun "
            "--master-port 29501"
        ) from None
    finally:
        if file is not None:
            file.unlink(missing_ok=True)


def _may_choose() -> bool:
    """Whether ``deepspeed`` started all ranks on this machine and proposed the port itself."""
    size = os.environ.get("WORLD_SIZE")
    is_deepspeed = "LOCAL_SIZE" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ
    is_one_node = os.environ.get("LOCAL_SIZE") == size
    return is_deepspeed and is_one_node and os.environ.get("MASTER_PORT") == PROPOSED


def _file_of_launcher() -> Path:
    """The same for all processes that one launcher started, and for no others."""
    launcher = psutil.Process(os.getppid())
    name = f"concord-{os.getuid()}-{launcher.pid}-{launcher.create_time():.2f}.port"
    return Path(tempfile.gettempdir()) / name


def _leave(path: Path, port: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(partial, flags, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(port)
    os.replace(partial, path)  # whoever finds it finds all of it


def _wait_for(path: Path, patience: float) -> str:
    until = time.monotonic() + patience
    while time.monotonic() < until:
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(path)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid():
                raise Refused(f"{path} is not this user's; remove it, or set another TMPDIR")
            return path.read_text(encoding="ascii")
        time.sleep(0.05)
    raise Refused(
        f"rank 0 has not chosen a port within {patience:.0f} s; do all ranks share TMPDIR "
        f"({path.parent})?"
    )
