"""One process at a time for a run directory, a search's folder, or a ``distill``: a lease with a
heartbeat.

The holder keeps ``lease.json`` in the folder and rewrites it every few seconds, in a thread.
Whoever finds it there may take it over when the holder is gone: at once when its process no longer
runs on this machine, and from another machine when the file has not changed for ``STALE_AFTER``
seconds of the finder's own clock. Locks of the file system are not used: they do not hold on every
NFS, and say nothing about who holds them. Clocks of two machines are never compared.

A holder that was taken for gone while it was only suspended finds another's name in the file, and
ends before it writes anything else.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from pydantic import TypeAdapter

from core import distributed
from core.command import RANK_LOST, STOPPED, Refused
from core.file_access.regular_files import read_regular_file
from core.files import naming
from launch.monitor import control_plane

NAME = "lease.json"
PERIOD = 5.0  # seconds between two beats
STALE_AFTER = 45.0  # seconds without a beat after which a holder elsewhere counts as gone
ENDING = 3.0  # seconds in which a process of this machine that is about to end may do so
SETTLING = 0.3  # seconds after which it is clear who of several has taken a lease over
SIZE = (
    512  # bytes of the file; overwritten in place, which every NFS shows to the next who opens it
)


class InUse(Refused):
    """The folder is another process's; the message says whose and since when.

    Later the same command can go on, which is what its exit code says to a scheduler that starts
    the replacement while the replaced process still ends.
    """

    exit_code = STOPPED


@dataclass(frozen=True)
class Holder:
    """Who holds a folder: the contents of the file."""

    token: str  # of this taking alone
    host: str
    machine: str  # what a process id is unique in
    pid: int
    created: float  # when that process was started, by its machine
    since: str  # when it took the folder, for people
    beat: int = 0

    def is_gone(self) -> bool:
        """Whether this process ran on this machine and runs no more."""
        if self.machine != _machine():
            return False
        try:
            process = psutil.Process(self.pid)
            is_another = abs(process.create_time() - self.created) > 1.0
            return is_another or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


class Lease:
    """The lease of one folder, held by this process from ``take`` to ``release``."""

    def __init__(self, folder: Path):
        self.path = folder / NAME
        self.holder = Holder(
            token=secrets.token_hex(8),
            host=socket.gethostname()[:80],
            machine=_machine(),
            pid=os.getpid(),
            created=psutil.Process().create_time(),
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
        )
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, daemon=True)

    def take(self, say: Callable[[str], None]) -> None:
        """Wait for a holder that may be gone, and no longer than it takes to know.

        Raises:
            InUse: it is not.
        """
        while not self._create():
            if self._wait_until_free(say):
                self._overwrite()
                time.sleep(SETTLING)
                found = read(self.path)
                if found is not None and found.token == self.holder.token:
                    break
        self._thread.start()

    def release(self) -> None:
        self._closed.set()
        self._thread.join()
        found = read(self.path)
        if found is not None and found.token == self.holder.token:
            self.path.unlink(missing_ok=True)

    def _create(self) -> bool:
        """Make the file, unless there is one."""
        try:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            descriptor = os.open(self.path, flags, 0o644)
        except FileExistsError:
            return False
        try:
            with naming(self.path):
                _write(descriptor, self.holder)
        except OSError:
            self.path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        return True

    def _overwrite(self) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _write(descriptor, self.holder)
        finally:
            os.close(descriptor)

    def _wait_until_free(self, say: Callable[[str], None]) -> bool:
        """True when the holder is gone, False when the file is.

        Raises:
            InUse: the holder has shown that it lives.
        """
        first = read(self.path)
        is_here = first is not None and first.machine == _machine()
        patience = ENDING if is_here else STALE_AFTER
        started = time.monotonic()
        told = False
        while time.monotonic() - started < patience:
            if not self.path.exists():
                return False
            found = read(self.path)
            if found is not None and found.is_gone():
                return True
            lives = found is not None and found != first and not is_here
            if lives and first is not None:
                raise _in_use(self.path.parent, found)
            first = first or found
            waited = time.monotonic() - started
            if waited > 1.0 and not told and not is_here:
                told = True
                holder = _name(first)
                say(f"waiting up to {patience:.0f} s to see whether {holder} still has {self.path}")
            time.sleep(0.1)
        if is_here:
            raise _in_use(self.path.parent, first)
        return True

    def _beat_on(self) -> None:
        beat = 0
        while not self._closed.wait(PERIOD):
            beat += 1
            try:
                found = read(self.path)
                if found is not None and found.token != self.holder.token:
                    self._end(found)
                self.holder = Holder(**{**asdict(self.holder), "beat": beat})
                self._overwrite()
            except OSError:
                continue  # the file system does not answer; the next beat tries again

    def _end(self, other: Holder) -> None:
        """Leave at once: two processes that write one folder destroy it."""
        print(
            f"error: {self.path.parent} was taken over by {_name(other)} on {other.since}, because "
            "this process had not been heard of; it leaves and writes nothing more",
            file=sys.stderr,
            flush=True,
        )
        os._exit(RANK_LOST)


_held: dict[Path, int] = {}  # folders of this process, and how often each is held


@contextmanager
def held(folder: Path, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """``folder``, which is there, for this process alone; it may hold it more than once.

    Raises:
        InUse: another process has it.
    """
    key = folder.resolve()
    lease = None if key in _held else Lease(key)
    if lease is not None:
        lease.take(say or (lambda text: print(text, file=sys.stderr, flush=True)))
    _held[key] = _held.get(key, 0) + 1
    try:
        yield
    finally:
        _held[key] -= 1
        if lease is not None:
            del _held[key]
            lease.release()


@contextmanager
def held_by_first_rank(folder: Path) -> Iterator[None]:
    """``folder`` for this run alone: rank 0 holds it for all. Collective.

    Raises:
        InUse: on every rank alike.
    """
    if distributed.world_size() == 1:
        with held(folder):
            yield
        return
    holding = held(folder)
    refusal: tuple[str, int] = "", 0
    if distributed.rank() == 0:
        try:
            holding.__enter__()
        except (InUse, OSError) as error:
            refusal = _why(error), getattr(error, "errno", None) or 0
    reason, number = json.loads(control_plane.broadcast_text(json.dumps(refusal)))
    if number:  # such as a full disk, which ends a command with another exit code
        raise OSError(number, reason, str(folder / NAME))
    if reason:
        raise InUse(reason)
    try:
        yield
    finally:
        if distributed.rank() == 0:
            holding.__exit__(None, None, None)


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def read(path: Path) -> Holder | None:
    """Who holds it; None while the file is being written, or is no such file."""
    with suppress(OSError, ValueError):  # those of JSON and of pydantic are ValueErrors
        return TypeAdapter(Holder).validate_python(json.loads(read_regular_file(path, 4 * SIZE)))
    return None


def _write(descriptor: int, holder: Holder) -> None:
    content = json.dumps(asdict(holder)).ljust(SIZE - 1).encode() + b"\n"
    written = 0
    while written < len(content):  # a full disk takes a part first, and refuses the next
        written += os.pwrite(descriptor, content[written:], written)
    os.fsync(descriptor)


def _in_use(folder: Path, holder: Holder | None) -> InUse:
    since = f" since {holder.since}" if holder is not None else ""
    return InUse(
        f"{folder} is in use by {_name(holder)}{since}; wait until it has ended, stop it, or give "
        "another run_dir"
    )


def _name(holder: Holder | None) -> str:
    return "another process" if holder is None else f"process {holder.pid} on {holder.host}"


def _machine() -> str:
    """What a process id is unique in: one start of one kernel, and one name space of it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"
