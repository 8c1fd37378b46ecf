"""MFN, the memory fusion network (Zadeh et al., AAAI 2018, arXiv:1802.00927)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from core.batch import Utterances
from core.dropout import Probability
from core.encoders.inputs import Inputs, groups
from core.encoders.sequence import last_frame
from core.model import DataSpec, Model, Sentiment
from core.models.fusion.gated_memory import (
    ClockedFrames,
    GatedMemory,
    MemoryOptions,
    side_by_side,
    step_before,
    two_layers,
    uniform,
)


class SteppedLSTM(nn.Module):
    """A one-directional LSTM that also gives the cells of every step, which torch's does not.

    The loop over steps calls no module, as in ``GatedMemory``.
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.hidden = hidden
        self.input = nn.Linear(width, 4 * hidden)
        self.state_weight = nn.Parameter(torch.empty(4 * hidden, hidden))
        self.state_bias = nn.Parameter(torch.empty(4 * hidden))
        uniform(hidden, *self.parameters())

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """States and cells, (B, S, hidden), of (B, S, D) frames."""
        projected = self.input(frames)  # (B, S, 4 hidden): gates in torch's order i, f, g, o
        state = cell = projected.new_zeros(len(frames), self.hidden)
        states, cells = [], []
        for of_frame in projected.unbind(1):
            of_state = F.linear(state, self.state_weight, self.state_bias)
            let_in, kept, new, out = (of_frame + of_state).chunk(4, dim=1)
            cell = kept.sigmoid() * cell + let_in.sigmoid() * new.tanh()
            state = out.sigmoid() * cell.tanh()
            states.append(state)
            cells.append(cell)
        return torch.stack(states, dim=1), torch.stack(cells, dim=1)


class MemoryFusion(nn.Module):
    """LSTMs side by side; attention on their cells of two steps in turn; a memory of what it sees.

    Args:
        width: modality -> width of its frames.
        hidden: modality -> width of its LSTM's states.
    """

    def __init__(self, width: Mapping[str, int], hidden: Mapping[str, int], config: MFN.Config):
        super().__init__()
        self.lstms = nn.ModuleDict()
        for m in width:
            self.lstms[m] = SteppedLSTM(width[m], hidden[m])
        window = 2 * sum(hidden.values())
        self.attend = two_layers(window, config.attention_hidden, window, config.attention_dropout)
        self.memory = GatedMemory(window, config.proposal_hidden, config.proposal_dropout, config)

    def forward(self, frames: Mapping[str, Tensor], clock: Tensor) -> Tensor:
        """(B, states of all modalities and the memory) behind the last step of (B, S, D) frames."""
        states, cells = {}, {}
        for m, lstm in self.lstms.items():
            states[m], cells[m] = lstm(frames[m])
        now = side_by_side(cells)
        window = torch.cat([step_before(now), now], dim=2)  # (B, S, window)
        attended = self.attend(window).softmax(2) * window
        memory = self.memory(attended, clock)
        return torch.cat([last_frame(side_by_side(states), clock), memory], dim=1)


class MFN(Model[Utterances, Sentiment]):
    """An LSTM per modality, all on the clock of the words; attention finds what changes across
    modalities between two steps, and a gated memory collects it.

    Sound and video should be aligned to the words; where they are not, each word gets the mean of
    its share of the frames, by true lengths. Sizes are those of MMSA's published row on MOSI.
    Differences from MMSA's code: sound and video are read as sequences (parity:
    ``mean_frames=true``: MMSA puts their mean frame, over all padded frames, into every step, and
    its published rows are made so); states and memory hold still behind a sample's last word;
    features are standardised. The attention's window is two steps, as in the released code, which
    takes no other. A modality that a sample lacks feeds zeros; a sample without text goes by the
    steps of its sound, or else of its video.
    """

    task = "sentiment"
    aligned = True

    @validated_dataclass(frozen=True)
    class Config(MemoryOptions):
        memory: PositiveInt = 400
        attention_hidden: PositiveInt = 128
        attention_dropout: Probability = 0.2
        proposal_hidden: PositiveInt = 64  # of the network that proposes to the memory
        proposal_dropout: Probability = 0.7
        retain_hidden: PositiveInt = 64
        retain_dropout: Probability = 0.0
        update_hidden: PositiveInt = 256
        update_dropout: Probability = 0.0
        out_hidden: PositiveInt = 256
        out_dropout: Probability = 0.2
        # parity: True puts the mean of sound and of video, over the longest length of the data,
        # into every step
        mean_frames: bool = False

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        self.inputs = Inputs(data, config.inputs, config.modalities)
        self.clocked = ClockedFrames(config, data, config.mean_frames)
        hidden = config.hidden()
        self.fusion = MemoryFusion(self.clocked.width, hidden, config)
        fused_width = sum(hidden.values()) + config.memory
        self.predict = two_layers(
            fused_width, config.out_hidden, data.num_outputs, config.out_dropout
        )

    def forward(self, batch: Utterances) -> Sentiment:
        frames, clock = self.clocked(*self.inputs(batch))
        score = self.predict(self.fusion(frames, clock)).float()  # (B, outputs)
        return Sentiment(score=score.squeeze(1))

    def losses(self, output: Sentiment, batch: Utterances) -> dict[str, Tensor]:
        return {"task": batch.mean(batch.errors(output.score))}

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        return groups(self, text=self.clocked.pretrained())
