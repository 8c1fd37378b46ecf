"""What brings the frames of all modalities to one width and one clock, and settings by modality."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.encoders.inputs import MODALITIES
from core.encoders.sequence import lengths
from core.encoders.text import TextEncoder
from core.model import DataSpec

Number = TypeVar("Number", int, float)


def by_modality(values: tuple[Number, Number, Number]) -> dict[str, Number]:
    """A setting's values for text, audio and vision by name."""
    return dict(zip(MODALITIES, values, strict=True))


def longest_sequences(
    model: str, modalities: Iterable[str], data: DataSpec, text: TextEncoder | None
) -> dict[str, int]:
    """Modality -> the greatest number of frames in any split, with the summary in front that text
    features get.

    Raises:
        ValueError: the data do not say how long a modality is.
    """
    unknown = [m for m in modalities if not data.max_length.get(m)]
    if unknown:
        raise ValueError(
            f"{model} needs DataSpec.max_length of {', '.join(unknown)}: parts of it are as long as "
            "that"
        )
    longest = {m: data.max_length[m] for m in modalities}
    if text is not None:
        longest["text"] += text.num_summaries
    return longest


def convolve(conv: nn.Module, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T, width) and its mask, without trace of padding.

    A convolution that pads by half its kernel keeps T. One that does not pad gives the T - kernel
    + 1 places whose whole window lies within, of which those exist whose last frame does.

    Args:
        conv: an ``nn.Conv1d``.
        frames: (B, T, D).
        mask: (B, T), True where a frame exists.
    """
    if not isinstance(conv, nn.Conv1d):
        raise TypeError(f"convolve wants an nn.Conv1d, got {type(conv).__name__}")
    kernel, pads = conv.kernel_size[0], conv.padding[0] != 0
    frames = frames * mask[..., None]
    if not pads:
        short = max(0, kernel - mask.shape[1])
        frames, mask = F.pad(frames, (0, 0, 0, short)), F.pad(mask, (0, short))
        mask = mask[:, kernel - 1 :]
    convolved = conv(frames.transpose(1, 2)).transpose(1, 2)
    return convolved[:, : mask.shape[1]] * mask[..., None], mask


def pooled_to_words(
    frames: Tensor, mask: Tensor, text_mask: Tensor, summary: bool
) -> tuple[Tensor, Tensor]:
    """The frames of sound or video at the places of the text: (B, S, D), and (B, S) where any are.

    Word j of L is given the mean of frames floor(j n / L) to ceil((j + 1) n / L) - 1 of a sample's
    n, at least one. So frames that are aligned with the text already stay as they are. A sample
    with two frames fewer than tokens has none at the first and the last, [CLS] and [SEP]. A sample
    without text has the mean of all its frames at the first place.

    Args:
        frames: (B, T, D), with ``mask`` (B, T).
        text_mask: (B, S), with the summary where there is one.
        summary: whether the text's first place is a summary, to which no frame belongs.
    """
    frame_count, word_count = lengths(mask), lengths(text_mask)
    has_text = word_count > 0
    only_words = has_text & (frame_count > 0) & (frame_count + 2 == word_count)
    if summary:
        first, bins = has_text.long(), word_count - 1
    else:
        first, bins = only_words.long(), word_count - 2 * only_words
    first, bins = first[:, None], bins.clamp(min=1)[:, None]  # (B, 1)
    word = torch.arange(text_mask.shape[1], device=mask.device) - first  # (B, S)
    is_word = (word >= 0) & (word < bins)
    start = word * frame_count[:, None] // bins
    end = -(-(word + 1) * frame_count[:, None] // bins)
    frame = torch.arange(mask.shape[1], device=mask.device)
    within = (frame >= start[..., None]) & (frame < end[..., None])  # (B, S, T)
    within = within & is_word[..., None] & mask[:, None]
    share = within / within.sum(2, keepdim=True).clamp(min=1)
    return share.to(frames.dtype) @ frames, within.any(2)
