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

    A gate is the sigmoid of two layers on the step and the memory, side by side. The first layer's
    columns are split: only the memory's part is left to the loop over steps, and all else is
    computed for all steps at once. The loop calls no module, for ranks that share parameters gather
    them at each call, and the numbers of their steps differ.

    Args:
        width: of what a step shows to the gates and proposes from.
        proposal_hidden: width of the network that proposes.
    """

    def __init__(
        self, width: int, proposal_hidden: int, proposal_dropout: float, config: MemoryOptions
    ):
        super().__init__()
        size = config.memory
        self.size = size
        self.propose = two_layers(width, proposal_hidden, size, proposal_dropout)
        self.retain_shown = nn.Linear(width, config.retain_hidden)
        self.retain_memory = nn.Parameter(torch.empty(config.retain_hidden, size))
        self.retain_dropout = nn.Dropout(config.retain_dropout)
        self.retain_out = nn.Parameter(torch.empty(size, config.retain_hidden))
        self.retain_bias = nn.Parameter(torch.empty(size))
        self.update_shown = nn.Linear(width, config.update_hidden)
        self.update_memory = nn.Parameter(torch.empty(config.update_hidden, size))
        self.update_dropout = nn.Dropout(config.update_dropout)
        self.update_out = nn.Parameter(torch.empty(size, config.update_hidden))
        self.update_bias = nn.Parameter(torch.empty(size))
        of_one_layer = (*self.retain_shown.parameters(), *self.update_shown.parameters())
        uniform(width + size, *of_one_layer, self.retain_memory, self.update_memory)
        uniform(config.retain_hidden, self.retain_out, self.retain_bias)
        uniform(config.update_hidden, self.update_out, self.update_bias)

    def forward(self, shown: Tensor, clock: Tensor) -> Tensor:
        """
        Args:
            shown: (B, S, width).
            clock: (B, S) bool, True where a sample has a step; the memory holds still elsewhere.
        """
        proposed = torch.tanh(self.propose(shown))  # (B, S, memory)
        retain_shown, update_shown = self.retain_shown(shown), self.update_shown(shown)
        # the factors of dropout, other ones at every step
        retain_kept = self.retain_dropout(torch.ones_like(retain_shown))
        update_kept = self.update_dropout(torch.ones_like(update_shown))
        memory = shown.new_zeros(len(shown), self.size)
        for step in range(shown.shape[1]):
            hidden = torch.relu(retain_shown[:, step] + F.linear(memory, self.retain_memory))
            hidden = hidden * retain_kept[:, step]
            retained = F.linear(hidden, self.retain_out, self.retain_bias).sigmoid()
            hidden = torch.relu(update_shown[:, step] + F.linear(memory, self.update_memory))
            hidden = hidden * update_kept[:, step]
            updated = F.linear(hidden, self.update_out, self.update_bias).sigmoid()
            changed = retained * memory + updated * proposed[:, step]
            memory = torch.where(clock[:, step, None], changed, memory)
        return memory


def uniform(inputs: int, *parameters: nn.Parameter) -> None:
    """Draw parameters of a layer of so many inputs, as torch's own layers do."""
    bound = 1 / math.sqrt(inputs)
    for parameter in parameters:
        nn.init.uniform_(parameter, -bound, bound)


def two_layers(width: int, hidden: int, out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, out)
    )


def step_before(states: Tensor) -> Tensor:
    """(B, S, D) states of the step before each; zero before the first."""
    return F.pad(states, (0, 0, 1, 0))[:, :-1]


def side_by_side(states: Mapping[str, Tensor]) -> Tensor:
    return torch.cat(list(states.values()), dim=-1)
