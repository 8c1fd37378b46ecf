"""Entity shards as the tensors that alignment models take: edges, views with their presence, links by split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from core.batch import EntityGraph
from core.encoders.graph_networks import symmetric_edges
from core.model import DataSpec
from data_shards.shards.manifest import DataError, Field, Manifest
from data_shards.stream import Stream

GRAPH = ("side", "triples", "links_train", "links_valid", "links_test")  # fields that are no view
UNIT_ROWS = (
    "image",
    "words",
    "chars",
)  # views whose rows are scaled to length one, as both papers' codes do
CHUNK = 4096  # entities read at a time


@dataclass(frozen=True)
class Graphs:
    """Two knowledge graphs in one space of N entities, numbered by their place in the shards."""

    manifest: Manifest
    side: Tensor  # (N,) int64, 0 for the left graph, 1 for the right one
    edges: Tensor  # (2, E) int64, sorted, symmetric, with self-loops
    views: dict[str, Tensor]  # view -> (N, D) float32
    present: dict[str, Tensor]  # view -> (N,) bool
    links: dict[str, Tensor]  # split -> (L, 2) int64
    entities: Stream  # for the names of entities

    @property
    def num_entities(self) -> int:
        return len(self.side)

    def spec(self) -> DataSpec:
        """What a model must know of these graphs."""
        return DataSpec(
            task="alignment",
            features={view: rows.shape[1] for view, rows in self.views.items()},
            num_train=self.num_entities,
        )

    def batch(self, index: Tensor, links: Tensor, weight: Tensor, loss_scale: float) -> EntityGraph:
        """The graphs with (B, 2) ``links`` as the samples."""
        return EntityGraph(
            index,
            weight,
            loss_scale,
            links=links,
            edges=self.edges,
            views=self.views,
            present=self.present,
        )

    def ids(self, entities: Tensor) -> list[str]:
        """The ids that the source gave to these entities."""
        return self.entities.ids(entities.cpu())


def load_graphs(
    source: str | Path,
    views: Sequence[str] = (),
    *,
    cache: Path | None = None,
    cache_gb: float = 50.0,
    device: torch.device | str = "cpu",
) -> Graphs:
    """Read a shard folder or URL.

    Args:
        views: which to read; all by default. "graph" needs no reading and is ignored.

    Raises:
        DataError: the shards hold no graphs, or lack a wanted view.
    """

    def stream(split: str, fields: Sequence[str], batch: int) -> Stream:
        return Stream(
            source,
            split,
            global_batch=batch,
            shuffle=False,
            prefetch=0,
            fields=fields,
            cache=cache,
            cache_gb=cache_gb,
        )

    manifest = stream_manifest(source, cache, cache_gb)
    known = {name: kind for name, kind in manifest.fields.items() if name not in GRAPH}
    wanted = [view for view in views if view != "graph"]
    if unknown := [view for view in wanted if view not in known]:
        raise DataError(f"{source} has no view {unknown[0]!r}; it has graph, {', '.join(known)}")
    chosen = {view: kind for view, kind in known.items() if view in wanted or not views}
    reading = stream("entities", ("side", *chosen), CHUNK)
    side, rows, present = _entities(reading, chosen)
    (part,) = next(iter(stream("graph", GRAPH[1:], 1).epoch(0)))
    triples = part.arrays["triples"][0].long()  # (T, 3)
    return Graphs(
        manifest=manifest,
        side=side.to(device),
        edges=symmetric_edges(triples[:, 0], triples[:, 2], len(side)).to(device),
        views={view: table.to(device) for view, table in rows.items()},
        present={view: mask.to(device) for view, mask in present.items()},
        links={
            name.removeprefix("links_"): part.arrays[name][0].long().to(device)
            for name in GRAPH[2:]
        },
        entities=reading,
    )


def stream_manifest(source: str | Path, cache: Path | None, cache_gb: float) -> Manifest:
    """The manifest of a folder or URL that must hold graphs."""
    manifest = Stream(
        source, "entities", global_batch=1, prefetch=0, fields=(), cache=cache, cache_gb=cache_gb
    ).manifest
    if manifest.task != "alignment":
        raise DataError(
            f"{source} holds {manifest.task} data; convert an alignment folder (docs/data.md)"
        )
    return manifest


def _entities(
    stream: Stream, views: dict[str, Field]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Sides, rows and presence of all entities; every table is filled in place, so memory holds it once."""
    size = len(stream)
    side = torch.empty(size, dtype=torch.int64)
    rows = {view: torch.empty(size, int(kind.shape[0] or 0)) for view, kind in views.items()}
    present = {view: torch.empty(size, dtype=torch.bool) for view in views}
    for (part,) in stream.epoch(0):
        side[part.index] = part.arrays["side"].long()
        for view in views:
            chunk = part.arrays[view]
            # an absent row comes as nan, or as -1 in integers, which count things and so are never negative
            absent = chunk[:, 0].isnan() if chunk.is_floating_point() else chunk[:, 0] < 0
            values = chunk.float().masked_fill(absent.unsqueeze(1), 0.0)
            rows[view][part.index] = F.normalize(values, dim=1) if view in UNIT_ROWS else values
            present[view][part.index] = ~absent
    return side, rows, present
