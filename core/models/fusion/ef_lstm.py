"""EF-LSTM: early fusion (Williams et al., Challenge-HML at ACL 2018; the class of that name in
THUIAR's MMSA)."""

from __future__ import annotations

import torch
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from core.batch import Utterances
from core.dropout import Probability
from core.encoders.clock import on_one_clock, word_states
from core.encoders.inputs import MODALITIES, InputConfig, Inputs, Modality, groups, in_order
from core.encoders.sequence import last_frame
from core.encoders.text import TextConfig, TextEncoder
from core.kernels.recurrence import recur
from core.model import DataSpec, Model, Sentiment


class EFLSTM(Model[Utterances, Sentiment]):
    """Text, sound and video side by side at every word, one LSTM over all of it, and a head on its
    last state.

    Sound and video should be aligned to the words; where they are not, each word gets the mean of
    its share of the frames, by true lengths. Sizes are those of MMSA's published row on MOSI.
    Differences from MMSA's code: features are standardised, and no batch norm stands before the
    LSTM (parity: ``batch_norm=true``, whose channels are the time steps: it mixes hundreds of text
    features with a few of sound, and its statistics depend on the padding and on how a batch is
    split); the state is that of the last word, not that behind the padding. What a sample lacks is
    zero; a sample without text goes by the steps of its sound, or else of its video.
    """

    task = "sentiment"
    aligned = True

    @validated_dataclass(frozen=True)
    class Config:
        modalities: tuple[Modality, ...] = MODALITIES
        hidden: PositiveInt = 256
        layers: PositiveInt = 2
        dropout: Probability = 0.3  # between the layers, and around the head's first one
        batch_norm: bool = False  # parity: True normalises each time step over batch and features
        text: TextConfig = TextConfig()
        inputs: InputConfig = InputConfig()

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        self.inputs = Inputs(data, config.inputs, config.modalities)
        self.modalities = in_order(config.modalities)
        self.text = TextEncoder(config.text, data) if "text" in self.modalities else None
        width = sum(data.features[m] for m in self.modalities if m != "text")
        if self.text is not None:
            width += self.text.width
        self.norm = StepNorm(self.modalities, data) if config.batch_norm else nn.Identity()
        self.layers = nn.ModuleList()
        for layer in range(config.layers):
            layer_width = config.hidden if layer else width
            self.layers.append(nn.LSTM(layer_width, config.hidden, batch_first=True))
        # torch's own dropout between layers would not be tied to the samples
        self.between = nn.Dropout(config.dropout)
        self.predict = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, config.hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, data.num_outputs),
        )

    def forward(self, batch: Utterances) -> Sentiment:
        frames, mask = self.inputs(batch)
        if self.text is not None:
            frames["text"], mask["text"] = word_states(self.text, frames["text"], mask["text"])
        ordered = {m: frames[m] for m in self.modalities}
        stepped, clock = on_one_clock(ordered, mask)
        joined = torch.cat([stepped[m] for m in self.modalities], dim=2)
        state = self.read(self.norm(joined), clock)
        score = self.predict(state).float()  # (B, outputs)
        return Sentiment(score=score.squeeze(1))

    def read(self, joined: Tensor, clock: Tensor) -> Tensor:
        """(B, hidden): the last layer's state at the last step of (B, S, D) frames."""
        states = joined
        for number, lstm in enumerate(self.layers):
            if number:
                states = self.between(states)
            states, _ = recur(lstm, states)
        return last_frame(states, clock)

    def losses(self, output: Sentiment, batch: Utterances) -> dict[str, Tensor]:
        return {"task": batch.mean(batch.errors(output.score))}

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        return groups(self, text=self.text.trained() if self.text is not None else [])


class StepNorm(nn.Module):
    """MMSA's batch norm of (B, S, D): each time step over samples and features together, up to the
    longest length of the data, padding included."""

    def __init__(self, modalities: list[str], data: DataSpec):
        super().__init__()
        self.longest = max(data.max_length.get(m, 0) for m in modalities)
        if not self.longest:
            raise ValueError(
                "batch_norm=true needs DataSpec.max_length, for every time step is normalised"
            )
        self.norm = nn.BatchNorm1d(self.longest)

    def forward(self, frames: Tensor) -> Tensor:
        num_steps = frames.shape[1]
        padded = F.pad(frames, (0, 0, 0, self.longest - num_steps))
        return self.norm(padded)[:, :num_steps]
