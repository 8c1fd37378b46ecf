"""Being asked to stop: a signal is only noted, and all ranks leave together at the next step boundary."""

from __future__ import annotations

import signal
from types import FrameType

import torch
from torch import Tensor

from core import distributed
from launch.runlog import RunLog

PREEMPTED = 75  # exit code: stopped on request, everything saved, start again to go on (EX_TEMPFAIL of sysexits.h)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Preempted(SystemExit):
    """Leaves the process with ``PREEMPTED``."""

    def __init__(self) -> None:
        super().__init__(PREEMPTED)


class Stop:
    """Notes signals; ``agreed`` turns True on every rank at the same step."""

    def __init__(self) -> None:
        self.signal = 0
        self.agreed = False

    def listen(self) -> Stop:
        for number in SIGNALS:
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def wish(self, device: torch.device) -> Tensor:
        """(), 1 where this rank was asked to stop; summed over ranks in the message every step sends anyway."""
        return torch.tensor(float(self.signal > 0), dtype=torch.float64, device=device)

    def agree(self, device: torch.device) -> bool:
        """Ask the other ranks, outside a step."""
        self.agreed = bool(distributed.all_reduce_sum(self.wish(device)) > 0)
        return self.agreed

    def leave(self, log: RunLog) -> None:
        log.close_bar()
        log.say("stopped on request; everything is saved, and the same command with the same run_dir goes on from here")
        raise Preempted
