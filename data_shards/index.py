"""Index WebDataset tars that something else wrote: ``python -m data_shards.index DIR``.

Every tar of the folder gets an index beside it, and the folder a manifest; the tars are not
touched. A member ``<key>.<field>.npy`` is the array ``field``; ``<key>.json`` and ``<key>.txt`` are
the sample's record and transcript. Every sample has a ``label``, a score, or a ``class``, a number.
Labels, token ids and frames are checked and measured as a conversion does it (docs/data.md).

In a folder that has a manifest, missing and damaged indexes are made again, and must come out as
the manifest knows them.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from core.arguments import command_parser, parse
from core.command import run
from data_shards.convert import parse_labels
from data_shards.indexing.folder_indexer import Stated, index_folder, restore_indexes
from data_shards.shards.label_statistics import named_classes
from data_shards.shards.manifest import MANIFEST, DataError, Labels, Manifest
from data_shards.shards.sentiment_schema import are_token_ids
from data_shards.sources.raw_dataset import KNOWN_LABELS
from data_shards.sources.tokens import Tokenizer

MEANINGS = ("labels", "dataset", "classes", "tokenizer")  # options that say what numbers mean


def _main(options: argparse.Namespace) -> None:
    folder: Path = options.folder
    if (folder / MANIFEST).exists():
        _refuse_options(options)
        restored = restore_indexes(folder)
        outcome = f"made again: {', '.join(restored)}" if restored else "all indexes are whole"
        print(f"{folder} has a manifest; {outcome}")
        return
    manifest = index_folder(folder, _stated(options), processes=options.processes)
    counts = ", ".join(f"{manifest.samples(name)} {name}" for name in manifest.splits)
    print(f"indexed {counts} samples with fields {', '.join(manifest.fields)}")
    _tell_what_was_left_out(manifest)
    if manifest.task == "sentiment":
        _tell_what_was_assumed(manifest, options)
        print(f"look at them with: python -m data_shards.inspect {folder}")


def _stated(options: argparse.Namespace) -> Stated:
    """What the options say of the tars."""
    given = [name for name in MEANINGS if getattr(options, name) is not None]
    if given and options.task != "sentiment":
        raise DataError(f"--{given[0]} has no effect with --task {options.task}; leave it out")
    tokenizer: dict[str, Any] | None = None
    if options.tokenizer is not None:
        tokenizer = Tokenizer(options.tokenizer).facts
    return Stated(
        task=options.task,
        splits=options.split,
        leave_out=options.leave_out,
        labels=_stated_labels(options),
        tokenizer=tokenizer,
        source={} if options.dataset is None else {"dataset": options.dataset},
    )


def _stated_labels(options: argparse.Namespace) -> Labels | None:
    given = [
        name for name in ("labels", "dataset", "classes") if getattr(options, name) is not None
    ]
    if len(given) > 1:
        raise DataError(
            f"--{given[0]} and --{given[1]} both say what labels mean; give one of them"
        )
    if options.labels is not None:
        return parse_labels(options.labels)
    if options.dataset is not None:
        return KNOWN_LABELS[options.dataset]
    if options.classes is None:
        return None
    names = [name.strip() for name in options.classes.split(",")]
    if len(set(names)) < max(2, len(names)) or "" in names:
        raise DataError(
            f"--classes {options.classes!r}: expected two or more different names, A,B,C"
        )
    return named_classes(names)


def _refuse_options(options: argparse.Namespace) -> None:
    """DataError for options that a folder with a manifest has no use for."""
    given = [name for name in (*MEANINGS, "split", "leave_out") if getattr(options, name)]
    if given:
        option = given[0].replace("_", "-")
        raise DataError(
            f"{options.folder} has a manifest, so --{option} has no effect; leave it out to make "
            f"lost indexes again, or remove {MANIFEST} to index the tars anew"
        )


def _tell_what_was_left_out(manifest: Manifest) -> None:
    without_suffix = manifest.source["members without suffix"]
    if without_suffix:
        print(f"left out: {without_suffix} members without a suffix, which belong to no sample")
    for suffix, count in manifest.source["no arrays"].items():
        print(f"left out: {count} files .{suffix}, which are no arrays (.npy)")


def _tell_what_was_assumed(manifest: Manifest, options: argparse.Namespace) -> None:
    """What was measured because nobody stated it, and how to state it."""
    labels = manifest.labels
    if labels.kind == "classes" and options.classes is None:
        print(f"assumed: {len(labels.names)} classes; name them with --classes A,B,...")
    if labels.kind == "regression" and options.labels is None and options.dataset is None:
        step = f" in steps of {labels.resolution:.3g}" if labels.resolution else ""
        print(
            f"assumed: labels from {labels.low:g} to {labels.high:g}{step}, as measured; state them "
            "with --labels LOW:HIGH[:STEP]"
        )
    text = manifest.fields.get("text")
    if text is not None and are_token_ids("text", text.dtype) and options.tokenizer is None:
        size = (manifest.tokenizer or {})["vocab_size"]
        print(f"assumed: {size} tokens, by the largest id; state them with --tokenizer DIR")


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("index", __doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="[PATTERN=]SPLIT",
        help="the split of the tars whose names match, or of all others (default: by the word "
        "train, valid, val, dev, validation or test in each name)",
    )
    parser.add_argument(
        "--task",
        choices=["sentiment", "alignment", "arrays"],
        default="sentiment",
        help="arrays: of any kind, which are only streamed",
    )
    parser.add_argument(
        "--labels",
        metavar="LOW:HIGH[:STEP]",
        help="range and annotation step of scores, such as 1:5:1/2 (default: measured)",
    )
    parser.add_argument(
        "--dataset", choices=sorted(KNOWN_LABELS), help="the known data set that has the range"
    )
    parser.add_argument(
        "--classes", metavar="A,B,...", help="names of classes 0, 1, ... (default: their numbers)"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="folder of the transformers tokenizer that made the token ids (default: the largest "
        "id is counted)",
    )
    parser.add_argument(
        "--leave-out", action="append", default=[], metavar="FIELD", help="do not index this field"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parse(parser, argv)
    return run(lambda: _main(options))


if __name__ == "__main__":
    sys.exit(main())
