"""A fused score and one score per modality, which learn generated labels: what Self-MM and TETFN
share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.batch import Utterances
from core.losses.labels import unimodal_loss
from core.model import DataSpec, Model, Sentiment
from core.models.label_memory import FUSION, LabelMemory


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
    learns_human_labels: bool = False  # of each modality, in the place of generated ones
    record: bool = False  # whether labels and scores of each sample are kept for the run directory

    @property
    def tasks(self) -> list[str]:
        """The modalities with a task of their own."""
        return [view for view in self.heads if view != FUSION]

    def losses(self, output: Output, batch: Utterances) -> dict[str, Tensor]:
        losses = {"task": batch.mean(batch.errors(output.score))}
        if not self.training or self.memory is None:
            return losses  # the memory is of the train split
        if self.learns_human_labels:
            for m, score in output.views.items():
                # nothing is learnt from a modality that the sample lacks
                human = batch.unimodal_labels[m].masked_fill(~output.has_modality[m], torch.nan)
                losses[m] = batch.mean(unimodal_loss(score, human))
            return losses
        if not output.views:
            return losses
        # for all modalities at once, (V, B): on a GPU each operator is a launch
        targets = self.memory.labels_of(list(output.views), batch.index, batch.label)
        scores = torch.stack(list(output.views.values()))
        # nothing new where it equals the human label
        weights = torch.tanh((targets - batch.label).abs())
        means = batch.mean(weights * (scores - targets).abs())
        losses |= dict(zip(output.views, means.unbind(), strict=True))
        return losses

    def remarks(self) -> list[str]:
        if self.memory is None:
            name = type(self).__name__
            return [f"labels are no scores, so {name} generates no unimodal labels"]
        return []

    def resting_losses(self) -> set[str]:
        # generated labels are the human ones until each sample's second visit
        is_first = self.epoch == 0 and not self.learns_human_labels
        return set(self.tasks) if is_first else set()

    def memory_bank_rows(self, output: Output, batch: Utterances) -> dict[str, Tensor]:
        if not self.training or self.memory is None:
            return {}
        rows = {"index": batch.index, "label": batch.label}
        if self.record:
            rows[f"score_{FUSION}"] = output.score.detach().float()
            for m, score in output.views.items():
                rows[f"score_{m}"] = score.detach()
        for m in self.tasks:
            if m in batch.unimodal_labels:
                rows[f"human_{m}"] = batch.unimodal_labels[m]
        if self.learns_human_labels:
            return rows
        for m in self.tasks:
            rows[f"has_{m}"] = output.has_modality[m].float()
        for view, hidden in output.hidden.items():
            rows[f"hidden_{view}"] = hidden.detach()
        return rows

    def update_memory_bank(self, rows: Mapping[str, Tensor]) -> None:
        if self.memory is None:
            return
        index, label = rows["index"], rows["label"]
        if self.record:
            self.memory.record(index, {view: rows[f"score_{view}"] for view in self.heads})
        if self.learns_human_labels:
            for m in self.tasks:
                self.memory.keep_human(m, index, rows[f"human_{m}"])
            self.memory.keep_human(FUSION, index, label)
            return
        hidden = {view: rows[f"hidden_{view}"] for view in self.heads}
        has_modality = {m: rows[f"has_{m}"] > 0 for m in self.tasks}
        self.memory.update(index, label, hidden, has_modality)
        human = {m: rows[f"human_{m}"] for m in self.tasks if f"human_{m}" in rows}
        if human:
            self.memory.compare(index, label, human)

    def sample_record(self) -> dict[str, Tensor]:
        if self.memory is None or not self.record:
            return {}
        return self.memory.sample_record()

    def report(self) -> dict[str, float]:
        if self.memory is None or self.learns_human_labels:
            return {}
        return self.memory.report()

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        if self.memory is not None:
            self.memory.begin_epoch()


def has_one_score(data: DataSpec) -> bool:
    """Whether a label is one score: only such labels have unimodal ones to generate."""
    return data.num_outputs == 1 and not data.num_classes and not data.multilabel


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
