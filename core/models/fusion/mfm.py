"""MFM, the multimodal factorization model (Tsai et al., ICLR 2019, arXiv:1806.06176).

What it is, in short. A clip has a common factor f_y and one of each modality, f_m; both come from
latent vectors z_y and z_m that should be distributed like a normal one:

    z_y = linear(MFN of all modalities)          z_m = linear(last state of an LSTM over m)
    f_y = ReLU(linear(z_y)), f_m = ReLU(linear(z_m))
    score = two layers on f_y                     frames of m, rebuilt = LSTM fed with [f_y; f_m]

Loss: the task's + rebuild * mean squared error of the rebuilt frames
    + prior * mean over z of MMD(z, N(0, 1)), with the kernel exp(-|x - y|^2 / D^2) of D numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn

from core.batch import Utterances
from core.encoders.inputs import Inputs, groups, has_frames
from core.encoders.sequence import last_frame
from core.losses.gather_rows import gather_by_name
from core.losses.subspaces import discrepancy_from_normal
from core.model import DataSpec, GlobalBatchRows, Model, Sentiment
from core.models.fusion.gated_memory import ClockedFrames, two_layers
from core.models.fusion.mfn import MFN, MemoryFusion

COMMON = "common"


@dataclass(frozen=True)
class Output(Sentiment):
    latent: dict[str, Tensor]  # "common" or modality -> (B, factor), z
    errors: dict[str, Tensor]  # modality -> (B,) mean squared error of its frames; in training only
    given: dict[str, Tensor]  # "common" or modality -> (B,) bool, True where the sample has it


class MFM(Model[Utterances, Output]):
    """A common factor, which predicts, and one of each modality; together they rebuild what was
    seen.

    Differences from MMSA's and the authors' code: the discrepancy from the normal distribution is
    its expectation, in closed form, where they draw numbers for each batch, and it is over the
    samples of the whole global batch; all modalities are on the clock of the words, as in ``MFN``;
    frames are compared by true lengths, and a modality that a sample lacks has no part in any loss;
    a text encoder that is trained does not move towards what is rebuilt; features are standardised.
    The weights of the losses, which the authors searched, are settings.
    """

    task = "sentiment"
    aligned = True

    @validated_dataclass(frozen=True)
    class Config(MFN.Config):
        text_hidden: PositiveInt = 64
        vision_hidden: PositiveInt = 32
        memory: PositiveInt = 128
        factor: PositiveInt = 32  # width of every z and f
        decoder_hidden: PositiveInt = 64  # of the LSTMs that rebuild
        rebuild: NonNegativeFloat = 0.1  # weight of the rebuilt frames' error
        prior: NonNegativeFloat = 0.1  # weight of the discrepancy from the normal distribution

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        self.config = config
        self.inputs = Inputs(data, config.inputs, config.modalities)
        self.clocked = ClockedFrames(config, data, config.mean_frames)
        width, hidden = self.clocked.width, config.hidden()
        self.modalities = self.clocked.modalities
        self.fusion = MemoryFusion(width, hidden, config)
        self.encoders, self.rebuild = nn.ModuleDict(), nn.ModuleDict()
        fused_width = sum(hidden.values()) + config.memory
        self.latent = nn.ModuleDict({COMMON: nn.Linear(fused_width, config.factor)})
        self.factors = nn.ModuleDict({COMMON: _factor(config)})
        if config.rebuild or config.prior:
            for m in self.modalities:
                self.encoders[m] = nn.LSTM(width[m], hidden[m], batch_first=True)
                self.latent[m] = nn.Linear(hidden[m], config.factor)
        if config.rebuild:
            for m in self.modalities:
                self.factors[m] = _factor(config)
                self.rebuild[m] = Rebuilding(config, width[m])
        self.predict = two_layers(
            config.factor, config.out_hidden, data.num_outputs, config.out_dropout
        )

    def forward(self, batch: Utterances) -> Output:
        shown, mask = self.inputs(batch)
        given = {m: has_frames(mask[m]) for m in self.modalities}
        given[COMMON] = torch.stack(list(given.values())).any(0)
        frames, clock = self.clocked(shown, mask)
        latent = {COMMON: self.latent[COMMON](self.fusion(frames, clock))}
        common = self.factors[COMMON](latent[COMMON])
        errors: dict[str, Tensor] = {}
        if self.training:
            for m, encoder in self.encoders.items():
                states, _ = encoder(frames[m])
                latent[m] = self.latent[m](last_frame(states, clock))
            for m, rebuild in self.rebuild.items():
                both = torch.cat([common, self.factors[m](latent[m])], dim=1)
                errors[m] = _error(rebuild(both, clock.shape[1]), frames[m].detach(), clock)
        score = self.predict(common).float()  # (B, outputs)
        latent = {name: rows.float() for name, rows in latent.items()}
        return Output(score=score.squeeze(1), latent=latent, errors=errors, given=given)

    def losses(self, output: Output, batch: Utterances) -> dict[str, Tensor]:
        losses = {"task": batch.mean(batch.errors(output.score))}
        if output.errors:
            errors = [error * output.given[m] for m, error in output.errors.items()]
            mean_error = torch.stack(errors).mean(0)  # (B,)
            losses["rebuild"] = self.config.rebuild * batch.mean(mean_error)
        return losses

    @property
    def has_global_batch_losses(self) -> bool:
        return self.config.prior > 0

    def global_batch_rows(self, output: Output) -> GlobalBatchRows:
        if not self.config.prior:
            return GlobalBatchRows()
        present = {name: output.given[name] for name in output.latent}
        return GlobalBatchRows(output.latent, present)

    def global_batch_losses(
        self, rows: GlobalBatchRows, target: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        """How far the latent vectors of all samples are from a normal distribution."""
        if not rows.embeddings:
            return {}
        latent, given = gather_by_name(rows.embeddings, rows.present, weight)
        terms = [discrepancy_from_normal(latent[name][given[name] > 0]) for name in latent]
        return {"prior": self.config.prior * torch.stack(terms).mean()}

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        return groups(self, text=self.clocked.pretrained())


class Rebuilding(nn.Module):
    """An LSTM that is fed the same two factors at every step: (B, 2 factor) to (B, S, width)."""

    def __init__(self, config: MFM.Config, width: int):
        super().__init__()
        self.lstm = nn.LSTM(2 * config.factor, config.decoder_hidden, batch_first=True)
        self.out = nn.Linear(config.decoder_hidden, width)

    def forward(self, factors: Tensor, steps: int) -> Tensor:
        states, _ = self.lstm(factors[:, None].expand(-1, steps, -1))
        rebuilt: Tensor = self.out(states)
        return rebuilt


def _factor(config: MFM.Config) -> nn.Sequential:
    return nn.Sequential(nn.Linear(config.factor, config.factor), nn.ReLU())


def _error(rebuilt: Tensor, frames: Tensor, clock: Tensor) -> Tensor:
    """(B,) mean over a sample's steps and their features."""
    by_step = (rebuilt.float() - frames.float()).square().mean(2)  # (B, S)
    return (by_step * clock).sum(1) / clock.sum(1).clamp(min=1)
