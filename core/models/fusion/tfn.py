"""TFN, the tensor fusion network (Zadeh et al., EMNLP 2017, arXiv:1707.07250)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from core.batch import Utterances
from core.dropout import Probability
from core.encoders.inputs import Inputs
from core.model import DataSpec, Model, Sentiment
from core.models.fusion.subnets import SubnetOptions, Subnets, three_layers

Squash = Literal["range", "none", "released"]
RELEASED_RANGE = (-3.0, 3.0)


class TensorFusion(nn.Module):
    """The outer product of the modalities' vectors, each with a one in front, and three layers on
    top: (B, outputs).

    Args:
        width: modality -> width of its vector, in the order of the product.
        bounds: a score is squashed into them; None: not at all.
    """

    def __init__(
        self,
        width: Mapping[str, int],
        hidden: int,
        outputs: int,
        dropout: float,
        bounds: tuple[float, float] | None,
    ):
        super().__init__()
        size = 1
        for one_width in width.values():
            size *= one_width + 1
        self.predict = three_layers(size, hidden, outputs, dropout)
        self.bounds = bounds

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        score = self.predict(outer_product(vectors))
        if self.bounds is None:
            return score
        low, high = self.bounds
        return low + (high - low) * score.float().sigmoid()


def outer_product(vectors: Mapping[str, Tensor]) -> Tensor:
    """(B, product of all widths + 1): [1; a] x [1; v] x [1; t], the last modality fastest.

    The ones keep every product of fewer modalities, so a modality of zeros takes away its own
    products only.
    """
    first, *others = (F.pad(vector, (1, 0), value=1.0) for vector in vectors.values())
    product = first
    for vector in others:
        product = torch.einsum("bi,bj->bij", product, vector).flatten(1)
    return product


def bounds_of(squash: Squash, data: DataSpec) -> tuple[float, float] | None:
    """What scores are squashed into; logits of classes and labels never are."""
    if squash == "none" or data.num_classes or data.multilabel:
        return None
    return RELEASED_RANGE if squash == "released" else data.label_range


class TFN(Model[Utterances, Sentiment]):
    """All products of features of one, two and three modalities, and a head on top.

    Sizes are those of MMSA's published row on MOSI, and so is the text's one layer behind its LSTM,
    where the paper has two. Differences from MMSA's code: scores are squashed into the range of the
    data's labels (parity: ``squash=released``, into [-3, 3] whatever the labels are); features are
    standardised, and no batch norm stands on the mean frames (parity: ``batch_norm=true``); a mean
    is over the frames that a sample has (parity: ``padded_mean=true``); the text's state is that of
    its last word, not that behind the padding. The paper learns by the squared error
    (``squared=true``), MMSA by the absolute one.
    """

    task = "sentiment"

    @validated_dataclass(frozen=True)
    class Config(SubnetOptions):
        text_out: PositiveInt = 128  # width of the text's vector
        hidden: PositiveInt = 32  # of the head
        drop_fusion: Probability = 0.2  # of the outer product
        squash: Squash = "range"  # scores, into the labels' range; parity: "released", [-3, 3]
        squared: bool = False  # the paper's loss of a score

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        self.squared = config.squared
        self.inputs = Inputs(data, config.inputs, config.modalities)
        self.subnets = Subnets(config, data, config.text_out)
        self.fusion = TensorFusion(
            self.subnets.width,
            config.hidden,
            data.num_outputs,
            config.drop_fusion,
            bounds_of(config.squash, data),
        )

    def forward(self, batch: Utterances) -> Sentiment:
        score = self.fusion(self.subnets(*self.inputs(batch))).float()  # (B, outputs)
        return Sentiment(score=score.squeeze(1))

    def losses(self, output: Sentiment, batch: Utterances) -> dict[str, Tensor]:
        return {"task": batch.mean(batch.errors(output.score, self.squared))}

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        return self.subnets.groups(self)
