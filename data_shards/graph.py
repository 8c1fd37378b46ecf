"""Entity shards as the tensors that alignment models take: edges, views with their presence, links
by split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.batch import EntityGraph
from core.encoders.graph_networks import symmetric_edges
from core.model import DataSpec
from data_shards.graph_rules import graph_problems
from data_shards.reading.sampler import locate
from data_shards.shards.manifest import MANIFEST, DataError, Field, Manifest
from data_shards.shards.shard_table import byte_counts
from data_shards.stream import Stream

# The fields that are no view. A folder that has them otherwise was not made by ``convert``.
GRAPH = {
    "side": Field("int8", ()),
    "triples": Field("int32", (None, 3)),  # head, relation, tail
    "links_train": Field("int32", (None, 2)),
    "links_valid": Field("int32", (None, 2)),
    "links_test": Field("int32", (None, 2)),
}
GRAPH_SPLIT = tuple(GRAPH)[1:]  # the fields of the split "graph"
# Views whose rows are scaled to length one, as both papers' codes do.
UNIT_ROWS = ("image", "words", "chars")
CHUNK = 4096  # entities read at a time


@dataclass(frozen=True)
class Graphs:
    """Two knowledge graphs in one space of N entities, numbered as they lie in the shards."""

    manifest: Manifest
    side: Tensor  # (N,) int64, 0 for the left graph, 1 for the right one
    edges: Tensor  # (2, E) int64, sorted, symmetric, with self-loops
    views: dict[str, Tensor]  # view -> (N, D) float32
    present: dict[str, Tensor]  # view -> (N,) bool
    links: dict[str, Tensor]  # split -> (L, 2) int64
    entities: Stream  # for the names of entities
    triples: Tensor  # (T, 3) int64 head, relation, tail, sorted by head

    @property
    def num_entities(self) -> int:
        return len(self.side)

    def spec(self) -> DataSpec:
        """What a model must know of these graphs."""
        return DataSpec(
            task="alignment",
            features={view: rows.shape[1] for view, rows in self.views.items()},
            num_train=self.num_entities,
            num_relations=int(self.triples[:, 1].max()) + 1,
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
            triples=self.triples,
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
        DataError: the shards hold no graphs, or some that cannot be learnt from
            (``graph_rules``), or lack a wanted view.
    """
    manifest = graph_manifest(source, cache, cache_gb)
    fields = _view_fields(manifest, views, source)
    in_order = partial(Stream, source, shuffle=False, prefetch=0, cache=cache, cache_gb=cache_gb)
    entities = in_order("entities", global_batch=CHUNK, fields=("side", *fields))
    side, rows, present = _read_entities(entities, fields)
    graph = in_order("graph", global_batch=1, fields=GRAPH_SPLIT)
    (record,) = next(iter(graph.epoch(0)))
    triples = record.arrays["triples"][0].long()  # (T, 3): head, relation, tail
    heads, tails = triples[:, 0], triples[:, 2]
    links = {}
    for name in GRAPH_SPLIT[1:]:
        links[name.removeprefix("links_")] = record.arrays[name][0].long()
    rows_by_split = {split: rows.numpy() for split, rows in links.items()}
    where = f"{source}/{manifest.splits['graph'][0].name}"
    problems = graph_problems(where, side.numpy(), triples.numpy(), rows_by_split)
    if problems:
        raise DataError(f"{problems[0]}; convert the data again")
    return Graphs(
        manifest=manifest,
        side=side.to(device),
        edges=symmetric_edges(heads, tails, len(side)).to(device),
        views={view: table.to(device) for view, table in rows.items()},
        present={view: mask.to(device) for view, mask in present.items()},
        links={split: rows.to(device) for split, rows in links.items()},
        entities=entities,
        triples=triples[heads.argsort(stable=True)].to(device),
    )


def graph_manifest(source: str | Path, cache: Path | None, cache_gb: float) -> Manifest:
    """The manifest of a folder or URL that must hold graphs."""
    stream = Stream(
        source, "entities", global_batch=1, prefetch=0, fields=(), cache=cache, cache_gb=cache_gb
    )
    check_graph_fields(stream.manifest, f"{stream.store.name}/{MANIFEST}")
    return stream.manifest


