"""What a model must beat: each modality summed up on its own, then one small network over all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.batch import Utterances
from core.encoders.inputs import MODALITIES, InputConfig, Inputs, groups
from core.encoders.sequence import masked_mean
from core.encoders.text import TextConfig, TextEncoder
from core.losses.labels import task_loss
from core.model import DataSpec, Model, Sentiment


class Baseline(Model[Utterances, Sentiment]):
    """Late fusion: the text's summary place and the mean frame of the others, side by side, and a head on top.

    ``modalities=("text",)`` with ``hidden=0`` is a linear head on the text encoder.
    """

    task = "sentiment"

    @dataclass(frozen=True)
    class Config:
        modalities: tuple[str, ...] = MODALITIES
        hidden: int = 64  # 0: a linear head
        dropout: float = 0.1
        text: TextConfig = TextConfig()
        inputs: InputConfig = InputConfig()

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        self.inputs = Inputs(data, config.inputs, config.modalities)
        self.modalities = [m for m in MODALITIES if m in config.modalities]
        self.text = TextEncoder(config.text, data) if "text" in self.modalities else None
        widths = {m: data.features[m] for m in self.modalities}
        if self.text is not None:
            widths["text"] = self.text.width
        width, out = sum(widths.values()), data.num_classes or 1
        hidden = (
            [nn.Linear(width, config.hidden), nn.ReLU(), nn.Dropout(config.dropout)]
            if config.hidden
            else []
        )
        self.predict = nn.Sequential(
            nn.Dropout(config.dropout), *hidden, nn.Linear(config.hidden or width, out)
        )

    def forward(self, batch: Utterances) -> Sentiment:
        frames, mask = self.inputs(batch)
        summary = []
        for m in self.modalities:
            if self.text is not None and m == "text":
                summary.append(self.text(frames[m], mask[m])[0][:, 0])
            else:
                summary.append(masked_mean(frames[m], mask[m]))
        score = self.predict(torch.cat(summary, dim=1)).float()  # (B, classes or 1)
        return Sentiment(score=score.squeeze(1))

    def losses(self, output: Sentiment, batch: Utterances) -> dict[str, Tensor]:
        return {"task": batch.mean(task_loss(output.score, batch.label))}

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        return groups(self, text=self.text.trained() if self.text is not None else [])
