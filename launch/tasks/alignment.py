"""The alignment task: whole graphs on the device, batches of links, links proposed by the model,
ranks of pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core import distributed
from core.batch import Batch
from core.files import sha256_of_bytes
from core.metrics.approximate import approximate_mutual_nearest
from core.metrics.declared import shown_metrics
from core.metrics.ranking import (
    all_ranks,
    greedy_pairs,
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
from data_shards.shards.manifest import DataError, Manifest
from launch.config import ConfigError, Run
from launch.reports.plots import COLORS, figure, save
from launch.tasks.alignment_options import alignment_options
from launch.tasks.predictions import write_table
from launch.tasks.task import (
    EvaluationResult,
    check_needed_splits,
    known_splits,
    objective_of,
    precision_context,
)
from launch.tasks.training_facts import TrainingFacts

SUMMARY = tuple(shown_metrics("alignment"))
DIRECTIONS = ("", "r2l/")  # prefixes of scores: from left to right, and from right to left


class AlignmentTask:
    """Two graphs of one shard folder. Implements ``launch.tasks.task.Task``."""

    def __init__(self, run: Run):
        if run.max_micro_batch:
            raise ConfigError(
                "max_micro_batch has no use here: each part would encode the whole graph again; "
                "leave it 0"
            )
        self.run = run
        self.options = alignment_options(run)
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.graphs: Graphs = self._load(tuple(run.options.views))
        self.manifest: Manifest = self.graphs.manifest
        self.data: DataSpec = self.graphs.spec()
        self.seed_links = self._seed_links()  # (L, 2), where training begins
        self.proposed = self.seed_links.new_empty(0, 2)  # links of the model, in use beside them
        self.candidates: Tensor | None = None  # those on probation; None: no probation is under way
        self._begun = -1  # the last epoch that ``begin_epoch`` has seen
        # epoch, and steps of it that are done; and the same once the step at hand is done
        self._position = self._following = (0, 0)
        self._identity = sha256_of_bytes(self.manifest.to_json().encode())

    def _load(self, views: tuple[str, ...]) -> Graphs:
        cache = Path(self.run.cache) if self.run.cache else None
        return load_graphs(
            self.run.data, views, cache=cache, cache_gb=self.run.cache_gb, device=self.device
        )

    @property
    def links(self) -> Tensor:
        """(L, 2) links to train on; those proposed come last, so that the seeds keep their
        numbers."""
        return torch.cat([self.seed_links, self.proposed])

    @property
    def _sampler(self) -> Sampler:
        return Sampler(
            (len(self.links),),
            self.run.batch_size,
            seed=self.run.seed,
            drop_last=self.run.loading.drop_last,
        )

    def steps(self, epoch: int) -> int:
        return self._sampler.steps

    def end_epoch(self, epoch: int, model: Model, run_dir: Path) -> None:
        """Nothing is kept of entities."""

    def train_samples(self) -> int:
        return len(self.links)

    def batches(self, epoch: int) -> Iterator[list[Batch]]:
        links, sampler = self.links, self._sampler
        plan = sampler.epoch(epoch, lambda shard: np.ones(len(links), np.int64))
        done = self._position[1] if self._position[0] == epoch else 0
        ranks, rank = distributed.world_size(), distributed.rank()
        for step in range(done, sampler.steps):
            _, rows = plan.batch(step)
            local = rows[even_split(len(rows), ranks)[rank]]
            weight = 1.0
            if not len(local):  # more ranks than links: this one computes a row that does not count
                local, weight = rows[:1], 0.0
            index = torch.from_numpy(local).to(self.device)
            weights = torch.full((len(index),), weight, device=self.device)
            self._following = (epoch, step + 1)
            yield [self.graphs.batch(index, links[index], weights, ranks / len(rows))]
            self.mark_consumed()

    def mark_consumed(self) -> None:
        self._position = self._following

    def begin_epoch(self, epoch: int, model: Model) -> None:
        """Propose links when it is time. Seen once per epoch, so that resuming within one changes
        nothing."""
        if epoch <= self._begun:
            return
        self._begun = epoch
        options = self.options
        iterating = 0 < options.iterate_from < epoch
        if not iterating or epoch % options.propose_every:
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
        """(M, 2) mutual nearest neighbours among all entities that no training link holds; the same
        on every rank."""
        joint = self.embed(model)
        left, right = self.open_entities(0), self.open_entities(1)
        if recall := self.options.recall:
            sides = unit(joint[left]), unit(joint[right])
            pairs, _, _ = approximate_mutual_nearest(*sides, recall, divided=True)
        else:
            pairs, _ = mutual_nearest(joint[left], joint[right], divided=True)
        found = torch.stack([left[pairs[:, 0]], right[pairs[:, 1]]], 1)
        # One rank decides: others may round differently.
        return distributed.gather_rows(found if distributed.rank() == 0 else found[:0])

    def open_entities(self, side: int) -> Tensor:
        """Entities of one graph (0 left, 1 right) that no training link holds."""
        linked = self._entities_of(self.links)
        return ((self.graphs.side == side) & ~linked).nonzero().squeeze(1)

    def _entities_of(self, links: Tensor) -> Tensor:
        """(N,) bool: which entities these links hold."""
        linked = torch.zeros(self.graphs.num_entities, dtype=torch.bool, device=self.device)
        linked[links.flatten()] = True
        return linked

    def embed(self, model: Model) -> Tensor:
        """(N, D) joint embeddings of all entities."""
        return self._joint(model, self.graphs.links["valid"][:1], links_only=False)

    def embed_pairs(self, model: Model, links: Tensor) -> tuple[Tensor, Tensor]:
        """(L, D) joint embeddings of the left and of the right entities of (L, 2) links, and
        nothing else computed."""
        joint = self._joint(model, links, links_only=True)
        pairs = joint if joint.ndim == 3 else joint[links]  # a model may give all entities anyway
        return pairs[:, 0], pairs[:, 1]

    @torch.no_grad()
    def _joint(self, model: Model, links: Tensor, *, links_only: bool) -> Tensor:
        training = model.training
        model.eval()
        weight = torch.ones(len(links), device=self.device)
        batch = self.graphs.batch(links[:, 0], links, weight, 1 / len(links))
        with precision_context(self.device, self.run.precision):
            joint: Tensor = model(replace(batch, links_only=links_only)).joint.float()
        model.train(training)
        return joint

    def _links_of(self, split: str) -> Tensor:
        if split not in self.graphs.links:
            raise DataError(
                f"{self.run.data} has no links {split!r}; it has {', '.join(self.graphs.links)}"
            )
        return self.graphs.links[split]

    def remarks(self, model: Model) -> list[str]:
        """Views that are left out were chosen by name."""
        return []

    def parts(self) -> tuple[str, ...]:
        return ()

    def score_names(self) -> list[str]:
        return _ranked_names(self.options.csls) + _directed_names("all/")

    def constant_baselines(self, split: str) -> dict[str, dict[str, float]]:
        return {}  # no entity is everyone's partner

    def facts(self) -> TrainingFacts:
        return TrainingFacts()  # no new entities are scored: such a model knows its own by number

    def evaluate(self, model: Model, split: str, device: torch.device) -> dict[str, float]:
        links = self._links_of(split)
        if split != "valid":
            left, right = self.embed_pairs(model, links)
            scores, _ = self._ranked(left, right)
            return scores
        joint = self.embed(model)
        scores, _ = self._ranked(joint[links[:, 0]], joint[links[:, 1]])
        return scores | self._ranked_among_all(joint, links)

    def _ranked_among_all(self, joint: Tensor, links: Tensor) -> dict[str, float]:
        """Scores of links among all entities that no seed link holds: the few links of validation
        are too easily told apart to select by, and this takes no knowledge of other links. The same
        on every rank."""
        values = torch.zeros(2, len(SUMMARY), dtype=torch.float64)
        if distributed.rank() == 0:
            known = self._entities_of(torch.cat([self.seed_links, links]))
            for side in (0, 1):
                others = joint[(self.graphs.side == 1 - side) & ~known]
                ranks = ranks_among(joint[links[:, side]], joint[links[:, 1 - side]], others)
                scores = summary(ranks)
                values[side] = torch.tensor([scores[name] for name in SUMMARY], dtype=torch.float64)
        values = distributed.all_reduce_sum(values.to(self.device))
        return dict(zip(_directed_names("all/"), values.flatten().tolist(), strict=True))

    def _ranked(
        self, left: Tensor, right: Tensor
    ) -> tuple[dict[str, float], tuple[np.ndarray, np.ndarray]]:
        """Scores of (L, D) aligned rows, the same on every rank; and on the first rank both
        directions' plain ranks."""
        names = _ranked_names(self.options.csls)
        values = torch.zeros(len(names), dtype=torch.float64)
        ranks = (np.empty(0), np.empty(0))
        found = all_ranks(left, right, self.options.csls, divided=True)
        if distributed.rank() == 0:
            scores = scores_of(found)
            ranks = (found[0][0], found[1][0])
            values = torch.tensor([scores[name] for name in names], dtype=torch.float64)
        values = distributed.all_reduce_sum(values.to(self.device))
        return dict(zip(names, values.tolist(), strict=True)), ranks

    def final(
        self, model: Model, split: str, device: torch.device, run_dir: Path
    ) -> EvaluationResult:
        links = self._links_of(split)
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
        write_table(run_dir / "predictions.csv", table)
        return EvaluationResult(scores, [_draw(run_dir, split, ranks)], self._remarks())

    def _remarks(self) -> list[str]:
        remarks = []
        if self.options.seeds != "links":
            remarks.append(
                f"Unsupervised: trained on {len(self.seed_links)} pairs of like "
                f"{self.options.seeds}, no gold links."
            )
        if len(self.proposed):
            gold = torch.cat(list(self.graphs.links.values()))
            known = torch.isin(self.proposed[:, 0], gold[:, 0])
            right = _contains(gold, self.proposed[known], self.graphs.num_entities)
            remarks.append(
                f"The model proposed {len(self.proposed)} links and trained on them; of the "
                f"{int(known.sum())} whose left entity has a gold partner, "
                f"{right.float().mean():.1%} are right."
            )
        return remarks

    def splits(self) -> list[str]:
        return known_splits(self.graphs.links)

    def check_splits(self) -> None:
        there = [split for split, links in self.graphs.links.items() if len(links)]
        check_needed_splits(there, f"{self.run.data} (links)")

    def objective(self, scores: dict[str, float]) -> float:
        return objective_of(self.run, scores)

    def sample_ids(self, micro_batches: list[Batch]) -> list[str]:
        index = torch.cat([batch.index[batch.weight > 0] for batch in micro_batches])
        left, right = (self.graphs.ids(side) for side in self.links[index].T)
        return [f"{one} - {other}" for one, other in zip(left, right, strict=True)]

    def waiting_remarks(self, waited: float, seconds: float) -> list[str]:
        return []

    def wait_seconds(self) -> float:
        return 0.0  # everything is on the device

    def skipped(self) -> int:
        return 0  # damage is refused

    def _seed_links(self) -> Tensor:
        """(L, 2) training links, or as many pairs of the two graphs as asked whose view is most
        alike, each entity at most once."""
        view = self.options.seeds
        if view == "links":
            return self.graphs.links["train"]
        graphs = self.graphs if view in self.graphs.views else self._load((view,))
        has_view = graphs.present[view]
        left = ((graphs.side == 0) & has_view).nonzero().squeeze(1)
        right = ((graphs.side == 1) & has_view).nonzero().squeeze(1)
        features = graphs.views[view]
        pairs = greedy_pairs(unit(features[left]), unit(features[right]), self.options.num_seeds)
        return torch.stack([left[pairs[:, 0]], right[pairs[:, 1]]], 1)

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
                    f"the saved position belongs to another {key} ({state[key]!r}, not "
                    f"{now[key]!r})"
                )
        self._position = self._following = tuple(state["position"])
        self._begun = state["begun"]
        self.proposed = self._read_links(state["proposed"])
        saved = state["candidates"]
        self.candidates = None if saved is None else self._read_links(saved)

    def _read_links(self, links: list[list[int]]) -> Tensor:
        return torch.tensor(links, dtype=torch.int64, device=self.device).reshape(-1, 2)