def check_graph_fields(manifest: Manifest, where: str) -> None:
    """DataError unless the manifest is of two graphs: one record of them, sides, triples, links,
    and views that are vectors.

    Args:
        where: the manifest, for the message.
    """
    if manifest.task != "alignment":
        raise DataError(
            f"{where} holds {manifest.task} data; convert an alignment folder (docs/data.md)"
        )
    if set(manifest.splits) != {"entities", "graph"} or manifest.samples("graph") != 1:
        found = ", ".join(f"{manifest.samples(split)} {split}" for split in manifest.splits)
        raise DataError(
            f"{where} holds {found or 'nothing'}; expected entities, and 1 graph; convert the data "
            "again"
        )
    for name, expected in GRAPH.items():
        found_field = manifest.fields.get(name)
        if found_field != expected:
            raise DataError(
                f"{where}: field {name!r} is {found_field}; expected {expected}; convert the data "
                "again"
            )
    stored = int(byte_counts(manifest.splits["entities"]).sum())
    for name, view in manifest.fields.items():
        if name in GRAPH:
            continue
        if len(view.shape) != 1 or not view.shape[0]:
            raise DataError(
                f"{where}: view {name!r} has shape {view.shape}; a view is a vector of a fixed "
                "width; convert the data again"
            )
        # some entity has it, and memory is taken for all of them before the first one is read
        if view.shape[0] * np.dtype(view.dtype).itemsize > stored:
            raise DataError(
                f"{where}: view {name!r} has {view.shape[0]} numbers a row, more than the "
                f"{stored} bytes of all entities hold; convert the data again"
            )


def _view_fields(manifest: Manifest, views: Sequence[str], source: str | Path) -> dict[str, Field]:
    """The fields of the wanted views, in the order of the manifest; of all views by default."""
    known = {name: field for name, field in manifest.fields.items() if name not in GRAPH}
    wanted = [view for view in views if view != "graph"]
    for view in wanted:
        if view not in known:
            raise DataError(f"{source} has no view {view!r}; it has graph, {', '.join(known)}")
    if not views:
        return known
    return {view: field for view, field in known.items() if view in wanted}


def _read_entities(
    stream: Stream, views: dict[str, Field]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Sides (N,), rows (N, D) and presence (N,) of all entities, the last two by view.

    Every table is filled in place, so memory holds it once.
    """
    size = len(stream)
    side = torch.empty(size, dtype=torch.int64)
    rows = {}
    present = {}
    for view, field in views.items():
        rows[view] = torch.empty(size, int(field.shape[0] or 0))
        present[view] = torch.empty(size, dtype=torch.bool)
    for (chunk,) in stream.epoch(0):
        side[chunk.index] = chunk.arrays["side"].long()
        for view in views:
            values, is_present = _view_rows(chunk.arrays[view])
            is_finite = values.isfinite().all(1)
            if not is_finite.all():
                wrong = locate(stream.reader.starts, chunk.index[~is_finite].numpy())
                place = stream.reader.place(int(wrong.shard[0]), int(wrong.row[0]))
                raise DataError(f"{place}: the view {view!r} is not finite; convert the data again")
            if view in UNIT_ROWS:
                values = F.normalize(values, dim=1)
            rows[view][chunk.index] = values
            present[view][chunk.index] = is_present
    return side, rows, present


def _view_rows(array: Tensor) -> tuple[Tensor, Tensor]:
    """(B, D) float32 rows of one view, zero where an entity lacks it, and (B,) whether it has
    it."""
    # An absent row comes as nan, or as -1 in integers, which count things and so are never
    # negative.
    if array.is_floating_point():
        is_absent = array[:, 0].isnan()
    else:
        is_absent = array[:, 0] < 0
    return array.float().masked_fill(is_absent.unsqueeze(1), 0.0), ~is_absent
