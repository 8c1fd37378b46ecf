"""What ``inspect`` says of two knowledge graphs: entities, relations, links by split, views, and
what the splits share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from data_shards.reading.graph_contents import GraphContents
from data_shards.reading.report_lines import (
    SHOWN,
    checksum_lines,
    joined,
    repair_lines,
    text_table,
)

NAMES = ("left", "right")


def render_graphs(contents: GraphContents) -> str:
    """The contents as text."""
    manifest = contents.manifest
    lines = [f"{manifest.name} ({manifest.task}), in {contents.name}"]
    if "file" in manifest.source:
        files = len(manifest.source.get("files", {}))
        lines.append(f"made from {manifest.source['file']}, {files} files with their sha256")
    lines += ["", *_graph_lines(contents), ""]
    lines += [*_link_lines(contents), ""]
    lines += [*_view_lines(contents), ""]
    lines += repair_lines(manifest)
    lines += [f"UNFIT: {problem}" for problem in contents.unfit]
    lines += _leakage(contents)
    lines += checksum_lines(manifest, contents.corrupt)
    return "\n".join(lines)


def _graph_lines(contents: GraphContents) -> list[str]:
    linked = np.zeros(len(contents.sides), bool)
    for links in contents.links.values():
        linked[_within(links, len(linked))] = True
    heads = contents.triples[:, 0]
    known = (heads >= 0) & (heads < len(contents.sides))
    triples = contents.triples[known]
    rows: list[tuple[str, ...]] = [
        ("graph", "entities", "relations", "triples", "in links", "said to have an image")
    ]
    for side, name in enumerate(NAMES):
        is_here = contents.sides == side
        relations = triples[is_here[triples[:, 0]], 1]
        counts = (
            is_here.sum(),
            len(np.unique(relations)),
            len(relations),
            (linked & is_here).sum(),
            contents.has_image[side] or "-",
        )
        rows.append((name, *map(str, counts)))
    return text_table(rows)


def _within(rows: np.ndarray, size: int) -> np.ndarray:
    """The numbers of a table that are entities'."""
    return rows[(rows >= 0) & (rows < size)]


def _link_lines(contents: GraphContents) -> list[str]:
    total = sum(len(rows) for rows in contents.links.values())
    rows = [("links", "pairs", "share")]
    for split, links in contents.links.items():
        rows.append((split, str(len(links)), f"{len(links) / max(total, 1):.1%}"))
    return text_table(rows)


def _view_lines(contents: GraphContents) -> list[str]:
    rows = [("view", "type", "width", "graph", "there", "missing")]
    for view, present in contents.present.items():
        field = contents.manifest.fields[view]
        for side, name in enumerate(NAMES):
            is_here = contents.sides == side
            there = int((present & is_here).sum())
            missing = int(is_here.sum()) - there
            rows.append((view, field.dtype, str(field.shape[0]), name, str(there), str(missing)))
    return text_table(rows)


def _leakage(contents: GraphContents) -> list[str]:
    lines = []
    pairs = contents.splits_of_pairs()
    leaked = {pair: splits for pair, splits in pairs.items() if len(set(splits)) > 1}
    if leaked:
        shown = _examples({_pair_name(contents, pair): splits for pair, splits in leaked.items()})
        lines.append(f"LEAKAGE: {len(leaked)} links are in more than one split: {shown}")
    repeated = {
        pair: splits for pair, splits in pairs.items() if len(splits) > 1 and pair not in leaked
    }
    if repeated:
        shown = _examples({_pair_name(contents, pair): splits for pair, splits in repeated.items()})
        lines.append(f"WARNING: {len(repeated)} links are in their split twice: {shown}")
    shared = contents.splits_of_shared_entities()
    if shared:
        names = {_entity_name(contents, entity): splits for entity, splits in shared.items()}
        crossing = {name: splits for name, splits in names.items() if len(set(splits)) > 1}
        lines.append(
            f"{'LEAKAGE' if crossing else 'WARNING'}: {len(names)} entities are in more than one "
            f"link, {len(crossing)} of them in links of different splits: "
            f"{_examples(crossing | names)}"
        )
    return lines or ["leakage: none; no link is in two splits, and no entity in two links"]


def _pair_name(contents: GraphContents, pair: Sequence[int]) -> str:
    return " = ".join(_entity_name(contents, entity) for entity in pair)


def _entity_name(contents: GraphContents, entity: int) -> str:
    """The id that the source gave; a number that is no entity's stays as it is."""
    if 0 <= entity < len(contents.ids):
        return contents.ids[entity]
    return f"number {entity}"


def _examples(splits_of: Mapping[str, Sequence[str]]) -> str:
    shown = []
    for name, splits in list(splits_of.items())[:SHOWN]:
        shown.append(f"{name} in {' and '.join(splits)}")
    return joined(shown, len(splits_of))
