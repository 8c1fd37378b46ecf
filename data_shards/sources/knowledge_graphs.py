"""Alignment folders to entities: the layouts of DBP15K, SRPRS and FB15K-DB15K, as MCLEA and MEAformer read them.

Tab-separated UTF-8 files: ``ent_ids_1/2`` (id, name), ``triples_1/2`` (head, relation, tail), links as
``ill_ent_ids``, or ``ref_ent_ids`` with or without ``sup_ent_ids`` (the part of them for training). Everything else may
be missing: ``training_attrs_1/2`` (name, attribute ...), ``numeric_1/2`` (id, attribute, value), ``has_image_1/2``
(ids), ``translated_ent_name.json`` and an image file.

What comes out: split "entities", one sample per entity in an order drawn by the seed, and split "graph", one sample
with triples and links between places in that order. In DBP15K the partner of id i is often i + 10500; the new
numbers say nothing about pairs, and the original ids are only kept as names.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_shards.shards.manifest import DataError, Field, Labels, Sample
from data_shards.sources import entity_views
from data_shards.sources.base import Options, Source, sha256_of
from data_shards.sources.entity_views import View, number_of

SIDES = ("1", "2")
SPLITS = ("train", "valid", "test")
NAMES = ("translated_ent_name.json", "translated_ent_name/dbp_*.json")
IMAGES = ("*_id_img_feature_dict.pkl", "images.npz", "images.npy")


@dataclass(frozen=True)
class EntityOptions:
    """What the user may say about an alignment folder."""

    links: Literal["auto", "seeded"] = (
        "auto"  # auto: sup_ent_ids decides where there is one; seeded: never
    )
    train_ratio: float = 0.3  # of all links, validation included
    valid_ratio: float = 0.1  # of those, kept out of training to select by
    seed: int = 42
    images: str | None = None  # .pkl, .npz or .npy; by default what lies in the folder
    word_vectors: str | None = None  # a text file in GloVe's format
    text_encoder: str | None = None  # a transformers encoder, instead of word vectors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command-line options of alignment folders."""
    ours = parser.add_argument_group("alignment folders (ent_ids_1, triples_1, ...)")
    ours.add_argument(
        "--links",
        choices=["auto", "seeded"],
        default="auto",
        help="auto: sup_ent_ids are for training",
    )
    ours.add_argument(
        "--train-ratio",
        type=float,
        default=0.3,
        metavar="SHARE",
        help="of all links, validation included",
    )
    ours.add_argument(
        "--valid-ratio", type=float, default=0.1, metavar="SHARE", help="of those, for validation"
    )
    ours.add_argument("--split-seed", type=int, default=42, metavar="SEED")
    ours.add_argument("--images", metavar="FILE", help=".pkl, .npz or .npy of image vectors")
    ours.add_argument("--word-vectors", metavar="FILE", help="GloVe-format text file for the names")
    ours.add_argument("--text-encoder", metavar="NAME", help="transformers encoder for the names")


def options_of(given: argparse.Namespace) -> EntityOptions:
    """The options that ``add_arguments`` has parsed."""
    return EntityOptions(
        links=given.links,
        train_ratio=given.train_ratio,
        valid_ratio=given.valid_ratio,
        seed=given.split_seed,
        images=given.images,
        word_vectors=given.word_vectors,
        text_encoder=given.text_encoder,
    )


def is_alignment_folder(raw: Path) -> bool:
    return (raw / "ent_ids_1").is_file() and (raw / "triples_1").is_file()


def read(raw: Path, options: Options) -> Source:
    """An alignment folder, with all views built."""
    chosen = options.entities or EntityOptions()
    names = _names(raw)
    ids = sorted(names)
    order = np.random.RandomState(chosen.seed).permutation(len(ids))
    places = {ids[int(old)]: new for new, old in enumerate(order)}
    links = _splits(raw, chosen, places)
    triples = _triples(raw, places)
    repairs: Counter[str] = Counter()
    views = _views(raw, chosen, names, places, triples, repairs)
    graph = {"triples": triples, **{f"links_{split}": pairs for split, pairs in links.items()}}
    entities = [
        (ids[int(old)], *names[ids[int(old)]]) for old in order
    ]  # (id, side, name) in the new order
    fields = {"side": Field("int8", ())}
    fields |= {
        name: Field(view.rows.dtype.name, view.rows.shape[1:]) for name, view in views.items()
    }
    fields |= {name: Field("int32", (None, rows.shape[1])) for name, rows in graph.items()}
    return Source(
        name=options.name or raw.resolve().name,
        task="alignment",
        fields=fields,
        labels=Labels(),
        counts={"entities": len(entities), "graph": 1},
        rows=partial(_rows, len(entities)),
        sample=partial(_sample, entities, views, graph, _masks(raw), repairs),
        facts=_facts(raw, chosen) | {"layout": "alignment folder"},
        extras={
            "views": {name: int(view.present.sum()) for name, view in views.items()},
            "links": {split: len(pairs) for split, pairs in links.items()},
            "sides": [sum(entity[1] == side for entity in entities) for side in (0, 1)],
        },
    )


