"""The files of an alignment folder, parsed and checked line by line: tab-separated UTF-8, ids
shared by both graphs.

Entities are numbered 0 ... N-1 here ("rows"), in an order drawn by a seed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from io import TextIOWrapper
from pathlib import Path

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from core.regular_files import open_regular_file, read_regular_text
from data_shards.graph_rules import GRAPHS, Entities, Listing, check_triples
from data_shards.shards.manifest import DataError
from data_shards.sources.entity_views import number_of

SIDES = ("1", "2")  # how file names end, for the left and the right graph
NAMES = ("translated_ent_name.json", "translated_ent_name/dbp_*.json")
MOST_DIGITS = 18  # of an id, so that it fits into 64 bits
SHOWN = 80  # characters of a value that a message quotes


@dataclass(frozen=True)
class Entity:
    """An entity as its folder names it."""

    id: int
    side: int  # 0: left graph, 1: right graph
    name: str


@dataclass(frozen=True)
class EntityTable:
    """All entities of a folder, by row; and the one place that knows which ids there are."""

    entities: list[Entity]

    def __len__(self) -> int:
        return len(self.entities)

    @cached_property
    def row_of(self) -> dict[int, int]:
        """Id -> row."""
        return {entity.id: row for row, entity in enumerate(self.entities)}

    @cached_property
    def known(self) -> Entities:
        """The ids and sides, as the rules for triples and links ask for them."""
        ids = sorted(self.row_of)
        sides = [self.entities[self.row_of[entity]].side for entity in ids]
        return Entities(np.array(ids, np.int64), np.array(sides, np.int64))

    def row(self, entity: int, where: str, side: int | None = None) -> int:
        """The row of an id that ``where`` names; DataError unless it is known, and of ``side``."""
        row = self.row_of.get(entity)
        if row is None:
            raise DataError(
                f"{where}: there is no entity {entity!r:.{SHOWN}} in ent_ids_1 or ent_ids_2"
            )
        found = self.entities[row].side
        if side not in (None, found):
            raise DataError(
                f"{where}: entity {entity} is of {GRAPHS[found]}; move it to the other file"
            )
        return row

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """The rows of ids that are known, int64 of the same shape."""
        rows = [self.row_of[entity] for entity in ids.ravel().tolist()]
        return np.array(rows, np.int64).reshape(ids.shape)


def read_lines(path: Path, columns: int | None) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of a tab-separated file; blank lines are skipped, as is a byte order
    mark."""
    if not os.path.lexists(path):
        raise DataError(f"{path} is missing; an alignment folder needs it (docs/data.md)")
    try:
        with TextIOWrapper(open_regular_file(path), encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                cells = line.rstrip("\r\n").split("\t")
                if cells == [""]:
                    continue
                if columns is not None and len(cells) != columns:
                    raise DataError(
                        f"{path}, line {number}: {len(cells)} columns instead of {columns}, "
                        f"divided by tabs: {line[:SHOWN]!r}"
                    )
                yield number, cells
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from None


def whole_number(cell: str, where: str) -> int:
    """The id in a cell."""
    if cell.isascii() and cell.isdigit() and len(cell) <= MOST_DIGITS:
        return int(cell)
    raise DataError(
        f"{where}: {cell[:SHOWN]!r} is no id; ids are whole numbers from 0 of at most "
        f"{MOST_DIGITS} digits"
    )


def read_ids(path: Path, columns: int) -> Listing:
    """A file of nothing but ids."""
    rows, lines = [], []
    for number, cells in read_lines(path, columns):
        where = f"{path}, line {number}"
        rows.append([whole_number(cell, where) for cell in cells])
        lines.append(number)
    return Listing(
        str(path), np.array(rows, np.int64).reshape(-1, columns), np.array(lines, np.int64)
    )


def read_entities(raw: Path, seed: int) -> EntityTable:
    """``ent_ids_1`` and ``ent_ids_2``, in an order that only the seed decides."""
    entities: dict[int, Entity] = {}
    for side, digit in enumerate(SIDES):
        path = raw / f"ent_ids_{digit}"
        before = len(entities)
        for number, (cell, name) in read_lines(path, 2):
            where = f"{path}, line {number}"
            entity = whole_number(cell, where)
            if entity in entities:
                raise DataError(
                    f"{where}: {entity} is the id of {entities[entity].name!r:.{SHOWN}} already; "
                    "both files share one id space"
                )
            entities[entity] = Entity(entity, side, name)
        if len(entities) == before:
            raise DataError(f"{path} names no entities; both graphs need some")
    order = np.random.RandomState(seed).permutation(len(entities))
    ids = sorted(entities)
    return EntityTable([entities[ids[place]] for place in order.tolist()])


def read_triples(raw: Path, table: EntityTable, noted: list[str]) -> np.ndarray:
    """(T, 3) int32 head, relation, tail of both graphs: entities by row, relations numbered anew
    from 0 in the order of their ids."""
    both = []
    for side, digit in enumerate(SIDES):
        triples = read_ids(raw / f"triples_{digit}", 3)
        if not len(triples.rows):
            raise DataError(f"{triples.source} holds no triples; both graphs need some")
        check_triples(triples, table.known, side)
        both.append(triples.rows)
    triples_by_id = np.concatenate(both)
    repeated = len(triples_by_id) - len(np.unique(triples_by_id, axis=0))
    if repeated:
        noted.append(f"{repeated} triples repeat another one, and count as often as they are there")
    _, relations = np.unique(triples_by_id[:, 1], return_inverse=True)
    heads, tails = table.rows(triples_by_id[:, 0]), table.rows(triples_by_id[:, 2])
    return np.stack([heads, relations.reshape(-1), tails], axis=1).astype("<i4")


def has_both(raw: Path, stem: str) -> bool:
    """Whether a folder has ``stem_1`` and ``stem_2``; DataError for one without the other."""
    there = [os.path.lexists(raw / f"{stem}_{digit}") for digit in SIDES]
    if any(there) and not all(there):
        found, missing = SIDES if there[0] else reversed(SIDES)
        raise DataError(
            f"{raw} has {stem}_{found} and no {stem}_{missing}; add it (it may be empty), or "
            "remove the other"
        )
    return all(there)


def read_attributes(raw: Path, table: EntityTable, repairs: Counter[str]) -> dict[int, list[str]]:
    """Row -> attribute names. The files name entities by name; unknown ones are counted."""
    rows_named: dict[tuple[int, str], list[int]] = {}
    for row, entity in enumerate(table.entities):
        rows_named.setdefault((entity.side, entity.name), []).append(row)
    attributes: dict[int, list[str]] = {}
    for side, digit in enumerate(SIDES):
        path = raw / f"training_attrs_{digit}"
        for number, (name, *names) in read_lines(path, None):
            where = f"{path}, line {number}"
            if "" in names:
                raise DataError(f"{where}: attribute {names.index('') + 1} is empty; remove it")
            rows = rows_named.get((side, name), [])
            if len(rows) > 1:
                ids = " and ".join(str(table.entities[row].id) for row in rows[:2])
                raise DataError(
                    f"{where}: {name[:SHOWN]!r} is the name of the entities {ids}; "
                    "give them different names"
                )
            if not rows:
                repairs["attribute rows of unknown entities, left out"] += 1
            else:
                attributes.setdefault(rows[0], []).extend(names)
    return attributes


def read_literals(raw: Path, table: EntityTable, repairs: Counter[str]) -> dict[int, list[float]]:
    """Row -> numbers, of ``numeric_1`` and ``numeric_2``."""
    literals: dict[int, list[float]] = {}
    for side, digit in enumerate(SIDES):
        path = raw / f"numeric_{digit}"
        for number, (cell, _, text) in read_lines(path, 3):
            where = f"{path}, line {number}"
            row = table.row(whole_number(cell, where), where, side)
            value = number_of(text)
            if value is None:
                repairs["numeric literals that are neither number nor date, left out"] += 1
            else:
                literals.setdefault(row, []).append(value)
    return literals


def read_image_flags(raw: Path, table: EntityTable) -> dict[int, bool]:
    """Row -> whether the entity has an image, where the folder says so."""
    if not has_both(raw, "has_image"):
        return {}
    flags = dict.fromkeys(range(len(table)), False)
    for side, digit in enumerate(SIDES):
        path = raw / f"has_image_{digit}"
        for number, (cell,) in read_lines(path, 1):
            where = f"{path}, line {number}"
            row = table.row(whole_number(cell, where), where, side)
            if flags[row]:
                raise DataError(f"{where}: entity {cell} is listed already; remove one of them")
            flags[row] = True
    return flags


@cache
def _names_schema() -> TypeAdapter[list[tuple[int, list[str]]]]:
    return TypeAdapter(list[tuple[int, list[str]]], config=ConfigDict(strict=True))


def read_name_tokens(raw: Path, table: EntityTable) -> dict[int, list[str]] | None:
    """Row -> the tokens of the entity's translated name; None where the folder has no such file."""
    path = first_file(raw, NAMES)
    if path is None:
        return None
    try:
        named = _names_schema().validate_json(read_regular_text(path))
    except ValidationError as error:
        raise DataError(f"{path}{_first_problem(error)}") from None
    tokens: dict[int, list[str]] = {}
    for number, (entity, words) in enumerate(named, 1):
        where = f"{path}, entry {number}"
        row = table.row(entity, where)
        if row in tokens:
            raise DataError(f"{where}: entity {entity} is named already; remove one of them")
        tokens[row] = words
    return tokens


def _first_problem(error: ValidationError) -> str:
    """What a names file has instead of names, and in which entry."""
    problem = error.errors(include_url=False)[0]
    expected = "expected [[id, [word, ...]], ...]"
    if not problem["loc"]:
        return f": {expected} ({problem['msg']})"
    entry = int(problem["loc"][0]) + 1
    return f", entry {entry}: {expected} ({problem['msg']}, found {problem['input']!r:.{SHOWN}})"


def first_file(raw: Path, patterns: tuple[str, ...]) -> Path | None:
    """The first file of the folder that fits a pattern, earlier patterns first."""
    for pattern in patterns:
        for path in sorted(raw.glob(pattern)):
            return path
    return None
