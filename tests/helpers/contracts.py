"""What contract tests do with any registered model: build it small, feed it, and put its losses
together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from small_models import SMALL_OPTIONS
from torch import Tensor, nn

from core.batch import Batch, EntityGraph, Utterances
from core.dropout import SampleDropout
from core.metrics.ranking import alignment_scores
from core.model import DataSpec, GlobalBatchRows, Model
from core.models import MODELS

AnyModel = Model[Any, Any]


@dataclass(frozen=True)
class Contract:
    """A registered model by name, and batches of its task."""

    name: str
    data: DataSpec
    make: Callable[..., Any]  # size, seed -> a batch, not all of whose data are present

    def build(self) -> AnyModel:
        torch.manual_seed(1)
        return build(self.name, self.data)

    def warm(self, batch: Batch) -> AnyModel:
        """A model without dropout in its third epoch, which has seen the batch twice: every loss is
        awake."""
        model = self.build()
        still(model).train()
        for epoch in range(3):
            model.begin_epoch(epoch)
            if epoch < 2:
                remember(model, batch)
        return model


def build(name: str, data: DataSpec) -> AnyModel:
    config = MODELS[name].Config(**SMALL_OPTIONS.get(name, {}))
    return MODELS[name](config, data)


def prediction(model: AnyModel, batch: Batch) -> Tensor:
    """(B, ...), what the model predicts of each sample: its score, or the joint embeddings of its
    two entities."""
    if isinstance(batch, EntityGraph):
        output = model(replace(batch, links_only=True))
        return output.pair_rows(output.joint)
    return model(batch).score


def has_learnt(model: AnyModel, batch: Batch) -> bool:
    """Whether evaluation gives what the batch says of its samples."""
    found = prediction(model.eval(), batch).detach()
    model.train()
    if isinstance(batch, Utterances):
        return bool((found - batch.label).abs().mean() < 0.1)
    scores = alignment_scores(found[:, 0], found[:, 1], csls=0)
    return scores["Hits@1"] == 1 and scores["r2l/Hits@1"] == 1


def told_apart(batch: Batch) -> bool:
    """Whether no two linked entities have the same neighbours, themselves included: structure alone
    cannot know them from each other."""
    if not isinstance(batch, EntityGraph):
        return True
    size = len(next(iter(batch.views.values())))
    near = torch.zeros(size, size, dtype=torch.bool)
    near[batch.edges[0], batch.edges[1]] = True
    neighbours = near[batch.links.flatten()]
    return len(neighbours.unique(dim=0)) == len(neighbours)


def rows(batch: Any, chosen: Any) -> Any:
    """The batch with the chosen samples only."""
    if isinstance(batch, EntityGraph):
        of_samples = {name: getattr(batch, name)[chosen] for name in ("index", "weight", "links")}
        return replace(batch, **of_samples)
    return batch.map(lambda tensor: tensor[chosen])


def with_junk(batch: Any) -> Any:
    """The batch with other values where nothing is: in padding and dropped frames, in views that
    entities lack."""
    if isinstance(batch, EntityGraph):
        views = {view: _junk(values, batch.present[view]) for view, values in batch.views.items()}
        return replace(batch, views=views)
    frames = {m: _junk(values, batch.present[m]) for m, values in batch.frames.items()}
    return replace(batch, frames=frames)


def _junk(values: Tensor, present: Tensor) -> Tensor:
    present = present if present.ndim == values.ndim else present[..., None]
    return torch.where(present, values, torch.ones_like(values) * 7)


def dropped(batch: Utterances) -> Utterances:
    """Every third frame dropped."""
    present = {m: mask & (torch.arange(mask.shape[1]) % 3 != 1) for m, mask in batch.mask.items()}
    return replace(batch, present=present)


def padded(batch: Utterances, by: int) -> Utterances:
    """The batch with ``by`` more frames of padding."""

    def longer(x: Tensor) -> Tensor:
        return torch.cat([x, x.new_zeros((x.shape[0], by, *x.shape[2:]))], dim=1)

    return replace(
        batch,
        frames={m: longer(x) for m, x in batch.frames.items()},
        mask={m: longer(x) for m, x in batch.mask.items()},
        present={m: longer(x) for m, x in batch.present.items()},
    )


def still(model: nn.Module) -> nn.Module:
    """The model without dropout, in place."""
    for module in model.modules():
        if isinstance(module, nn.Dropout | SampleDropout):
            module.p = 0.0
    return model


def losses_of(model: AnyModel, micro_batches: list[Any]) -> dict[str, Tensor]:
    """Losses of a global batch in micro-batches, as the training loop puts them together."""
    counts = [model.loss_denominators(batch) for batch in micro_batches]
    sums = {key: torch.stack([count[key] for count in counts]).sum(0) for key in counts[0]}
    micro_batches = [replace(batch, loss_denominators=sums) for batch in micro_batches]
    outputs = [model(batch) for batch in micro_batches]
    losses: dict[str, Tensor] = {}
    for batch, output in zip(micro_batches, outputs, strict=True):
        for key, value in model.losses(output, batch).items():
            losses[key] = losses.get(key, torch.zeros(())) + value
    whole = GlobalBatchRows.concatenate([model.global_batch_rows(output) for output in outputs])
    target = torch.cat([batch.target for batch in micro_batches])
    weight = torch.cat([batch.weight for batch in micro_batches])
    return losses | model.global_batch_losses(whole, target, weight)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([value.reshape(()) for value in losses.values()]).sum()


def gradients(
    model: AnyModel, micro_batches: list[Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses by name, and gradients by parameter."""
    model.zero_grad()
    losses = losses_of(model, micro_batches)
    total(losses).backward()
    found = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    return {key: value.detach() for key, value in losses.items()}, found


def remember(model: AnyModel, batch: Any) -> None:
    """What the training loop does after a step."""
    with torch.no_grad():
        memory = model.memory_bank_rows(model(batch), batch)
        if memory:
            model.update_memory_bank(memory)


def assert_same(found: tuple[dict, dict], wanted: tuple[dict, dict]) -> None:
    """Losses and gradients are the same but for rounding."""
    for left, right in zip(found, wanted, strict=True):
        assert left.keys() == right.keys()
        for key, value in right.items():
            torch.testing.assert_close(
                left[key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
            )
