"""What CENet is built of: its external memory, the fronts that frames go through, and what the text
finds in them.

Nothing here does for every frame what can be done once a batch. With codes all frames of a modality
are one of K words: the memory is read, and keys and values are made, for K rows, and a softmax over
frames is one over words to whose scores the logarithm of their number is added. With the
perceptron, its second layer is multiplied with the projections of keys and values behind it. Equal
to the plain form but for rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.encoders.affine import (
    Affine,
    affine,
    readers_of_frames,
    readers_of_words,
    shares_of_frames,
    shares_of_words,
)
from core.encoders.attention import Attention


@dataclass(frozen=True)
class Look:
    """What the text finds in a modality, as ``read @ values``."""

    read: Tensor  # (B, T, n)
    values: Tensor  # (n, width)
    # (2,), the summed entropy of what existing frames read from their memory, and their number;
    # None without a memory
    entropy: Tensor | None


class ExternalMemory(nn.Module):
    """Attention over S learnt slots: softmax((xW_q)(MW_k)^T / sqrt(d)) MW_v.

    Args:
        gate: at the start, of what is read from the normalised input and added to it; None replaces
            the input.
    """

    def __init__(self, width: int, slots: int, gate: float | None):
        super().__init__()
        self.slots = nn.Parameter(torch.randn(slots, width))
        self.query = Affine(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width) if gate is not None else None
        self.gate = nn.Parameter(torch.tensor([gate])) if gate is not None else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of (..., width): what is read, (..., width), and the shares of the slots, (..., S)."""
        readers = self.query(self.key(self.slots), "readers") * self.slots.shape[1] ** -0.5
        score = affine(x if self.norm is None else self.norm(x), readers.T)
        share = score.softmax(-1)
        read = share @ self.value(self.slots)
        if self.gate is not None:
            read = x + self.gate * read
        return read, share


class Codes(nn.Module):
    """Frames to the words of their nearest centres; padding is the last word, zero unless it takes
    part."""

    centres: Tensor

    def __init__(self, centres: Tensor, width: int, frame_mask: bool):
        super().__init__()
        self.register_buffer("centres", centres)
        self.words = nn.Embedding(len(centres) + 1, width, padding_idx=len(centres))
        nn.init.normal_(self.words.weight, std=0.02)
        if frame_mask:
            nn.init.zeros_(self.words.weight[-1])

    def forward(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The words (K + 1, width) of centres and of padding, and how many frames of each sample
        are which, (B, K + 1)."""
        code = self.nearest(frames).masked_fill(~mask, len(self.centres))
        counts = torch.zeros(len(code), len(self.centres) + 1, device=code.device)
        counts.scatter_add_(1, code, torch.ones_like(code, dtype=counts.dtype))
        return self.words(torch.arange(counts.shape[1], device=code.device)), counts

    @torch.no_grad()
    def nearest(self, frames: Tensor) -> Tensor:
        """(B, T) int64, the number of the centre that each frame is nearest to."""
        with torch.autocast(frames.device.type, enabled=False):
            # the squared distance but for a term that all centres share
            distance = (
                self.centres.square().sum(1) - 2 * frames.to(self.centres.dtype) @ self.centres.T
            )
            return distance.argmin(-1)


class Perceptron(nn.Module):
    """Frames through two layers."""

    def __init__(self, input_width: int, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(input_width, width),
            nn.ReLU(),
            Affine(width, width),
        )

    def forward(self, frames: Tensor) -> Tensor:
        return self.layers(frames)

    def halfway(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, width) behind the first layer, and the second one as a map."""
        first, _, second = self.layers
        # in place: nothing asks for what was there, and these are the largest tensors
        return first(frames).relu_(), second(None, "map")


def look_at_codes(
    front: Codes,
    attend: Attention,
    memory: nn.Module | None,
    hidden: Tensor,
    frames: Tensor,
    mask: Tensor,
    places: int,
) -> Look:
    """
    Args:
        hidden: (B, T, width), the text.
        frames: (B, S, D), with their ``mask`` (B, S).
        places: up to where padding takes part; 0: it does not.
    """
    words, counts = front(frames, mask)
    existing = counts[:, :-1].sum(0)  # (K,)
    if places:
        counts[:, -1] += max(0, places - mask.shape[1])
    else:
        words, counts = words[:-1], counts[:, :-1]
    entropy = None
    if memory is not None:
        words, share = memory(words)
        spread = entropy_of(share)[: len(existing)]
        entropy = torch.stack([spread @ existing, existing.sum()])
    score = affine(hidden, readers_of_words(attend, words))
    return Look(shares_of_words(score, counts), attend.value(words), entropy)


def look_at_frames(
    front: Perceptron,
    attend: Attention,
    memory: nn.Module | None,
    hidden: Tensor,
    frames: Tensor,
    mask: Tensor,
    places: int,
) -> Look:
    """As ``look_at_codes``, at frames that are all different."""
    log_counts = None
    missing = max(0, places - mask.shape[1])
    if missing:  # one frame of zeros stands for them all
        frames, mask = F.pad(frames, (0, 0, 0, 1)), F.pad(mask, (0, 1))
        log_counts = torch.ones(mask.shape[1], dtype=frames.dtype, device=frames.device)
        log_counts[-1] = missing
        log_counts = log_counts.log()
    to_keys, entropy = None, None
    if memory is None:
        seen, to_keys = front.halfway(frames)
    else:
        seen, share = memory(front(frames))
        entropy = torch.stack([(entropy_of(share) * mask).sum(), mask.sum()])
    query = affine(hidden, readers_of_frames(attend, to_keys))
    share = shares_of_frames(query, seen, None if places else mask, log_counts)
    read = torch.cat([share @ seen, share.sum(2, keepdim=True)], dim=2)
    return Look(read, attend.value(to_keys, "map"), entropy)


def entropy_of(share: Tensor) -> Tensor:
    """(...), in nats, of shares (..., S)."""
    return torch.special.entr(share.detach().float()).sum(-1)
