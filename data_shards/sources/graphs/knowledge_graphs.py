"""Alignment folders to entities: the layouts of DBP15K, SRPRS and FB15K-DB15K, as MCLEA and
MEAformer read them.

Tab-separated UTF-8 files: ``ent_ids_1/2`` (id, name), ``triples_1/2`` (head, relation, tail), links
as ``ill_ent_ids``, or ``ref_ent_ids`` with or without ``sup_ent_ids`` (the part of them for
training). Everything else may be missing: ``training_attrs_1/2`` (name, attribute ...),
``numeric_1/2`` (id, attribute, value), ``has_image_1/2`` (ids), ``translated_ent_name.json`` and an
image file.

What comes out: split "entities", one sample per entity in an order drawn by the seed, and split
"graph", one sample with triples and links between rows in that order. In DBP15K the partner of id i
is often i + 10500; the new numbers say nothing about who belongs together, and the original ids are
only kept as names.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from core.files import sha256_of_file
from data_shards.shards.manifest import DataError, Field, Labels, Sample
from data_shards.sources.graphs import entity_views, graph_files, graph_links, openea
from data_shards.sources.graphs.entity_images import image_vectors
from data_shards.sources.graphs.entity_views import View
from data_shards.sources.graphs.graph_files import Entity, EntityTable
from data_shards.sources.raw_dataset import Options, RawDataset

ALWAYS_THERE = ("ent_ids_1", "ent_ids_2", "triples_1", "triples_2")
IMAGES = ("*_id_img_feature_dict.pkl", "images.npz", "images.npy")


@dataclass(frozen=True)
class EntityOptions:
    """What the user may say about an alignment folder."""

    links: Literal["auto", "seeded"] = "auto"  # auto: by sup_ent_ids, if there is one
    train_ratio: float = 0.3  # of all links, validation included
    valid_ratio: float = 0.1  # of those, kept out of training to select by
    seed: int = 42
    images: str | None = None  # .pkl, .npz or .npy; by default what lies in the folder
    word_vectors: str | None = None  # a text file in GloVe's format
    text_encoder: str | None = None  # a transformers encoder, instead of word vectors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command-line options of alignment folders."""
    group = parser.add_argument_group("alignment folders (ent_ids_1, triples_1, ...)")
    group.add_argument(
        "--links",
        choices=["auto", "seeded"],
        default="auto",
        help="auto: sup_ent_ids are for training",
    )
    group.add_argument(
        "--train-ratio",
        type=float,
        default=0.3,
        metavar="SHARE",
        help="of all links, validation included",
    )
    group.add_argument(
        "--valid-ratio", type=float, default=0.1, metavar="SHARE", help="of those, for validation"
    )
    group.add_argument(
        "--fold", type=int, metavar="NUMBER", help="of OpenEA's links, in 721_5fold (default: 1)"
    )
    group.add_argument("--split-seed", type=int, default=42, metavar="SEED")
    group.add_argument("--images", metavar="FILE", help=".pkl, .npz or .npy of image vectors")
    group.add_argument(
        "--word-vectors", metavar="FILE", help="GloVe-format text file for the names"
    )
    group.add_argument("--text-encoder", metavar="NAME", help="transformers encoder for the names")


def options_of(arguments: argparse.Namespace) -> EntityOptions:
    """The options that ``add_arguments`` has parsed."""
    return EntityOptions(
        links=arguments.links,
        train_ratio=arguments.train_ratio,
        valid_ratio=arguments.valid_ratio,
        seed=arguments.split_seed,
        images=arguments.images,
        word_vectors=arguments.word_vectors,
        text_encoder=arguments.text_encoder,
    )


def is_alignment_folder(raw: Path) -> bool:
    """Whether ``raw`` looks like one, by any of the files that every layout has: where one is
    missing, it shall be named."""
    return openea.is_openea_folder(raw) or any(os.path.lexists(raw / name) for name in ALWAYS_THERE)


@dataclass(frozen=True)
class Content:
    """The whole folder in memory. Rows of views, triples and links are numbers of ``entities``."""

    entities: list[Entity]
    views: dict[str, View]
    graph: dict[str, np.ndarray]  # triples (T, 3), links_<split> (L, 2), int32
    image_flags: dict[int, bool]  # row -> has an image
    repairs: Counter[str]  # what the views left out


