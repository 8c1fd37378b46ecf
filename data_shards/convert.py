"""Raw data to a shard folder: ``python -m data_shards.convert RAW --out DIR``. Same input and options, same bytes.

The layouts that are read, and what is repaired on the way, are described in docs/data.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import reduce
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from core.arguments import command_parser, parse
from core.command import run
from data_shards.shards.frame_moments import Moments
from data_shards.shards.jobs import RECORDS, Record, units, work
from data_shards.shards.manifest import (
    MANIFEST,
    VERSION,
    DataError,
    Labels,
    Manifest,
    read_manifest,
)
from data_shards.shards.writer import staged
from data_shards.sources import knowledge_graphs, mmsa, table
from data_shards.sources.base import KNOWN_LABELS, Options, Source

CONVERTER = 1  # raise it when the same input gives other bytes than before
SHARD_SIZE = 512
LOCK_WAIT = 5.0  # seconds; processes of a killed conversion take a moment to end
_OURS = re.compile(r"\.?([a-z_]+-\d{6})\.(tar|idx)(\.staging)?")

READERS: dict[str, Callable[[Path, Options], Source]] = {
    ".pkl": mmsa.read,
    ".pickle": mmsa.read,
    ".csv": table.read,
    ".jsonl": table.read,
    ".ndjson": table.read,
    ".parquet": table.read,
}


def read(raw: Path, options: Options) -> Source:
    """The raw file through the reader of its kind."""
    if not raw.exists():
        raise DataError(f"{raw} does not exist")
    if knowledge_graphs.is_alignment_folder(raw):
        return knowledge_graphs.read(raw, options)
    reader = READERS.get(raw.suffix.lower())
    if reader is None or not raw.is_file():
        raise DataError(
            f"{raw} is of no known kind; known are files that end in {', '.join(READERS)}, and alignment folders "
            "(docs/data.md)"
        )
    return reader(raw, options)


def convert(
    raw: Path,
    out: Path,
    options: Options | None = None,
    *,
    shard_size: int = SHARD_SIZE,
    processes: int = 1,
    force: bool = False,
    progress: bool = False,
) -> Manifest:
    """Write the shards of ``raw`` into ``out``, and last its manifest.

    A conversion that was cut short is continued; one that is complete already is left as it is.

    Args:
        force: write anew over a complete conversion, of whatever data and options.

    Raises:
        DataError: a sample that cannot be used, or an ``out`` that holds something else.
    """
    if shard_size < 1 or processes < 1:
        raise DataError(
            f"shard size and processes must be at least 1, got {shard_size} and {processes}"
        )
    options = options or Options()
    source = read(raw, options)
    facts = _facts(source, options, shard_size)
    with _claimed(out):
        if (out / MANIFEST).exists():
            if not force:
                return _same(out, facts, source)
            (
                out / MANIFEST
            ).unlink()  # first, so that at no time an old manifest vouches for new shards
        decisive = json.dumps([facts, source.tokenizer, VERSION, CONVERTER], sort_keys=True)
        identity = hashlib.sha256(decisive.encode("utf-8")).hexdigest()
        records = work(source, out, units(source, identity, shard_size), processes, progress)
        manifest = _manifest(source, facts, records)
        _sweep(out, manifest)
        with staged(out / MANIFEST) as file:
            file.write(manifest.to_json().encode("utf-8"))
    return manifest


@contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """``out`` for this conversion alone: it is new or empty, a shard folder, or was left by a conversion cut short."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / MANIFEST).exists() and not (out / RECORDS).exists() and any(out.iterdir()):
        raise DataError(
            f"{out} is not empty and is no shard folder; give another --out, or empty it first"
        )
    (out / RECORDS).mkdir(exist_ok=True)
    try:
        with FileLock(out / RECORDS / "lock", timeout=LOCK_WAIT):
            yield
            shutil.rmtree(
                out / RECORDS
            )  # not after an error: the records are what a second run continues from
    except Timeout:
        raise DataError(
            f"another conversion is writing to {out}; wait for it, or give another --out"
        ) from None


def _facts(source: Source, options: Options, shard_size: int) -> dict[str, Any]:
    """Manifest.source: where the data came from and every choice that decides about its bytes."""
    choices = asdict(replace(options, tokenizer=None)) | {"shard_size": shard_size}
    given = {name: value for name, value in choices.items() if value is not None}
    return json.loads(json.dumps({**source.facts, "options": given}))


def _same(out: Path, facts: dict[str, Any], source: Source) -> Manifest:
    """The manifest that is there already, if it is of the same source and options."""
    manifest = read_manifest(out)
    if (manifest.source, manifest.tokenizer) != (facts, source.tokenizer):
        raise DataError(
            f"{out} already holds shards of {manifest.source.get('file')}, made from other contents or with other "
            "options; give another --out, or --force to write them anew"
        )
    return manifest


