"""What MFN and Graph-MFN share: modalities on one clock, a gated memory over its steps, the head."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from core.dropout import Probability
from core.encoders.clock import on_one_clock, word_states
from core.encoders.inputs import MODALITIES, InputConfig, Modality, in_order
from core.encoders.text import TextConfig, TextEncoder
from core.model import DataSpec
from core.models.fusion.subnets import longest_frames, padded_mean


@validated_dataclass(frozen=True)
class MemoryOptions:
    """Settings that both models share; each has its own sizes."""

    modalities: tuple[Modality, ...] = MODALITIES
    text_hidden: PositiveInt = 128  # of the modalities' LSTMs
    audio_hidden: PositiveInt = 32
    vision_hidden: PositiveInt = 128
    memory: PositiveInt = 128
    retain_hidden: PositiveInt = 64  # of the gate of what the memory keeps
    retain_dropout: Probability = 0.0
    update_hidden: PositiveInt = 64  # of the gate of what it takes up
    update_dropout: Probability = 0.0
    out_hidden: PositiveInt = 64  # of the head
    out_dropout: Probability = 0.2
    text: TextConfig = TextConfig()
    inputs: InputConfig = InputConfig()

    def hidden(self) -> dict[str, int]:
        """Modality -> width of its LSTM's states."""
        hidden = {
            "text": self.text_hidden,
            "audio": self.audio_hidden,
            "vision": self.vision_hidden,
        }
        return {m: hidden[m] for m in in_order(self.modalities)}


class ClockedFrames(nn.Module):
    """Frames (B, S, D) of every modality on the clock of the words, and the clock's mask (B, S).

    Args:
        mean_frames: sound and video show, at every step, the sum of their frames divided by the
            longest length of the data.
    """

    def __init__(self, config: MemoryOptions, data: DataSpec, mean_frames: bool = False):
        super().__init__()
        self.modalities = in_order(config.modalities)
        self.text = TextEncoder(config.text, data) if "text" in self.modalities else None
        self.width = {m: data.features[m] for m in self.modalities}
        if self.text is not None:
            self.width["text"] = self.text.width
        self.longest: dict[str, int] = {}  # of what shows its mean
        if mean_frames:
            self.longest = longest_frames(self.modalities, data)

    def forward(
        self, frames: Mapping[str, Tensor], mask: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Of what ``Inputs`` gives."""
        frames, mask = dict(frames), dict(mask)
        means = {m: padded_mean(frames[m], mask[m], self.longest[m]) for m in self.longest}
        if self.text is not None:
            frames["text"], mask["text"] = word_states(self.text, frames["text"], mask["text"])
        stepped, clock = on_one_clock({m: frames[m] for m in self.modalities}, mask)
        for m, mean in means.items():
            stepped[m] = mean[:, None] * clock[..., None]
        return stepped, clock

    def pretrained(self) -> list[nn.Parameter]:
        return self.text.trained() if self.text is not None else []


class GatedMemory(nn.Module):
    """A memory over S steps: what it keeps and what it takes up are gated by the step and by
    itself; (B, memory) behind each sample's last step.

    Only the gates see the memory, so all else is computed for all steps at once.

    Args:
        width: of what a step shows to the gates and proposes from.
        proposal_hidden: width of the network that proposes.
    """

    def __init__(
        self, width: int, proposal_hidden: int, proposal_dropout: float, config: MemoryOptions
    ):
        super().__init__()
        self.size = config.memory
        self.propose = two_layers(width, proposal_hidden, config.memory, proposal_dropout)
        self.retain = Gate(width, config.memory, config.retain_hidden, config.retain_dropout)
        self.update = Gate(width, config.memory, config.update_hidden, config.update_dropout)

    def forward(self, shown: Tensor, clock: Tensor) -> Tensor:
        """
        Args:
            shown: (B, S, width).
            clock: (B, S) bool, True where a sample has a step; the memory holds still elsewhere.
        """
        proposed = torch.tanh(self.propose(shown))  # (B, S, memory)
        retain_shown, retain_kept = self.retain.prepare(shown)
        update_shown, update_kept = self.update.prepare(shown)
        memory = shown.new_zeros(len(shown), self.size)
        for step in range(shown.shape[1]):
            retained = self.retain(retain_shown[:, step], memory, retain_kept[:, step])
            updated = self.update(update_shown[:, step], memory, update_kept[:, step])
            changed = retained * memory + updated * proposed[:, step]
            memory = torch.where(clock[:, step, None], changed, memory)
        return memory


class Gate(nn.Module):
    """sigmoid of two layers on a step and the memory, side by side.

    The first layer's columns are split, so that the step's part is computed for all steps at once.
    """

    def __init__(self, width: int, memory: int, hidden: int, dropout: float):
        super().__init__()
        self.shown = nn.Linear(width, hidden)
        self.memory = nn.Linear(memory, hidden, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, memory)
        bound = 1 / math.sqrt(width + memory)  # of one layer on both
        for parameter in (self.shown.weight, self.shown.bias, self.memory.weight):
            nn.init.uniform_(parameter, -bound, bound)

    def prepare(self, shown: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, hidden) each: what the steps give to the first layer, and the dropout's factors,
        other ones at every step."""
        projected = self.shown(shown)
        return projected, self.dropout(torch.ones_like(projected))

    def forward(self, projected: Tensor, memory: Tensor, kept: Tensor) -> Tensor:
        """(B, memory), from one step of what ``prepare`` gave."""
        hidden = torch.relu(projected + self.memory(memory)) * kept
        return self.out(hidden).sigmoid()


def two_layers(width: int, hidden: int, out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, out)
    )


def step_before(states: Tensor) -> Tensor:
    """(B, S, D) states of the step before each; zero before the first."""
    return F.pad(states, (0, 0, 1, 0))[:, :-1]


def side_by_side(states: Mapping[str, Tensor]) -> Tensor:
    return torch.cat(list(states.values()), dim=-1)
