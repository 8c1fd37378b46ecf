"""Graph-MFN: MFN with a dynamic fusion graph (Zadeh et al., "Multimodal language analysis in the
wild: CMU-MOSEI dataset and interpretable dynamic fusion graph", ACL 2018, P18-1208)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn

from core.batch import Utterances
from core.dropout import Probability
from core.encoders.inputs import Inputs, groups
from core.encoders.sequence import last_frame, masked_mean
from core.kernels.recurrence import recur
from core.model import DataSpec, Model, Sentiment
from core.models.fusion.gated_memory import (
    ClockedFrames,
    GatedMemory,
    MemoryOptions,
    side_by_side,
    step_before,
    two_layers,
)

Vertex = tuple[str, ...]  # the modalities that it is about
READOUT = "readout"


@dataclass(frozen=True)
class Output(Sentiment):
    efficacies: Tensor  # (B, edges), their mean over a sample's steps
    index: Tensor  # (B,) int64


class FusionGraph(nn.Module):
    """The dynamic fusion graph: a vertex for every set of modalities, fed by the vertices of its
    proper subsets, and a readout fed by all; every edge is scaled by an efficacy of the step.

    Args:
        width: modality -> width of its vertex.
        hidden: width within the networks.
        inner: width of the vertices of several modalities, and of the readout.
        efficacy: what makes an efficacy of a number: "sigmoid", or "linear" for the number itself.
    """

    def __init__(
        self,
        width: Mapping[str, int],
        hidden: int,
        inner: int,
        efficacy: Literal["sigmoid", "linear"],
    ):
        super().__init__()
        self.efficacy = efficacy
        vertex_width: dict[Vertex, int] = {(m,): width[m] for m in width}
        self.sources: dict[Vertex, list[Vertex]] = {}  # of each vertex that is fed
        self.nodes = nn.ModuleDict()
        for vertex in _sets(list(width), smallest=2):
            self.sources[vertex] = _sets(list(vertex), smallest=1)[:-1]
            fed_width = sum(vertex_width[source] for source in self.sources[vertex])
            self.nodes["_".join(vertex)] = _two_linear(fed_width, hidden, inner)
            vertex_width[vertex] = inner
        self.vertices = list(vertex_width)
        self.readout = _two_linear(sum(vertex_width.values()), hidden, inner)
        self.edges = self._edges()
        joined_width = sum(width.values())
        self.efficacies = nn.Sequential(
            nn.Linear(joined_width, hidden),
            nn.Linear(hidden, inner),
            nn.Linear(inner, len(self.edges)),
        )

    def _edges(self) -> list[tuple[str, str]]:
        """Source and target of every edge by name, in the order of the efficacies."""
        edges = []
        for vertex, sources in self.sources.items():
            for source in sources:
                edges.append(("_".join(source), "_".join(vertex)))
        for vertex in self.vertices:
            edges.append(("_".join(vertex), READOUT))
        return edges

    def forward(self, states: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The readout (B, S, inner) and the efficacies (B, S, edges) of (B, S, width) states."""
        numbers = self.efficacies(side_by_side(states))
        efficacies = numbers.sigmoid() if self.efficacy == "sigmoid" else numbers
        scales = iter(efficacies[..., None].unbind(2))  # each (B, S, 1)
        values: dict[Vertex, Tensor] = {(m,): states[m] for m in states}
        for vertex, sources in self.sources.items():
            fed = [next(scales) * values[source] for source in sources]
            values[vertex] = self.nodes["_".join(vertex)](torch.cat(fed, dim=2))
        fed = [next(scales) * values[vertex] for vertex in self.vertices]
        return self.readout(torch.cat(fed, dim=2)), efficacies


class GraphFusion(nn.Module):
    """LSTMs side by side, the fusion graph on their states of two steps, a memory of its readout.

    Args:
        width: modality -> width of its frames.
        hidden: modality -> width of its LSTM's states.
    """

    def __init__(
        self, width: Mapping[str, int], hidden: Mapping[str, int], config: GraphMFN.Config
    ):
        super().__init__()
        self.lstms = nn.ModuleDict()
        self.pairs = nn.ModuleDict()  # of a modality's states at two steps in turn
        for m in width:
            self.lstms[m] = nn.LSTM(width[m], hidden[m], batch_first=True)
            self.pairs[m] = nn.Linear(2 * hidden[m], hidden[m])
        self.graph = FusionGraph(hidden, config.graph_hidden, config.inner, config.efficacy)
        self.memory = GatedMemory(
            config.inner, config.proposal_hidden, config.proposal_dropout, config
        )

    def forward(self, frames: Mapping[str, Tensor], clock: Tensor) -> tuple[Tensor, Tensor]:
        """(B, states of all modalities and the memory) behind the last step of (B, S, D) frames,
        and the efficacies (B, S, edges)."""
        states, changes = {}, {}
        for m, lstm in self.lstms.items():
            states[m], _ = recur(lstm, frames[m])
            two_steps = torch.cat([step_before(states[m]), states[m]], dim=2)
            changes[m] = torch.relu(self.pairs[m](two_steps))
        readout, efficacies = self.graph(changes)
        memory = self.memory(readout, clock)
        last = last_frame(side_by_side(states), clock)
        return torch.cat([last, memory], dim=1), efficacies


