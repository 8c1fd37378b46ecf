"""ALMT (Zhang et al., EMNLP 2023, arXiv:2310.05804): levels of the language gather a
hyper-modality from sound and video."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn

from core.batch import Utterances
from core.encoders.frame_layers import longest_sequences
from core.encoders.inputs import (
    MODALITIES,
    InputConfig,
    Inputs,
    Modality,
    groups,
    has_frames,
    in_order,
)
from core.encoders.text import TextConfig, TextEncoder
from core.encoders.token_layers import LanguageGuided, TokenShape, TokenTransformer
from core.model import DataSpec, Model, Sentiment


class ALMT(Model[Utterances, Sentiment]):
    """Each modality becomes eight tokens; those of the text look at those of sound and video.

    Differences from the released codes (the authors' and MMSA's): padding takes no part in
    attention; positions are learnt up to the data's longest sequences; the text finds nothing in
    a modality that a sample lacks; the hyper-modality starts from random numbers, theirs from ones,
    of which its norm leaves zeros (``hyper_start``); rates rise from the first step on, where the
    released schedule gives a first epoch of rate zero. As there, what is found is added to the norm
    of the hyper-modality, where the paper's equation has the hyper-modality itself (``residual``).
    The answer is read at a place whose row looks at the hyper-modality only, so the language's last
    level counts by what it found there. The authors print the best test score of each metric over
    all epochs; here validation chooses one epoch.
    """

    task = "sentiment"

    @validated_dataclass(frozen=True)
    class Config:
        modalities: tuple[Modality, ...] = MODALITIES  # text, and sound, video or both
        width: PositiveInt = 128
        heads: PositiveInt = 8
        head_width: PositiveInt = 64
        tokens: PositiveInt = 8  # of each modality
        embed_layers: PositiveInt = 1  # from frames to tokens
        levels: PositiveInt = 3  # of the language
        hyper_heads: PositiveInt = 8  # these share the width out among them
        fusion_layers: PositiveInt = 2
        # what a level's find is added to; the paper's equation: plain
        residual: Literal["norm", "plain"] = "norm"
        # parity: "ones", which the first norm turns into zeros
        hyper_start: Literal["random", "ones"] = "random"
        squared: bool = True  # the mean squared error, as in the paper
        text: TextConfig = TextConfig()
        inputs: InputConfig = InputConfig()

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        self.config = config
        self.inputs = Inputs(data, config.inputs, config.modalities)
        self.modalities = in_order(config.modalities)
        others = [m for m in self.modalities if m != "text"]
        refuse_without_text("almt", self.modalities)
        self.text = TextEncoder(config.text, data)
        shape = TokenShape(config.width, config.heads, config.head_width, config.width)
        longest = longest_sequences("almt", self.modalities, data, self.text)
        widths = {**data.features, "text": self.text.width}
        self.project, self.embed = nn.ModuleDict(), nn.ModuleDict()
        for m in self.modalities:
            self.project[m] = nn.Linear(widths[m], config.width)
            self.embed[m] = TokenTransformer(shape, longest[m], config.embed_layers, config.tokens)
        self.guided = LanguageGuided(
            shape,
            others,
            tokens=config.tokens,
            levels=config.levels,
            hyper_heads=config.hyper_heads,
            fusion_layers=config.fusion_layers,
            plain=config.residual == "plain",
            ones=config.hyper_start == "ones",
        )
        self.predict = nn.Linear(config.width, data.num_outputs)

    def forward(self, batch: Utterances) -> Sentiment:
        frames, mask = self.inputs(batch)
        has_modality = {m: has_frames(mask[m]) for m in self.modalities}
        frames["text"], mask["text"] = self.text(frames["text"], mask["text"])
        tokens = {}
        for m, embed in self.embed.items():
            tokens[m] = embed(self.project[m](frames[m]), mask[m])
        fused = self.guided(tokens.pop("text"), tokens, has_modality)
        score = self.predict(fused[:, 0]).float()  # (B, classes or 1)
        return Sentiment(score=score.squeeze(1))

    def losses(self, output: Sentiment, batch: Utterances) -> dict[str, Tensor]:
        return {"task": batch.mean(batch.errors(output.score, self.config.squared))}

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        return groups(self, text=self.text.trained())


def refuse_without_text(model: str, modalities: list[str]) -> None:
    """ValueError unless there are text and something that it can look at."""
    if "text" not in modalities or len(modalities) < 2:
        raise ValueError(
            f"{model} lets the text look at sound and video; options.modalities must hold text and "
            f"one of them, not {','.join(modalities)}"
        )
