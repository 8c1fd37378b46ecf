"""LMF, low-rank multimodal fusion (Liu et al., ACL 2018, arXiv:1806.00064)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from core.batch import Utterances
from core.dropout import Probability
from core.encoders.inputs import Inputs
from core.model import DataSpec, Model, Sentiment
from core.models.fusion.subnets import SubnetOptions, Subnets


class LowRankFusion(nn.Module):
    """TFN's tensor and the layer on it at once, through factors of low rank: (B, outputs).

    Per rank, the product over modalities of [1; z_m] W_m; then a weighted sum over ranks.

    Args:
        width: modality -> width of its vector.
        frozen_weights: the weights of the ranks stay as they were drawn, and the bias stays zero.
    """

    def __init__(self, width: Mapping[str, int], rank: int, outputs: int, frozen_weights: bool):
        super().__init__()
        # each is this module's own: in a module of theirs they would not be gathered for a forward
        # where ranks share parameters
        for m, one_width in width.items():
            factor = nn.init.xavier_normal_(torch.empty(rank, one_width + 1, outputs))
            self.register_parameter(f"factor_{m}", nn.Parameter(factor))
        trained = not frozen_weights
        weight = nn.init.xavier_normal_(torch.empty(1, rank))
        self.weight = nn.Parameter(weight, requires_grad=trained)
        self.bias = nn.Parameter(torch.zeros(1, outputs), requires_grad=trained)

    def factor(self, m: str) -> nn.Parameter:
        """(ranks, width + 1, outputs) of a modality."""
        return self.get_parameter(f"factor_{m}")

    def factors(self) -> list[nn.Parameter]:
        """Of all modalities."""
        named = self.named_parameters()
        return [parameter for name, parameter in named if name.startswith("factor_")]

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        product = self.products(vectors)
        return torch.einsum("r,rbo->bo", self.weight[0], product) + self.bias

    def products(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """(ranks, B, outputs)."""
        parts = []
        for m, vector in vectors.items():
            with_one = F.pad(vector, (1, 0), value=1.0)
            parts.append(torch.einsum("bi,rio->rbo", with_one, self.factor(m)))
        return torch.stack(parts).prod(0)


def half(text_hidden: int) -> int:
    """The released width of the text's vector, at least 1."""
    return max(text_hidden // 2, 1)


class LMF(Model[Utterances, Sentiment]):
    """TFN's products without its tensor: each modality meets a factor of low rank, and the results
    are multiplied.

    Sizes are those of MMSA's published row on MOSI; the weights of the ranks are learnt as in the
    authors' code (the paper sums over ranks, which is the same up to scale). Differences from
    MMSA's code: the weights of the ranks and the bias are trained (parity: ``frozen_weights=true``,
    for there they are in no group of the optimiser); features are standardised, and no batch norm stands on
    the mean frames (parity: ``batch_norm=true``); a mean is over the frames that a sample has
    (parity: ``padded_mean=true``); the text's state is that of its last word, not that behind the
    padding. Where a modality is missing, its factor's bias row is left.
    """

    task = "sentiment"

    @validated_dataclass(frozen=True)
    class Config(SubnetOptions):
        text_hidden: PositiveInt = 256
        audio_hidden: PositiveInt = 32
        vision_hidden: PositiveInt = 256
        text_out: NonNegativeInt = 0  # width of the text's vector; 0: half of text_hidden
        rank: PositiveInt = 4
        drop_audio: Probability = 0.3
        drop_vision: Probability = 0.3
        frozen_weights: bool = False  # parity: True, the ranks' weights and the bias stay as drawn

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        self.inputs = Inputs(data, config.inputs, config.modalities)
        self.subnets = Subnets(config, data, config.text_out or half(config.text_hidden))
        self.fusion = LowRankFusion(
            self.subnets.width, config.rank, data.num_outputs, config.frozen_weights
        )

    def forward(self, batch: Utterances) -> Sentiment:
        score = self.fusion(self.subnets(*self.inputs(batch))).float()  # (B, outputs)
        return Sentiment(score=score.squeeze(1))

    def losses(self, output: Sentiment, batch: Utterances) -> dict[str, Tensor]:
        return {"task": batch.mean(batch.errors(output.score))}

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """The factors have a group of their own, as in the paper."""
        return self.subnets.groups(self, factors=self.fusion.factors())
