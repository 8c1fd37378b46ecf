"""BBFN (Han et al., ICMI 2021, arXiv:2107.13669): text and each other modality complement one
another, level by level, through gates that keep them apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from core.batch import Utterances
from core.dropout import Probability
from core.encoders.attention import Attention
from core.encoders.cross_attention import ResidualHead
from core.encoders.frame_layers import by_modality, convolve, pooled_to_words
from core.encoders.inputs import (
    MODALITIES,
    InputConfig,
    Inputs,
    Modality,
    groups,
    has_frames,
    in_order,
)
from core.encoders.sequence import BiGRU, masked_mean
from core.encoders.text import TextConfig, TextEncoder
from core.model import DataSpec, Model, Sentiment
from core.models.cross_modal.almt import refuse_without_text


@dataclass(frozen=True)
class Output(Sentiment):
    # modality -> (B, levels, 2) logits of being that modality, of the text and of the modality
    told_apart: dict[str, Tensor]
    has_both: dict[str, Tensor]  # modality -> (B,) bool, True where a sample has it and text


class BBFN(Model[Utterances, Output]):
    """A pair of gated Transformers for text and sound, and one for text and video; discriminators
    hold the sides of a pair apart.

    Differences from the released code: padding takes no part in any attention or mean; frames
    that are not aligned with the words are pooled to them; a pair gives zeros in the place of a
    modality that a sample lacks, and the text passes it by. The released script sets the flags of
    neither BERT nor the discriminators: ``separator=0`` is without the latter. The authors keep an
    epoch only if its test score is better too; here validation chooses.
    """

    task = "sentiment"
    aligned = True

    @validated_dataclass(frozen=True)
    class Config:
        modalities: tuple[Modality, ...] = MODALITIES  # text, and sound, video or both
        width: PositiveInt = 40
        heads: PositiveInt = 5
        levels: PositiveInt = 5
        kernels: tuple[PositiveInt, PositiveInt, PositiveInt] = (3, 3, 3)  # text, audio, vision
        separator: NonNegativeFloat = 0.1  # weight of the discriminators' loss; 0: there are none
        attention_dropout: Probability = 0.1
        relu_dropout: Probability = 0.1
        residual_dropout: Probability = 0.1
        out_dropout: Probability = 0.0
        squared: bool = True  # the mean squared error, as in the paper
        # layers of a pretrained text encoder, from the first on, that are not trained
        frozen_layers: NonNegativeInt = 0
        text: TextConfig = TextConfig()
        inputs: InputConfig = InputConfig()

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        self.config = config
        self.inputs = Inputs(data, config.inputs, config.modalities)
        self.modalities = in_order(config.modalities)
        refuse_without_text("bbfn", self.modalities)
        self.others = [m for m in self.modalities if m != "text"]
        self.text = TextEncoder(config.text, data)
        self._freeze(config.frozen_layers)
        kernel = by_modality(config.kernels)
        widths = {**data.features, "text": self.text.width}
        self.first, self.pairs = nn.ModuleDict(), nn.ModuleDict()
        for m in self.modalities:
            padding = kernel[m] // 2
            self.first[m] = nn.Conv1d(
                widths[m], config.width, kernel[m], padding=padding, bias=False
            )
        for m in self.others:
            self.pairs[m] = Pair(config)
        fused_width = 2 * len(self.others) * config.width
        self.predict = ResidualHead(fused_width, config.out_dropout, data.num_outputs)

    def _freeze(self, number: int) -> None:
        if not number:
            return
        if not self.text.pretrained:
            raise ValueError(
                f"options.frozen_layers={number} is of a pretrained text encoder, not of "
                f"text.source={self.config.text.source}; use options.frozen_layers=0"
            )
        for layer in list(self.text.layers)[:number]:
            layer.requires_grad_(False)

    def forward(self, batch: Utterances) -> Output:
        frames, mask = self.inputs(batch)
        has = {m: has_frames(mask[m]) for m in self.modalities}
        hidden, text_mask = self.text(frames["text"], mask["text"])
        text, _ = convolve(self.first["text"], hidden, text_mask)
        with_summary = self.text.num_summaries > 0
        summaries, told_apart, has_both = [], {}, {}
        for m, pair in self.pairs.items():
            pooled, exists = pooled_to_words(frames[m], mask[m], text_mask, with_summary)
            # zero frames stand at places of the text that have none of the modality's
            places = torch.where(has["text"][:, None], text_mask & has[m][:, None], exists)
            other, _ = convolve(self.first[m], pooled, places)
            of_text, of_other, logits = pair(text, other, text_mask, places)
            summaries += [of_text[:, 0], of_other[:, 0] * has[m][:, None]]
            if logits is not None:
                told_apart[m] = logits.float()
                has_both[m] = has["text"] & has[m]
        score = self.predict(torch.cat(summaries, dim=1)).float()  # (B, classes or 1)
        return Output(score=score.squeeze(1), told_apart=told_apart, has_both=has_both)

    def losses(self, output: Output, batch: Utterances) -> dict[str, Tensor]:
        task = batch.errors(output.score, self.config.squared)
        losses = {"task": batch.mean(task)}
        if output.told_apart:
            errors = []  # (B,) of each pair
            for m, logits in output.told_apart.items():
                errors.append(separation_loss(logits) * output.has_both[m])
            separated = torch.stack(errors).mean(0)
            losses["separator"] = self.config.separator * batch.mean(separated)
        return losses

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        return groups(self, text=self.text.trained())


def separation_loss(logits: Tensor) -> Tensor:
    """(B,) mean binary cross-entropy of (B, levels, 2) logits: 0 for the text, 1 for the other."""
    is_other = torch.tensor([0.0, 1.0], device=logits.device, dtype=logits.dtype)
    error = F.binary_cross_entropy_with_logits(logits, is_other.expand_as(logits), reduction="none")
    return error.mean((1, 2))


class Pair(nn.Module):
    """Text and another modality, each attending to the other through all levels."""

    def __init__(self, config: BBFN.Config):
        super().__init__()
        self.levels = nn.ModuleList(Level(config, number) for number in range(config.levels))

    def forward(
        self, text: Tensor, other: Tensor, text_mask: Tensor, other_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Both sequences, (B, T, width), and (B, levels, 2) logits of the discriminators."""
        logits = []
        for level in self.levels:
            text, other, told = level(text, other, text_mask, other_mask)
            if told is not None:
                logits.append(told)
        return text, other, torch.stack(logits, dim=1) if logits else None


