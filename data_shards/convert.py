"""Raw data to a shard folder: ``python -m data_shards.convert RAW --out DIR``. Same input and
options, same bytes.

The layouts that are read, and what is repaired on the way, are described in docs/data.md.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

from filelock import FileLock, Timeout

from core.arguments import command_parser, parse
from core.command import Refused, run
from core.file_access.packed_files import HEAD, check_not_packed
from core.file_access.regular_files import check_regular_file, open_regular_file
from core.file_access.targets import check_folder
from core.files import sha256_of_bytes
from data_shards.media.media_kinds import parse_media
from data_shards.shards.frame_moments import mean_and_std
from data_shards.shards.jobs import RECORDS, Record, plan_jobs, run_jobs
from data_shards.shards.manifest import (
    EMPTY,
    LEAVE_OUT,
    MANIFEST,
    VERSION,
    DataError,
    Labels,
    Manifest,
    Shard,
    check_manifest_text,
    describe_empty,
    read_manifest,
    write_manifest,
)
from data_shards.shards.sentiment_schema import check_fields
from data_shards.shards.split_names import describe_missing
from data_shards.sources import pickled_features, table
from data_shards.sources.graphs import knowledge_graphs
from data_shards.sources.raw_dataset import (
    KNOWN_LABELS,
    Options,
    RawDataset,
    TextChoice,
    refuse_idle_options,
)
from data_shards.sources.rename import parse_renaming, rename
from data_shards.sources.table_targets import parse_targets

CONVERTER = 2  # raise it when the same input gives other bytes than before
SHARD_SIZE = 512
LOCK_WAIT = 5.0  # seconds; processes of a killed conversion take a moment to end
# What a conversion writes, and what is left of it (.partial, earlier .staging) when it is killed.
_WRITTEN = re.compile(r"\.?(?P<shard>[a-z_]+-\d{6})\.(tar|idx)(\.partial|\.staging)?")

READERS: dict[str, Callable[[Path, Options], RawDataset]] = {
    ".pkl": pickled_features.read,
    ".pickle": pickled_features.read,
    ".csv": table.read,
    ".jsonl": table.read,
    ".ndjson": table.read,
    ".parquet": table.read,
}


def read(raw: Path, options: Options) -> RawDataset:
    """The raw file through the reader of its kind."""
    if raw.is_dir() and knowledge_graphs.is_alignment_folder(raw):
        return knowledge_graphs.read(raw, options)
    kinds = (
        f"known are files that end in {', '.join(READERS)}, and alignment folders (docs/data.md)"
    )
    try:
        if raw.is_dir():
            raise DataError(f"{raw} is no alignment folder; {kinds}")
        check_regular_file(raw)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{raw} does not exist") from None
    reader = READERS.get(raw.suffix.lower())
    if reader is None:
        with open_regular_file(raw) as file:
            check_not_packed(file.read(HEAD), raw)
        raise DataError(f"{raw} is of no known kind; {kinds}")
    try:
        return reader(raw, options)
    except Refused as refusal:
        raise _naming(raw, refusal) from None


def _naming(raw: Path, refusal: Refused) -> DataError:
    """The refusal with the name of the raw file in it: whoever reads it may convert many."""
    if isinstance(refusal, DataError) and raw.name in str(refusal):
        return refusal
    return DataError(str(refusal) if raw.name in str(refusal) else f"{raw}: {refusal}")


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
    _check_target(out)
    dataset = read(raw, options)
    refuse_idle_options(options, dataset, raw)
    if options.rename:
        dataset = rename(dataset, options.rename)
    if dataset.task == "sentiment":
        check_fields(dataset.fields, dataset.labels, str(raw))
    facts = _facts(dataset, options, shard_size)
    with _claimed(out):
        if (out / MANIFEST).exists():
            if not force:
                return _finished(out, facts, dataset)
            (out / MANIFEST).unlink()  # first: at no time an old one vouches for new shards
        decisive = json.dumps([facts, dataset.tokenizer, VERSION, CONVERTER], sort_keys=True)
        identity = sha256_of_bytes(decisive.encode("utf-8"))
        jobs = plan_jobs(dataset, identity, shard_size)
        try:
            records = run_jobs(dataset, out, jobs, processes, progress)
            manifest = _manifest(dataset, facts, records)
            check_manifest_text(manifest, text := manifest.to_json(), str(out / MANIFEST))
        except Refused as refusal:
            raise _naming(raw, refusal) from None
        _remove_leftovers(out, manifest)
        write_manifest(out, manifest, text)
    return manifest


def _check_target(out: Path) -> None:
    """Refuse a folder that takes no files, or has other things in it."""
    check_folder(out)
    is_shard_folder = (out / MANIFEST).exists()
    was_cut_short = (out / RECORDS).exists()
    if out.exists() and not is_shard_folder and not was_cut_short and any(out.iterdir()):
        raise DataError(
            f"{out} is not empty and is no shard folder; give another --out, or empty it first"
        )


@contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """``out``, which ``_check_target`` found fit, for this conversion alone."""
    out.mkdir(parents=True, exist_ok=True)
    (out / RECORDS).mkdir(exist_ok=True)
    try:
        with FileLock(out / RECORDS / "lock", timeout=LOCK_WAIT):
            yield
            # not after an error: the records are what a second run continues from
            shutil.rmtree(out / RECORDS)
    except Timeout:
        raise DataError(
            f"another conversion is writing to {out}; wait for it, or give another --out"
        ) from None


def _facts(dataset: RawDataset, options: Options, shard_size: int) -> dict[str, Any]:
    """Manifest.source: where the data came from and every choice that decides about its bytes."""
    # the tokenizer's folder may move; its vocabulary is in Manifest.tokenizer
    choices = asdict(replace(options, tokenizer=None)) | {"shard_size": shard_size}
    stated = {name: value for name, value in choices.items() if value is not None}
    facts = {**dataset.facts, "options": stated}
    return json.loads(json.dumps(facts))  # as they are when read back: tuples become lists


def _finished(out: Path, facts: dict[str, Any], dataset: RawDataset) -> Manifest:
    """The manifest that is there already, if it is of the same raw data and options."""
    manifest = read_manifest(out)
    made_from = (manifest.source, manifest.tokenizer, manifest.extraction)
    if made_from != (facts, dataset.tokenizer, dataset.extraction):
        raise DataError(
            f"{out} already holds shards of {manifest.source.get('file')}, made from other "
            "contents or with other options; give another --out, or --force to write them anew"
        )
    return manifest


def _remove_leftovers(out: Path, manifest: Manifest) -> None:
    """Remove what an earlier conversion with other options left behind."""
    finished = set()
    for shards in manifest.splits.values():
        finished |= {shard.name.removesuffix(".tar") for shard in shards}
    for path in list(out.iterdir()):
        written = _WRITTEN.fullmatch(path.name)
        if written is None:
            continue
        is_hidden = path.name.startswith(".")
        if is_hidden or written["shard"] not in finished:
            path.unlink()


def _manifest(
    dataset: RawDataset, facts: dict[str, Any], records: dict[str, list[Record]]
) -> Manifest:
    """What the records of all shards come to."""
    shards: dict[str, Sequence[Shard]] = {}
    max_length, empty = dict[str, int](), dict[str, int]()  # empty: samples without any modality
    repairs: Counter[str] = Counter()
    for split, finished in records.items():
        shards[split] = tuple(record.shard for record in finished)
        count = sum(record.empty for record in finished)
        if count and dataset.task == "sentiment":
            empty[split] = count
        for record in finished:
            repairs.update(record.repairs)
            for name, length in record.max_length.items():
                max_length[name] = max(length, max_length.get(name, 0))
    moments = mean_and_std(record.moments for finished in records.values() for record in finished)
    return Manifest(
        name=dataset.name,
        task=dataset.task,
        fields=dataset.fields,
        splits=shards,
        labels=dataset.labels,
        synthetic=dataset.synthetic,
        source=facts,
        tokenizer=dataset.tokenizer,
        moments={name: moments[name] for name in dataset.fields if name in moments},
        max_length={name: max_length[name] for name in dataset.fields if name in max_length},
        repairs=dict(sorted(repairs.items())),
        extras=dataset.extras | ({EMPTY: empty} if empty else {}),
        extraction=dataset.extraction,
    )


def parse_labels(text: str) -> Labels:
    """``LOW:HIGH`` or ``LOW:HIGH:RESOLUTION``; the resolution may be a fraction."""
    try:
        low, high, *resolutions = [_parse_fraction(part) for part in text.split(":")]
        resolution = None
        if resolutions:
            (resolution,) = resolutions
        is_range = low < high
        is_step = resolution is None or 0 < resolution <= high - low
        if not (is_range and is_step):
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise DataError(
            f"--labels {text!r}: expected LOW:HIGH or LOW:HIGH:RESOLUTION, such as -3:3:1/3"
        ) from None
    return Labels(low=low, high=high, resolution=resolution)


def _parse_fraction(text: str) -> float:
    """A number, or one over another: "0.5", "1/3"."""
    numerator, _, denominator = text.partition("/")
    return float(numerator) / float(denominator or 1)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("convert", __doc__)
    parser.add_argument(
        "raw",
        type=Path,
        help="an MMSA .pkl, a .pkl of dialogues, a table (.csv, .jsonl, .parquet), or an alignment "
        "folder",
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
        "--targets",
        metavar="A,B,...",
        help="columns of a table that together are the label: several scores to learn at once",
    )
    parser.add_argument(
        "--emotions",
        type=int,
        metavar="NUMBER",
        help="classes of a file of dialogues: 4 or 6 of IEMOCAP, 3 or 7 of MELD (default: all)",
    )
    parser.add_argument(
        "--media",
        action="append",
        default=[],
        metavar="COLUMN[=RATE:SIDE]",
        help="a column of a table that names files of sound, or with RATE pictures a second of SIDE "
        "pixels (such as vision=2:224) videos; they are stored as they are",
    )
    parser.add_argument("--text", choices=get_args(TextChoice), default="auto")
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="folder of a transformers tokenizer, for the raw text"
    )
    parser.add_argument(
        "--rename",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="another name for a modality, such as face=vision; may be given several times",
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


def _main(arguments: argparse.Namespace) -> None:
    labels = None
    if arguments.labels is not None:
        labels = parse_labels(arguments.labels)
    entities = None
    if knowledge_graphs.is_alignment_folder(arguments.raw):
        entities = knowledge_graphs.options_of(arguments)
    options = Options(
        name=arguments.name,
        dataset=arguments.dataset,
        labels=labels,
        text=arguments.text,
        tokenizer=arguments.tokenizer,
        max_tokens=arguments.max_tokens,
        rename=parse_renaming(arguments.rename) or None,
        entities=entities,
        targets=parse_targets(arguments.targets),
        emotions=arguments.emotions,
        fold=arguments.fold,
        media=dict(map(parse_media, arguments.media)) or None,
    )
    manifest = convert(
        arguments.raw,
        arguments.out,
        options,
        shard_size=arguments.shard_size,
        processes=arguments.processes,
        force=arguments.force,
        progress=True,
    )
    for name in manifest.source.get("left out", ()):
        print(f"left out: {name!r}, which is none of the splits train, valid and test")
    if "assumed" in manifest.source:
        print(f"assumed: {manifest.source['assumed']}")
    for repair, count in manifest.repairs.items():
        print(f"repaired: {count} {repair}")
    if manifest.empty():
        print(f"WARNING: {describe_empty(manifest, manifest.empty())}; {LEAVE_OUT}")
    missing = describe_missing(manifest.splits)
    if manifest.task == "sentiment" and missing:
        print(f"WARNING: {missing}")
    for note in manifest.extras.get("noted", ()):
        print(f"noted: {note}")
    counts = ", ".join(f"{manifest.samples(split)} {split}" for split in manifest.splits)
    print(
        f"{'SYNTHETIC data: ' if manifest.synthetic else ''}{counts} samples are in {arguments.out}; "
        f"look at them with: python -m data_shards.inspect {arguments.out}"
    )


def main(argv: list[str] | None = None) -> int:
    arguments = _arguments(argv)
    again = f"run the same command again: finished shards are kept in {arguments.out}"
    return run(lambda: _main(arguments), when_stopped=again)


if __name__ == "__main__":
    sys.exit(main())
