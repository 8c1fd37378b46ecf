"""What every model is: a forward, named losses, and a few optional answers about memory and
optimisation.

The training loop asks nothing else, so a model's peculiarities stay in its own file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from core.batch import Batch

TaskName = Literal["sentiment", "alignment"]
MediaKind = Literal["sound", "pictures"]
Size = Annotated[int, Field(ge=0, lt=2**31)]  # of a table or sequence
BatchType = TypeVar("BatchType", bound=Batch)
OutputType = TypeVar("OutputType", bound="Output")


@dataclass(frozen=True)
class Output:
    """What a model makes of a batch."""


@dataclass(frozen=True)
class Sentiment(Output):
    """Of utterances."""

    # (B,) predicted score, (B, K) of K targets or logits of K labels, or (B, classes) logits
    score: Tensor


@dataclass(frozen=True)
class Alignment(Output):
    """Of entities."""

    joint: Tensor  # (N, D) joint embedding of every entity, rows of length one
    views: dict[str, Tensor]  # view -> (N, D) embedding of that view alone


@dataclass(frozen=True)
class GlobalBatchRows:
    """What the losses over the whole global batch see of its samples.

    Gradients flow through ``embeddings`` only. The rest says what each row stands for.
    """

    # name -> (B, D)
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    # modality or view -> (B,) bool, True where the sample has it
    present: dict[str, Tensor] = field(default_factory=dict)
    # (B,) int64, the samples' numbers, as in Batch.index; None where no loss asks for them
    index: Tensor | None = None

    @staticmethod
    def concatenate(micro_batches: Sequence[GlobalBatchRows]) -> GlobalBatchRows:
        """The rows of several micro-batches, one below the other."""
        # one model made them all, so either all have an index or none
        indices = [rows.index for rows in micro_batches if rows.index is not None]
        return GlobalBatchRows(
            embeddings=_concatenate([rows.embeddings for rows in micro_batches]),
            present=_concatenate([rows.present for rows in micro_batches]),
            index=torch.cat(indices) if indices else None,
        )

    def with_embeddings(self, embeddings: Mapping[str, Tensor]) -> GlobalBatchRows:
        """The same samples with other embeddings: leaves of a graph, say, or zeros."""
        return replace(self, embeddings=dict(embeddings))


@dataclass(frozen=True)
class DataSpec:
    """What a model must know about its data before it is built; saved with every run."""

    # for the codebooks
    __pydantic_config__: ClassVar[dict[str, bool]] = {"arbitrary_types_allowed": True}

    task: TaskName
    # modality or view -> width; 0 where frames are token ids
    features: dict[str, Size]
    # modality -> longest sequence in any split
    max_length: dict[str, Size] = field(default_factory=dict)
    label_range: tuple[float, float] = (-3.0, 3.0)
    # labels are multiples of this, as annotated; None: any float
    label_resolution: float | None = None
    # 0 for regression
    num_classes: Size = 0
    # what the numbers of a label that is a vector stand for; empty where a label is one number
    target_names: tuple[str, ...] = ()
    # whether these numbers are 1 or 0, for labels that a sample has or lacks; answers are logits
    multilabel: bool = False
    # modalities of which samples may have a human label of their own (Utterances.unimodal_labels)
    unimodal_labels: tuple[str, ...] = ()
    # samples in the train split, or entities
    num_train: Size = 0
    # of both graphs
    num_relations: Size = 0
    # of the tokenizer that made the token ids
    vocab_size: Size = 0
    # of that tokenizer; stands for a token dropped by the missing-feature protocols
    unknown_id: Size = 0
    # modality -> mean, std on train frames
    moments: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    # modality -> (K, D), k-means centres on scaled train frames
    codebooks: dict[str, np.ndarray] = field(default_factory=dict)

    # modality -> what its frames are where they are no features: sound (B, S, 1) float32, or pictures
    # (B, T, 3 * side * side) uint8, which only an encoder reads (core/encoders/backbones)
    media: dict[str, MediaKind] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """All but the codebooks, as plain JSON; data without media say nothing of it."""
        left_out = {"codebooks"} if self.media else {"codebooks", "media"}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}

    @property
    def num_outputs(self) -> int:
        """How many numbers a model answers per sample: the logits of the classes, the targets of a
        label that is a vector, or 1, a score."""
        return self.num_classes or len(self.target_names) or 1


class Model(nn.Module, Generic[BatchType, OutputType]):
    """Base of every model.

    Subclasses define ``Config``, a frozen dataclass with defaults, ``forward`` and ``losses``.
    """

    task: ClassVar[TaskName]
    Config: ClassVar[type]
    # whether sound and video are read at the words: aligned to them, or averaged by word
    aligned: ClassVar[bool] = False

    epoch: int = 0

    def forward(self, batch: BatchType) -> OutputType:
        raise NotImplementedError  # pragma: no cover

    def losses(self, output: OutputType, batch: BatchType) -> dict[str, Tensor]:
        """Named scalars whose sum is minimised.

        Means over samples use ``batch.mean``, so that micro-batches add up.
        """
        raise NotImplementedError  # pragma: no cover

    @property
    def has_global_batch_losses(self) -> bool:
        """Whether ``global_batch_losses`` may give any, known before a forward: a first pass over
        micro-batches would be for nothing where it does not."""
        return type(self).global_batch_losses is not Model.global_batch_losses

    def global_batch_rows(self, output: OutputType) -> GlobalBatchRows:
        """What ``global_batch_losses`` needs; without embeddings the model has no such losses."""
        return GlobalBatchRows()

    def global_batch_losses(
        self, rows: GlobalBatchRows, target: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        """Named losses of this rank's rows against the rows of all ranks.

        Each gives the global value on every rank, and gradients that are right after averaging over
        ranks.

        Args:
            target: (B,), or (B, K), what samples are compared by, ``Batch.target``.
            weight: (B,) rows of weight 0 take no part.
        """
        return {}

    def resting_losses(self) -> set[str]:
        """Names of losses that are zero in this epoch by design; any other that stays zero is
        warned about."""
        return set()

    def remarks(self) -> list[str]:
        """Sentences about what this model leaves out as it is set, said once before training."""
        return []

    def loss_denominators(self, batch: BatchType) -> dict[str, Tensor]:
        """Name -> (), what a loss divides by when the number of samples will not do (missing
        frames, say).

        The loop sums it over the global batch and gives it back as ``batch.loss_denominators``.
        """
        return {}

    def memory_bank_rows(self, output: OutputType, batch: BatchType) -> dict[str, Tensor]:
        """Name -> (B, ...), what the model remembers of this batch; must hold "index" when not
        empty."""
        return {}

    def update_memory_bank(self, rows: Mapping[str, Tensor]) -> None:
        """Called once per training step with the rows of the whole global batch, equal on every
        rank."""

    def sample_record(self) -> dict[str, Tensor]:
        """Name -> (N,) number for each sample of the train split, by its number, equal on every
        rank; nan where there is none. Kept as a file of each epoch in the run directory."""
        return {}

    def report(self) -> dict[str, float]:
        """Name -> number about the model's inner state, logged once per epoch."""
        return {}

    def begin_epoch(self, epoch: int) -> None:
        """Called before each training epoch, starting at 0."""
        self.epoch = epoch

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Group name -> parameters; a recipe gives each group its learning rate and weight
        decay."""
        return {"main": list(self.parameters())}


def _concatenate(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