def read(raw: Path, options: Options) -> RawDataset:
    """An alignment folder, with all views built."""
    entity_options = options.entities or EntityOptions()
    if not 0 <= entity_options.seed < 2**32:
        raise DataError(f"--split-seed must lie between 0 and 2^32 - 1, got {entity_options.seed}")
    if openea.is_openea_folder(raw):
        return _of_openea(raw, options, entity_options)
    repairs: Counter[str] = Counter()
    noted: list[str] = []
    table = graph_files.read_entities(raw, entity_options.seed)
    links = graph_links.seeded_splits(
        graph_links.read_links(raw, table, noted),
        as_given=entity_options.links == "auto",
        train_ratio=entity_options.train_ratio,
        valid_ratio=entity_options.valid_ratio,
        seed=entity_options.seed,
    )
    graph = {"triples": graph_files.read_triples(raw, table, noted)}
    for split, ids in links.items():
        graph[f"links_{split}"] = table.rows(ids).astype("<i4")
    views = _views(raw, entity_options, table, graph["triples"], repairs)
    views = _without_empty(views, entity_options, noted)
    image_flags = graph_files.read_image_flags(raw, table)
    content = Content(table.entities, views, graph, image_flags, repairs)
    facts = _facts(raw, entity_options) | {"layout": "alignment folder"}
    return _dataset(content, options.name or raw.resolve().name, facts, noted)


def _of_openea(raw: Path, options: Options, entity_options: EntityOptions) -> RawDataset:
    """OpenEA's layout, whose links come in folds; it has no images and no names to encode."""
    asked_for = {
        "--images": entity_options.images,
        "--word-vectors": entity_options.word_vectors,
        "--text-encoder": entity_options.text_encoder,
    }
    for option, value in asked_for.items():
        if value is not None:
            raise DataError(
                f"{raw} is a folder of OpenEA, which {option} is not read for; leave it out"
            )
    repairs: Counter[str] = Counter()
    noted: list[str] = []
    names = openea.Names(raw)
    table = names.table(entity_options.seed)
    graph = {"triples": openea.read_triples(raw, names, table, noted)}
    fold = 1 if options.fold is None else options.fold
    for split, ids in openea.read_links(raw, names, table, fold).items():
        graph[f"links_{split}"] = table.rows(ids).astype("<i4")
    views = {"relation": entity_views.relation_counts(graph["triples"], len(table))}
    attributes = openea.read_attributes(raw, names, table)
    if attributes is not None:
        views["attribute"] = entity_views.attribute_bag(attributes, len(table))
    views = _without_empty(views, entity_options, noted)
    files = [path for path in sorted(raw.iterdir()) if path.is_file()]
    files += sorted((raw / openea.FOLDS / str(fold)).glob("*_links"))
    facts = {
        "file": raw.resolve().name,
        "files": {path.name: sha256_of_file(path) for path in files},
        "layout": "openea",
        "fold": fold,
    }
    content = Content(table.entities, views, graph, {}, repairs)
    return _dataset(content, options.name or raw.resolve().name, facts, noted)


def _dataset(content: Content, name: str, facts: dict[str, Any], noted: list[str]) -> RawDataset:
    size = len(content.entities)
    on_right = sum(entity.side for entity in content.entities)
    links = {}
    for field, rows in content.graph.items():
        if field.startswith("links_"):
            links[field.removeprefix("links_")] = len(rows)
    return RawDataset(
        name=name,
        task="alignment",
        fields=_fields(content),
        labels=Labels(),
        counts={"entities": size, "graph": 1},
        rows=partial(_rows, size),
        sample=partial(_sample, content),
        facts=facts,
        extras={
            "views": {name: int(view.present.sum()) for name, view in content.views.items()},
            "links": links,
            "sides": [size - on_right, on_right],
        }
        | ({"noted": noted} if noted else {}),
    )


