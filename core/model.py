"""What every model is: a forward, named losses, and a few optional answers about memory and optimisation.

The training loop asks nothing else, so a model's peculiarities stay in its own file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

import numpy as np
from torch import Tensor, nn

from core.batch import Batch

B = TypeVar("B", bound=Batch)
O = TypeVar("O", bound="Output")  # noqa: E741


@dataclass(frozen=True)
class Output:
    """What a model says about a batch."""


@dataclass(frozen=True)
class Sentiment(Output):
    score: Tensor  # (B,) predicted score, or (B, classes) logits


@dataclass(frozen=True)
class Alignment(Output):
    joint: Tensor  # (N, D) joint embedding of every entity, rows of length one
    views: dict[str, Tensor]  # view -> (N, D) embedding of that view alone


@dataclass(frozen=True)
class DataSpec:
    """What a model must know about its data before it is built; saved with every run."""

    __pydantic_config__: ClassVar[dict[str, bool]] = {
        "arbitrary_types_allowed": True
    }  # for the codebooks

    task: str  # "sentiment" or "alignment"
    features: dict[str, int]  # modality or view -> width; 0 where frames are token ids
    max_length: dict[str, int] = field(
        default_factory=dict
    )  # modality -> longest sequence in any split
    label_range: tuple[float, float] = (-3.0, 3.0)
    label_resolution: float | None = (
        None  # labels are multiples of this, as annotated; None: any float
    )
    num_classes: int = 0  # 0 for regression
    num_train: int = 0  # samples in the train split, or entities
    vocab_size: int = 0  # of the tokenizer that made the token ids
    unknown_id: int = (
        0  # of that tokenizer; stands for a token dropped by the missing-feature protocols
    )
    moments: dict[str, tuple[list[float], list[float]]] = field(
        default_factory=dict
    )  # modality -> mean, std on train frames
    codebooks: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # modality -> (K, D), k-means centres on scaled train frames


class Model(nn.Module, Generic[B, O]):
    """Base of every model. Subclasses define ``Config``, a frozen dataclass with defaults, ``forward``, ``losses``."""

    task: ClassVar[str]
    Config: ClassVar[type]

    epoch: int = 0

    def forward(self, batch: B) -> O:
        raise NotImplementedError  # pragma: no cover

    def losses(self, output: O, batch: B) -> dict[str, Tensor]:
        """Named scalars whose sum is minimised. Means over samples use ``batch.mean``, so that parts add up."""
        raise NotImplementedError  # pragma: no cover

    def global_batch_rows(self, output: O) -> dict[str, Tensor]:
        """Name -> (B, D) rows whose loss must see the whole global batch; given to ``contrast``."""
        return {}

    def global_batch_losses(
        self, embeddings: Mapping[str, Tensor], label: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        """Named losses of this rank's rows against the rows of all ranks. Each gives the global value on every rank
        and gradients that are right after averaging over ranks. Rows of weight 0 take no part."""
        return {}

    def loss_denominators(self, batch: B) -> dict[str, Tensor]:
        """Name -> (), what a loss divides by when the number of samples will not do (missing frames, say).
        The loop sums it over all parts of the global batch and gives it back as ``batch.loss_denominators``."""
        return {}

    def memory_bank_rows(self, output: O, batch: B) -> dict[str, Tensor]:
        """Name -> (B, ...), what the model wants to remember of this batch; must hold "index" when not empty."""
        return {}

    def update_memory_bank(self, rows: Mapping[str, Tensor]) -> None:
        """Called once per training step, with the records of the whole global batch, the same on every rank."""

    def report(self) -> dict[str, float]:
        """Name -> number about the model's inner state, logged once per epoch."""
        return {}

    def begin_epoch(self, epoch: int) -> None:
        """Told before each training epoch, starting at 0."""
        self.epoch = epoch

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Group name -> parameters; the recipe gives each group its learning rate and weight decay by this name."""
        return {"main": list(self.parameters())}