def _ranked_names(csls: int) -> list[str]:
    """Names of the scores of aligned pairs: plain, and with CSLS where it is asked for."""
    plain = _directed_names("")
    return plain + _directed_names("csls/") if csls else plain


def _directed_names(prefix: str) -> list[str]:
    return [f"{prefix}{direction}{name}" for direction in DIRECTIONS for name in SUMMARY]


def _contains(pairs: Tensor, asked: Tensor, num_entities: int) -> Tensor:
    """(M,) bool: which of the (M, 2) asked pairs are among ``pairs``."""
    asked_keys = asked[:, 0] * num_entities + asked[:, 1]
    keys = pairs[:, 0] * num_entities + pairs[:, 1]
    return torch.isin(asked_keys, keys)


def _draw(run_dir: Path, split: str, ranks: tuple[np.ndarray, np.ndarray]) -> tuple[str, str]:
    drawing, axes = figure(6, 3.8)
    names = ("left to right", "right to left")
    for directed, name, color in zip(ranks, names, COLORS[:2], strict=True):
        share = np.arange(1, len(directed) + 1) / len(directed)
        axes.plot(np.sort(directed), share, label=name, color=color)
    axes.set(
        xscale="log",
        ylim=(0, 1),
        xlabel="k",
        ylabel="Hits@k",
        title=f"Rank of the right partner ({split})",
    )
    axes.legend(frameon=False)
    caption = f"Share of {split} links whose partner is among the k most similar candidates."
    return caption, save(drawing, run_dir / "ranks.png")
