"""The alignment task: whole graphs on the device, batches of links, links proposed by the model, ranks of pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from core import distributed
from core.batch import Batch
from core.metrics.ranking import (
    all_ranks,
    mutual_nearest,
    nearest,
    ranks_among,
    scores_of,
    summary,
    unit,
)
from core.model import DataSpec, Model
from data_shards.graph import Graphs, load_graphs
from data_shards.reading.sampler import Sampler, even_split
from data_shards.shards.manifest import DataError
from launch.config import ConfigError, Run
from launch.reports.plots import COLORS, figure, save
from launch.tasks.base import EvaluationResult

SUMMARY = ("Hits@1", "Hits@10", "Hits@50", "MR", "MRR")


@dataclass(frozen=True)
class AlignmentOptions:
    """``Run.task_options`` of this task."""

    csls: int = 3  # neighbours; 0: scores without CSLS only
    seeds: Literal["links", "image", "words", "chars"] = (
        "links"  # a view: unsupervised, its most similar pairs instead
    )
    num_seeds: int = 1000  # of them
    iterate_from: int = 0  # first epoch after which the model proposes links; 0: never
    propose_every: int = 5
    restart_every: int = (
        50  # probation: candidates must stay mutual nearest neighbours since the last restart
    )
    commit_every: int = 50


class AlignmentTask:
    """Two graphs of one shard folder. Implements ``launch.tasks.base.Task``."""

    def __init__(self, run: Run):
        if run.max_micro_batch:
            raise ConfigError(
                "max_micro_batch has no use here: each part would encode the whole graph again; leave it 0"
            )
        self.run, self.options = run, _options(run)
        self.device = (
            torch.device("cuda", torch.cuda.current_device())
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
        views = tuple(run.options.views)
        self.graphs: Graphs = self._load(views)
        self.data: DataSpec = self.graphs.spec()
        self.given = (
            self.graphs.links["train"]
            if self.options.seeds == "links"
            else self._seeds(self.options.seeds)
        )
        self.proposed = self.given.new_empty(0, 2)  # links in use beside the given ones
        self.candidates: Tensor | None = None  # those on probation; None: no probation is under way
        self._begun = -1  # the last epoch that ``begin_epoch`` has seen
        self._position = self._following = (
            0,
            0,
        )  # epoch, steps of it that are done; and once the one at hand is
        self._identity = hashlib.sha256(self.graphs.manifest.to_json().encode()).hexdigest()

    def _load(self, views: tuple[str, ...]) -> Graphs:
        cache = Path(self.run.cache) if self.run.cache else None
        return load_graphs(
            self.run.data, views, cache=cache, cache_gb=self.run.cache_gb, device=self.device
        )

    @property
    def links(self) -> Tensor:
        """(L, 2) links to train on; those proposed come last, so that the given ones keep their numbers."""
        return torch.cat([self.given, self.proposed])

    @property
    def _order(self) -> Sampler:
        return Sampler(
            (len(self.links),),
            self.run.batch_size,
            seed=self.run.seed,
            drop_last=self.run.loading.drop_last,
        )

    def steps(self, epoch: int) -> int:
        return self._order.steps

    def batches(self, epoch: int) -> Iterator[list[Batch]]:
        links, order = self.links, self._order
        plan = order.epoch(epoch, lambda shard: np.ones(len(links), np.int64))
        done = self._position[1] if self._position[0] == epoch else 0
        ranks, rank = distributed.world_size(), distributed.rank()
        for step in range(done, order.steps):
            _, rows = plan.batch(step)
            mine = rows[even_split(len(rows), ranks)[rank]]
            index = torch.from_numpy(mine if len(mine) else rows[:1]).to(self.device)
            weight = torch.full((len(index),), float(len(mine) > 0), device=self.device)
            self._following = (epoch, step + 1)
            yield [self.graphs.batch(index, links[index], weight, ranks / len(rows))]
            self.mark_consumed()

    def mark_consumed(self) -> None:
        self._position = self._following

    def begin_epoch(self, epoch: int, model: Model) -> None:
        """Propose links when it is time. Seen once per epoch, so that resuming within one changes nothing."""
        if epoch <= self._begun:
            return
        self._begun = epoch
        options = self.options
        if (
            not options.iterate_from
            or epoch <= options.iterate_from
            or epoch % options.propose_every
        ):
            return
        found = self._propose(model)
        restart = epoch % options.restart_every == options.propose_every % options.restart_every
        if self.candidates is not None and not restart:
            found = found[_contains(self.candidates, found, self.graphs.num_entities)]
        self.candidates = found
        if epoch % options.commit_every == 0:
            self.proposed = torch.cat([self.proposed, found])
            self.candidates = None

    def _propose(self, model: Model) -> Tensor:
        """(M, 2) mutual nearest neighbours among all entities that no training link holds; the same on every rank."""
        joint = self.embed(model)
        left, right = (self.open_entities(side) for side in (0, 1))
        if distributed.rank() == 0:
            pairs, _ = mutual_nearest(joint[left], joint[right])
            found = torch.stack([left[pairs[:, 0]], right[pairs[:, 1]]], 1)
        else:
            found = self.given[:0]
        return distributed.gather_rows(found)  # one rank decides: others may round differently

    def open_entities(self, side: int) -> Tensor:
        """Entities of one graph (0 left, 1 right) that no training link holds."""
        taken = torch.zeros(self.graphs.num_entities, dtype=torch.bool, device=self.device)
        taken[self.links.flatten()] = True
        return ((self.graphs.side == side) & ~taken).nonzero().squeeze(1)

    def embed(self, model: Model) -> Tensor:
        """(N, D) joint embeddings of all entities."""
        return self._joint(model, self.graphs.links["valid"][:1], links_only=False)

    def embed_pairs(self, model: Model, links: Tensor) -> tuple[Tensor, Tensor]:
        """(L, D) joint embeddings of the left and of the right entities of (L, 2) links, and nothing else computed."""
        joint = self._joint(model, links, links_only=True)
        pairs = joint if joint.ndim == 3 else joint[links]  # a model may give all entities anyway
        return pairs[:, 0], pairs[:, 1]

    @torch.no_grad()
    def _joint(self, model: Model, links: Tensor, *, links_only: bool) -> Tensor:
        training = model.training
        model.eval()
        precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.run.precision)
        batch = self.graphs.batch(
            links[:, 0], links, torch.ones(len(links), device=self.device), 1 / len(links)
        )
        with torch.autocast(self.device.type, dtype=precision, enabled=precision is not None):
            joint: Tensor = model(replace(batch, links_only=links_only)).joint.float()
        model.train(training)
        return joint

    def _pairs(self, split: str) -> Tensor:
        if split not in self.graphs.links:
            raise DataError(
                f"{self.run.data} has no links {split!r}; it has {', '.join(self.graphs.links)}"
            )
        return self.graphs.links[split]

    def evaluate(self, model: Model, split: str, device: torch.device) -> dict[str, float]:
        links = self._pairs(split)
        if split != "valid":
            return self._ranked(*self.embed_pairs(model, links))[0]
        joint = self.embed(model)
        pairs = joint[links[:, 0]], joint[links[:, 1]]
        return self._ranked(*pairs)[0] | self._ranked_among_all(joint, links)

    def _ranked_among_all(self, joint: Tensor, links: Tensor) -> dict[str, float]:
        """Scores of links among all entities that no given link holds: the few links of validation are too easily told
        apart to select by, and this takes no knowledge of other links. The same on every rank."""
        values = torch.zeros(2, len(SUMMARY), dtype=torch.float64)
        if distributed.rank() == 0:
            known = torch.zeros(self.graphs.num_entities, dtype=torch.bool, device=self.device)
            known[torch.cat([self.given, links]).flatten()] = True
            for side in (0, 1):
                others = joint[(self.graphs.side == 1 - side) & ~known]
                found = summary(
                    ranks_among(joint[links[:, side]], joint[links[:, 1 - side]], others)
                )
                values[side] = torch.tensor([found[name] for name in SUMMARY], dtype=torch.float64)
        values = distributed.all_reduce_sum(values.to(self.device))
        names = [f"all/{direction}{name}" for direction in ("", "r2l/") for name in SUMMARY]
        return dict(zip(names, values.flatten().tolist(), strict=True))

    def _ranked(
        self, left: Tensor, right: Tensor
    ) -> tuple[dict[str, float], tuple[np.ndarray, np.ndarray]]:
        """Scores of (L, D) aligned rows, the same on every rank; and on the first rank both directions' plain ranks."""
        names = _score_names(self.options.csls)
        values, ranks = torch.zeros(len(names), dtype=torch.float64), (np.empty(0), np.empty(0))
        if distributed.rank() == 0:
            found = all_ranks(left, right, self.options.csls)
            scores, ranks = scores_of(found), (found[0][0], found[1][0])
            values = torch.tensor([scores[name] for name in names], dtype=torch.float64)
        values = distributed.all_reduce_sum(values.to(self.device))
        return dict(zip(names, values.tolist(), strict=True)), ranks

    def final(
        self, model: Model, split: str, device: torch.device, run_dir: Path
    ) -> EvaluationResult:
        links = self._pairs(split)
        left, right = self.embed_pairs(model, links)
        scores, ranks = self._ranked(left, right)
        if distributed.rank() > 0:
            return EvaluationResult(scores)
        best, similarity = nearest(unit(left), unit(right))
        table = {
            "left": self.graphs.ids(links[:, 0]),
            "right": self.graphs.ids(links[:, 1]),
            "rank": ranks[0],
            "rank_right_to_left": ranks[1],
            "predicted": self.graphs.ids(links[best, 1]),
            "similarity": similarity.cpu().numpy(),
        }
        pd.DataFrame(table).to_csv(run_dir / "predictions.csv", index=False)
        return EvaluationResult(scores, [_draw(run_dir, split, ranks)], self._remarks())

    def _remarks(self) -> list[str]:
        remarks = []
        if self.options.seeds != "links":
            remarks.append(
                f"Unsupervised: trained on {len(self.given)} pairs of like {self.options.seeds}, no gold links."
            )
        if len(self.proposed):
            gold = torch.cat(list(self.graphs.links.values()))
            known = torch.isin(self.proposed[:, 0], gold[:, 0])
            right = _contains(gold, self.proposed[known], self.graphs.num_entities)
            remarks.append(
                f"The model proposed {len(self.proposed)} links and trained on them; of the {int(known.sum())} whose "
                f"left entity has a gold partner, {right.float().mean():.1%} are right."
            )
        return remarks

    def splits(self) -> list[str]:
        return [split for split in ("train", "valid", "test") if split in self.graphs.links]

    def objective(self, scores: dict[str, float]) -> float:
        if self.run.select not in scores:
            raise ConfigError(
                f"select={self.run.select!r} is no score of this task; there are {', '.join(scores)}"
            )
        return scores[self.run.select] * (1.0 if self.run.goal == "min" else -1.0)

    def sample_ids(self, parts: list[Batch]) -> list[str]:
        links = self.links[torch.cat([part.index[part.weight > 0] for part in parts])]
        return [
            f"{left} - {right}"
            for left, right in zip(*(self.graphs.ids(side) for side in links.T), strict=True)
        ]

    def wait_seconds(self) -> float:
        return 0.0  # everything is on the device

    def skipped(self) -> int:
        return 0  # damage is refused

    def _seeds(self, view: str) -> Tensor:
        """(num_seeds, 2) pairs of the two graphs whose ``view`` is most alike, each entity at most once."""
        graphs = self.graphs if view in self.graphs.views else self._load((view,))
        sides = [
            ((graphs.side == side) & graphs.present[view]).nonzero().squeeze(1) for side in (0, 1)
        ]
        left, right = (unit(graphs.views[view][side]) for side in sides)
        pairs = greedy_pairs(left, right, self.options.num_seeds)
        return torch.stack([sides[0][pairs[:, 0]], sides[1][pairs[:, 1]]], 1)

    def state_dict(self) -> dict[str, Any]:
        return {
            "data": self._identity,
            "batch_size": self.run.batch_size,
            "seed": self.run.seed,
            "position": list(self._position),
            "begun": self._begun,
            "proposed": self.proposed.tolist(),
            "candidates": None if self.candidates is None else self.candidates.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        now = self.state_dict()
        for key in ("data", "batch_size", "seed"):
            if state[key] != now[key]:
                raise DataError(
                    f"the saved position belongs to another {key} ({state[key]!r}, not {now[key]!r})"
                )
        self._position = self._following = tuple(state["position"])
        self._begun = state["begun"]
        self.proposed = self._pairs_of(state["proposed"])
        self.candidates = (
            None if state["candidates"] is None else self._pairs_of(state["candidates"])
        )

    def _pairs_of(self, pairs: list[list[int]]) -> Tensor:
        return torch.tensor(pairs, dtype=torch.int64, device=self.device).reshape(-1, 2)


def greedy_pairs(left: Tensor, right: Tensor, wanted: int) -> Tensor:
    """(<= wanted, 2) rows of left and right, most similar first, each row in one pair at most.

    Mutual nearest neighbours are exactly the pairs that the greedy choice makes next among their rows, so rounds of
    them give the greedy result without sorting all pairs.
    """
    open_left, open_right = (torch.arange(len(side), device=side.device) for side in (left, right))
    pairs, scores = open_left.new_empty(0, 2), left.new_empty(0)
    while len(open_left) and len(open_right):
        found, similarity = mutual_nearest(left[open_left], right[open_right])
        if len(scores) >= wanted and scores.topk(wanted).values[-1] >= similarity.max():
            break  # nothing that is left can be among the first ``wanted``
        new = torch.stack([open_left[found[:, 0]], open_right[found[:, 1]]], 1)
        pairs, scores = torch.cat([pairs, new]), torch.cat([scores, similarity])
        open_left = open_left[~torch.isin(open_left, new[:, 0])]
        open_right = open_right[~torch.isin(open_right, new[:, 1])]
    return pairs[scores.argsort(descending=True, stable=True)[:wanted]]


def _options(run: Run) -> AlignmentOptions:
    try:
        unknown = set(run.task_options) - set(AlignmentOptions.__dataclass_fields__)
        if unknown:
            known = ", ".join(AlignmentOptions.__dataclass_fields__)
            raise ConfigError(f"task_options has no {min(unknown)!r}; there are {known}")
        return TypeAdapter(AlignmentOptions).validate_python(run.task_options)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(["task_options", *map(str, first["loc"])])
        raise ConfigError(f"{key}={first['input']!r}: {first['msg']}") from None


def _score_names(csls: int) -> list[str]:
    return [
        f"{p}{d}{name}"
        for p in ("", "csls/")[: 2 if csls else 1]
        for d in ("", "r2l/")
        for name in SUMMARY
    ]


def _contains(pairs: Tensor, asked: Tensor, num_entities: int) -> Tensor:
    """(M,) bool: which of the (M, 2) asked pairs are among ``pairs``."""
    return torch.isin(
        asked[:, 0] * num_entities + asked[:, 1], pairs[:, 0] * num_entities + pairs[:, 1]
    )


def _draw(run_dir: Path, split: str, ranks: tuple[np.ndarray, np.ndarray]) -> tuple[str, str]:
    drawing, axes = figure(6, 3.8)
    for found, name, color in zip(ranks, ("left to right", "right to left"), COLORS, strict=False):
        axes.plot(
            np.sort(found), np.arange(1, len(found) + 1) / len(found), label=name, color=color
        )
    axes.set(
        xscale="log",
        ylim=(0, 1),
        xlabel="k",
        ylabel="Hits@k",
        title=f"Rank of the right partner ({split})",
    )
    axes.legend(frameon=False)
    return f"Share of {split} links whose partner is among the k most similar candidates.", save(
        drawing, run_dir / "ranks.png"
    )
