"""OpenEA's layout of two graphs (Sun et al., VLDB 2020, arXiv:2003.07743): entities, relations and
attributes by their names.

Tab-separated UTF-8 files: ``rel_triples_1/2`` (head, relation, tail), ``attr_triples_1/2`` (entity,
attribute, value), ``ent_links`` (left, right), and folds of the links such as ``721_5fold/1`` with
``train_links``, ``valid_links`` and ``test_links``. Names become ids: entities of the left graph
first, each graph's in the order of their names.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from data_shards.graph_rules import Listing, check_links, check_triples
from data_shards.shards.manifest import DataError
from data_shards.sources.graphs.graph_files import SIDES, Entity, EntityTable, has_both, read_lines

RELATIONS, ATTRIBUTES, LINKS = "rel_triples", "attr_triples", "ent_links"
FOLDS = "721_5fold"
SPLITS = ("train", "valid", "test")


def is_openea_folder(raw: Path) -> bool:
    """Whether a folder has files of this layout."""
    return any(os.path.lexists(raw / f"{RELATIONS}_{digit}") for digit in SIDES)


class Names:
    """Ids of entities by side and name."""

    def __init__(self, raw: Path):
        self.raw = raw
        self.id_of: list[dict[str, int]] = []
        start = 0
        for side in range(len(SIDES)):
            names = sorted(_names_of(raw, side))
            if not names:
                raise DataError(
                    f"{raw / RELATIONS}_{SIDES[side]} holds no triples; both graphs need some"
                )
            self.id_of.append({name: start + number for number, name in enumerate(names)})
            start += len(names)

    def id(self, side: int, name: str, where: str) -> int:
        """DataError for a name that no file of this graph has as an entity."""
        found = self.id_of[side].get(name)
        if found is None:
            raise DataError(
                f"{where}: {name[:80]!r} is no entity of graph {SIDES[side]}, neither in "
                f"{RELATIONS}_{SIDES[side]} nor in {LINKS}"
            )
        return found

    def table(self, seed: int) -> EntityTable:
        """All entities, in an order that only the seed decides."""
        entities = []
        for side, ids in enumerate(self.id_of):
            entities += [Entity(number, side, name) for name, number in ids.items()]
        order = np.random.RandomState(seed).permutation(len(entities))
        return EntityTable([entities[place] for place in order.tolist()])


def _names_of(raw: Path, side: int) -> set[str]:
    """Of the ends of a graph's triples, and of links: an entity may have no triple at all."""
    names = set()
    for _, (head, _, tail) in read_lines(raw / f"{RELATIONS}_{SIDES[side]}", 3):
        names |= {head, tail}
    for _, link in read_lines(raw / LINKS, 2):
        names.add(link[side])
    return names


def read_triples(raw: Path, names: Names, table: EntityTable, noted: list[str]) -> np.ndarray:
    """(T, 3) int32 head, relation, tail of both graphs: entities by row, relations numbered by
    their names. A relation of one name in both graphs is one."""
    named = []
    for side, digit in enumerate(SIDES):
        path = raw / f"{RELATIONS}_{digit}"
        for number, (head, relation, tail) in read_lines(path, 3):
            where = f"{path}, line {number}"
            ends = names.id(side, head, where), names.id(side, tail, where)
            named.append((ends[0], relation, ends[1]))
    relations = {name: number for number, name in enumerate(sorted({part[1] for part in named}))}
    triples = np.array([(head, relations[name], tail) for head, name, tail in named], np.int64)
    check_triples(Listing(str(raw / RELATIONS), triples), table.known)
    repeated = len(triples) - len(np.unique(triples, axis=0))
    if repeated:
        noted.append(f"{repeated} triples repeat another one, and count as often as they are there")
    rows = table.rows(triples[:, [0, 2]])
    return np.stack([rows[:, 0], triples[:, 1], rows[:, 1]], axis=1).astype("<i4")


def read_links(raw: Path, names: Names, table: EntityTable, fold: int) -> dict[str, np.ndarray]:
    """Split -> (L, 2) links by id, of a fold.

    Raises:
        DataError: there is no such fold, or its links are not those of ``ent_links``.
    """
    everything = _listed(raw / LINKS, names)
    check_links(everything, table.known)
    folder = raw / FOLDS / str(fold)
    if not folder.is_dir():
        there = sorted(path.name for path in (raw / FOLDS).glob("*") if path.is_dir())
        raise DataError(
            f"{folder} is missing; --fold names one of {', '.join(there) or '(none)'} in "
            f"{raw / FOLDS}"
        )
    known = set(map(tuple, everything.rows.tolist()))
    links: dict[str, np.ndarray] = {}
    where_of: dict[tuple[int, ...], str] = {}
    for split in SPLITS:
        listing = _listed(folder / f"{split}_links", names)
        check_links(listing, table.known)
        for row, link in enumerate(map(tuple, listing.rows.tolist())):
            if link not in known:
                raise DataError(f"{listing.where(row)}: this link is not in {raw / LINKS}")
            if link in where_of:
                raise DataError(f"{listing.where(row)}: this link is in {where_of[link]}, too")
            where_of[link] = listing.source
        links[split] = listing.rows
        if not len(listing.rows):
            raise DataError(f"{listing.source} holds no links; every split needs some")
    return links


def _listed(path: Path, names: Names) -> Listing:
    """A file of links by name as ids."""
    rows, lines = [], []
    for number, link in read_lines(path, 2):
        where = f"{path}, line {number}"
        rows.append([names.id(side, name, where) for side, name in enumerate(link)])
        lines.append(number)
    return Listing(str(path), np.array(rows, np.int64).reshape(-1, 2), np.array(lines, np.int64))


def read_attributes(raw: Path, names: Names, table: EntityTable) -> dict[int, list[str]] | None:
    """Row -> names of the entity's attributes, one for each triple; None where the folder has no
    such files. An entity that has attributes alone is none of the graph, and left out."""
    if not has_both(raw, ATTRIBUTES):
        return None
    attributes: dict[int, list[str]] = {}
    for side, digit in enumerate(SIDES):
        for _, cells in read_lines(raw / f"{ATTRIBUTES}_{digit}", None):
            found = names.id_of[side].get(cells[0])
            if found is not None and len(cells) > 1:
                attributes.setdefault(table.row_of[found], []).append(cells[1])
    return attributes