def _rows(num_entities: int) -> Iterator[tuple[str, int]]:
    for place in range(num_entities):
        yield "entities", place
    yield "graph", -1


def _sample(
    entities: list[tuple[int, int, str]],
    views: dict[str, View],
    graph: dict[str, np.ndarray],
    masks: dict[int, bool],
    found: Counter[str],
    place: int,
    repairs: Counter[str],
) -> Sample:
    if place < 0:
        repairs.update(found)  # what the views counted, reported once
        return Sample("graph", {name: np.ascontiguousarray(rows) for name, rows in graph.items()})
    entity, side, name = entities[place]
    arrays = {"side": np.array(side, np.int8)}
    arrays |= {view: built.rows[place] for view, built in views.items() if built.present[place]}
    extra: dict[str, Any] = {"name": name}
    if entity in masks:
        extra["has_image"] = masks[entity]
    return Sample(str(entity), arrays, extra=extra)


def _lines(path: Path, columns: int | None) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of a tab-separated file; blank lines are skipped."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                cells = line.rstrip("\r\n").split("\t")
                if cells == [""]:
                    continue
                if columns is not None and len(cells) != columns:
                    raise DataError(
                        f"{path}, line {number}: {len(cells)} columns instead of {columns}: {line[:80]!r}"
                    )
                yield number, cells
    except FileNotFoundError:
        raise DataError(f"{path} is missing; an alignment folder needs it (docs/data.md)") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error})") from None


def _integers(path: Path, columns: int) -> np.ndarray:
    rows = []
    for number, cells in _lines(path, columns):
        try:
            rows.append([int(cell) for cell in cells])
        except ValueError:
            raise DataError(f"{path}, line {number}: {cells} are no whole numbers") from None
    return np.array(rows, np.int64).reshape(-1, columns)


def _names(raw: Path) -> dict[int, tuple[int, str]]:
    """Id -> (side 0 or 1, name)."""
    names: dict[int, tuple[int, str]] = {}
    for side, digit in enumerate(SIDES):
        path = raw / f"ent_ids_{digit}"
        for number, (cell, name) in _lines(path, 2):
            if not cell.isdecimal() or int(cell) in names:
                raise DataError(
                    f"{path}, line {number}: {cell!r} is no new entity id; both files share one id space"
                )
            names[int(cell)] = side, name
    return names


def _triples(raw: Path, places: dict[int, int]) -> np.ndarray:
    """(T, 3) int32 head, relation, tail of both graphs, entities by place."""
    parts = []
    for digit in SIDES:
        path = raw / f"triples_{digit}"
        triples = _integers(path, 3)
        triples[:, [0, 2]] = _placed(path, triples[:, [0, 2]], places)
        parts.append(triples)
    return np.concatenate(parts).astype("<i4")


def _placed(path: Path, ids: np.ndarray, places: dict[int, int]) -> np.ndarray:
    try:
        return np.array([places[entity] for entity in ids.ravel().tolist()], np.int64).reshape(
            ids.shape
        )
    except KeyError as error:
        raise DataError(f"{path}: entity {error} is in neither ent_ids_1 nor ent_ids_2") from None


def _splits(raw: Path, options: EntityOptions, places: dict[int, int]) -> dict[str, np.ndarray]:
    """Split -> (L, 2) int32 links by place; validation is the end of the training links."""
    path = next(
        (raw / name for name in ("ill_ent_ids", "ref_ent_ids") if (raw / name).is_file()), None
    )
    if path is None:
        raise DataError(
            f"{raw} has neither ill_ent_ids nor ref_ent_ids, so no links to learn from or to test on"
        )
    for name, share in (("train", options.train_ratio), ("valid", options.valid_ratio)):
        if not 0 < share < 1:
            raise DataError(f"--{name}-ratio must lie between 0 and 1, got {share:g}")
    links = [tuple(pair) for pair in _integers(path, 2).tolist()]
    given = raw / "sup_ent_ids"
    # shuffling the list of pairs with the old generator repeats the published splits
    random = np.random.RandomState(options.seed)
    if options.links == "auto" and given.is_file():
        train = [tuple(pair) for pair in _integers(given, 2).tolist()]
        known = set(train)
        test = [pair for pair in links if pair not in known]
        random.shuffle(train)
    else:
        random.shuffle(links)
        cut = int(len(links) * options.train_ratio)
        train, test = links[:cut], links[cut:]
    keep = len(train) - int(len(train) * options.valid_ratio)
    parts = {"train": train[:keep], "valid": train[keep:], "test": test}
    if not all(parts.values()):
        counts = ", ".join(f"{len(pairs)} {split}" for split, pairs in parts.items())
        raise DataError(
            f"{path}: {len(links)} links make {counts}; change --train-ratio or --valid-ratio"
        )
    return {
        split: _placed(path, np.array(pairs), places).astype("<i4")
        for split, pairs in parts.items()
    }


