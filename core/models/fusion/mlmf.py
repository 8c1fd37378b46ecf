"""MLMF: LMF with a task per modality (Yu et al., CH-SIMS, ACL 2020)."""

from __future__ import annotations

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import nn

from core.dropout import Probability
from core.model import DataSpec
from core.models.fusion.lmf import LowRankFusion, half
from core.models.fusion.unimodal_heads import MultiTask, MultiTaskOptions


class MLMF(MultiTask):
    """Low-rank fusion, and a head on each modality's vector that learns the human label of that
    modality.

    Data need such labels (CH-SIMS has them). Sizes and weights are those of MMSA's row on CH-SIMS.
    Differences from MMSA's code: those of LMF (the ranks' weights are trained; parity:
    ``frozen_weights=true``, for there they learn at rate 0); a head whose weight is 0 is left out,
    for it never trains; a sample without a modality or its label takes no part in that head's loss;
    the best epoch is chosen by the fused score, not by the weighted sum of four losses.
    """

    @validated_dataclass(frozen=True)
    class Config(MultiTaskOptions):
        text_hidden: PositiveInt = 256
        audio_hidden: PositiveInt = 32
        vision_hidden: PositiveInt = 256
        text_out: NonNegativeInt = 0  # width of the text's vector; 0: half of text_hidden
        rank: PositiveInt = 3
        drop_audio: Probability = 0.3
        drop_vision: Probability = 0.3
        frozen_weights: bool = False  # parity: True, the ranks' weights and the bias stay as drawn
        post_text: PositiveInt = 8
        post_audio: PositiveInt = 4
        post_vision: PositiveInt = 32
        fusion_weight: PositiveFloat = 0.2
        text_weight: NonNegativeFloat = 1.0
        audio_weight: NonNegativeFloat = 0.4
        vision_weight: NonNegativeFloat = 0.8

    fusion: LowRankFusion

    def __init__(self, config: Config, data: DataSpec):
        super().__init__(config, data, "mlmf", config.text_out or half(config.text_hidden))
        self.fusion = LowRankFusion(
            self.subnets.width, config.rank, data.num_outputs, config.frozen_weights
        )

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        return self.subnets.groups(self, own_text=True, factors=self.fusion.factors())
