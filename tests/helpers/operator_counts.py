"""How many operators a training step of a model asks for: without a GPU the nearest thing to the
number of kernels that it launches there."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from core.batch import Batch
from core.dropout import sample_masks
from core.model import Model

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


def count_step(model: Model, batch: Batch) -> OperatorCounter:
    """Operators of forward, losses and backward of one micro-batch; without those of the optimiser,
    which is one kernel for many parameters, and of memory banks."""
    with OperatorCounter() as counter:
        with sample_masks(7, 3, batch.index):
            output = model(batch)
        losses = model.losses(output, batch)
        rows = model.global_batch_rows(output)
        losses |= model.global_batch_losses(rows, batch.target, batch.weight)
        torch.stack(list(losses.values())).sum().backward()
    return counter
