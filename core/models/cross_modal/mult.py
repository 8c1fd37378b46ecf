"""MulT (Tsai et al., ACL 2019, arXiv:1906.00295): every modality attends to every other one."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from core.batch import Utterances
from core.dropout import Probability
from core.encoders.cross_attention import Encoder, ResidualHead, keys_up_to_now
from core.encoders.frame_layers import by_modality, convolve, longest_sequences
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
from core.model import DataSpec, Model, Sentiment

FEWEST_OWN_LAYERS = 3  # of the encoders that read what the cross-modal ones give


class MulT(Model[Utterances, Sentiment]):
    """Cross-modal encoders for every ordered pair of modalities, then an encoder over each one's
    pairs, whose last frames are fused.

    Differences from the released codes (the authors' and MMSA's): the last frame that exists is
    read, not the last one of padding (theirs are files padded on the left, MMSA's on the right);
    padding takes no part in attention and convolutions; convolutions keep the length of what they
    read. A modality that a sample lacks adds zeros to the fusion, and nothing attends to it.
    MMSA's model has had no positions since September 2022, when its shared encoder lost them by
    default; the paper's has, and so had MMSA's when its table was made: ``positions``.
    """

    task = "sentiment"

    @validated_dataclass(frozen=True)
    class Config:
        modalities: tuple[Modality, ...] = MODALITIES  # two or three
        width: PositiveInt = 40
        heads: PositiveInt = 10
        layers: PositiveInt = 4
        kernels: tuple[PositiveInt, PositiveInt, PositiveInt] = (1, 5, 1)  # text, audio, vision
        # of a cross-modal encoder, by what it looks at; the text's is that of the others too
        attention_dropout: tuple[Probability, Probability, Probability] = (0.1, 0.1, 0.2)
        text_dropout: Probability = 0.2
        embed_dropout: Probability = 0.1
        relu_dropout: Probability = 0.2
        residual_dropout: Probability = 0.2
        out_dropout: Probability = 0.1
        # a query sees keys up to its own position, plus the difference of the greatest lengths
        causal: bool = True
        positions: bool = True  # parity with MMSA since 2022: False
        # parity: "valid" lets convolutions shorten what they read, as the released codes do
        padding: Literal["same", "valid"] = "same"
        # parity: False lets padding take part, up to the data's longest, as the released files are
        # padded, and the last place is read whatever it is
        frame_mask: bool = True
        # parity: False gives no position to a frame whose first channel is exactly zero
        place_dropped: bool = True
        text: TextConfig = TextConfig()
        inputs: InputConfig = InputConfig()

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        self.config = config
        self.inputs = Inputs(data, config.inputs, config.modalities)
        self.modalities = in_order(config.modalities)
        if len(self.modalities) < 2:
            raise ValueError("mult attends from one modality to another; name two or three of them")
        self.text = TextEncoder(config.text, data) if "text" in self.modalities else None
        self.longest = longest_sequences("mult", self.modalities, data, self.text)
        self.drop_text = nn.Dropout(config.text_dropout)
        widths = {m: data.features[m] for m in self.modalities}
        if self.text is not None:
            widths["text"] = self.text.width
        self.first = self._convolutions(widths)
        self._make_encoders()
        fused_width = len(self.modalities) * (len(self.modalities) - 1) * config.width
        self.predict = ResidualHead(fused_width, config.out_dropout, data.num_outputs)

    def _convolutions(self, widths: dict[str, int]) -> nn.ModuleDict:
        """Those of the modalities that have another width than the model; others stay as they
        are."""
        config = self.config
        kernel = by_modality(config.kernels)
        convolutions = nn.ModuleDict()
        for m in self.modalities:
            if widths[m] == config.width:
                continue
            padding = kernel[m] // 2 if config.padding == "same" else 0
            if not padding:
                self.longest[m] = max(1, self.longest[m] - kernel[m] + 1)
            convolutions[m] = nn.Conv1d(
                widths[m], config.width, kernel[m], padding=padding, bias=False
            )
        return convolutions

    def _make_encoders(self) -> None:
        config, width = self.config, self.config.width
        dropout = by_modality(config.attention_dropout)
        self.cross = nn.ModuleDict()  # of a modality on another
        for m in self.modalities:
            for other in self._others(m):
                self.cross[f"{m}_{other}"] = Encoder(
                    width, config.heads, config.layers, dropout[other], config, config.positions
                )
        own_width = (len(self.modalities) - 1) * width
        own_layers = max(config.layers, FEWEST_OWN_LAYERS)
        self.own = nn.ModuleDict()  # of what a modality found in the others on itself
        for m in self.modalities:
            self.own[m] = Encoder(
                own_width, config.heads, own_layers, dropout["text"], config, config.positions
            )

    def _others(self, modality: str) -> list[str]:
        return [m for m in self.modalities if m != modality]

    def forward(self, batch: Utterances) -> Sentiment:
        frames, mask = self.inputs(batch)
        if self.text is not None:
            hidden, mask["text"] = self.text(frames["text"], mask["text"])
            frames["text"] = self.drop_text(hidden)
        aligned = {}
        for m in self.modalities:
            aligned[m], mask[m] = self._align(m, frames[m], mask[m])
        summaries = [self._summary(m, aligned, mask) for m in self.modalities]
        score = self.predict(torch.cat(summaries, dim=1)).float()  # (B, classes or 1)
        return Sentiment(score=score.squeeze(1))

    def _align(self, m: str, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, width) without trace of padding, and its mask."""
        if not self.config.frame_mask:
            missing = max(0, self._longest_input(m) - mask.shape[1])
            frames = F.pad(frames, (0, 0, 0, missing))
            mask = torch.ones_like(F.pad(mask, (0, missing)))
        if m in self.first:
            return convolve(self.first[m], frames, mask)
        return frames * mask[..., None], mask

    def _longest_input(self, m: str) -> int:
        """The greatest length before the convolution."""
        if m in self.first and self.config.padding == "valid":
            return self.longest[m] + by_modality(self.config.kernels)[m] - 1
        return self.longest[m]

    def _summary(self, m: str, aligned: dict[str, Tensor], mask: dict[str, Tensor]) -> Tensor:
        """(B, widths of the others): a modality after it has looked at each other one; zero where
        a sample lacks it."""
        views = []
        for other in self._others(m):
            pairs = self._pairs(m, other, mask)
            encoder = self.cross[f"{m}_{other}"]
            views.append(encoder(aligned[m], mask[m], pairs, aligned[other], mask[other]))
        joined = torch.cat(views, dim=2) * mask[m][..., None]
        last = self.own[m](joined, mask[m], self._pairs(m, m, mask), last_only=True)
        return last.squeeze(1) * has_frames(mask[m])[:, None]

    def _pairs(self, query: str, key: str, mask: dict[str, Tensor]) -> Tensor | None:
        """(T, S) bool: which keys a query may see; the same however far a batch is padded."""
        if not self.config.causal:
            return None
        ahead = abs(self.longest[key] - self.longest[query])
        queries, keys = mask[query].shape[1], mask[key].shape[1]
        return keys_up_to_now(queries, keys, ahead, mask[query].device)

    def losses(self, output: Sentiment, batch: Utterances) -> dict[str, Tensor]:
        return {"task": batch.mean(batch.errors(output.score))}

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        return groups(self, text=self.text.trained() if self.text is not None else [])
