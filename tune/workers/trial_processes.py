"""The processes of one trial: started side by side, watched, and ended with their children.

What Ray's worker groups lack is in the docstring of ``tune.workers``.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from core.command import FAULT
from tune.workers import operators
from tune.workers.environment import FOLDER, LISTENER, RESULTS, environment, package_folders

GRACE = 10.0  # seconds in which a process may leave by itself


class ProcessEnded(RuntimeError):
    """A process ended that should not have. ``code`` is negative for a signal."""

    def __init__(self, rank: int, code: int, reason: str):
        super().__init__(reason)
        self.rank, self.code, self.reason = rank, code, reason


class Processes:
    """``count`` processes of ``python -m module arguments``, as the ranks of one world.

    Args:
        output: file to which everything that they print is appended. folder: where they run, once
        they have found the code (``tune.workers.child``); here, if there is none. extensions:
        compiled operators of DeepSpeed, see ``tune.workers.operators``. more: variables of their
        environment, besides those of this process.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        module: str = "tune.workers.worker",
        count: int = 1,
        threads: int = 1,
        output: Path,
        folder: str = "",
        extensions: str = "",
        more: Mapping[str, str] | None = None,
    ):
        self.output = output
        self.processes: list[subprocess.Popen[bytes]] = []
        self._unread = b""  # of a result that has not come whole
        self.results, results_end = os.pipe()
        listener = _listening_socket()
        shared = environment(threads) | {
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(listener.getsockname()[1]),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            FOLDER: folder if os.path.isdir(folder) else os.getcwd(),
            **(more or {}),
        }
        command = [sys.executable, "-m", module, *arguments]
        try:
            with output.open("ab") as printed:
                for rank in range(count):
                    variables = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                    copied_to = output.parent / "extensions" / str(rank)
                    variables |= operators.copy(extensions, copied_to)
                    inherited: tuple[int, ...] = ()
                    if rank == 0:
                        variables[RESULTS] = str(results_end)
                        variables[LISTENER] = str(listener.fileno())
                        inherited = (results_end, listener.fileno())
                    process = subprocess.Popen(
                        command,
                        stdin=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                        stdout=printed,
                        stderr=printed,
                        env=variables,
                        # `-m` looks here first: for the code that this process has
                        cwd=package_folders()[-1],
                        pass_fds=inherited,
                        # a group of its own, which close() can end as a whole
                        start_new_session=True,
                    )
                    self.processes.append(process)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(results_end)
            listener.close()

    def next(self, order: str = "go") -> dict[str, Any]:
        """Ask for one more epoch, or for what another ``order`` means, and wait for its result.

        Raises:
            ProcessEnded: a process ended instead.
        """
        orders = self._orders()
        if orders is not None:
            with contextlib.suppress(BrokenPipeError):
                orders.write(order.encode() + b"\n")
                orders.flush()
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self.results], [], [], 0.5)
            received = os.read(self.results, 1 << 16) if ready else b""
            self._unread += received
            if not received:
                self._check(closed=bool(ready))
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def wait(self) -> None:
        """Until every process has ended well.

        Raises:
            ProcessEnded: one did not.
        """
        while any(process.poll() is None for process in self.processes):
            self._check(closed=False)
            time.sleep(0.1)
        self._check(closed=False)

    def _orders(self) -> BinaryIO | None:
        """Where rank 0 reads whether to go on, while it is open."""
        stream = self.processes[0].stdin
        if stream is None or stream.closed:
            return None
        return stream  # type: ignore[return-value]

    def _check(self, *, closed: bool) -> None:
        """Raise for a process that failed; rank 0's pipe must stay open while a result is due."""
        if closed:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.processes[0].wait(GRACE)
        failed = []
        for rank, process in enumerate(self.processes):
            code = process.poll()
            if code:
                failed.append((rank, code))
        if failed:
            rank, code = min(failed, key=_cause_first)
            raise ProcessEnded(rank, code, self._reason(rank, code))
        if closed:
            raise ProcessEnded(0, 0, "rank 0 left before its last epoch")

    def _reason(self, rank: int, code: int) -> str:
        """Why a process ended, in one line: the signal, its last error, or its last output."""
        name = f"rank {rank}" if len(self.processes) > 1 else "the process"
        if code < 0:
            hint = " (the system may have run out of memory)" if code == -signal.SIGKILL else ""
            return f"{name} was ended by {signal.Signals(-code).name}{hint}"
        text = self.output.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        for line in reversed(lines):
            if line.startswith("error: "):
                return line.removeprefix("error: ")
        last = lines[-1].strip() if lines else "it printed nothing"
        return f"{name} ended with code {code}: {last}"

    def ask_to_stop(self) -> None:
        """Have a training save what it has and leave; ``close`` still ends what does not."""
        for process in self.processes:
            if process.poll() is None:
                process.terminate()

    def close(self) -> None:
        """End all processes: asked first, then by force, with whatever they have started."""
        orders = self._orders() if self.processes else None
        if orders is not None:
            with contextlib.suppress(OSError):
                orders.close()  # they leave at the next question
        all_run = all(process.poll() is None for process in self.processes)
        deadline = time.monotonic() + (GRACE if all_run else 0.0)  # ranks wait for a lost one
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # its group, also when it has left it behind
            process.wait()
        if self.results >= 0:
            os.close(self.results)
            self.results = -1


def _listening_socket() -> socket.socket:
    """On a free port of the loopback interface, which nobody else can take from now on."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    return listener


def _cause_first(failure: tuple[int, int]) -> tuple[bool, bool, int, int]:
    """Sorts (rank, exit code): ranks that lose a peer end too, but later and with a higher code.

    One that was killed is the cause, before one that ended with an error, before one that crashed.
    """
    rank, code = failure
    was_killed, crashed = code < 0, code in (1, FAULT)
    return not was_killed, crashed, code, rank
