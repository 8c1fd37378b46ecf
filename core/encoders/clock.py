"""Modalities on one clock, a step per word: for models that read text, sound and video together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from core.encoders.frame_layers import pooled_to_words
from core.encoders.sequence import lengths
from core.encoders.text import TextEncoder
from core.kernels.recurrence import becomes_compiled


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
    true length, as ``pooled_to_words`` has it: aligned data stay as they are. A modality that a
    sample lacks is zero.

    Args:
        frames: modality -> (B, T, D), each of its own length.
        mask: modality -> (B, T).
    """
    own_length = {m: lengths(mask[m]) for m in frames}
    length = torch.zeros_like(next(iter(own_length.values())))  # (B,)
    for m in frames:
        length = torch.where(length > 0, length, own_length[m])
    is_compiled = becomes_compiled()
    if is_compiled:  # a graph must not depend on the samples' own lengths
        num_steps = max(values.shape[1] for values in frames.values())
    else:
        num_steps = max(int(length.max()), 1)
    steps = torch.arange(num_steps, device=length.device)
    clock = steps < length[:, None]  # (B, S)
    stepped = {}
    for m, values in frames.items():
        values = values * mask[m][..., None]
        if not is_compiled and torch.equal(own_length[m], length):
            missing_steps = num_steps - values.shape[1]
            stepped[m] = F.pad(values, (0, 0, 0, missing_steps))
        else:
            stepped[m], _ = pooled_to_words(values, mask[m], clock, summary=False)
    return stepped, clock
