"""The files of an alignment folder, parsed and checked line by line: tab-separated UTF-8, ids
shared by both graphs.

Entities are numbered 0 ... N-1 here ("rows"); the caller decides which id gets which row.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from data_shards.shards.manifest import DataError
from data_shards.sources.entity_views import number_of

SIDES = ("1", "2")  # how file names end, for the left and the right graph
NAMES = ("translated_ent_name.json", "translated_ent_name/dbp_*.json")
LINKS = ("ill_ent_ids", "ref_ent_ids")


def read_lines(path: Path, columns: int | None) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of a tab-separated file; blank lines are skipped."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                cells = line.rstrip("\r\n").split("\t")
                if cells == [""]:
                    continue
                if columns is not None and len(cells) != columns:
                    raise DataError(
                        f"{path}, line {number}: {len(cells)} columns instead of {columns}: "
                        f"{line[:80]!r}"
                    )
                yield number, cells
    except FileNotFoundError:
        raise DataError(f"{path} is missing; an alignment folder needs it (docs/data.md)") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error})") from None


def read_integers(path: Path, columns: int) -> np.ndarray:
    """(lines, columns) int64."""
    rows = []
    for number, cells in read_lines(path, columns):
        try:
            rows.append([int(cell) for cell in cells])
        except ValueError:
            raise DataError(f"{path}, line {number}: {cells} are no whole numbers") from None
    return np.array(rows, np.int64).reshape(-1, columns)


def read_entities(raw: Path) -> dict[int, tuple[int, str]]:
    """Id -> (side 0 or 1, name), of ``ent_ids_1`` and ``ent_ids_2``."""
    entities: dict[int, tuple[int, str]] = {}
    for side, digit in enumerate(SIDES):
        path = raw / f"ent_ids_{digit}"
        for number, (cell, name) in read_lines(path, 2):
            if not cell.isdecimal() or int(cell) in entities:
                raise DataError(
                    f"{path}, line {number}: {cell!r} is no new entity id; "
                    "both files share one id space"
                )
            entities[int(cell)] = side, name
    return entities


def rows_of_ids(path: Path, ids: np.ndarray, row_of: Mapping[int, int]) -> np.ndarray:
    """The rows of entity ids, an array of the same shape; DataError for an id that is no entity."""
    try:
        rows = [row_of[entity] for entity in ids.ravel().tolist()]
    except KeyError as error:
        raise DataError(f"{path}: entity {error} is in neither ent_ids_1 nor ent_ids_2") from None
    return np.array(rows, np.int64).reshape(ids.shape)


def read_triples(raw: Path, row_of: Mapping[int, int]) -> np.ndarray:
    """(T, 3) int32 head, relation, tail of both graphs, entities by row."""
    both = []
    for digit in SIDES:
        path = raw / f"triples_{digit}"
        triples = read_integers(path, 3)
        heads_and_tails = triples[:, [0, 2]]
        triples[:, [0, 2]] = rows_of_ids(path, heads_and_tails, row_of)
        both.append(triples)
    return np.concatenate(both).astype("<i4")


def links_file(raw: Path) -> Path:
    """The file with all links of a folder."""
    for name in LINKS:
        if (raw / name).is_file():
            return raw / name
    raise DataError(
        f"{raw} has neither ill_ent_ids nor ref_ent_ids, so no links to learn from or to test on"
    )


def read_links(path: Path) -> list[tuple[int, ...]]:
    """(left id, right id) of each link."""
    return [tuple(link) for link in read_integers(path, 2).tolist()]


def read_attributes(
    raw: Path,
    entities: Mapping[int, tuple[int, str]],
    row_of: Mapping[int, int],
    repairs: Counter[str],
) -> dict[int, list[str]]:
    """Row -> attribute names. The files name entities by name; unknown ones are counted."""
    row_of_name = {}
    for entity, side_and_name in entities.items():
        row_of_name[side_and_name] = row_of[entity]
    attributes: dict[int, list[str]] = {}
    for side, digit in enumerate(SIDES):
        for _, (name, *names) in read_lines(raw / f"training_attrs_{digit}", None):
            row = row_of_name.get((side, name))
            if row is None:
                repairs["attribute rows of unknown entities, left out"] += 1
            else:
                attributes.setdefault(row, []).extend(names)
    return attributes


def read_literals(
    raw: Path, row_of: Mapping[int, int], repairs: Counter[str]
) -> dict[int, list[float]]:
    """Row -> numbers, of ``numeric_1`` and ``numeric_2``."""
    literals: dict[int, list[float]] = {}
    for digit in SIDES:
        path = raw / f"numeric_{digit}"
        for number, (entity, _, text) in read_lines(path, 3):
            if not entity.isdecimal() or int(entity) not in row_of:
                raise DataError(f"{path}, line {number}: there is no entity {entity!r}")
            value = number_of(text)
            if value is None:
                repairs["numeric literals that are neither number nor date, left out"] += 1
            else:
                literals.setdefault(row_of[int(entity)], []).append(value)
    return literals


def read_name_tokens(raw: Path, row_of: Mapping[int, int]) -> dict[int, list[str]]:
    """Row -> the tokens of the entity's translated name; empty where the folder has no names."""
    path = first_file(raw, NAMES)
    if path is None:
        return {}
    try:
        named = json.loads(path.read_text(encoding="utf-8"))
        return {row_of[int(entity)]: list(tokens) for entity, tokens in named}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: expected [[id, [token, ...]], ...] of known entities ({error!r})"
        ) from None


def read_image_flags(raw: Path) -> dict[int, bool]:
    """Id -> whether the entity has an image, where the folder says so."""
    if not (raw / "has_image_1").is_file():
        return {}
    with_image: set[int] = set()
    everyone: list[int] = []
    for digit in SIDES:
        for _, (entity,) in read_lines(raw / f"has_image_{digit}", 1):
            with_image.add(int(entity))
        for _, (entity, _name) in read_lines(raw / f"ent_ids_{digit}", 2):
            everyone.append(int(entity))
    return {entity: entity in with_image for entity in everyone}


def first_file(raw: Path, patterns: tuple[str, ...]) -> Path | None:
    """The first file of the folder that fits a pattern, earlier patterns first."""
    for pattern in patterns:
        for path in sorted(raw.glob(pattern)):
            return path
    return None
