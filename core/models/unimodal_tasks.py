"""A fused score and one score per modality, which learn generated labels: what Self-MM and TETFN
share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.batch import Utterances
from core.losses.labels import task_loss
from core.model import Model, Sentiment
from core.models.label_memory import LabelMemory


@dataclass(frozen=True)
class Output(Sentiment):
    views: dict[str, Tensor]  # modality -> (B,), the score by that modality alone
    hidden: dict[str, Tensor]  # modality or "fusion" -> (B, post), what the label memory keeps
    has_modality: dict[str, Tensor]  # modality -> (B,) bool, True where the sample has it


class UnimodalTasks(Model[Utterances, Output]):
    """Losses of the fused head and of the modalities' heads, and the memory that makes labels for
    the latter.

    Subclasses set the three fields and write ``forward``.
    """

    modalities: list[str]
    heads: nn.ModuleDict  # modality or "fusion" -> Head
    memory: LabelMemory | None  # None: the fused head alone learns

    def losses(self, output: Output, batch: Utterances) -> dict[str, Tensor]:
        losses = {"task": batch.mean(task_loss(output.score, batch.label))}
        if not self.training or self.memory is None:
            return losses  # the memory is of the train split
        for m, score in output.views.items():
            target = self.memory.labels(m, batch.index, batch.label)
            # nothing new where it equals the human label
            weight = torch.tanh((target - batch.label).abs())
            losses[m] = batch.mean(weight * (score - target).abs())
        return losses

    def resting_losses(self) -> set[str]:
        # generated labels are the human ones until each sample's second visit
        return set(self.modalities) if self.epoch == 0 else set()

    def memory_bank_rows(self, output: Output, batch: Utterances) -> dict[str, Tensor]:
        if not self.training or self.memory is None:
            return {}
        rows = {"index": batch.index, "label": batch.label}
        for m in self.modalities:
            if m in batch.unimodal_labels:
                rows[f"human_{m}"] = batch.unimodal_labels[m]
        for m, has in output.has_modality.items():
            rows[f"has_{m}"] = has.float()
        for view, hidden in output.hidden.items():
            rows[f"hidden_{view}"] = hidden.detach()
        return rows

    def update_memory_bank(self, rows: Mapping[str, Tensor]) -> None:
        if self.memory is None:
            return
        index, label = rows["index"], rows["label"]
        hidden = {view: rows[f"hidden_{view}"] for view in self.heads}
        has_modality = {m: rows[f"has_{m}"] > 0 for m in self.modalities}
        self.memory.update(index, label, hidden, has_modality)
        for m in self.modalities:
            if f"human_{m}" in rows:
                self.memory.compare(m, index, label, rows[f"human_{m}"])

    def report(self) -> dict[str, float]:
        return {} if self.memory is None else self.memory.report()

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        if self.memory is not None:
            self.memory.begin_epoch()


class Head(nn.Module):
    """Three layers to a score; the first one's output is the representation that labels are
    generated from."""

    def __init__(self, input_width: int, width: int, dropout: float, outputs: int = 1):
        super().__init__()
        self.width = width
        self.dropout = nn.Dropout(dropout)
        self.first = nn.Linear(input_width, width)
        self.second = nn.Linear(width, width)
        self.score = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) scores, or (B, outputs) of several, and (B, width) representations, float32."""
        hidden = torch.relu(self.first(self.dropout(x)))
        score = self.score(torch.relu(self.second(hidden)))
        return score.squeeze(-1).float(), hidden.float()
