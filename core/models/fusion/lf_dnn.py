"""LF-DNN: late fusion by a deep network (Cambria et al., 2017, arXiv:1707.09538; THUIAR's MMSA)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn

from core.batch import Utterances
from core.dropout import Probability
from core.encoders.inputs import Inputs
from core.model import DataSpec, Model, Sentiment
from core.models.fusion.subnets import SubnetOptions, Subnets, three_layers


class LateFusion(nn.Module):
    """The modalities' vectors side by side, and three layers on top: (B, outputs)."""

    def __init__(self, width: Mapping[str, int], hidden: int, outputs: int, dropout: float):
        super().__init__()
        self.predict = three_layers(sum(width.values()), hidden, outputs, dropout)

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        return self.predict(torch.cat(list(vectors.values()), dim=1))


class LFDNN(Model[Utterances, Sentiment]):
    """Mean frames of sound and video through three layers each, text through an LSTM; all side by
    side into a head.

    Sizes are those of MMSA's published row on MOSI. Differences from MMSA's code: features are
    standardised, and no batch norm stands on the mean frames (parity: ``batch_norm=true``, which
    makes a result depend on how a batch is split); a mean is over the frames that a sample has
    (parity: ``padded_mean=true``, over all of the padded ones, which scales a clip by its length);
    the text's state is that of its last word, not that behind the padding; a modality that a sample
    lacks is the zero vector.
    """

    task = "sentiment"

    @validated_dataclass(frozen=True)
    class Config(SubnetOptions):
        text_hidden: PositiveInt = 64
        vision_hidden: PositiveInt = 64
        text_out: PositiveInt = 256  # width of the text's vector
        hidden: PositiveInt = 16  # of the head
        drop_audio: Probability = 0.4
        drop_vision: Probability = 0.4
        drop_fusion: Probability = 0.4

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        self.inputs = Inputs(data, config.inputs, config.modalities)
        self.subnets = Subnets(config, data, config.text_out)
        self.fusion = LateFusion(
            self.subnets.width, config.hidden, data.num_outputs, config.drop_fusion
        )

    def forward(self, batch: Utterances) -> Sentiment:
        score = self.fusion(self.subnets(*self.inputs(batch))).float()  # (B, outputs)
        return Sentiment(score=score.squeeze(1))

    def losses(self, output: Sentiment, batch: Utterances) -> dict[str, Tensor]:
        return {"task": batch.mean(batch.errors(output.score))}

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        return self.subnets.groups(self)