class GraphMFN(Model[Utterances, Output]):
    """An LSTM per modality, all on the clock of the words; a graph over all sets of modalities
    reads two steps at once, and a gated memory collects its readout.

    Sound and video should be aligned to the words; where they are not, each word gets the mean of
    its share of the frames, by true lengths. Sizes are those of MMSA's published row on MOSI.
    Differences from MMSA's code, and from the SDK's that it is taken from: the networks of the
    graph's nodes are trained and saved; there they stand in a plain dict, so they stay as they were
    drawn and a loaded model gives other answers than the saved one, which no option brings back;
    efficacies pass a sigmoid as in the paper (parity: ``efficacy=linear``), and their means are
    logged once per epoch; states and memory hold still behind a sample's last word; features are
    standardised. A node's two layers have no activation between them, as released. A modality that
    a sample lacks feeds zeros; a sample without text goes by the steps of its sound, or else of its
    video.
    """

    task = "sentiment"
    aligned = True

    @validated_dataclass(frozen=True)
    class Config(MemoryOptions):
        text_hidden: PositiveInt = 64
        vision_hidden: PositiveInt = 64
        inner: PositiveInt = 32  # of the graph's nodes for several modalities
        graph_hidden: PositiveInt = 100  # within the graph's networks
        efficacy: Literal["sigmoid", "linear"] = "sigmoid"  # parity: "linear"
        proposal_hidden: PositiveInt = 128  # of the network that proposes to the memory
        proposal_dropout: Probability = 0.0
        retain_hidden: PositiveInt = 32
        retain_dropout: Probability = 0.7
        update_dropout: Probability = 0.7
        out_hidden: PositiveInt = 32
        out_dropout: Probability = 0.7

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        self.inputs = Inputs(data, config.inputs, config.modalities)
        self.clocked = ClockedFrames(config, data)
        hidden = config.hidden()
        self.fusion = GraphFusion(self.clocked.width, hidden, config)
        fused_width = sum(hidden.values()) + config.memory
        self.predict = two_layers(
            fused_width, config.out_hidden, data.num_outputs, config.out_dropout
        )
        # of this epoch: efficacies summed over samples, and the number of these
        sums = torch.zeros(len(self.fusion.graph.edges), dtype=torch.float64)
        self.register_buffer("efficacy_sums", sums, persistent=False)
        count = torch.zeros(1, dtype=torch.float64)
        self.register_buffer("efficacy_count", count, persistent=False)

    def forward(self, batch: Utterances) -> Output:
        frames, clock = self.clocked(*self.inputs(batch))
        fused, efficacies = self.fusion(frames, clock)
        score = self.predict(fused).float()  # (B, outputs)
        return Output(
            score=score.squeeze(1),
            efficacies=masked_mean(efficacies.detach().float(), clock),
            index=batch.index,
        )

    def losses(self, output: Output, batch: Utterances) -> dict[str, Tensor]:
        return {"task": batch.mean(batch.errors(output.score))}

    def memory_bank_rows(self, output: Output, batch: Utterances) -> dict[str, Tensor]:
        if not self.training:
            return {}
        return {"index": output.index, "efficacies": output.efficacies}

    def update_memory_bank(self, rows: Mapping[str, Tensor]) -> None:
        efficacies = rows["efficacies"].double()
        self.get_buffer("efficacy_sums").add_(efficacies.sum(0))
        self.get_buffer("efficacy_count").add_(len(efficacies))

    def report(self) -> dict[str, float]:
        """The mean efficacy of every edge over this epoch's samples, such as
        ``efficacy_text_audio_to_readout``."""
        count = float(self.get_buffer("efficacy_count"))
        if not count:
            return {}
        means = (self.get_buffer("efficacy_sums") / count).tolist()
        numbers = {}
        for (source, target), mean in zip(self.fusion.graph.edges, means, strict=True):
            numbers[f"efficacy_{source}_to_{target}"] = mean
        return numbers

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        self.get_buffer("efficacy_sums").zero_()
        self.get_buffer("efficacy_count").zero_()

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        return groups(self, text=self.clocked.pretrained())


def _sets(modalities: list[str], smallest: int) -> list[Vertex]:
    """All sets of at least ``smallest`` of the modalities, by size and then by order."""
    found: list[Vertex] = []
    for size in range(smallest, len(modalities) + 1):
        found += combinations(modalities, size)
    return found


def _two_linear(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.Linear(hidden, out))
