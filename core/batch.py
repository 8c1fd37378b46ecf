"""What a model receives. Every shape is stated here once.

Shape letters, used in the whole project: **B** samples, **T** frames, **D** features, **N** entities,
**E** edges, **L** links, **K** codebook entries.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

S = TypeVar("S", bound="Batch")


def _map(value: Any, change: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _map(item, change) for key, item in value.items()}
    return value


@dataclass(frozen=True)
class Batch:
    """A part of one optimiser step: the samples that one rank holds in one micro-batch.

    ``loss_scale`` turns a sum over this part into a mean over the whole global batch: it is
    ``ranks * micro-batches / samples in the global batch``, because the engine divides by ranks and micro-batches.
    The stream knows it without asking other ranks, since every rank plans the same batches.
    """

    index: Tensor  # (B,) int64, place of each sample in its split; the same in every epoch and for any number of ranks
    weight: (
        Tensor  # (B,) float32, 1 for a sample, 0 for a row that only fills an otherwise empty part
    )
    loss_scale: float
    # name -> (), what Model.loss_denominators gave, summed over the global batch
    loss_denominators: dict[str, Tensor] = field(default_factory=dict, kw_only=True)

    def __len__(self) -> int:
        return len(self.index)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the global batch of (B,) values, as this part's share of it: parts add up, ranks average."""
        return (values * self.weight).sum() * self.loss_scale

    @property
    def target(self) -> Tensor:
        """(B,) what contrastive losses compare samples by."""
        return self.index

    def map(self: S, change: Any) -> S:
        """The same batch with ``change`` applied to every tensor."""
        return replace(self, **{f.name: _map(getattr(self, f.name), change) for f in fields(self)})

    def to(self: S, device: torch.device | str) -> S:
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self: S) -> S:
        return self.map(lambda tensor: tensor.pin_memory())


@dataclass(frozen=True)
class Utterances(Batch):
    """B spoken sentences, each modality padded on the right to its own T.

    Text is either token ids, (B, T) int64, or features, (B, T, D) float32. A modality that a sample lacks has an
    all-False mask. ``present`` is a subset of ``mask``: False where a frame exists but was dropped on purpose
    (the missing-feature protocols); ``frames`` still holds the complete data, and the model hides what is dropped.
    """

    label: (
        Tensor  # (B,) float32 score in DataSpec.label_range, or the class number for classification
    )
    frames: dict[str, Tensor]  # modality -> (B, T, D) float32 or (B, T) int64, zero where padded
    mask: dict[str, Tensor]  # modality -> (B, T) bool, True where a frame exists
    present: dict[
        str, Tensor
    ]  # modality -> (B, T) bool, True where a frame exists and was not dropped
    view_labels: dict[str, Tensor] = field(
        default_factory=dict
    )  # modality -> (B,), human unimodal labels

    @property
    def target(self) -> Tensor:
        return self.label


@dataclass(frozen=True)
class EntityGraph(Batch):
    """Two knowledge graphs in one id space of N entities, and the B aligned pairs of this step.

    The graph tensors are the same objects in every batch, so moving them to their device again costs nothing.
    """

    links: Tensor  # (B, 2) int64, an entity of the left graph and its partner in the right one
    edges: Tensor  # (2, E) int64, symmetric, with self-loops, no duplicates
    views: dict[
        str, Tensor
    ]  # view -> (N, D) float32, raw features; "graph" is absent, its embedding is learnt
    present: dict[str, Tensor]  # view -> (N,) bool, True where the entity has this view
    links_only: bool = False  # encode the entities of the links alone, as training always does
