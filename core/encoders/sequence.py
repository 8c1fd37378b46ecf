"""Encoders of frame sequences. None depends on how far a batch happens to be padded, none loops
over time."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.encoders.attention import TransformerLayer
from core.kernels.recurrence import recur
from core.kernels.recurrent import layers_in_loops


def lengths(mask: Tensor) -> Tensor:
    """(B,) int64, number of the last existing frame, counted from 1; 0 where a sample has none."""
    numbers = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (numbers * mask).amax(1)


def masked_mean(frames: Tensor, mask: Tensor) -> Tensor:
    """(B, D) mean over existing frames; zero where there are none."""
    kept = mask[..., None].to(frames.dtype)
    return (frames * kept).sum(1) / kept.sum(1).clamp(min=1)


def masked_max(frames: Tensor, mask: Tensor) -> Tensor:
    """(B, D) maximum over existing frames; zero where there are none."""
    highest = frames.masked_fill(~mask[..., None], -math.inf).amax(1)
    return torch.where(mask.any(1, keepdim=True), highest, 0)


def last_frame(states: Tensor, mask: Tensor) -> Tensor:
    """(B, D) states of (B, T, D) at the last existing frame; zero where there is none."""
    length = lengths(mask)
    place = (length - 1).clamp(min=0)[:, None, None].expand(-1, 1, states.shape[2])
    return states.gather(1, place).squeeze(1) * (length > 0)[:, None]


def sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """(length, width) positions: sine at even, cosine at odd columns (Vaswani et al., 2017, section
    3.5)."""
    half = torch.arange((width + 1) // 2, device=device)
    angle = torch.arange(length, device=device)[:, None] * 10000.0 ** (-2 * half / width)
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[:, :width]


class SummaryTransformer(nn.Module):
    """Transformer at the frames' own width with a vector in front, whose output sums the sequence
    up.

    Args:
        scale: standard deviation of the vector at the start.
        learnt: False draws the vector anew in every forward, in evaluation too (HSCL's released
            code).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        layers: int,
        dropout: float,
        scale: float = 1.0,
        learnt: bool = True,
    ):
        super().__init__()
        self.width, self.scale = width, scale
        self.summary = nn.Parameter(torch.randn(width) * scale) if learnt else None
        self.layers = nn.ModuleList(
            TransformerLayer(width, heads, hidden, dropout) for _ in range(layers)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1 + T, D) and its mask; the first one is the summary and exists for every sample."""
        summary: Tensor | None = self.summary
        if summary is None:
            summary = torch.randn(self.width, device=frames.device) * self.scale
        x = torch.cat([summary.expand(frames.shape[0], 1, -1), frames], dim=1)
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
        positions = sinusoids(x.shape[1], self.width, x.device)
        x = self.dropout(math.sqrt(self.width) * x + positions)
        for layer in self.layers:
            x = layer(x, mask)
        return x, mask


class LSTMEncoder(nn.Module):
    """The last hidden state of a one-directional LSTM, (B, hidden); zero for a sample without
    frames.

    Padding lies behind the last frame, where one direction cannot see it, so nothing needs packing.
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.lstm = LSTM(width, hidden, batch_first=True)

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        if layers_in_loops.serves(frames):
            states = self.lstm(frames, mask)  # (B, T, hidden)
        else:
            states, _ = recur(self.lstm, frames)
        return last_frame(states, mask)


class BiGRU(nn.Module):
    """States of a bidirectional GRU, (B, T, 2 hidden); zero at padding."""

    def __init__(self, width: int, hidden: int, layers: int):
        super().__init__()
        self.gru = GRU(width, hidden, layers, batch_first=True, bidirectional=True)

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        if layers_in_loops.serves(frames):
            return self.gru(frames, mask) * mask[..., None]
        states, _ = recur(self.gru, frames, lengths(mask).clamp(min=1))
        return states * mask[..., None]


class GRU(nn.GRU):
    """A bidirectional GRU that may be given padded sequences with their mask, on a CPU."""

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Any:  # type: ignore[override]
        """(B, T, 2 hidden) of (B, T, width) and the mask (B, T); without a mask as torch's."""
        return super().forward(frames) if mask is None else _in_loops(self, frames, mask)


class LSTM(nn.LSTM):
    """An LSTM that may be given padded sequences with their mask, on a CPU."""

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Any:  # type: ignore[override]
        """(B, T, hidden) of (B, T, width) and the mask (B, T); without a mask as torch's."""
        return super().forward(frames) if mask is None else _in_loops(self, frames, mask)


def _in_loops(network: nn.RNNBase, frames: Tensor, mask: Tensor) -> Tensor:
    """States (B, T, directions * hidden) of a GRU or an LSTM, zero behind the last frame. Each
    layer is one compiled loop over the frames before; torch goes from frame to frame there, with a
    dozen operators at each."""
    length = lengths(mask)
    starts = F.pad(length.cumsum(0), (1, 0))
    within = torch.arange(frames.shape[1]) < length[:, None]
    rows = frames[within]  # (N, width)
    if rows.dtype in (torch.float16, torch.bfloat16):
        rows = rows.float()
    run = layers_in_loops.run_gru if network.mode == "GRU" else layers_in_loops.run_lstm
    with torch.autocast("cpu", enabled=False):
        for number in range(network.num_layers):
            input_weight, input_bias = _of_directions(network, "ih", number)
            weight, bias = _of_directions(network, "hh", number)
            inputs = F.linear(rows, input_weight.flatten(0, 1), input_bias.flatten())
            rows = run(inputs.unflatten(1, weight.shape[:2]), weight, bias, starts).flatten(1)
    states = rows.new_zeros(*mask.shape, rows.shape[1])
    return states.masked_scatter(within[..., None], rows)


def _of_directions(network: nn.RNNBase, part: str, layer: int) -> tuple[Tensor, Tensor]:
    """(directions, gates * hidden, ...) weight and (directions, gates * hidden) bias."""
    ways = ("", "_reverse") if network.bidirectional else ("",)
    weights = [getattr(network, f"weight_{part}_l{layer}{way}") for way in ways]
    biases = [getattr(network, f"bias_{part}_l{layer}{way}") for way in ways]
    return torch.stack(weights), torch.stack(biases)


class BiLSTM(nn.Module):
    """A bidirectional LSTM: its states, zero at padding, and what each direction ends with."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, batch_first=True, bidirectional=True)

    def forward(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """States (B, T, 2 hidden), and the last state forwards and the first one backwards, (B, 2,
        hidden), zero for a sample without frames."""
        length = lengths(mask)
        states, ends = recur(self.lstm, frames, length.clamp(min=1))
        ends = ends.transpose(0, 1) * (length > 0)[:, None, None]
        return states * mask[..., None], ends
