"""How many operators a training step of a model asks for: without a GPU the nearest thing to the
number of kernels that it launches there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import core.kernels.attention
from core.batch import Batch
from core.dropout import sample_masks
from core.encoders import attention, packed_text
from core.kernels.attention import attention_op, narrow_attention
from core.kernels.dropout import dropout_op
from core.kernels.recurrent import layers_in_loops
from core.model import Model
from launch.engine.deepspeed_engine import TrainStep

# these give memory or another view of it, and compute nothing
_NO_WORK = {"_unsafe_view", "_reshape_alias", "detach", "lift_fresh", "empty", "empty_like"}
_NO_WORK |= {"empty_strided", "new_empty", "new_empty_strided", "_local_scalar_dense"}


class OperatorCounter(TorchDispatchMode):
    """Counts operators that compute; one of the namespace ``concord`` is one, whatever is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name not in _NO_WORK and not _is_view(func):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def _is_view(func: Any) -> bool:
    aliases = [given.alias_info for given in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Within this block a model on a CPU asks for the operators that it asks a GPU for. Attention is
    zeros: nobody looks at the results."""
    launches = SimpleNamespace(Drawing=_together, forward=_no_attention, backward=_no_gradients)
    with (
        mock.patch.object(attention_op, "runs_kernel", return_value=True),
        mock.patch.object(narrow_attention, "serves", return_value=False),
        mock.patch.object(attention, "projects_few", return_value=False),
        mock.patch.object(packed_text, "serves", return_value=False),
        mock.patch.object(layers_in_loops, "serves", return_value=False),
        mock.patch.object(core.kernels.attention, "attention_launch", launches, create=True),
        mock.patch.object(dropout_op, "drop", dropout_op.dropout),
    ):
        yield


def _together(*parts: Any) -> tuple[Any, ...]:
    return parts


def _no_attention(query: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    sums = torch.zeros(*query.shape[:3], 2)
    return attention_op._rows_first_like(query).zero_(), sums


def _no_gradients(
    upstream: Tensor, query: Tensor, key: Tensor, value: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, None]:
    gradients = [attention_op._rows_first_like(part).zero_() for part in (query, key, value)]
    return gradients[0], gradients[1], gradients[2], None


def count_step(model: Model, batch: Batch) -> OperatorCounter:
    """Operators of forward, losses and backward of one micro-batch; without those of the optimiser,
    which is one kernel for many parameters, and of memory banks."""
    batch = replace(batch, loss_denominators=model.loss_denominators(batch))
    with OperatorCounter() as counter:
        with sample_masks(7, 3, batch.index):
            output = model(batch)
        losses = model.losses(output, batch)
        rows = model.global_batch_rows(output)
        losses |= model.global_batch_losses(rows, batch.target, batch.weight)
        torch.stack(list(losses.values())).sum().backward()
    return counter


def count_training_step(model: Model, batch: Batch, precision: str) -> OperatorCounter:
    """Operators of a whole step of one process at stage 0, as the engine takes it: with casts, memory
    banks and a fused optimiser. The second step is counted: the first makes the optimiser's
    moments."""
    whole = TrainStep(model, seed=7, cast_together=precision == "bf16")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batch = replace(batch, loss_denominators=model.loss_denominators(batch))
    counter = OperatorCounter()
    contexts: tuple[AbstractContextManager[Any], ...] = (nullcontext(), counter)
    for step, counting in enumerate(contexts):
        with counting:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                losses, rows = whole(batch, step)
            torch.stack(list(losses.values())).sum().backward()
            with torch.no_grad():
                if rows:
                    model.update_memory_bank(rows)
            optimizer.step()
            optimizer.zero_grad()
    return counter
