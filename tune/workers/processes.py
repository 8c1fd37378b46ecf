"""The processes of one trial: started side by side on this machine, watched, and ended with everything they started."""

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from tune.workers import operators
from tune.workers.environment import FOLDER, LISTENER, RESULTS, environment, homes

GRACE = 10.0  # seconds in which a process may leave by itself


class ProcessEnded(RuntimeError):
    """A process ended that should not have. ``code`` is negative for a signal."""

    def __init__(self, rank: int, code: int, reason: str):
        super().__init__(reason)
        self.rank, self.code, self.reason = rank, code, reason


class Processes:
    """``count`` processes of ``python -m module arguments``, as the ranks of one world.

    Args:
        output: file to which everything that they print is appended.
        folder: where they run, once they have found the code (``tune.workers.child``); here, if there is none.
        extensions: compiled operators of DeepSpeed, see ``tune.workers.operators``.
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
    ):
        self.output = output
        self.results, theirs = os.pipe()
        self._buffer = b""
        self._end: ProcessEnded | None = None
        self.processes: list[subprocess.Popen[bytes]] = []
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        base = environment(threads) | {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        base |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listener.getsockname()[1])}
        base |= {
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            FOLDER: folder if os.path.isdir(folder) else os.getcwd(),
        }
        try:
            with output.open("ab") as printed:
                for rank in range(count):
                    own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                    own |= operators.copy(extensions, output.parent / "extensions" / str(rank))
                    passed = (theirs, listener.fileno()) if rank == 0 else ()
                    if rank == 0:
                        own |= {RESULTS: str(theirs), LISTENER: str(listener.fileno())}
                    self.processes.append(
                        subprocess.Popen(
                            [sys.executable, "-m", module, *arguments],
                            stdin=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                            stdout=printed,
                            stderr=printed,
                            env=base | own,
                            cwd=homes()[
                                -1
                            ],  # `-m` looks here first: for the code that this process has
                            pass_fds=passed,
                            start_new_session=True,  # a group of its own, which close() can end as a whole
                        )
                    )
        except BaseException:
            self.close()
            raise
        finally:
            os.close(theirs)
            listener.close()

    def next(self) -> dict[str, Any]:
        """Ask for one more epoch and wait for its result.

        Raises:
            ProcessEnded: a process ended instead.
        """
        orders = self._orders()
        if orders is not None:
            with contextlib.suppress(BrokenPipeError):
                orders.write(b"go\n")
                orders.flush()
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self.results], [], [], 0.5)
            part = os.read(self.results, 1 << 16) if ready else b""
            self._buffer += part
            if not part:
                self._check(closed=bool(ready))
        line, _, self._buffer = self._buffer.partition(b"\n")
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
        stream = self.processes[0].stdin
        return stream if stream is not None and not stream.closed else None  # type: ignore[return-value]

    def _check(self, *, closed: bool) -> None:
        """Raise for a process that failed; rank 0 must not close its pipe while a result is expected."""
        if closed:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.processes[0].wait(GRACE)
        codes = [process.poll() for process in self.processes]
        failed = [(rank, code) for rank, code in enumerate(codes) if code]
        if failed:
            # ranks that lose a peer end too, with a higher code: one that was killed is the cause, or one that refused
            rank, code = min(failed, key=lambda item: (item[1] > 0, item[1] == 1, item[1], item[0]))
            raise ProcessEnded(rank, code, self._reason(rank, code))
        if closed:
            raise ProcessEnded(0, 0, "rank 0 left before its last epoch")

    def _reason(self, rank: int, code: int) -> str:
        who = f"rank {rank}" if len(self.processes) > 1 else "the process"
        if code < 0:
            hint = " (the system may have run out of memory)" if code == -signal.SIGKILL else ""
            return f"{who} was ended by {signal.Signals(-code).name}{hint}"
        lines = self.output.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        last = (
            said[-1]
            if said
            else next((line for line in reversed(lines) if line.strip()), "it said nothing")
        )
        return last if said else f"{who} ended with code {code}: {last.strip()}"

    def close(self) -> None:
        """End all processes: asked first, then by force, with whatever they have started."""
        orders = self._orders() if self.processes else None
        if orders is not None:
            with contextlib.suppress(OSError):
                orders.close()  # they leave at the next question
        until = time.monotonic() + (GRACE if all(p.poll() is None for p in self.processes) else 0.0)
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # its group, also when it has left it behind
            process.wait()
        if self.results >= 0:
            os.close(self.results)
            self.results = -1
