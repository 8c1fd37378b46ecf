"""What a data set of two knowledge graphs holds, found by reading all of it; and what its links
share between splits."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from core.command import Refused
from data_shards.graph import GRAPH_SPLIT, check_graph_fields
from data_shards.graph_rules import graph_problems, in_several_links
from data_shards.reading.reader import Reader
from data_shards.reading.storage import open_manifest, open_store
from data_shards.shards.manifest import MANIFEST, DataError, Manifest

Pair = tuple[int, int]


@dataclass
class GraphContents:
    """What was found. Entities go by their number in the shards, which is -1 in ``sides`` where
    their shard is corrupt."""

    name: str  # folder or URL
    manifest: Manifest
    sides: np.ndarray  # (N,) 0 left graph, 1 right graph
    ids: list[str]  # the id that the source gave to each entity
    present: dict[str, np.ndarray]  # view -> (N,) bool
    has_image: Counter[int] = field(default_factory=Counter)  # side -> entities said to have one
    triples: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    links: dict[str, np.ndarray] = field(default_factory=dict)  # split -> (L, 2)
    corrupt: list[str] = field(default_factory=list)  # what is wrong with each corrupt shard
    unfit: list[str] = field(default_factory=list)  # what training would refuse

    def splits_of_pairs(self) -> dict[Pair, list[str]]:
        """Two entities -> the splits with a link between them, once for each link; whichever of
        the two comes first."""
        splits: dict[Pair, list[str]] = {}
        for split, rows in self.links.items():
            for first, second in np.sort(rows, axis=1).tolist():
                splits.setdefault((first, second), []).append(split)
        return splits

    def splits_of_shared_entities(self) -> dict[int, list[str]]:
        """Entity in several links -> their splits, once for each link."""
        if not self.links:
            return {}
        shared = in_several_links(np.concatenate(list(self.links.values())))
        splits: dict[int, list[str]] = {int(entity): [] for entity in shared}
        for split, rows in self.links.items():
            for entity in rows[np.isin(rows, shared)].tolist():
                splits[entity].append(split)
        return splits


def examine_graphs(source: str | Path, progress: bool = False) -> GraphContents:
    """Read all shards of a folder or URL of graphs. Corrupt ones are listed and left out."""
    store = open_store(source)
    where = f"{store.name}/{MANIFEST}"
    manifest, _ = open_manifest(store)
    check_graph_fields(manifest, where)
    size = manifest.samples("entities")
    views = [name for name in manifest.fields if name not in ("side", *GRAPH_SPLIT)]
    contents = GraphContents(
        store.name,
        manifest,
        sides=np.full(size, -1),
        ids=[""] * size,
        present={view: np.zeros(size, bool) for view in views},
    )
    with tqdm(total=size + 1, unit="sample", disable=not progress, leave=False) as bar:
        for split, add in (("entities", _add_entities), ("graph", _add_graph)):
            shards = manifest.splits[split]
            reader = Reader(store, shards, manifest.fields, keep=1, threads=0)
            for number, shard in enumerate(shards):
                try:
                    add(contents, reader, number)
                except Refused as error:
                    contents.corrupt.append(str(error))
                bar.update(shard.samples)
            reader.close()
    if not contents.corrupt:
        where = f"{store.name}/{manifest.splits['graph'][0].name}"
        contents.unfit = graph_problems(where, contents.sides, contents.triples, contents.links)
    return contents


def _add_entities(contents: GraphContents, reader: Reader, number: int) -> None:
    first = int(reader.starts[number])
    rows = range(len(reader.shard(number).index))
    for row, arrays in enumerate(reader.iter_views(number, rows)):
        entity = first + row
        record = reader.record(number, row)
        side = int(arrays["side"]) if "side" in arrays else -1
        contents.sides[entity] = side
        contents.ids[entity] = str(record["id"])
        contents.has_image[side] += record.get("has_image") is True
        for view, present in contents.present.items():
            present[entity] = view in arrays


def _add_graph(contents: GraphContents, reader: Reader, number: int) -> None:
    arrays = reader.views(number, 0)
    missing = [name for name in GRAPH_SPLIT if name not in arrays]
    if missing:
        shard = reader.shards[number].name
        raise DataError(f"{contents.name}/{shard}: the graph has no {' and no '.join(missing)}")
    contents.triples = arrays["triples"].astype(np.int64)
    for name in GRAPH_SPLIT[1:]:
        contents.links[name.removeprefix("links_")] = arrays[name].astype(np.int64)
