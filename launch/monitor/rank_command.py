"""How a command ends that runs as one rank of several: rank 0 speaks, and the others hear why a rank leaves."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from core import command, distributed
from core.environment.credentials import redact
from launch.monitor import watchdog
from launch.monitor.preemption import Preempted


def run_rank(work: Callable[[], int | None]) -> int:
    """``core.command.run`` for the work of one rank. A ValueError that refuses nothing is a fault, and is raised."""
    try:
        return command.run(work, refused=(command.Refused, OSError), report=_report)
    except Preempted as left:
        watchdog.leave()
        if left.stuck:  # the thread that waits for data would keep the interpreter from ending
            sys.stderr.flush()
            os._exit(command.STOPPED)
        return command.STOPPED
    except RuntimeError as error:
        watchdog.wait_for_verdict(error)
        watchdog.leave(redact(str(error)))
        raise


def _report(message: str) -> None:
    if distributed.rank() == 0:
        command.report_error(message)
    watchdog.leave(message)
