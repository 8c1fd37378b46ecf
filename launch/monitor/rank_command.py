"""How a command ends that runs as one rank of several: rank 0 speaks, and the others hear why a
rank leaves."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from core import command, distributed
from launch.engine.processes import abandon_processes
from launch.monitor import watchdog
from launch.monitor.preemption import Preempted

AGAIN = "run the same command again"


def run_rank(work: Callable[[], int | None], when_stopped: str = AGAIN) -> int:
    """How ``_run_rank`` ends. Nothing of the process group is left behind then."""
    try:
        return _run_rank(work, when_stopped)
    finally:
        abandon_processes()


def _run_rank(work: Callable[[], int | None], when_stopped: str) -> int:
    """``core.command.run`` for the work of one rank. A ValueError that refuses nothing is a
    fault."""
    try:
        return command.run(
            work,
            when_stopped=when_stopped,
            refused=(command.Refused, OSError),
            report=_report,
            passed_on=(Exception,),
        )
    except Preempted as left:
        watchdog.leave()
        if left.stuck:  # the thread that waits for data would keep the interpreter from ending
            sys.stderr.flush()
            os._exit(command.STOPPED)
        return command.STOPPED
    except Exception as error:
        if isinstance(error, RuntimeError):
            watchdog.wait_for_verdict(error)
        message = command.describe_fault(error)
        command.report_error(message)  # of any rank: only one may have it
        watchdog.leave(message)
        return command.FAULT


def _report(message: str) -> None:
    if distributed.rank() == 0:
        command.report_error(message)
    watchdog.leave(message)
