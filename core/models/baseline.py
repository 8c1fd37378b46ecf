"""What a model must beat: each modality summed up on its own, then one small network over all."""

from __future__ import annotations

import torch
from pydantic import NonNegativeInt
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn

from core.batch import Utterances
from core.dropout import Probability
from core.encoders.inputs import MODALITIES, InputConfig, Inputs, groups, in_order
from core.encoders.sequence import masked_mean
from core.encoders.text import TextConfig, TextEncoder
from core.model import DataSpec, Model, Sentiment


class Baseline(Model[Utterances, Sentiment]):
    """Late fusion: the text's summary and the mean frame of the others, side by side, and a head on
    top.

    Besides text it takes any number of modalities by their names.
    ``modalities=("text",)`` with ``hidden=0`` is a linear head on the text encoder.
    """

    task = "sentiment"

    @validated_dataclass(frozen=True)
    class Config:
        modalities: tuple[str, ...] = MODALITIES  # text, and any fields of frames by name
        hidden: NonNegativeInt = 64  # 0: a linear head
        dropout: Probability = 0.1
        text: TextConfig = TextConfig()
        inputs: InputConfig = InputConfig()

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        self.inputs = Inputs(data, config.inputs, config.modalities)
        self.modalities = in_order(config.modalities)
        self.text = TextEncoder(config.text, data) if "text" in self.modalities else None
        width = sum(data.features[m] for m in self.modalities if m != "text")
        if self.text is not None:
            width += self.text.width
        layers: list[nn.Module] = [nn.Dropout(config.dropout)]
        if config.hidden:
            layers += [nn.Linear(width, config.hidden), nn.ReLU(), nn.Dropout(config.dropout)]
            width = config.hidden
        self.predict = nn.Sequential(*layers, nn.Linear(width, data.num_outputs))

    def forward(self, batch: Utterances) -> Sentiment:
        frames, mask = self.inputs(batch)
        summaries = []
        for m in self.modalities:
            if self.text is not None and m == "text":
                hidden, _ = self.text(frames[m], mask[m])
                summaries.append(hidden[:, 0])
            else:
                summaries.append(masked_mean(frames[m], mask[m]))
        score = self.predict(torch.cat(summaries, dim=1)).float()  # (B, outputs)
        return Sentiment(score=score.squeeze(1))

    def losses(self, output: Sentiment, batch: Utterances) -> dict[str, Tensor]:
        return {"task": batch.mean(batch.errors(output.score))}

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        return groups(self, text=self.text.trained() if self.text is not None else [])