def _views(
    raw: Path,
    options: EntityOptions,
    names: dict[int, tuple[int, str]],
    places: dict[int, int],
    triples: np.ndarray,
    repairs: Counter[str],
) -> dict[str, View]:
    """The views that the folder and the options allow, in the one order that holds everywhere."""
    size = len(places)
    views = {"relation": entity_views.relation_counts(triples, size)}
    if (raw / "training_attrs_1").is_file():
        views["attribute"] = entity_views.attribute_bag(
            _attributes(raw, names, places, repairs), size
        )
    if image := _found(raw, options.images, IMAGES):
        views["image"] = entity_views.image_vectors(image, places, repairs)
    tokens = _tokens(raw, places)
    if options.word_vectors and options.text_encoder:
        raise DataError(
            "--word-vectors and --text-encoder both make the view 'words'; give one of them"
        )
    if (options.word_vectors or options.text_encoder) and not tokens:
        raise DataError(
            f"{raw} has no {NAMES[0]}, so there are no names to encode; leave out the option for words"
        )
    if options.word_vectors:
        views["words"] = entity_views.word_vectors(tokens, size, Path(options.word_vectors))
    if options.text_encoder:
        views["words"] = entity_views.encoded_names(tokens, size, options.text_encoder)
    if tokens:
        views["chars"] = entity_views.character_bigrams(tokens, size)
    if (raw / "numeric_1").is_file():
        views["numeric"] = entity_views.numeric_waves(_literals(raw, places, repairs), size)
    return views


def _found(raw: Path, given: str | None, patterns: tuple[str, ...]) -> Path | None:
    if given is not None:
        if not Path(given).is_file():
            raise DataError(f"{given} does not exist")
        return Path(given)
    return next((path for pattern in patterns for path in sorted(raw.glob(pattern))), None)


def _attributes(
    raw: Path, names: dict[int, tuple[int, str]], places: dict[int, int], repairs: Counter[str]
) -> dict[int, list[str]]:
    """Place -> attribute names."""
    by_name = {(side, name): places[entity] for entity, (side, name) in names.items()}
    attributes: dict[int, list[str]] = {}
    for side, digit in enumerate(SIDES):
        for _, (name, *found) in _lines(raw / f"training_attrs_{digit}", None):
            if (side, name) in by_name:
                attributes.setdefault(by_name[side, name], []).extend(found)
            else:
                repairs["attribute rows of unknown entities, left out"] += 1
    return attributes


def _literals(raw: Path, places: dict[int, int], repairs: Counter[str]) -> dict[int, list[float]]:
    """Place -> numbers."""
    literals: dict[int, list[float]] = {}
    for digit in SIDES:
        path = raw / f"numeric_{digit}"
        for number, (entity, _, text) in _lines(path, 3):
            if not entity.isdecimal() or int(entity) not in places:
                raise DataError(f"{path}, line {number}: there is no entity {entity!r}")
            value = number_of(text)
            if value is None:
                repairs["numeric literals that are neither number nor date, left out"] += 1
            else:
                literals.setdefault(places[int(entity)], []).append(value)
    return literals


def _tokens(raw: Path, places: dict[int, int]) -> dict[int, list[str]]:
    """Place -> the tokens of the entity's translated name; empty where the folder has no names."""
    path = _found(raw, None, NAMES)
    if path is None:
        return {}
    try:
        return {
            places[int(entity)]: list(tokens)
            for entity, tokens in json.loads(path.read_text(encoding="utf-8"))
        }
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: expected [[id, [token, ...]], ...] of known entities ({error!r})"
        ) from None


def _masks(raw: Path) -> dict[int, bool]:
    """Id -> whether the entity has an image, where the folder says so."""
    if not (raw / "has_image_1").is_file():
        return {}
    known = {int(ids[0]) for digit in SIDES for _, ids in _lines(raw / f"has_image_{digit}", 1)}
    everyone = {
        int(cells[0]) for digit in SIDES for _, cells in _lines(raw / f"ent_ids_{digit}", 2)
    }
    return {entity: entity in known for entity in everyone}


def _facts(raw: Path, options: EntityOptions) -> dict[str, Any]:
    """SHA-256 of every file that could have been read."""
    files = [path for path in sorted(raw.iterdir()) if path.is_file()]
    files += sorted(raw.glob(NAMES[1]))
    files += [Path(path) for path in (options.images, options.word_vectors) if path]
    return {"file": raw.resolve().name, "files": {path.name: sha256_of(path) for path in files}}
