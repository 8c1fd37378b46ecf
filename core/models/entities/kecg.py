"""KECG, in its structure (Li et al., EMNLP 2019, D19-1274): one table of entities, which attention
over both graphs and translations between them learn together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from core.batch import EntityGraph
from core.encoders.entity_encoder import Aligned
from core.encoders.graph_networks import DiagonalGAT
from core.losses.entity_pairs import Margin
from core.model import DataSpec, GlobalBatchRows, Model, TaskName
from core.rows import unit_rows

VIEW = "graph"
# of the numbers that wrong ends of triples are made by: odd, so that they spread over all entities
STRIDE, EPOCH_STRIDE = 2654435761, 40503


@dataclass(frozen=True)
class Output(Aligned):
    # (B,) error of the triples that the entities of each pair head; None outside of training
    translation: Tensor | None = None


class KECG(Model[EntityGraph, Output]):
    """Linked entities are near behind two layers of diagonal attention, and in the table itself a
    relation leads from the head of a triple to its tail (TransE).

    Differences from the released code: pairs are compared by rows of length one and told from all
    others of the global batch, where the nearest of 25 were drawn; a step takes the triples that the
    entities of its pairs head, with one wrong tail each, by a rule of triple and epoch, where the
    two losses take turns over all triples; settings are not its own. It reads structure alone.
    """

    task: ClassVar[TaskName] = "alignment"

    @validated_dataclass(frozen=True)
    class Config:
        views: tuple[str, ...] = (VIEW,)  # there is no other
        graph_hidden: PositiveInt = 128
        layers: PositiveInt = 2
        heads: PositiveInt = 2
        margin: PositiveFloat = 3.0  # of the pairs
        translation: NonNegativeFloat = 1.0  # weight of the triples; 0: none
        translation_margin: PositiveFloat = 1.0  # of the triples
        # deviation of the random entity table at the start, times sqrt(N)
        entity_scale: NonNegativeFloat = 1.0

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        if set(config.views) - {VIEW}:
            raise ValueError(f"kecg reads structure alone; use options.views={VIEW}")
        if config.translation and not data.num_relations:
            raise ValueError(
                "kecg translates along relations, and the data say nothing of theirs; use "
                "options.translation=0"
            )
        self.config = config
        self.knowledge = Knowledge(config, data)
        self.apart = Margin(config.margin)

    def forward(self, batch: EntityGraph) -> Output:
        # in training nobody asks for the entities without a link
        links_only = self.training or batch.links_only
        entities = batch.links if links_only else None
        rows, translation = self.knowledge(batch, entities, self.epoch if self.training else None)
        present = torch.ones(rows.shape[:-1], dtype=torch.bool, device=rows.device)
        links = None if links_only else batch.links
        return Output(unit_rows(rows), {VIEW: rows}, {VIEW: present}, links, translation)

    def losses(self, output: Output, batch: EntityGraph) -> dict[str, Tensor]:
        if output.translation is None:
            return {}
        return {"translation": self.config.translation * batch.mean(output.translation)}

    def global_batch_rows(self, output: Output) -> GlobalBatchRows:
        return GlobalBatchRows(output.sides(VIEW, output.views[VIEW]))

    def global_batch_losses(
        self, rows: GlobalBatchRows, target: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        """The margin's loss of the pairs."""
        sides = rows.embeddings
        return {"pairs": self.apart(sides[f"{VIEW}/left"], sides[f"{VIEW}/right"], weight)}


class Knowledge(nn.Module):
    """The table of entities with both of its readers.

    It is a module of its own, for ZeRO-3 does not gather the whole model's own parameters for the
    backward pass.
    """

    def __init__(self, config: KECG.Config, data: DataSpec):
        super().__init__()
        width = config.graph_hidden
        deviation = config.entity_scale / math.sqrt(data.num_train)
        self.entity = nn.Parameter(torch.randn(data.num_train, width) * deviation)
        self.attend = DiagonalGAT(width, config.layers, config.heads)
        self.relation: nn.Parameter | None = None
        if config.translation:
            bound = 6 / math.sqrt(width)
            table = torch.empty(data.num_relations, width).uniform_(-bound, bound)
            self.relation = nn.Parameter(table)
        self.margin = config.translation_margin

    def forward(
        self, batch: EntityGraph, entities: Tensor | None, epoch: int | None
    ) -> tuple[Tensor, Tensor | None]:
        """(*entities, D) rows, or (N, D) of all; and (B,) errors of the pairs' triples in an epoch,
        None without one."""
        # sums over hub entities need the digits that bfloat16 lacks
        with torch.autocast(batch.edges.device.type, enabled=False):
            rows: Tensor = self.attend(self.entity, batch.edges, entities)
            if self.relation is None or epoch is None:
                return rows, None
            return rows, self._translation(batch, epoch)

    def _translation(self, batch: EntityGraph, epoch: int) -> Tensor:
        """Mean over the triples that either entity of a pair heads; 0 where there is none."""
        assert batch.triples is not None
        assert self.relation is not None
        number, pair = triples_of(batch.links, batch.triples)
        heads, relations, tails = batch.triples[number].unbind(1)
        wrong_tails = wrong_ends(number, tails, len(self.entity), epoch)
        start = unit_rows(self.entity[heads]) + self.relation[relations]
        right = (start - unit_rows(self.entity[tails])).abs().sum(1)
        wrong = (start - unit_rows(self.entity[wrong_tails])).abs().sum(1)
        errors = F.relu(right + self.margin - wrong)
        total = errors.new_zeros(len(batch.links)).index_add(0, pair, errors)
        count = errors.new_zeros(len(batch.links)).index_add(0, pair, torch.ones_like(errors))
        return total / count.clamp(min=1)


def triples_of(links: Tensor, triples: Tensor) -> tuple[Tensor, Tensor]:
    """(M,) numbers of the (T, 3) triples, sorted by head, that entities of (B, 2) links head; and
    (M,) the link that each is of."""
    heads = triples[:, 0].contiguous()
    entities = links.flatten()  # (2 B,)
    first = torch.searchsorted(heads, entities)
    count = torch.searchsorted(heads, entities, right=True) - first
    entity = torch.repeat_interleave(torch.arange(len(entities), device=links.device), count)
    begin = count.cumsum(0) - count
    place = torch.arange(len(entity), device=links.device) - begin[entity]
    return first[entity] + place, entity // 2


def wrong_ends(number: Tensor, ends: Tensor, num_entities: int, epoch: int) -> Tensor:
    """For triples by number another entity than the one at their end, a different one in each
    epoch; the same however they are batched."""
    step = (number * STRIDE + epoch * EPOCH_STRIDE) % (num_entities - 1) + 1
    return (ends + step) % num_entities
