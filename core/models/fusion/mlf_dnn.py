"""MLF-DNN: LF-DNN with a task per modality (Yu et al., CH-SIMS, ACL 2020)."""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass

from core.dropout import Probability
from core.model import DataSpec
from core.models.fusion.lf_dnn import LateFusion
from core.models.fusion.unimodal_heads import MultiTask, MultiTaskOptions


class MLFDNN(MultiTask):
    """Late fusion, and a head on each modality's vector that learns the human label of that
    modality.

    Data need such labels (CH-SIMS has them). Sizes and weights are those of MMSA's row on CH-SIMS.
    Differences from MMSA's code: those of LF-DNN; a head whose weight is 0 is left out, for it
    never trains; a sample without a modality or its label takes no part in that head's loss; the
    best epoch is chosen by the fused score, not by the weighted sum of four losses.
    """

    @validated_dataclass(frozen=True)
    class Config(MultiTaskOptions):
        text_hidden: PositiveInt = 64
        audio_hidden: PositiveInt = 32
        vision_hidden: PositiveInt = 64
        text_out: PositiveInt = 32  # width of the text's vector
        hidden: PositiveInt = 32  # of the fused score's head
        drop_audio: Probability = 0.3
        drop_vision: Probability = 0.3
        drop_fusion: Probability = 0.5
        post_text: PositiveInt = 16
        post_audio: PositiveInt = 4
        post_vision: PositiveInt = 32
        drop_heads: Probability = 0.5
        fusion_weight: PositiveFloat = 0.6
        text_weight: NonNegativeFloat = 0.2
        audio_weight: NonNegativeFloat = 0.8
        vision_weight: NonNegativeFloat = 0.8

    def __init__(self, config: Config, data: DataSpec):
        super().__init__(config, data, "mlf_dnn", config.text_out)
        self.fusion = LateFusion(
            self.subnets.width, config.hidden, data.num_outputs, config.drop_fusion
        )
