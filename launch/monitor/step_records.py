"""What steps did, read from the device once in a while: whoever reads a number of a step waits for
all that was asked of the device before.

On a CPU each step is read at once. On a GPU that trains alone or at stage 0, a loss or gradient
that is not finite keeps the optimiser where it is, on the device and from that step on, until its
numbers are read here; so the report about it is the one that reading at once would give. Numbers
are always read before a checkpoint is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from core.batch import Batch
from launch.engine.deepspeed_engine import device_guards_step
from launch.monitor.bad_batch import report_bad_batch
from launch.reports.run_log import prefixed
from launch.session import TrainingSession

READ_EVERY = 10  # steps of a GPU, unless ``log_every`` says so


@dataclass(frozen=True)
class StepResult:
    """What one step did. Its numbers are read from the device when they are first asked for."""

    step: int
    names: tuple[str, ...]  # of the losses
    # (losses + 1,) float64: means over the global batch, the same on every rank; and the norm of
    # the global gradient before clipping
    values: Tensor

    @cached_property
    def numbers(self) -> list[float]:
        numbers: list[float] = self.values.tolist()
        return numbers

    @property
    def losses(self) -> dict[str, float]:
        return dict(zip(self.names, self.numbers[:-1], strict=True))

    @property
    def grad_norm(self) -> float:
        return self.numbers[-1]


@dataclass(frozen=True)
class _Unread:
    """A step whose numbers are still on the device, and what the host knows of it."""

    result: StepResult
    micro_batches: list[Batch]  # as they came, for the report on a loss that is not finite
    known: dict[str, Any]  # what the log says besides losses and norm
    samples_per_second: float


class StepRecords:
    """The steps of an epoch on their way into the log."""

    def __init__(self, session: TrainingSession):
        self._session = session
        self._unread: list[_Unread] = []
        self._every = read_every(session)

    def add(
        self,
        result: StepResult,
        micro_batches: list[Batch],
        known: dict[str, Any],
        samples_per_second: float,
    ) -> None:
        """Keep a step; read it with those before it when it is time.

        Raises:
            TrainingStopped: a loss or the gradient of one of them is not finite.
        """
        self._unread.append(_Unread(result, micro_batches, known, samples_per_second))
        if len(self._unread) >= self._every:
            self.read()

    def read(self) -> None:
        """Read what is left. In front of every checkpoint.

        Raises:
            TrainingStopped: as above.
        """
        unread, self._unread = self._unread, []
        _read_together([entry.result for entry in unread])
        for entry in unread:
            self._record(entry)

    def _record(self, entry: _Unread) -> None:
        session, result = self._session, entry.result
        refuse_non_finite(session, result, entry.micro_batches)
        sums = session.progress.sums
        for name, value in result.losses.items():
            sums[name] = sums.get(name, 0.0) + value
        values = {
            "loss": sum(result.losses.values()),
            "grad_norm": result.grad_norm,
            "samples_per_second": entry.samples_per_second,
            **prefixed("loss", result.losses),
            **entry.known,
        }
        session.log.advance(result.losses, entry.samples_per_second, entry.known.get("mfu"))
        session.log.event("train", result.step + 1, values)


def read_every(session: TrainingSession) -> int:
    """Steps between two readings: one where the host looks at each step anyway."""
    if not device_guards_step(session.engine, session.run):
        return 1
    on_gpu = torch.device(session.engine.device).type == "cuda"
    return session.run.log_every or (READ_EVERY if on_gpu else 1)


def refuse_non_finite(
    session: TrainingSession, result: StepResult, micro_batches: list[Batch]
) -> None:
    """Collective where it refuses.

    Raises:
        TrainingStopped: a loss or the gradient of this step is not finite.
    """
    numbers = list(result.losses.values())
    if session.run.precision != "fp16":  # which skips such steps and lowers its scale
        numbers.append(result.grad_norm)
    if not all(math.isfinite(number) for number in numbers):
        report_bad_batch(session, micro_batches, result.losses, result.grad_norm, result.step)


def _read_together(results: list[StepResult]) -> None:
    """One wait for all of them."""
    if len(results) < 2:
        return
    numbers = torch.cat([result.values for result in results]).tolist()
    for result in results:
        count = len(result.values)
        vars(result)["numbers"], numbers = numbers[:count], numbers[count:]
