"""TETFN (Wang et al., Pattern Recognition 136, 2023, doi:10.1016/j.patcog.2022.109259): sound and
video look at each other through the text, and learn from generated labels."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn

from core.batch import Utterances
from core.dropout import Probability
from core.encoders.cross_attention import Encoder, keys_up_to_now
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
from core.encoders.sequence import masked_max
from core.encoders.text import TextConfig, TextEncoder, decayed
from core.kernels.recurrence import recur
from core.model import DataSpec
from core.models.cross_modal.almt import refuse_without_text
from core.models.label_memory import FUSION, LabelMemory
from core.models.unimodal_tasks import Head, Output, UnimodalTasks, has_one_score

LAYERS = 2  # of every encoder but the first of a text-enhanced pair


class TETFN(UnimodalTasks):
    """Cross-modal encoders between the text and the others, text-enhanced ones between sound and
    video, and Self-MM's heads and generated labels.

    Differences from the released code: every encoder knows positions, where there only the
    text-enhanced ones do (``positions``); padding takes no part in attention, convolutions and
    maxima, and the last frame that exists is read, not the last one of padding; convolutions keep
    the length of what they read; the video has a kernel of its own, where the code gives it the
    sound's; generated labels are limited to half of the label range, not to 3 everywhere. What
    ``SelfMM`` says of the label memory holds here too. Labels that are classes or vectors have
    no unimodal labels to generate: the fused head learns alone then.
    """

    task = "sentiment"

    @validated_dataclass(frozen=True)
    class Config:
        modalities: tuple[Modality, ...] = MODALITIES  # text, and sound, video or both
        width: PositiveInt = 50
        heads: PositiveInt = 5
        audio_hidden: PositiveInt = 16  # of the LSTM
        vision_hidden: PositiveInt = 64
        kernels: tuple[PositiveInt, PositiveInt, PositiveInt] = (1, 1, 1)  # text, audio, vision
        # of a cross-modal encoder, by what it looks at; the text's is that of the others too
        attention_dropout: tuple[Probability, Probability, Probability] = (0.1, 0.0, 0.1)
        embed_dropout: Probability = 0.0
        relu_dropout: Probability = 0.0
        residual_dropout: Probability = 0.1
        post_fusion: PositiveInt = 64  # widths of the heads
        post_text: PositiveInt = 32
        post_audio: PositiveInt = 32
        post_vision: PositiveInt = 16
        drop_fusion: Probability = 0.0  # these four: before the heads
        drop_text: Probability = 0.0
        drop_audio: Probability = 0.0
        drop_vision: Probability = 0.0
        # how far generated labels may lie from the middle; 0: half of the label range
        label_limit: NonNegativeFloat = 0.0
        # parity: "text_enhanced" gives positions to those encoders only
        positions: Literal["everywhere", "text_enhanced"] = "everywhere"
        # parity: False gives no position to a frame whose first channel is exactly zero
        place_dropped: bool = True
        text: TextConfig = TextConfig()
        inputs: InputConfig = InputConfig()

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        self.config = config
        self.inputs = Inputs(data, config.inputs, config.modalities)
        self.modalities = in_order(config.modalities)
        refuse_without_text("tetfn", self.modalities)
        self.text = TextEncoder(config.text, data)
        self.longest = longest_sequences("tetfn", self.modalities, data, self.text)
        self._make_frame_encoders(data)
        self._make_encoders()
        self._make_heads(data)

    def _make_frame_encoders(self, data: DataSpec) -> None:
        config = self.config
        kernel = by_modality(config.kernels)
        width = {
            "text": self.text.width,
            "audio": config.audio_hidden,
            "vision": config.vision_hidden,
        }
        self.lstm, self.first = nn.ModuleDict(), nn.ModuleDict()
        for m in self.modalities:
            if m != "text":
                self.lstm[m] = nn.LSTM(data.features[m], width[m], batch_first=True)
            self.first[m] = nn.Conv1d(
                width[m], config.width, kernel[m], padding=kernel[m] // 2, bias=False
            )

    def _make_encoders(self) -> None:
        config, width = self.config, self.config.width
        dropout = by_modality(config.attention_dropout)
        ordered = config.positions == "everywhere"
        self.cross = nn.ModuleDict()  # of a modality on another
        # of sound on video, or the other way: what the other finds in the text, and what of that is
        # found
        self.lower, self.upper = nn.ModuleDict(), nn.ModuleDict()
        for m in self.modalities:
            for other in self._others(m):
                if "text" in (m, other):
                    self.cross[f"{m}_{other}"] = Encoder(
                        width, config.heads, LAYERS, dropout[other], config, ordered
                    )
                else:
                    self.lower[f"{m}_{other}"] = Encoder(
                        width, config.heads, 1, dropout["text"], config
                    )
                    self.upper[f"{m}_{other}"] = Encoder(
                        width, config.heads, LAYERS, dropout["text"], config
                    )
        own_width = (len(self.modalities) - 1) * width
        self.own = nn.ModuleDict()  # of what a modality found in the others on itself
        for m in self.modalities:
            self.own[m] = Encoder(own_width, config.heads, LAYERS, dropout["text"], config, ordered)

    def _make_heads(self, data: DataSpec) -> None:
        config, width = self.config, self.config.width
        fused_width = len(self.modalities) * (len(self.modalities) - 1) * width
        heads = {
            FUSION: Head(fused_width, config.post_fusion, config.drop_fusion, data.num_outputs),
            "text": Head(width, config.post_text, config.drop_text),
            "audio": Head(width, config.post_audio, config.drop_audio),
            "vision": Head(width, config.post_vision, config.drop_vision),
        }
        is_score = has_one_score(data)
        views = [FUSION, *self.modalities] if is_score else [FUSION]
        self.heads = nn.ModuleDict({view: heads[view] for view in views})
        self.memory = None
        if is_score:
            low, high = data.label_range
            self.memory = LabelMemory(
                data.num_train,
                {view: heads[view].width for view in views},
                limit=config.label_limit or (high - low) / 2,
                middle=(high + low) / 2,
            )

    def _others(self, modality: str) -> list[str]:
        return [m for m in self.modalities if m != modality]

    def forward(self, batch: Utterances) -> Output:
        frames, mask = self.inputs(batch)
        has_modality = {m: has_frames(mask[m]) for m in self.modalities}
        frames["text"], mask["text"] = self.text(frames["text"], mask["text"])
        aligned = {}
        for m in self.modalities:
            states = recur(self.lstm[m], frames[m])[0] if m in self.lstm else frames[m]
            aligned[m], mask[m] = convolve(self.first[m], states, mask[m])
        summaries = [self._summary(m, aligned, mask) for m in self.modalities]
        encoded = {m: masked_max(aligned[m], mask[m]) for m in self.modalities}
        encoded[FUSION] = torch.cat(summaries, dim=1)
        views, hidden = {}, {}
        for view, head in self.heads.items():
            views[view], hidden[view] = head(encoded[view])
        return Output(
            score=views.pop(FUSION), views=views, hidden=hidden, has_modality=has_modality
        )

    def _summary(self, m: str, aligned: dict[str, Tensor], mask: dict[str, Tensor]) -> Tensor:
        """(B, width of the others): a modality after it has looked at each other one; zero where a
        sample lacks it."""
        views = []
        for other in self._others(m):
            if f"{m}_{other}" in self.cross:
                encoder = self.cross[f"{m}_{other}"]
                views.append(self._look(encoder, m, aligned[m], other, aligned[other], mask))
            else:
                views.append(self._look_by_text(m, other, aligned, mask))
        joined = torch.cat(views, dim=2) * mask[m][..., None]
        pairs = self._pairs(m, m, mask)
        last = self.own[m](joined, mask[m], pairs, last_only=True)
        return last.squeeze(1) * has_frames(mask[m])[:, None]

    def _look_by_text(
        self, m: str, other: str, aligned: dict[str, Tensor], mask: dict[str, Tensor]
    ) -> Tensor:
        """(B, T, width): a modality on the other, after that has looked at the text."""
        lower = self.lower[f"{m}_{other}"]
        upper = self.upper[f"{m}_{other}"]
        enhanced = self._look(lower, other, aligned[other], "text", aligned["text"], mask)
        enhanced = enhanced * mask[other][..., None]
        return self._look(upper, m, aligned[m], other, enhanced, mask)

    def _look(
        self,
        encoder: nn.Module,
        query: str,
        x: Tensor,
        key: str,
        source: Tensor,
        mask: dict[str, Tensor],
    ) -> Tensor:
        """(B, T, width) of ``x``, which has the frames of ``query``, on a source that has those of
        ``key``."""
        pairs = self._pairs(query, key, mask)
        seen: Tensor = encoder(x, mask[query], pairs, source, mask[key])
        return seen

    def _pairs(self, query: str, key: str, mask: dict[str, Tensor]) -> Tensor:
        """(T, S) bool: a query sees keys up to its own place, and the difference of the greatest
        lengths more."""
        ahead = abs(self.longest[key] - self.longest[query])
        queries, keys = mask[query].shape[1], mask[key].shape[1]
        return keys_up_to_now(queries, keys, ahead, mask[query].device)

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        decay, no_decay = decayed(self.text.trained())
        named = {"text": decay, "text_no_decay": no_decay}
        for m, lstm in self.lstm.items():
            named[m] = [*lstm.parameters(), *self.first[m].parameters()]
        return groups(self, **named)
