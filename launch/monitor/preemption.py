"""Being asked to stop: a signal is only noted, and all ranks leave together at the next boundary.

Boundaries are between two steps, also while the next batch is waited for, and between two batches
of an evaluation. The rank that got the signal tells the others, so one signal to one rank is
enough.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from torch import nn

from core.command import STOPPED
from launch.monitor import control_plane, watchdog

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Preempted(SystemExit):
    """Leaves the process with ``STOPPED``. ``stuck``: a thread still waits for data that may
    never come."""

    def __init__(self, *, stuck: bool = False) -> None:
        super().__init__(STOPPED)
        self.stuck = stuck


class StopNow(Exception):
    """All ranks have agreed to stop, in the middle of an evaluation."""


class Stop:
    """Notes signals; ``agreed`` is True on every rank at the same boundary."""

    def __init__(self) -> None:
        self.signal = 0
        self.nothing_to_save = False

    def listen(self) -> Stop:
        for number in SIGNALS:
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        watchdog.ask_stop()
        if self.nothing_to_save:
            raise Preempted

    @property
    def requested(self) -> bool:
        """Whether this rank has heard of a request; the others may not have."""
        return self.signal > 0 or watchdog.stop_asked()

    def agreed(self) -> bool:
        """Whether any rank has heard of a request. Collective: all give the same answer."""
        return control_plane.any_rank(self.requested)

    @contextmanager
    def between_batches_of(self, model: nn.Module) -> Iterator[None]:
        """Within this block, every forward of ``model`` is preceded by a boundary, which may raise
        ``StopNow``."""
        handle = model.register_forward_pre_hook(self._boundary)
        try:
            yield
        finally:
            handle.remove()

    def _boundary(self, module: nn.Module, inputs: Any) -> None:
        watchdog.report_phase("evaluating")
        if self.agreed():
            raise StopNow
