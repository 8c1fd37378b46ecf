"""What a model receives. Every shape is stated here once.

Shape letters, used in the whole project: **B** samples, **T** frames, **D** features, **N**
entities, **E** edges, **L** links, **K** codebook entries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from core.losses.labels import CROSS_ENTROPY, LabelLoss, task_loss

BatchType = TypeVar("BatchType", bound="Batch")
TensorFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Batch:
    """One micro-batch: the samples of one optimiser step that one rank takes at once.

    ``loss_scale`` turns a sum over this micro-batch into a mean over the whole global batch: it is
    ``ranks * micro-batches / samples in the global batch``, because the engine divides by ranks and
    micro-batches. The stream knows it without asking other ranks, since every rank plans the same
    batches.
    """

    # (B,) int64, number of each sample in its split; the same in every epoch, for any number of
    # ranks
    index: Tensor
    # (B,) float32, 1 for a sample, 0 for a row that only fills an otherwise empty micro-batch
    weight: Tensor
    loss_scale: float
    # name -> (), what Model.loss_denominators gave, summed over the global batch
    loss_denominators: dict[str, Tensor] = field(default_factory=dict, kw_only=True)

    def __len__(self) -> int:
        return len(self.index)

    def mean(self, values: Tensor) -> Tensor:
        """This micro-batch's share of the mean of (..., B) values over the global batch, (...).

        Shares of micro-batches add up, and ranks average.
        """
        return (values * self.weight).sum(-1) * self.loss_scale

    @property
    def target(self) -> Tensor:
        """(B,) what contrastive losses compare samples by."""
        return self.index

    def map(self: BatchType, change: TensorFunction) -> BatchType:
        """The same batch with ``change`` applied to every tensor."""
        changed = {f.name: _map(getattr(self, f.name), change) for f in fields(self)}
        return replace(self, **changed)

    def to(self: BatchType, device: torch.device | str) -> BatchType:
        """The same batch on a device; a copy from pinned memory does not wait."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self: BatchType) -> BatchType:
        """The same batch in memory that a GPU can copy from by itself."""
        return self.map(lambda tensor: tensor.pin_memory())


@dataclass(frozen=True)
class Utterances(Batch):
    """B spoken sentences, each modality padded on the right to its own T.

    Text is either token ids, (B, T) int64, or features, (B, T, D) float32. A modality that a sample
    lacks has an all-False mask. ``present`` is a subset of ``mask``: False where a frame exists but
    was dropped on purpose (the missing-feature protocols); ``frames`` still holds the complete
    data, and the model hides what is dropped.
    """

    # (B,) float32 score in DataSpec.label_range, or the class number for classification; (B, K)
    # where the data have K targets, or K labels that are 1 or 0
    label: Tensor
    # modality -> (B, T, D) float32 or (B, T) int64, zero where padded
    frames: dict[str, Tensor]
    # modality -> (B, T) bool, True where a frame exists
    mask: dict[str, Tensor]
    # modality -> (B, T) bool, True where a frame exists and was not dropped
    present: dict[str, Tensor]
    # modality -> (B,) float32 human label of that modality alone, nan where there is none; only
    # those that the data have (DataSpec.unimodal_labels)
    unimodal_labels: dict[str, Tensor] = field(default_factory=dict)
    # by which classes, (B,), or several labels, (B, K), count in the loss; None: all alike
    label_weight: Tensor | None = None
    label_loss: LabelLoss = CROSS_ENTROPY

    @property
    def target(self) -> Tensor:
        return self.label

    def errors(self, score: Tensor, squared: bool = False) -> Tensor:
        """(B,) float32, what the scores of these samples cost by their labels: ``task_loss``."""
        return task_loss(score, self.label, squared, weight=self.label_weight, how=self.label_loss)


@dataclass(frozen=True)
class EntityGraph(Batch):
    """Two knowledge graphs in one id space of N entities, and the B aligned pairs of this step.

    The graph tensors are the same objects in every batch, so moving them to their device again
    costs nothing.
    """

    # (B, 2) int64, an entity of the left graph and its partner in the right one
    links: Tensor
    # (2, E) int64, symmetric, with self-loops, no duplicates
    edges: Tensor
    # view -> (N, D) float32, raw features; "graph" is absent, its embedding is learnt
    views: dict[str, Tensor]
    # view -> (N,) bool, True where the entity has this view
    present: dict[str, Tensor]
    # encode the entities of the links alone, as training always does
    links_only: bool = False
    # (T, 3) int64 head, relation, tail of both graphs, sorted by head; None: not known
    triples: Tensor | None = None


def _map(value: Any, change: TensorFunction) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _map(item, change) for key, item in value.items()}
    return value
