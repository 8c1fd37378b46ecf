"""TFR-Net (Yuan et al., ACM MM 2021): rebuild dropped features, and fuse with gated recurrent encoders; and its SimAM
variant."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.batch import Utterances
from core.encoders.attention import Attention
from core.encoders.inputs import MODALITIES, InputConfig, Inputs, groups, one_frame, refuse_classes
from core.encoders.sequence import BiGRU, masked_max
from core.encoders.text import TextConfig, TextEncoder, decayed
from core.losses.labels import task_loss
from core.model import DataSpec, Model, Sentiment
from core.models.central_moments import central_moment_discrepancy
from core.models.simam import simam

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Output(Sentiment):
    rebuilt: dict[str, Tensor]  # modality -> (B, T, D), in training only
    target: dict[str, Tensor]  # modality -> (B, T, D), the complete features
    lost: dict[str, Tensor]  # modality -> (B, T) bool, True where a frame exists but was dropped


class TFRNet(Model[Utterances, Output]):
    """Each modality attends to itself and the others; from that it rebuilds its dropped frames and is fused.

    Differences from the released code: rebuilding attends over the feature axis, not over the batch; padding takes no
    part in attention and pooling; the target is detached; a layer norm stands before the classifier instead of a
    batch norm, whose statistics would depend on how a batch is split; text is encoded a second time only where some of
    it was dropped, and without gradient.
    """

    task = "sentiment"

    @dataclass(frozen=True)
    class Config:
        modalities: tuple[str, ...] = MODALITIES
        width: int = 30
        heads: int = 6
        layers: int = 3  # of the self-attention and of the rebuilding encoders
        cross_layers: int = 3
        rebuild_heads: int = 1  # must divide every modality's greatest length
        kernels: tuple[int, int, int] = (1, 5, 3)  # text, audio, vision
        fusion_hidden: tuple[int, int, int] = (36, 20, 48)
        gru_layers: int = 3
        hidden: int = 128  # of the classifier
        lambdas: tuple[float, float, float] = (
            5.0,
            2.0,
            20.0,
        )  # of the rebuilding; 0: that modality is not rebuilt
        text_dropout: float = 0.2
        attention_dropout: tuple[float, float, float] = (
            0.2,
            0.1,
            0.0,
        )  # of a cross encoder, by its source
        self_dropout: float = 0.2  # of attention in the other encoders
        embed_dropout: float = 0.2
        relu_dropout: float = 0.2
        residual_dropout: float = 0.2
        fusion_dropout: float = 0.2
        class_dropout: float = 0.0
        causal: bool = True  # a query sees keys up to its own place, plus the difference of the greatest lengths
        simam: str = (
            "none"  # "conv": on the first convolutions' outputs; "enhanced": on what is fused
        )
        norm: str = "layer"  # parity: "batch"
        detach: bool = True  # parity: False lets the text encoder move its own target
        cmd: float = 0.0  # MMSA: 5, weight of a moment discrepancy in the rebuilding
        own_rates: bool = False  # what reads sound or video learns in optimiser groups of its own
        text: TextConfig = TextConfig()
        inputs: InputConfig = InputConfig()

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        refuse_classes(data, "tfr_net")
        for name, allowed in (
            ("simam", ("none", "conv", "enhanced")),
            ("norm", ("layer", "batch")),
        ):
            if getattr(config, name) not in allowed:
                raise ValueError(
                    f"tfr_net has no {name}={getattr(config, name)!r}; choose from: {', '.join(allowed)}"
                )
        self.config = config
        self.inputs = Inputs(data, config.inputs, config.modalities)
        self.modalities = mods = [m for m in MODALITIES if m in config.modalities]
        self.text = TextEncoder(config.text, data) if "text" in mods else None
        source = {m: data.features[m] for m in mods}
        self.longest = _longest(mods, data)
        if self.text is not None:
            source["text"] = self.text.width
            self.longest["text"] += self.text.project is not None  # the summary place
        kernel, fused = by_modality(config.kernels), by_modality(config.fusion_hidden)
        dropout, weight = by_modality(config.attention_dropout), by_modality(config.lambdas)
        d, wide = config.width, config.width * len(mods)
        self.drop_text = nn.Dropout(config.text_dropout)
        self.first = nn.ModuleDict(
            {
                m: nn.Conv1d(source[m], d, kernel[m], padding=kernel[m] // 2, bias=False)
                for m in mods
            }
        )
        self.own = nn.ModuleDict(
            {m: Encoder(d, config.heads, config.layers, config.self_dropout, config) for m in mods}
        )
        self.cross = nn.ModuleDict(
            {
                f"{m}_{n}": Encoder(d, config.heads, config.cross_layers, dropout[n], config)
                for m in mods
                for n in mods
                if n != m
            }
        )
        self.weight = {m: weight[m] for m in mods if weight[m]}
        for m in self.weight:
            if self.longest[m] % config.rebuild_heads:
                raise ValueError(
                    f"rebuild_heads={config.rebuild_heads} does not divide {m}'s length {self.longest[m]}"
                )
        self.rebuild = nn.ModuleDict(
            {
                m: Encoder(
                    self.longest[m],
                    config.rebuild_heads,
                    config.layers,
                    config.self_dropout,
                    config,
                )
                for m in self.weight
            }
        )
        self.restore = nn.ModuleDict({m: nn.Linear(wide, source[m]) for m in self.weight})
        self.gate = nn.ModuleDict({m: Gate(wide, fused[m], config) for m in mods})
        summary = sum(fused[m] for m in mods)
        self.classify = nn.Sequential(
            nn.BatchNorm1d(summary) if config.norm == "batch" else nn.LayerNorm(summary),
            nn.Linear(summary, config.hidden),
            nn.LeakyReLU(),
            nn.Dropout(config.class_dropout),
            nn.Linear(config.hidden, 1),
        )

    def forward(self, batch: Utterances) -> Output:
        frames, _ = self.inputs(batch)
        # what exists counts as there, dropped or not: nothing tells the network which frames it has lost
        mask = {m: one_frame(batch.mask[m]) for m in self.modalities}
        lost = self._lost(batch)
        target = self._targets(batch, lost) if self.training else {}
        if self.text is not None:
            hidden, mask["text"] = self.text(frames["text"], mask["text"])
            frames["text"] = self.drop_text(hidden)
        aligned = {m: self._align(m, frames[m], mask[m]) for m in self.modalities}
        enhanced, summary = {}, []
        for m in self.modalities:
            views = [self.own[m](aligned[m], mask[m], self._pairs(m, m, mask))]
            for n in self.modalities:
                if n != m:
                    pairs = self._pairs(m, n, mask)
                    views.append(
                        self.cross[f"{m}_{n}"](aligned[m], mask[m], pairs, aligned[n], mask[n])
                    )
            enhanced[m] = torch.cat(views, dim=2) * mask[m][..., None]  # (B, T, wide)
            fused = simam(enhanced[m], mask[m]) if self.config.simam == "enhanced" else enhanced[m]
            summary.append(self.gate[m](fused, mask[m]))
        rebuilt = {m: self._rebuild(m, enhanced[m]) for m in self.weight} if self.training else {}
        score = self.classify(torch.cat(summary, dim=1)).squeeze(-1).float()
        return Output(score=score, rebuilt=rebuilt, target=target, lost=lost)

    def _lost(self, batch: Utterances) -> dict[str, Tensor]:
        lost = {m: one_frame(batch.mask[m] & ~batch.present[m]) for m in self.modalities}
        if self.text is not None and self.text.project is not None:
            lost["text"] = F.pad(lost["text"], (1, 0))
        return lost

    def _targets(self, batch: Utterances, lost: dict[str, Tensor]) -> dict[str, Tensor]:
        frames = self.inputs.complete(batch)
        if self.text is not None and "text" in self.weight and bool(lost["text"].any()):
            with torch.set_grad_enabled(not self.config.detach):
                frames["text"], _ = self.text(frames["text"], one_frame(batch.mask["text"]))
        elif self.text is not None:
            frames["text"] = torch.zeros(
                *lost["text"].shape, self.text.width, device=batch.index.device
            )
        return {m: frames[m] for m in self.weight}

    def _align(self, m: str, frames: Tensor, mask: Tensor) -> Tensor:
        """(B, T, width) without trace of padding."""
        frames = frames * mask[..., None]
        x = self.first[m](frames.transpose(1, 2)).transpose(1, 2) * mask[..., None]
        return simam(x, mask) if self.config.simam == "conv" else x

    def _pairs(self, m: str, n: str, mask: dict[str, Tensor]) -> Tensor | None:
        """(T_m, T_n) bool: which keys of n a query of m may see; the same however far a batch is padded."""
        if not self.config.causal:
            return None
        query, key = (torch.arange(mask[one].shape[1], device=mask[one].device) for one in (m, n))
        return key[None] <= query[:, None] + abs(self.longest[n] - self.longest[m])

    def _rebuild(self, m: str, enhanced: Tensor) -> Tensor:
        """(B, T, D): the channels attend to each other, each described by its course over time."""
        length, longest = enhanced.shape[1], self.longest[m]
        courses = F.pad(enhanced, (0, 0, 0, longest - length)).transpose(1, 2)  # (B, wide, longest)
        mixed = self.rebuild[m](courses).transpose(1, 2)  # (B, longest, wide)
        return self.restore[m](F.pad(mixed, (0, 0, 0, length - longest)))

    def losses(self, output: Output, batch: Utterances) -> dict[str, Tensor]:
        losses = {"task": batch.mean(task_loss(output.score, batch.label))}
        for m, rebuilt in output.rebuilt.items():
            target, lost = (
                output.target[m].float(),
                output.lost[m] * batch.weight[:, None],
            )  # (B, T)
            apart = F.smooth_l1_loss(rebuilt.float(), target, reduction="none").sum(2)  # (B, T)
            value = (apart * lost).sum() / (batch.loss_denominators[m] * target.shape[2] + 1e-4)
            if self.config.cmd:
                rows = [(x.float() * lost[..., None]).flatten(0, 1) for x in (rebuilt, target)]
                value = value + self.config.cmd * central_moment_discrepancy(rows[0], rows[1]) / (
                    lost.sum() + 1e-4
                )
            losses[f"rebuild_{m}"] = (
                self.weight[m] * (self.epoch > 0) * value
            )  # from the second epoch on
        return losses

    def loss_denominators(self, batch: Utterances) -> dict[str, Tensor]:
        lost = self._lost(batch)
        return {m: (lost[m] * batch.weight[:, None]).sum() for m in self.weight}

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """With ``own_rates`` sound and video have groups: their encoders, and what lets the text look at them."""
        decay, plain = decayed(self.text.trained() if self.text is not None else [])
        own = {}
        for m in self.modalities if self.config.own_rates else []:
            if m != "text":
                crossed = [
                    net
                    for name, net in self.cross.items()
                    if name.startswith(m) or name == f"text_{m}"
                ]
                readers = [self.first[m], self.own[m], self.gate[m], *crossed]
                readers += [part[m] for part in (self.rebuild, self.restore) if m in part]
                own[m] = [parameter for reader in readers for parameter in reader.parameters()]
        return groups(self, text=decay, text_no_decay=plain, **own)


class Encoder(nn.Module):
    """Pre-norm Transformer encoder on itself or on a source (MulT, Tsai et al., ACL 2019, arXiv:1906.00295).

    Queries and keys pass the same norm, and every layer looks at the source as it came in.
    """

    def __init__(
        self, width: int, heads: int, layers: int, attention_dropout: float, config: TFRNet.Config
    ):
        super().__init__()
        self.width = width
        self.attention = nn.ModuleList(
            Attention(width, heads, dropout=attention_dropout) for _ in range(layers)
        )
        self.feed = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, 4 * width),
                nn.ReLU(),
                nn.Dropout(config.relu_dropout),
                nn.Linear(4 * width, width),
            )
            for _ in range(layers)
        )
        self.before = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.between = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.last = nn.LayerNorm(width)
        self.embed, self.residual = (
            nn.Dropout(config.embed_dropout),
            nn.Dropout(config.residual_dropout),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        pairs: Tensor | None = None,
        source: Tensor | None = None,
        source_mask: Tensor | None = None,
    ) -> Tensor:
        """(B, T, width); ``mask`` None means that places have no order and all exist (the feature axis)."""
        key = None if source is None else self._embed(source, source_mask)
        x = self._embed(x, mask)
        key_mask = mask if source is None else source_mask
        layers = zip(self.attention, self.feed, self.before, self.between, strict=True)
        for attention, feed, before, between in layers:
            asked = before(x)
            x = x + self.residual(
                attention(asked, asked if key is None else before(key), key_mask, pairs)
            )
            x = x + self.residual(feed(between(x)))
        return self.last(x)

    def _embed(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = math.sqrt(self.width) * x
        if mask is not None:
            x = x + places(x.shape[1], self.width, x.device) * mask[..., None]
        return self.embed(x)


class Gate(nn.Module):
    """C-GATE: a recurrent encoder whose states a convolution opens and closes, pooled by maximum to (B, hidden)."""

    def __init__(self, source: int, hidden: int, config: TFRNet.Config):
        super().__init__()
        self.states = BiGRU(source, hidden, config.gru_layers)
        self.gate = nn.Conv1d(2 * hidden, 1, 3, padding=1)
        self.out = nn.Linear(source + 2 * hidden, hidden)
        self.dropout = nn.Dropout(config.fusion_dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        states = self.states(x, mask)  # (B, T, 2 hidden)
        gate = self.gate(states.transpose(1, 2)).transpose(1, 2).sigmoid()  # (B, T, 1)
        joined = torch.tanh(self.out(torch.cat([x, states.tanh() * gate], dim=2)))
        return self.dropout(masked_max(joined, mask))


def places(length: int, width: int, device: torch.device) -> Tensor:
    """(length, width) positions counted from 1: a half of sines, a half of cosines (fairseq's and MulT's way)."""
    half = width // 2
    rate = torch.exp(torch.arange(half, device=device) * -(math.log(10000.0) / max(half - 1, 1)))
    angle = torch.arange(1, length + 1, device=device)[:, None] * rate
    return F.pad(torch.cat([angle.sin(), angle.cos()], dim=1), (0, width % 2))


def by_modality(values: tuple[N, N, N]) -> dict[str, N]:
    """A setting's values for text, audio and vision by name."""
    return dict(zip(MODALITIES, values, strict=True))


def _longest(modalities: list[str], data: DataSpec) -> dict[str, int]:
    unknown = [m for m in modalities if not data.max_length.get(m)]
    if unknown:
        raise ValueError(
            f"tfr_net needs DataSpec.max_length of {', '.join(unknown)}: rebuilding is as wide as that"
        )
    return {m: data.max_length[m] for m in modalities}
