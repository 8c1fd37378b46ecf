"""LNLN (Zhang, Wang and Yu, NeurIPS 2024, arXiv:2409.20012): a proxy stands in for what is missing
of the text, and ALMT goes on from there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
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
    one_frame,
)
from core.encoders.text import TextConfig, TextEncoder
from core.encoders.token_layers import LanguageGuided, Levels, TokenShape, TokenTransformer
from core.model import DataSpec, Model, Sentiment
from core.models.cross_modal.almt import refuse_without_text

SLOPE = 0.1  # of LeakyReLU
COMPLETE_TEXT, DOMINANT = 0, 1  # what the discriminator tells apart


@dataclass(frozen=True)
class Output(Sentiment):
    completeness: Tensor  # (B, 1) how much of the text is there, as the model guesses
    share_present: Tensor  # (B,) as it is
    # in training only, of the complete data: modality -> (B,) bool, True where a sample has it
    has_modality: dict[str, Tensor]
    complete: dict[str, Tensor]  # modality -> (B, tokens, width), the tokens of complete data
    rebuilt: dict[str, Tensor]  # modality -> (B, tokens, width), those of the damaged ones mended
    # (B, 2, tokens, 2) logits of the discriminator on the complete text and the dominant modality
    judged: Tensor | None


class LNLN(Model[Utterances, Output]):
    """The dominant modality is the text where it is complete and a proxy made of sound and video
    where it is not.

    Differences from the released code: the gradient is reversed on the way to the discriminator
    only, as equation 10 of the paper has it, where the code reverses all that reaches the proxy,
    the sentiment's too (``reversal``); what is rebuilt aims at tokens of complete data that do not
    move towards it (``detach``), and these are encoded apart only where some were dropped; the
    text's completeness is the share of its tokens that are left, where the code takes the rate that
    was drawn; the hyper-modality starts from random numbers, as ``ALMT`` says (``hyper_start``);
    padding takes no part in attention. As in the code, targets are the embedded tokens
    (the paper has the input), and one token reads the text's completeness. The released training
    draws nearly the same masks in every epoch, and keeps the epoch that is best on test.
    """

    task = "sentiment"

    @validated_dataclass(frozen=True)
    class Config:
        modalities: tuple[Modality, ...] = MODALITIES  # text, and sound, video or both
        width: PositiveInt = 128
        heads: PositiveInt = 8
        head_width: PositiveInt = 64
        tokens: PositiveInt = 8  # of each modality
        embed_layers: PositiveInt = 2  # from frames to tokens
        inner_layers: PositiveInt = 2  # of completeness, proxy and rebuilding
        levels: PositiveInt = 3  # of the language
        hyper_heads: PositiveInt = 8  # these share the width out among them
        fusion_layers: PositiveInt = 2
        alpha: NonNegativeFloat = 0.9  # weights: of completeness, adversary, rebuilding, task
        beta: NonNegativeFloat = 0.8
        gamma: NonNegativeFloat = 0.1
        delta: NonNegativeFloat = 1.0
        # parity: "ones", which the first norm turns into zeros
        hyper_start: Literal["random", "ones"] = "random"
        squared: bool = True  # the mean squared error, as in the paper
        reversal: Literal["adversary", "proxy"] = "adversary"  # parity: "proxy"
        detach: bool = True  # parity: False lets targets move towards what aims at them
        text: TextConfig = TextConfig()
        inputs: InputConfig = InputConfig()

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        self.config = config
        self.inputs = Inputs(data, config.inputs, config.modalities)
        self.modalities = in_order(config.modalities)
        self.others = [m for m in self.modalities if m != "text"]
        refuse_without_text("lnln", self.modalities)
        self.text = TextEncoder(config.text, data)
        width, tokens = config.width, config.tokens
        shape = TokenShape(width, config.heads, config.head_width, width)
        longest = longest_sequences("lnln", self.modalities, data, self.text)
        widths = {**data.features, "text": self.text.width}
        self.project, self.embed = nn.ModuleDict(), nn.ModuleDict()
        for m in self.modalities:
            self.project[m] = nn.Linear(widths[m], width)
            self.embed[m] = TokenTransformer(shape, longest[m], config.embed_layers, tokens)
        self.read_text = TokenTransformer(shape, tokens, config.inner_layers, tokens=1)
        self.guess = nn.Sequential(
            nn.Linear(width, width // 2),
            nn.LeakyReLU(SLOPE),
            nn.Linear(width // 2, 1),
            nn.Sigmoid(),
        )
        self.proxy = Proxy(shape, len(self.others), config.inner_layers, tokens)
        self.rebuild = nn.ModuleDict()
        for m in self.modalities:
            self.rebuild[m] = Levels(shape, tokens, config.inner_layers)
        self.discriminate = discriminator(width, width // 2)
        self.guided = LanguageGuided(
            shape,
            self.others,
            tokens=tokens,
            levels=config.levels,
            hyper_heads=config.hyper_heads,
            fusion_layers=config.fusion_layers,
            plain=False,
            ones=config.hyper_start == "ones",
        )
        self.predict = nn.Linear(width, data.num_outputs)

    def forward(self, batch: Utterances) -> Output:
        frames, mask = self.inputs(batch)
        damaged = {m: self._tokens(m, frames[m], mask[m]) for m in self.modalities}
        completeness = self.guess(self.read_text(damaged["text"])[:, 0])  # (B, 1)
        proxy = self.proxy([damaged[m] for m in self.others])
        if self.config.reversal == "proxy":
            proxy = reversed_gradient(proxy)
        dominant = mixed_by_completeness(completeness, proxy, damaged["text"])
        fused = self.guided(dominant, {m: damaged[m] for m in self.others})
        score = self.predict(fused[:, 1:].mean(1)).float()  # (B, classes or 1)
        complete, rebuilt, judged = {}, {}, None
        if self.training:
            complete = self._complete_tokens(batch, damaged)
            rebuilt = {m: self.rebuild[m](damaged[m])[-1] for m in self.modalities}
            judged = self._judge(complete["text"], dominant)
        return Output(
            score=score.squeeze(1),
            completeness=completeness.float(),
            share_present=_share_present(batch),
            has_modality={m: has_frames(batch.mask[m]) for m in self.modalities},
            complete=complete,
            rebuilt=rebuilt,
            judged=judged,
        )

    def _tokens(self, m: str, frames: Tensor, mask: Tensor) -> Tensor:
        """(B, tokens, width) that a modality becomes; without frames, what its tokens are alone."""
        if m == "text":
            frames, mask = self.text(frames, mask)
        tokens: Tensor = self.embed[m](self.project[m](frames), mask)
        return tokens

    def _complete_tokens(self, batch: Utterances, damaged: dict[str, Tensor]) -> dict[str, Tensor]:
        """Modality -> (B, tokens, width) of the complete data.

        They are encoded where a sample of the whole global batch lost something, so that all ranks
        go through the same layers.
        """
        frames = self.inputs.complete(batch)
        complete = {}
        for m in self.modalities:
            is_damaged = (
                torch.compiler.is_compiling()  # a graph must not depend on what the samples lost
                or m not in batch.loss_denominators
                or bool(batch.loss_denominators[m] > 0)
            )
            with torch.set_grad_enabled(not self.config.detach):
                if is_damaged:
                    complete[m] = self._tokens(m, frames[m], one_frame(batch.mask[m]))
                else:
                    complete[m] = damaged[m].detach() if self.config.detach else damaged[m]
        return complete

    def _judge(self, complete_text: Tensor, dominant: Tensor) -> Tensor:
        if self.config.reversal == "adversary":
            dominant = reversed_gradient(dominant)
        logits: Tensor = self.discriminate(torch.stack([complete_text, dominant], dim=1))
        return logits.float()

    def losses(self, output: Output, batch: Utterances) -> dict[str, Tensor]:
        config = self.config
        task = batch.errors(output.score, config.squared)
        losses = {"task": config.delta * batch.mean(task)}
        if output.judged is None:
            return losses
        guess_error = (output.completeness.squeeze(1) - output.share_present).square()
        losses["completeness"] = config.alpha * batch.mean(guess_error)
        adversary = told_apart(output.judged) * output.has_modality["text"]
        losses["adversary"] = config.beta * batch.mean(adversary)
        errors = []  # (B,) of each modality
        for m in self.modalities:
            error = (output.rebuilt[m].float() - output.complete[m].float()).square().mean((1, 2))
            errors.append(error * output.has_modality[m])
        losses["rebuild"] = config.gamma * batch.mean(torch.stack(errors).mean(0))
        return losses

    def loss_denominators(self, batch: Utterances) -> dict[str, Tensor]:
        """Modality -> how many of its frames were dropped; no loss is divided by it."""
        counts = {}
        for m in self.modalities:
            dropped = (batch.mask[m] & ~batch.present[m]).sum(1)  # (B,)
            counts[m] = (dropped * batch.weight).sum()
        return counts

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        return groups(self, text=self.text.trained())


class Proxy(nn.Module):
    """Stands in for the text, made of sound and video.

    Its start is a parameter of this module and not of the whole model: ZeRO-3 does not gather the
    whole model's own parameters for the backward pass.
    """

    def __init__(self, shape: TokenShape, others: int, layers: int, tokens: int):
        super().__init__()
        self.start = nn.Parameter(torch.ones(tokens, shape.width))
        self.read = TokenTransformer(shape, (1 + others) * tokens, layers, tokens)

    def forward(self, others: list[Tensor]) -> Tensor:
        """(B, tokens, width) of as large ones, one for each other modality."""
        start = self.start.expand(len(others[0]), -1, -1)
        proxy: Tensor = self.read(torch.cat([start, *others], dim=1))
        return proxy


def discriminator(width: int, hidden: int) -> nn.Sequential:
    """(..., width) tokens to (..., 2) logits: of the complete text, or of the dominant modality."""
    return nn.Sequential(nn.Linear(width, hidden), nn.LeakyReLU(SLOPE), nn.Linear(hidden, 2))


def mixed_by_completeness(completeness: Tensor, proxy: Tensor, text: Tensor) -> Tensor:
    """(B, tokens, width): the text's tokens by the (B, 1) share of it that is there, the proxy's
    for the rest."""
    share = completeness[..., None]
    return (1 - share) * proxy + share * text


def told_apart(judged: Tensor) -> Tensor:
    """(B,) mean cross-entropy of the discriminator on a sample's tokens of both kinds; arguments as
    ``Output.judged``."""
    of_text, of_dominant = (-judged.log_softmax(3)).unbind(1)  # (B, tokens, 2)
    return (of_text[..., COMPLETE_TEXT].mean(1) + of_dominant[..., DOMINANT].mean(1)) / 2


def reversed_gradient(x: Tensor) -> Tensor:
    """The same values, whose gradient arrives with its sign turned (Ganin and Lempitsky, ICML 2015,
    arXiv:1409.7495)."""
    return 2 * x.detach() - x


def _share_present(batch: Utterances) -> Tensor:
    """(B,) share of the text's tokens that were not dropped; 0 without text."""
    mask, present = one_frame(batch.mask["text"]), one_frame(batch.present["text"])
    return present.sum(1) / mask.sum(1).clamp(min=1)