def _views(
    raw: Path,
    options: EntityOptions,
    table: EntityTable,
    triples: np.ndarray,
    repairs: Counter[str],
) -> dict[str, View]:
    """All views that the folder and the options give."""
    views = {"relation": entity_views.relation_counts(triples, len(table))}
    if graph_files.has_both(raw, "training_attrs"):
        attributes = graph_files.read_attributes(raw, table, repairs)
        views["attribute"] = entity_views.attribute_bag(attributes, len(table))
    images = _image_file(raw, options)
    if images:
        views["image"] = image_vectors(images, table, repairs)
    views |= _name_views(raw, options, graph_files.read_name_tokens(raw, table), len(table))
    if graph_files.has_both(raw, "numeric"):
        literals = graph_files.read_literals(raw, table, repairs)
        views["numeric"] = entity_views.numeric_waves(literals, len(table))
    return views


def _without_empty(
    views: dict[str, View], options: EntityOptions, noted: list[str]
) -> dict[str, View]:
    """The views that some entity has; DataError where an option names the source of another."""
    asked_for = {
        "image": options.images and f"--images {options.images}",
        "words": (options.word_vectors and f"--word-vectors {options.word_vectors}")
        or (options.text_encoder and f"--text-encoder {options.text_encoder}"),
    }
    kept = {}
    for name, view in views.items():
        if view.present.any():
            kept[name] = view
        elif asked_for.get(name):
            raise DataError(
                f"{asked_for[name]}: it gives no entity a vector; correct it, or leave it out"
            )
        else:
            noted.append(f"the view {name!r} is left out, for no entity has it")
    return kept


def _fields(content: Content) -> dict[str, Field]:
    fields = {"side": Field("int8", ())}
    for name, view in content.views.items():
        fields[name] = Field(view.rows.dtype.name, view.rows.shape[1:])
    for name, rows in content.graph.items():
        fields[name] = Field("int32", (None, rows.shape[1]))
    return fields


GRAPH = -1  # the row that stands for the graph


def _rows(num_entities: int) -> Iterator[tuple[str, int]]:
    for row in range(num_entities):
        yield "entities", row
    yield "graph", GRAPH


def _sample(content: Content, row: int, repairs: Counter[str]) -> Sample:
    if row == GRAPH:
        repairs.update(content.repairs)  # reported once
        arrays = {name: np.ascontiguousarray(rows) for name, rows in content.graph.items()}
        return Sample("graph", arrays)
    entity = content.entities[row]
    arrays = {"side": np.array(entity.side, np.int8)}
    for name, view in content.views.items():
        if view.present[row]:
            arrays[name] = view.rows[row]
    extra: dict[str, Any] = {"name": entity.name}
    if row in content.image_flags:
        extra["has_image"] = content.image_flags[row]
    return Sample(str(entity.id), arrays, extra=extra)


def _image_file(raw: Path, options: EntityOptions) -> Path | None:
    if options.images is None:
        return graph_files.first_file(raw, IMAGES)
    if not Path(options.images).exists():
        raise DataError(f"{options.images} does not exist")
    return Path(options.images)


def _name_views(
    raw: Path, options: EntityOptions, tokens: dict[int, list[str]] | None, num_entities: int
) -> dict[str, View]:
    """Views of the names: "words" if an option asks for it, "chars" if there are names."""
    if options.word_vectors and options.text_encoder:
        raise DataError(
            "--word-vectors and --text-encoder both make the view 'words'; give one of them"
        )
    if tokens is None and (options.word_vectors or options.text_encoder):
        raise DataError(
            f"{raw} has no {graph_files.NAMES[0]}, so there are no names to encode; "
            "leave out the option for words"
        )
    if tokens is None:
        return {}
    views = {}
    if options.word_vectors:
        vectors = Path(options.word_vectors)
        views["words"] = entity_views.word_vectors(tokens, num_entities, vectors)
    if options.text_encoder:
        views["words"] = entity_views.encoded_names(tokens, num_entities, options.text_encoder)
    views["chars"] = entity_views.character_bigrams(tokens, num_entities)
    return views


def _facts(raw: Path, options: EntityOptions) -> dict[str, Any]:
    """SHA-256 of every file that could have been read."""
    files = [path for path in sorted(raw.iterdir()) if path.is_file()]
    files += sorted(raw.glob(graph_files.NAMES[1]))
    files += [Path(path) for path in (options.images, options.word_vectors) if path]
    checksums = {path.name: sha256_of_file(path) for path in files}
    return {"file": raw.resolve().name, "files": checksums}