class Level(nn.Module):
    """Summaries of both sides, which set the gates; a discriminator on them; a layer for each
    direction."""

    def __init__(self, config: BBFN.Config, number: int):
        super().__init__()
        width = config.width
        self.encode_text = _summary(width, number)
        self.encode_other = _summary(width, number)
        self.discriminate: nn.Sequential | None = None
        if config.separator:
            self.discriminate = nn.Sequential(
                nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, 1)
            )
        self.text_layer, self.other_layer = GatedLayer(config), GatedLayer(config)

    def forward(
        self, text: Tensor, other: Tensor, text_mask: Tensor, other_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """As ``Pair``'s, of one level: the logits are (B, 2)."""
        summaries = [self.encode_text(text, text_mask), self.encode_other(other, other_mask)]
        told = None
        if self.discriminate is not None:
            told = self.discriminate(torch.stack(summaries, dim=1)).squeeze(2)
        control = torch.cat(summaries, dim=1)  # (B, 2 width)
        of_text = self.text_layer(text, other, other_mask, control)
        of_other = self.other_layer(other, text, text_mask, control)
        return of_text, of_other, told


class GatedLayer(nn.Module):
    """Pre-norm Transformer layer on another sequence, in which gates weigh what is found against
    what was there."""

    def __init__(self, config: BBFN.Config):
        super().__init__()
        width = config.width
        self.attention = Attention(width, config.heads, dropout=config.attention_dropout)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.ReLU(),
            nn.Dropout(config.relu_dropout),
            nn.Linear(4 * width, width),
        )
        self.before = nn.LayerNorm(width)
        self.between = nn.LayerNorm(width)
        self.retain = nn.Linear(2 * width, width)
        self.fuse = nn.Linear(2 * width, width)
        self.residual = nn.Dropout(config.residual_dropout)

    def forward(self, x: Tensor, source: Tensor, mask: Tensor, control: Tensor) -> Tensor:
        """(B, T, width); ``mask`` (B, S) is the source's, ``control`` (B, 2 width) sets the
        gates."""
        found = self.residual(self.attention(self.before(x), self.before(source), mask))
        fused = self.fuse(control).sigmoid()[:, None] * found
        x = fused + self.retain(control).sigmoid()[:, None] * x
        return x + self.residual(self.feed(self.between(x)))


class MeanFrame(nn.Module):
    """A linear layer on the mean frame."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, width)."""
        return self.linear(masked_mean(x, mask))


class MeanState(nn.Module):
    """The mean state of a bidirectional GRU, over time and both directions."""

    def __init__(self, width: int):
        super().__init__()
        self.states = BiGRU(width, width, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, width)."""
        forwards, backwards = self.states(x, mask).chunk(2, dim=2)
        return masked_mean((forwards + backwards) / 2, mask)


def _summary(width: int, level: int) -> nn.Module:
    return MeanState(width) if level else MeanFrame(width)
