"""MTFN: TFN with a task per modality (Yu et al., CH-SIMS, ACL 2020)."""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass

from core.dropout import Probability
from core.model import DataSpec
from core.models.fusion.tfn import Squash, TensorFusion, bounds_of
from core.models.fusion.unimodal_heads import MultiTask, MultiTaskOptions


class MTFN(MultiTask):
    """Tensor fusion, and a head on each modality's vector that learns the human label of that
    modality.

    Data need such labels (CH-SIMS has them). Sizes and weights are those of MMSA's row on CH-SIMS,
    where sound has weight 0. Differences from MMSA's code: those of TFN (the fused score is
    squashed into the labels' range; parity: ``squash=released``, into [-3, 3] on labels within 1
    too); a head whose weight is 0 is left out, for it never trains; a sample without a modality or
    its label takes no part in that head's loss; the best epoch is chosen by the fused score, not by
    the weighted sum of four losses.
    """

    @validated_dataclass(frozen=True)
    class Config(MultiTaskOptions):
        text_hidden: PositiveInt = 256
        audio_hidden: PositiveInt = 32
        vision_hidden: PositiveInt = 256
        text_out: PositiveInt = 256  # width of the text's vector
        hidden: PositiveInt = 64  # of the fused score's head
        drop_fusion: Probability = 0.2  # of the outer product
        squash: Squash = "range"  # as in TFN; parity: "released", [-3, 3]
        post_text: PositiveInt = 64
        post_audio: PositiveInt = 4
        post_vision: PositiveInt = 8
        drop_heads: Probability = 0.2
        fusion_weight: PositiveFloat = 0.6
        text_weight: NonNegativeFloat = 0.4
        audio_weight: NonNegativeFloat = 0.0
        vision_weight: NonNegativeFloat = 1.0

    def __init__(self, config: Config, data: DataSpec):
        super().__init__(config, data, "mtfn", config.text_out)
        self.fusion = TensorFusion(
            self.subnets.width,
            config.hidden,
            data.num_outputs,
            config.drop_fusion,
            bounds_of(config.squash, data),
        )
