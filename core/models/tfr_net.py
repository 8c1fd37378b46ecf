"""TFR-Net (Yuan et al., ACM MM 2021): rebuild dropped features, and fuse with gated recurrent
encoders; and its SimAM variant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn
from torch.nn import functional as F

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
    in_order,
    one_frame,
)
from core.encoders.text import TextConfig, TextEncoder, decayed
from core.losses.in_batch import sum_over_ranks
from core.model import DataSpec, GlobalBatchRows, Model, Sentiment
from core.models.tfr_net_layers import Gate, discrepancy_of_moments, power_sums, simam

FEW_VALUES = 1e-4  # added to a number of values that may be 0


@dataclass(frozen=True)
class Output(Sentiment):
    rebuilt: dict[str, Tensor]  # modality -> (B, T, D), in training only
    target: dict[str, Tensor]  # modality -> (B, T, D), the complete features
    lost: dict[str, Tensor]  # modality -> (B, T) bool, True where a frame exists but was dropped
    index: Tensor  # (B,) int64


class TFRNet(Model[Utterances, Output]):
    """Each modality attends to itself and the others; from that it rebuilds its dropped frames and
    is fused.

    Differences from the released code: rebuilding attends over the feature axis, not over the
    batch; padding takes no part in attention and pooling; the target is detached; a layer norm
    stands before the classifier instead of a batch norm, whose statistics would depend on how a
    batch is split; text is encoded a second time only where some of it was dropped, and without
    gradient; the moment discrepancy is that of the whole global batch, as if every sample were as
    long as the longest of the data; rebuilding is padded to a length that its heads divide.
    """

    task = "sentiment"

    @validated_dataclass(frozen=True)
    class Config:
        modalities: tuple[Modality, ...] = MODALITIES
        width: PositiveInt = 30
        heads: PositiveInt = 6
        layers: PositiveInt = 3  # of the self-attention and of the rebuilding encoders
        cross_layers: PositiveInt = 3
        rebuild_heads: PositiveInt = 1  # the greatest lengths are padded to a multiple of it
        kernels: tuple[PositiveInt, PositiveInt, PositiveInt] = (1, 5, 3)  # text, audio, vision
        fusion_hidden: tuple[PositiveInt, PositiveInt, PositiveInt] = (36, 20, 48)
        gru_layers: PositiveInt = 3
        hidden: PositiveInt = 128  # of the classifier
        # of the rebuilding; 0: that modality is not rebuilt
        lambdas: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (5.0, 2.0, 20.0)
        text_dropout: Probability = 0.2
        # of a cross encoder, by what it looks at
        attention_dropout: tuple[Probability, Probability, Probability] = (0.2, 0.1, 0.0)
        self_dropout: Probability = 0.2  # of attention in the other encoders
        embed_dropout: Probability = 0.2
        relu_dropout: Probability = 0.2
        residual_dropout: Probability = 0.2
        fusion_dropout: Probability = 0.2
        class_dropout: Probability = 0.0
        # a query sees keys up to its own position, plus the difference of the greatest lengths
        causal: bool = True
        # "conv": on the first convolutions' outputs; "enhanced": on what is fused
        simam: Literal["none", "conv", "enhanced"] = "none"
        norm: Literal["layer", "batch"] = "layer"  # parity: "batch"
        detach: bool = True  # parity: False lets the text encoder move its own target
        # parity: False gives no position to a frame whose first channel behind the convolution is
        # exactly zero, as it is where all frames under the kernel were dropped
        place_dropped: bool = True
        cmd: NonNegativeFloat = 0.0  # MMSA: 5, weight of a moment discrepancy in the rebuilding
        own_rates: bool = False  # what reads sound or video learns in optimiser groups of its own
        text: TextConfig = TextConfig()
        inputs: InputConfig = InputConfig()

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        self.config = config
        self.inputs = Inputs(data, config.inputs, config.modalities)
        self.modalities = in_order(config.modalities)
        self.text = TextEncoder(config.text, data) if "text" in self.modalities else None
        self.longest = longest_sequences("tfr_net", self.modalities, data, self.text)
        widths = {m: data.features[m] for m in self.modalities}
        if self.text is not None:
            widths["text"] = self.text.width
        self.drop_text = nn.Dropout(config.text_dropout)
        self._make_encoders(widths)
        self._make_rebuilding(widths)
        self._make_fusion(data.num_outputs)

    def _make_encoders(self, widths: dict[str, int]) -> None:
        config, width = self.config, self.config.width
        kernel = by_modality(config.kernels)
        dropout = by_modality(config.attention_dropout)
        self.first = nn.ModuleDict()
        for m in self.modalities:
            padding = kernel[m] // 2
            self.first[m] = nn.Conv1d(widths[m], width, kernel[m], padding=padding, bias=False)
        self.own = nn.ModuleDict()  # of a modality on itself
        for m in self.modalities:
            self.own[m] = Encoder(width, config.heads, config.layers, config.self_dropout, config)
        self.cross = nn.ModuleDict()  # of a modality on another
        for m in self.modalities:
            for other in self._others(m):
                self.cross[f"{m}_{other}"] = Encoder(
                    width, config.heads, config.cross_layers, dropout[other], config
                )

    def _make_rebuilding(self, widths: dict[str, int]) -> None:
        config = self.config
        weight = by_modality(config.lambdas)
        self.weight = {m: weight[m] for m in self.modalities if weight[m]}
        heads = config.rebuild_heads
        self.course_length = {m: _round_up(self.longest[m], heads) for m in self.weight}
        self.rebuild = nn.ModuleDict()
        for m, length in self.course_length.items():
            self.rebuild[m] = Encoder(length, heads, config.layers, config.self_dropout, config)
        enhanced_width = config.width * len(self.modalities)
        self.restore = nn.ModuleDict()
        for m in self.weight:
            self.restore[m] = nn.Linear(enhanced_width, widths[m])

    def _make_fusion(self, num_outputs: int) -> None:
        config = self.config
        hidden = by_modality(config.fusion_hidden)
        enhanced_width = config.width * len(self.modalities)
        self.gate = nn.ModuleDict()
        for m in self.modalities:
            self.gate[m] = Gate(enhanced_width, hidden[m], config.gru_layers, config.fusion_dropout)
        fused_width = sum(hidden[m] for m in self.modalities)
        norm = nn.BatchNorm1d if config.norm == "batch" else nn.LayerNorm
        self.classify = nn.Sequential(
            norm(fused_width),
            nn.Linear(fused_width, config.hidden),
            nn.LeakyReLU(),
            nn.Dropout(config.class_dropout),
            nn.Linear(config.hidden, num_outputs),
        )

    def _others(self, modality: str) -> list[str]:
        return [m for m in self.modalities if m != modality]

    def forward(self, batch: Utterances) -> Output:
        frames, _ = self.inputs(batch)
        # what exists counts as there, dropped or not: nothing tells the network which frames it has
        # lost
        mask = {m: one_frame(batch.mask[m]) for m in self.modalities}
        lost = self._lost(batch)
        target = self._targets(batch, lost) if self.training else {}
        if self.text is not None:
            hidden, mask["text"] = self.text(frames["text"], mask["text"])
            frames["text"] = self.drop_text(hidden)
        aligned = {m: self._align(m, frames[m], mask[m]) for m in self.modalities}
        enhanced, fused = {}, []
        for m in self.modalities:
            enhanced[m] = self._enhance(m, aligned, mask)
            enhanced_with_simam = enhanced[m]
            if self.config.simam == "enhanced":
                enhanced_with_simam = simam(enhanced[m], mask[m])
            fused.append(self.gate[m](enhanced_with_simam, mask[m]))
        rebuilt = {}
        if self.training:
            rebuilt = {m: self._rebuild(m, enhanced[m]) for m in self.weight}
        score = self.classify(torch.cat(fused, dim=1)).squeeze(-1).float()
        return Output(score=score, rebuilt=rebuilt, target=target, lost=lost, index=batch.index)

    def _lost(self, batch: Utterances) -> dict[str, Tensor]:
        """Modality -> (B, T) bool, True at frames that were dropped, in the places of the hidden
        states."""
        lost = {m: one_frame(batch.mask[m] & ~batch.present[m]) for m in self.modalities}
        if self.text is not None and self.text.num_summaries:
            lost["text"] = F.pad(lost["text"], (1, 0))  # the summary in front
        return lost

    def _targets(self, batch: Utterances, lost: dict[str, Tensor]) -> dict[str, Tensor]:
        """Modality -> (B, T, D) complete features, which rebuilding aims at."""
        frames = self.inputs.complete(batch)
        if self.text is not None and "text" in self.weight and _is_any(lost["text"]):
            with torch.set_grad_enabled(not self.config.detach):
                frames["text"], _ = self.text(frames["text"], one_frame(batch.mask["text"]))
        elif self.text is not None:
            # nothing is compared with it, so the text is not encoded a second time
            shape = (*lost["text"].shape, self.text.width)
            frames["text"] = torch.zeros(shape, device=batch.index.device)
        return {m: frames[m] for m in self.weight}

    def _align(self, m: str, frames: Tensor, mask: Tensor) -> Tensor:
        """(B, T, width) without trace of padding."""
        x, _ = convolve(self.first[m], frames, mask)
        return simam(x, mask) if self.config.simam == "conv" else x

    def _enhance(self, m: str, aligned: dict[str, Tensor], mask: dict[str, Tensor]) -> Tensor:
        """(B, T, width of all): a modality as it looks at itself and at each other one."""
        views = [self.own[m](aligned[m], mask[m], self._attn_mask(m, m, mask))]
        for other in self._others(m):
            attn_mask = self._attn_mask(m, other, mask)
            encoder = self.cross[f"{m}_{other}"]
            views.append(encoder(aligned[m], mask[m], attn_mask, aligned[other], mask[other]))
        return torch.cat(views, dim=2) * mask[m][..., None]

    def _attn_mask(self, query: str, key: str, mask: dict[str, Tensor]) -> Tensor | None:
        """(T, S) bool: which keys a query may see; the same however far a batch is padded."""
        if not self.config.causal:
            return None
        ahead = abs(self.longest[key] - self.longest[query])
        queries, keys = mask[query].shape[1], mask[key].shape[1]
        return keys_up_to_now(queries, keys, ahead, mask[query].device)

    def _rebuild(self, m: str, enhanced: Tensor) -> Tensor:
        """(B, T, D): the channels attend to each other, each described by its course over time."""
        length, width = enhanced.shape[1], self.course_length[m]
        courses = F.pad(enhanced, (0, 0, 0, width - length)).transpose(1, 2)  # (B, C, width)
        mixed = self.rebuild[m](courses).transpose(1, 2)  # (B, width, C)
        return self.restore[m](F.pad(mixed, (0, 0, 0, length - width)))

    def losses(self, output: Output, batch: Utterances) -> dict[str, Tensor]:
        losses = {"task": batch.mean(batch.errors(output.score))}
        for m in output.rebuilt:
            loss = self._rebuilding_loss(m, output, batch)
            losses[f"rebuild_{m}"] = self.weight[m] * self._is_rebuilding * loss
        return losses

    @property
    def _is_rebuilding(self) -> bool:
        """Whether rebuilding is learnt yet: from the second epoch on."""
        return self.epoch > 0

    def resting_losses(self) -> set[str]:
        if self._is_rebuilding:
            return set()
        return {f"{loss}_{m}" for loss in ("rebuild", "moments") for m in self.weight}

    def _rebuilding_loss(self, m: str, output: Output, batch: Utterances) -> Tensor:
        """How far rebuilt frames are from the complete ones, where frames were dropped."""
        rebuilt, target = output.rebuilt[m].float(), output.target[m].float()
        lost = output.lost[m] * batch.weight[:, None]  # (B, T)
        error = F.smooth_l1_loss(rebuilt, target, reduction="none").sum(2)  # (B, T)
        num_values = batch.loss_denominators[m] * target.shape[2]
        return (error * lost).sum() / (num_values + FEW_VALUES)

    @property
    def has_global_batch_losses(self) -> bool:
        return self.config.cmd > 0

    def global_batch_rows(self, output: Output) -> GlobalBatchRows:
        """For the moment discrepancy: what each sample adds to the moments of the whole batch."""
        if not (self.config.cmd and output.rebuilt):
            return GlobalBatchRows()
        embeddings = {}
        for m in output.rebuilt:
            lost = output.lost[m][..., None]  # (B, T, 1)
            embeddings[f"rebuilt_{m}"] = power_sums(output.rebuilt[m] * lost)
            embeddings[f"target_{m}"] = power_sums(output.target[m] * lost)
            embeddings[f"lost_{m}"] = output.lost[m].sum(1).double()
        return GlobalBatchRows(embeddings, index=output.index)

    def global_batch_losses(
        self, rows: GlobalBatchRows, target: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        """How far the moments of all rebuilt frames are from those of the complete ones, by
        modality.

        Frames that were not dropped count as zeros on both sides, and so does all that is missing
        to the longest sample of the data, as in the released code, whose batches are all as long as
        its file.
        """
        if not rows.embeddings:
            return {}
        real = (weight > 0).double()  # (B,)
        num_samples = sum_over_ranks(real.sum())
        losses = {}
        for m in self.weight:
            summed = {}
            for name in ("rebuilt", "target", "lost"):
                of_samples = rows.embeddings[f"{name}_{m}"]
                summed[name] = sum_over_ranks(torch.einsum("b,b...->...", real, of_samples))
            num_frames = num_samples * self.longest[m]
            discrepancy = discrepancy_of_moments(
                summed["rebuilt"] / num_frames, summed["target"] / num_frames
            )
            num_values = summed["lost"] * summed["target"].shape[1]
            loss = self.config.cmd * discrepancy / (num_values + FEW_VALUES)
            losses[f"moments_{m}"] = self.weight[m] * self._is_rebuilding * loss.float()
        return losses

    def loss_denominators(self, batch: Utterances) -> dict[str, Tensor]:
        lost = self._lost(batch)
        return {m: (lost[m] * batch.weight[:, None]).sum() for m in self.weight}

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """With ``own_rates`` sound and video have groups: their encoders, and what lets the text
        look at them."""
        decay, no_decay = decayed(self.text.trained() if self.text is not None else [])
        named = {"text": decay, "text_no_decay": no_decay}
        if self.config.own_rates:
            for m in self.modalities:
                if m != "text":
                    named[m] = self._parameters_of(m)
        return groups(self, **named)

    def _parameters_of(self, m: str) -> list[nn.Parameter]:
        readers = [self.first[m], self.own[m], self.gate[m]]
        for name, encoder in self.cross.items():
            if name.startswith(m) or name == f"text_{m}":
                readers.append(encoder)
        for modules in (self.rebuild, self.restore):
            if m in modules:
                readers.append(modules[m])
        return [parameter for reader in readers for parameter in reader.parameters()]


def _round_up(length: int, step: int) -> int:
    """The smallest multiple of ``step`` that is no less than ``length``."""
    return -(-length // step) * step


def _is_any(lost: Tensor) -> bool:
    """Whether a frame was lost; yes while compiling, for a graph must not depend on that."""
    return torch.compiler.is_compiling() or bool(lost.any())
