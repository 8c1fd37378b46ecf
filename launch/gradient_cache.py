"""Global-batch losses over several micro-batches in two passes (GradCache, Gao et al., 2021,
arXiv:2101.06983).

A contrastive loss compares every sample with all others, but the micro-batches do not fit into
memory together. The first pass computes their embeddings without keeping what backward needs, then
the losses over all of them, and the gradient of the losses by each row. The second pass computes
one micro-batch at a time as usual; in place of the losses stands the inner product of its rows with
that gradient, whose own gradient is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from core.batch import Batch
from core.model import GlobalBatchRows
from launch.engine.deepspeed_engine import Engine, Surrogate, TrainStep, engine_autocast


class GradientCache:
    """The first pass over all micro-batches of a rank; ``surrogate`` serves the second."""

    def __init__(
        self, train_step: TrainStep, rows: list[GlobalBatchRows], micro_batches: list[Batch]
    ):
        """
        Args:
            rows: for each micro-batch, ``Model.global_batch_rows``.
        """
        self._train_step = train_step
        self._count = len(micro_batches)
        self._target = torch.cat([batch.target for batch in micro_batches])
        self._weight = torch.cat([batch.weight for batch in micro_batches])
        whole = GlobalBatchRows.concatenate(rows)
        leaves = whole.embeddings  # where gradients end
        fixed = {}  # the same without gradient
        for name, embedding in leaves.items():
            embedding.requires_grad_()
            fixed[name] = embedding.detach()
        self._rows = whole.with_embeddings(fixed)
        losses = train_step.global_batch_losses(whole, self._target, self._weight)
        self.losses = {name: value.detach().reshape(()) for name, value in losses.items()}
        total = sum_losses(losses)
        self._losses_learn = _has_parameters(total)
        gradients = torch.autograd.grad(total, list(leaves.values()))
        sizes = list(map(len, micro_batches))
        self._gradients: dict[str, tuple[Tensor, ...]] = {}  # name -> one tensor per micro-batch
        for name, gradient in zip(leaves, gradients, strict=True):
            # the engine divides by the number of micro-batches, and these gradients are already
            # those of the whole batch
            self._gradients[name] = (gradient * self._count).split(sizes)

    def surrogate(self, number: int) -> Surrogate:
        """What stands in for the losses when micro-batch ``number`` is computed again."""
        return partial(self._surrogate, number)

    def _surrogate(self, number: int, embeddings: Mapping[str, Tensor]) -> Tensor:
        products = []
        for name, gradients in self._gradients.items():
            products.append((embeddings[name] * gradients[number]).sum())
        loss = torch.stack(products).sum()
        if self._losses_learn and number == 0:
            # What the losses themselves learn, a temperature say, gets its gradient here: inside of
            # the engine, which at stage 3 has cut it up, and with the first micro-batch, which at
            # stage 3 overwrites the last step's gradients.
            losses = self._train_step.global_batch_losses(self._rows, self._target, self._weight)
            loss = loss + self._count * sum_losses(losses)
        return loss


def first_pass(engine: Engine, micro_batches: list[Batch], step: int) -> GradientCache | None:
    """The cache of this step; None when the model has no global-batch losses."""
    if not engine.module.model.has_global_batch_losses:
        return None
    rows = []
    with torch.no_grad(), engine_autocast(engine):
        for batch in micro_batches:
            output = engine.module.run(batch, step)
            rows.append(engine.module.model.global_batch_rows(output))
    return GradientCache(engine.module, rows, micro_batches) if rows[0].embeddings else None


def sum_losses(losses: Mapping[str, Tensor]) -> Tensor:
    """The scalar sum of named losses of one element each."""
    return torch.stack([value.reshape(()) for value in losses.values()]).sum()


def _has_parameters(loss: Tensor) -> bool:
    """Whether the loss depends on a parameter: walks its graph back to the leaves."""
    waiting = [loss.grad_fn]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if isinstance(getattr(node, "variable", None), nn.Parameter):
            return True
        seen.add(node)
        waiting += [before for before, _ in node.next_functions]
    return False
