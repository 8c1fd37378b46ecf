"""What triples and links must be, in an alignment folder and in the shards made from one.

The one check of both doors: conversion asks it of the files, by line, and training and ``inspect``
of the shards, by row. Scores of links that training has seen, or of links that join the wrong
things, look like any other scores, so nobody would notice later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from data_shards.shards.manifest import DataError

GRAPHS = ("the left graph (ent_ids_1)", "the right graph (ent_ids_2)")
UNKNOWN = -1  # the side of what is no entity


@dataclass(frozen=True)
class Entities:
    """Which ids there are, at least one, and of which graph each is."""

    ids: np.ndarray  # (N,) int64, ascending
    sides: np.ndarray  # (N,) 0 for the left graph, 1 for the right one

    def sides_of(self, ids: np.ndarray) -> np.ndarray:
        """The side of each id, in the shape of ``ids``; UNKNOWN for one that no entity has."""
        places = np.searchsorted(self.ids, ids).clip(max=len(self.ids) - 1)
        return np.where(self.ids[places] == ids, self.sides[places], UNKNOWN)


@dataclass(frozen=True)
class Listing:
    """Rows of whole numbers, and where each of them stands."""

    source: str  # a file, or a folder and its field
    rows: np.ndarray  # (M, C) int64
    lines: np.ndarray | None = None  # (M,) of the file; None: rows are counted from 0

    def where(self, row: int) -> str:
        """The file and line of a row."""
        if self.lines is None:
            return f"{self.source}, row {row}"
        return f"{self.source}, line {self.lines[row]}"


def check_triples(triples: Listing, entities: Entities, side: int | None = None) -> None:
    """DataError unless relations are numbered from 0 and both ends are entities of one graph: of
    ``side``, where it is given."""
    ends = triples.rows[:, [0, 2]]
    sides = entities.sides_of(ends)
    _refuse_unknown(triples, ends, sides)
    relations = triples.rows[:, 1]
    negative = _first(relations < 0)
    if negative is not None:
        raise DataError(
            f"{triples.where(negative)}: relation {relations[negative]} is below 0; "
            "number the relations from 0"
        )
    expected = sides[:, :1] if side is None else np.full((len(sides), 1), side)
    strays = sides != expected
    stray = _first(strays.any(1))
    if stray is not None:
        column = int(strays[stray].argmax())
        graph, other = GRAPHS[int(sides[stray, column])], GRAPHS[int(expected[stray, 0])]
        raise DataError(
            f"{triples.where(stray)}: entity {ends[stray, column]} is of {graph}, and this triple "
            f"is of {other}; a triple stays within one graph"
        )


def check_links(links: Listing, entities: Entities) -> None:
    """DataError unless every link is (left entity, right entity) and stands there once."""
    sides = entities.sides_of(links.rows)
    _refuse_unknown(links, links.rows, sides)
    is_wrong = sides != np.array([0, 1])
    wrong = _first(is_wrong.any(1))
    if wrong is not None:
        column = int(is_wrong[wrong].argmax())
        advice = "a link is an entity of ent_ids_1, then one of ent_ids_2"
        if is_wrong.all():
            advice = "every link here is (right, left); swap the two columns"
        raise DataError(
            f"{links.where(wrong)}: entity {links.rows[wrong, column]} is of "
            f"{GRAPHS[int(sides[wrong, column])]}; {advice}"
        )
    known: dict[tuple[int, int], int] = {}
    for row, (left, right) in enumerate(links.rows.tolist()):
        first = known.setdefault((left, right), row)
        if first != row:
            raise DataError(
                f"{links.where(row)}: link {left}, {right} is in {_place(links, first)} already; "
                "remove one of them"
            )


def check_apart(splits: Mapping[str, Listing]) -> None:
    """DataError if a link is in two splits."""
    found: dict[tuple[int, int], str] = {}
    for links in splits.values():
        for row, (left, right) in enumerate(links.rows.tolist()):
            place = found.setdefault((left, right), links.source)
            if place != links.source:
                raise DataError(
                    f"{links.where(row)}: link {left}, {right} is in {place}, too; "
                    "a link belongs to one split"
                )


def in_several_links(links: np.ndarray) -> np.ndarray:
    """The ids that are in more than one of (L, 2) links, ascending.

    Allowed, because published data have them: FB15K-DB15K links four entities twice.
    """
    ids, counts = np.unique(links, return_counts=True)
    return ids[counts > 1]


def _tables(
    triples: np.ndarray, links: Mapping[str, np.ndarray]
) -> list[tuple[str, np.ndarray, int]]:
    """Name, rows and number of columns of what the graph holds."""
    tables = [(f"links_{split}", rows, 2) for split, rows in links.items()]
    return [("triples", triples, 3), *tables]


def graph_problems(
    where: str, sides: np.ndarray, triples: np.ndarray, links: Mapping[str, np.ndarray]
) -> list[str]:
    """What is wrong with the graphs of a shard folder, one line each; entities by their number.

    Args:
        sides: (N,) of the entities.
        triples: (T, 3) head, relation, tail.
        links: split -> (L, 2).
    """
    if not len(sides):
        return [f"{where} holds no entities"]
    if sides.ndim != 1:
        return [f"{where}: the entities' side has shape {sides.shape}, not (N,)"]
    for name, rows, columns in _tables(triples, links):
        if rows.ndim != 2 or rows.shape[1] != columns:
            return [f"{where}: {name} has shape {rows.shape}, not (rows, {columns})"]
    stray = _first((sides != 0) & (sides != 1))
    if stray is not None:
        return [f"{where}: entity {stray} has side {sides[stray]}, not 0 (left) or 1 (right)"]
    entities = Entities(np.arange(len(sides)), sides)
    listings = {
        split: Listing(f"{where}, links_{split}", rows.astype(np.int64))
        for split, rows in links.items()
    }
    checks: list[Callable[[], None]] = [
        partial(check_triples, Listing(f"{where}, triples", triples.astype(np.int64)), entities)
    ]
    checks += [partial(check_links, listing, entities) for listing in listings.values()]
    checks.append(partial(check_apart, listings))
    found = []
    for check in checks:
        try:
            check()
        except DataError as error:
            found.append(str(error))
    return found


def _refuse_unknown(listing: Listing, ids: np.ndarray, sides: np.ndarray) -> None:
    is_unknown = sides == UNKNOWN
    row = _first(is_unknown.any(1))
    if row is not None:
        entity = ids[row, int(is_unknown[row].argmax())]
        raise DataError(
            f"{listing.where(row)}: entity {entity} is in neither ent_ids_1 nor ent_ids_2"
        )


def _first(is_so: np.ndarray) -> int | None:
    """The first place where it is so, of (M,) bool."""
    return int(is_so.argmax()) if is_so.any() else None


def _place(listing: Listing, row: int) -> str:
    """A row of the same listing, without its name."""
    return listing.where(row).removeprefix(f"{listing.source}, ")
