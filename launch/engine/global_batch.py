"""What is known of a whole global batch, over all ranks and micro-batches: its size, sums, means
and rows."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from core import distributed
from core.batch import Batch
from core.model import Model


def with_loss_denominators(model: Model, micro_batches: list[Batch]) -> list[Batch]:
    """The micro-batches with ``Model.loss_denominators`` summed over the whole global batch."""
    counts = [model.loss_denominators(batch) for batch in micro_batches]
    names = sorted(counts[0])
    if not names:
        return micro_batches
    rows = []  # of each micro-batch, (names,)
    for count in counts:
        rows.append(torch.stack([count[name].float() for name in names]))
    total = distributed.all_reduce_sum(torch.stack(rows).sum(0))
    # a loss divides its local sum by this; the engine averages over ranks and micro-batches, hence
    # the factor
    averaged = total / (distributed.world_size() * len(micro_batches))
    denominators = dict(zip(names, averaged, strict=True))
    return [replace(batch, loss_denominators=denominators) for batch in micro_batches]


def mean_over_ranks(totals: dict[str, Tensor]) -> Tensor:
    """(losses,) float64, losses averaged over ranks, in one message; it stays on the device."""
    message = torch.stack([value.double() for value in totals.values()])
    return distributed.all_reduce_sum(message) / distributed.world_size()


def update_memory_bank(
    model: Model, rows: list[dict[str, Tensor]], micro_batches: list[Batch]
) -> None:
    """Give the model its rows of the whole global batch, in the order of the samples.

    Args:
        micro_batches: as they came from the stream, in host memory.
    """
    if not rows[0]:
        return
    real = torch.cat([batch.weight for batch in micro_batches]) > 0
    all_real = bool(real.all())  # otherwise there are rows that stand for no sample
    local = {}
    for name in rows[0]:
        values = torch.cat([part[name] for part in rows])
        local[name] = values if all_real else values[real.to(values.device)]
    sizes = distributed.gather_sizes(len(local["index"]), local["index"].device)
    whole = {name: distributed.gather_rows(part, sizes) for name, part in local.items()}
    order = torch.argsort(whole["index"])
    with torch.no_grad():
        model.update_memory_bank({name: part[order] for name, part in whole.items()})


def global_batch_size(micro_batches: list[Batch]) -> int:
    """Samples in the global batch, which every micro-batch knows through its loss scale."""
    return round(distributed.world_size() * len(micro_batches) / micro_batches[0].loss_scale)
