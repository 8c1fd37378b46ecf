"""Modalities on one clock, a step per word: for models that read text, sound and video together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from core.encoders.sequence import lengths
from core.encoders.text import TextEncoder


def word_states(text: TextEncoder, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The text encoder's hidden states of the words alone, (B, T, width), zero where there is no
    word, and ``mask`` (B, T) as it came.

    The summary that the small encoder puts in front of features is no word, so it is left out.
    """
    hidden, hidden_mask = text(frames, mask)
    num_summaries = hidden_mask.shape[1] - mask.shape[1]
    return hidden[:, num_summaries:] * mask[..., None], mask


def on_one_clock(
    frames: Mapping[str, Tensor], mask: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    """Frames (B, S, D) by modality, and the mask (B, S) of the steps, True at the first ones.

    A sample's clock is the first of the modalities, in their order, that it has: with text first, a
    step is a word. Each other modality is averaged over the frames that belong to a step, by its
    true length: aligned data stay as they are. A modality that a sample lacks is zero.

    Args:
        frames: modality -> (B, T, D), each of its own length.
        mask: modality -> (B, T).
    """
    own_length = {m: lengths(mask[m]) for m in frames}
    length = torch.zeros_like(next(iter(own_length.values())))  # (B,)
    for m in frames:
        length = torch.where(length > 0, length, own_length[m])
    num_steps = max(int(length.max()), 1)
    steps = torch.arange(num_steps, device=length.device)
    clock = steps < length[:, None]  # (B, S)
    stepped = {}
    for m, values in frames.items():
        values = values * mask[m][..., None]
        if torch.equal(own_length[m], length):
            missing_steps = num_steps - values.shape[1]
            stepped[m] = F.pad(values, (0, 0, 0, missing_steps))
        else:
            stepped[m] = _mean_by_step(values, mask[m], own_length[m], length, clock)
    return stepped, clock


def _mean_by_step(
    frames: Tensor, mask: Tensor, own_length: Tensor, length: Tensor, clock: Tensor
) -> Tensor:
    """(B, S, D): of L frames and S steps, step j is the mean of the frames from floor(j L / S) up
    to, and without, ceil((j + 1) L / S); at least one, so frames may serve two steps."""
    step = torch.arange(clock.shape[1], device=length.device)
    num_steps = length.clamp(min=1)[:, None]
    first = step * own_length[:, None] // num_steps  # (B, S)
    behind = ((step + 1) * own_length[:, None] + num_steps - 1) // num_steps
    place = torch.arange(frames.shape[1], device=length.device)
    belongs = (place >= first[..., None]) & (place < behind[..., None])  # (B, S, T)
    belongs = belongs & mask[:, None] & clock[..., None]
    share = belongs / belongs.sum(2, keepdim=True).clamp(min=1)
    return torch.bmm(share.to(frames.dtype), frames)
