"""What MISA is built of: an encoder of sequences, the subspaces, and their fusion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from core.dropout import Probability
from core.encoders.attention import TransformerLayer
from core.encoders.inputs import has_frames
from core.encoders.sequence import BiLSTM, lengths


@dataclass(frozen=True)
class Parts:
    """What MISA makes of an utterance's modalities; modality -> (B, width) each."""

    projected: dict[str, Tensor]  # all modalities at one width
    private: dict[str, Tensor]
    shared: dict[str, Tensor]
    rebuilt: dict[str, Tensor]  # of private and shared, should be what was projected


@validated_dataclass(frozen=True)
class FusionOptions:
    """Settings of the parts and of what fuses them."""

    width: PositiveInt = 128  # of every part
    heads: PositiveInt = 2  # of the fusion
    feed: PositiveInt = 2048  # hidden width of its layer
    layer_dropout: Probability = 0.1  # in that layer
    dropout: Probability = 0.2  # of the head, and of the discriminator


class UtteranceEncoder(nn.Module):
    """Two BiLSTMs at the frames' own width, D: what both directions of both end with, (B, 4 D)."""

    def __init__(self, width: int):
        super().__init__()
        self.first = BiLSTM(width, width)
        self.norm = nn.LayerNorm(2 * width)
        self.second = BiLSTM(2 * width, width)

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        states, first_ends = self.first(frames, mask)
        _, second_ends = self.second(self.norm(states), mask)
        # forwards of both, then backwards of both
        return torch.cat([first_ends, second_ends], dim=2).flatten(1)


class Subspaces(nn.Module):
    """Utterance vectors to private and shared parts, and back.

    Args:
        widths: modality -> width of its vector.
        rebuilds: whether parts are put together again.
    """

    def __init__(self, widths: Mapping[str, int], width: int, rebuilds: bool):
        super().__init__()
        self.project = nn.ModuleDict()
        self.private = nn.ModuleDict()
        self.rebuild = nn.ModuleDict()
        self.shared = nn.Linear(width, width)
        for m, vector_width in widths.items():
            self.project[m] = nn.Sequential(
                nn.Linear(vector_width, width), nn.ReLU(), nn.LayerNorm(width)
            )
            self.private[m] = nn.Linear(width, width)
            if rebuilds:
                self.rebuild[m] = nn.Linear(width, width)

    def forward(self, vectors: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Parts:
        """Of (B, width) vectors, and (B,) bools of who has a modality."""
        projected = {m: layer(vectors[m]) * given[m][:, None] for m, layer in self.project.items()}
        private = {m: layer(projected[m]).sigmoid() for m, layer in self.private.items()}
        shared = {m: self.shared(projected[m]).sigmoid() for m in projected}
        rebuilt = {m: layer(private[m] + shared[m]) for m, layer in self.rebuild.items()}
        return Parts(projected, private, shared, rebuilt)


class Fusion(nn.Module):
    """A Transformer layer over all private and then all shared parts, and a head: (B, outputs)."""

    def __init__(self, num_modalities: int, options: FusionOptions, num_outputs: int):
        super().__init__()
        width = options.width
        self.layer = TransformerLayer(width, options.heads, options.feed, options.layer_dropout)
        self.head = nn.Sequential(
            nn.Linear(2 * num_modalities * width, num_modalities * width),
            nn.Dropout(options.dropout),
            nn.ReLU(),
            nn.Linear(num_modalities * width, num_outputs),
        )

    def forward(self, parts: Parts, given: Mapping[str, Tensor]) -> Tensor:
        sequence = torch.stack([*parts.private.values(), *parts.shared.values()], dim=1)
        has = torch.stack([given[m] for m in parts.private], dim=1)  # (B, modalities)
        fused = self.layer(sequence, torch.cat([has, has], dim=1))
        return self.head(fused.flatten(1))


def on_text_clock(frames: Tensor, mask: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Frames (B, T, D) and their mask as MMSA packs them: as many frames as the text has tokens,
    zeros of padding among them. A sample without text keeps its own length."""
    longer = max(0, text_mask.shape[1] - frames.shape[1])
    frames, mask = F.pad(frames, (0, 0, 0, longer)), F.pad(mask, (0, longer))
    tokens = lengths(text_mask)[:, None]  # (B, 1)
    place = torch.arange(mask.shape[1], device=mask.device)
    follows = (tokens > 0) & has_frames(mask)[:, None]
    return frames, torch.where(follows, place < tokens, mask)