def _sweep(out: Path, manifest: Manifest) -> None:
    """Remove what an earlier conversion with other options left behind."""
    keep = {
        shard.name.removesuffix(".tar") for shards in manifest.splits.values() for shard in shards
    }
    for path in list(out.iterdir()):
        ours = _OURS.fullmatch(path.name)
        if ours and (ours[1] not in keep or path.name.startswith(".")):
            path.unlink()


def _manifest(source: Source, facts: dict[str, Any], records: dict[str, list[Record]]) -> Manifest:
    everything = [record for split in records.values() for record in split]
    pieces: dict[str, list[Moments]] = {}
    longest: dict[str, int] = {}
    repairs: Counter[str] = Counter()
    for record in everything:
        repairs.update(record.repairs)
        for name, part in record.moments.items():
            pieces.setdefault(name, []).append(part)
        for name, length in record.max_length.items():
            longest[name] = max(length, longest.get(name, 0))
    moments = {name: reduce(Moments.join, parts) for name, parts in pieces.items()}
    return Manifest(
        name=source.name,
        task=source.task,
        fields=source.fields,
        splits={split: tuple(record.shard for record in parts) for split, parts in records.items()},
        labels=source.labels,
        synthetic=source.synthetic,
        source=facts,
        tokenizer=source.tokenizer,
        moments={
            name: (moments[name].mean, moments[name].std())
            for name in source.fields
            if name in moments
        },
        max_length={name: longest[name] for name in source.fields if name in longest},
        repairs=dict(sorted(repairs.items())),
        extras=source.extras,
    )


def parse_labels(text: str) -> Labels:
    """``LOW:HIGH`` or ``LOW:HIGH:RESOLUTION``; the resolution may be a fraction."""
    try:
        parts = [
            float(top) / float(bottom or 1)
            for top, _, bottom in (part.partition("/") for part in text.split(":"))
        ]
        low, high, *step = parts
        if len(step) > 1 or not low < high or not all(0 < size <= high - low for size in step):
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise DataError(
            f"--labels {text!r}: expected LOW:HIGH or LOW:HIGH:RESOLUTION, such as -3:3:1/3"
        ) from None
    return Labels(low=low, high=high, resolution=step[0] if step else None)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("convert", __doc__)
    parser.add_argument(
        "raw",
        type=Path,
        help="an MMSA .pkl, a table (.csv, .jsonl, .parquet), or an alignment folder",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument(
        "--name", help="name of the data set (default: the known data set, or the file's name)"
    )
    parser.add_argument(
        "--dataset", choices=sorted(KNOWN_LABELS), help="which known data set this is"
    )
    parser.add_argument(
        "--labels",
        metavar="LOW:HIGH[:STEP]",
        help="label range and annotation step, such as -3:3:1/3",
    )
    parser.add_argument(
        "--text", choices=["auto", "tokens", "features", "tokenize"], default="auto"
    )
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="folder of a transformers tokenizer, for the raw text"
    )
    parser.add_argument(
        "--max-tokens", type=int, help="cut longer texts (default: the tokenizer's own limit)"
    )
    parser.add_argument("--shard-size", type=int, default=SHARD_SIZE, metavar="SAMPLES")
    parser.add_argument(
        "--processes", type=int, default=1, help="the bytes are the same for any number"
    )
    parser.add_argument(
        "--force", action="store_true", help="write anew over a finished conversion"
    )
    knowledge_graphs.add_arguments(parser)
    return parse(parser, argv)


def _main(given: argparse.Namespace) -> None:
    options = Options(
        name=given.name,
        dataset=given.dataset,
        labels=parse_labels(given.labels) if given.labels is not None else None,
        text=given.text,
        tokenizer=given.tokenizer,
        max_tokens=given.max_tokens,
        entities=knowledge_graphs.options_of(given)
        if knowledge_graphs.is_alignment_folder(given.raw)
        else None,
    )
    manifest = convert(
        given.raw,
        given.out,
        options,
        shard_size=given.shard_size,
        processes=given.processes,
        force=given.force,
        progress=True,
    )
    for name in manifest.source.get("left out", ()):
        print(f"left out: {name!r}, which is none of the splits train, valid and test")
    for repair, count in manifest.repairs.items():
        print(f"repaired: {count} {repair}")
    counts = ", ".join(f"{manifest.samples(split)} {split}" for split in manifest.splits)
    kind = "SYNTHETIC data: " if manifest.synthetic else ""
    print(
        f"{kind}{counts} samples are in {given.out}; look at them with: python -m data_shards.inspect {given.out}"
    )


def main(argv: list[str] | None = None) -> int:
    given = _arguments(argv)
    again = f"run the same command again: finished shards are kept in {given.out}"
    return run(lambda: _main(given), when_stopped=again)


if __name__ == "__main__":
    sys.exit(main())
