"""Compare a shard folder with its manifest: ``python -m data_shards.verify DIR [--deep]``.

Sizes and checksums of every tar, index and further file; with ``--deep`` also every member of every
tar against the index, every record, the uniqueness of keys, how many numbers are not finite, and of
sentiment data whether labels, token ids and frames are what can be learnt. Each corrupt file is one
line.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from core.arguments import command_parser, parse
from core.command import DAMAGED, DONE, Refused, run
from core.files import sha256_of_file
from data_shards.indexing.folder_indexer import left_out, media_fields
from data_shards.indexing.tar_indexer import index_tar
from data_shards.reading.checked_files import CheckedFiles
from data_shards.reading.open_shards import OpenShard, read_index
from data_shards.reading.reader import Reader
from data_shards.reading.storage import Folder
from data_shards.shards.canonical import is_canonical
from data_shards.shards.index_table import ABSENT, JSON, JSON_SIZE, Index, parse_json
from data_shards.shards.manifest import (
    MANIFEST,
    DataError,
    Field,
    Manifest,
    Shard,
    read_manifest,
)
from data_shards.shards.sentiment_schema import Rules, check_manifest, check_sample
from data_shards.shards.writer import index_name

PIECE = 1 << 18  # numbers that are looked at in one go


@dataclass(frozen=True)
class Finding:
    """What was found in one file."""

    bytes: int = 0
    corruption: str = ""  # what is wrong with it, and what to do; empty when nothing is
    not_finite: dict[str, int] = field(default_factory=dict)  # field -> numbers nan or infinite
    # (S,) uint64, a number for the key of each sample of a shard
    keys: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))


def verify(
    folder: Path, *, deep: bool = False, workers: int | None = None, progress: bool = False
) -> list[Finding]:
    """Check every file of ``folder``; corruption is reported in the findings, not raised.

    Raises:
        DataError: there is no manifest, or it cannot be read.
    """
    manifest = read_manifest(folder)
    shards = list(chain.from_iterable(manifest.splits.values()))
    without_shards = replace(manifest, splits={})  # each worker needs the rest of it only
    workers = workers or os.cpu_count() or 1
    # Checksums free the interpreter's lock, walking through members does not.
    pool: Executor = ProcessPoolExecutor(workers) if deep else ThreadPoolExecutor(workers)
    with pool:
        results = pool.map(partial(check_shard, folder, without_shards, deep=deep), shards)
        hidden = None if progress else True  # None: shown on a terminal only
        findings = list(tqdm(results, total=len(shards), disable=hidden))
    repeated = _check_keys(folder, manifest.fields, shards, findings) if deep else []
    findings += _check_extras(folder, manifest)
    if deep:
        findings += repeated
        findings += _check_meaning(folder, manifest)
    return findings


def check_shard(folder: Path, manifest: Manifest, shard: Shard, *, deep: bool) -> Finding:
    """One shard: as a reader checks it on first use, and with ``deep`` member by member."""
    hashed_anew = Folder(folder, CheckedFiles(None))
    reader = Reader(hashed_anew, (shard,), manifest.fields, keep=1, threads=0)
    try:
        opened = reader.shard(0)
        if not deep:
            return Finding(shard.bytes)
        tar = np.frombuffer(opened.content, np.uint8)
        _check_members(folder / shard.name, manifest, opened.index, tar)
        _check_records(reader, opened)
        if manifest.task == "sentiment":
            _check_samples(folder / shard.name, manifest, reader, opened.index)
        not_finite = _count_not_finite(reader, tar, opened.index)
        return Finding(shard.bytes, "", not_finite, _numbers(opened.index.keys()))
    except (Refused, OSError) as error:
        return Finding(shard.bytes, str(error))
    finally:
        reader.close()


def _check_members(path: Path, manifest: Manifest, index: Index, tar: np.ndarray) -> None:
    """DataError unless the index describes its tar."""
    if is_canonical(tar, index):
        return
    # Not as this project writes it byte by byte, so it must be walked through.
    found = index_tar(path, left_out(manifest), manifest.task, media_fields(manifest)).index
    if found.to_bytes() != index.to_bytes():
        raise DataError(
            f"{path.with_name(index_name(path.name))} does not describe its tar: "
            f"{_difference(index, found)}; "
            f"convert the data again"
        )


def _difference(index: Index, found: Index) -> str:
    if index.arrays != found.arrays:
        return f"fields {index.arrays}, not {found.arrays}"
    if index.keys() != found.keys():
        return f"{len(index)} samples with other keys than the {len(found)} of the tar"
    row, column = np.argwhere(index.table != found.table)[0]
    return f"sample {index.key(int(row))!r}, column {int(column)} of the table"


def _check_records(reader: Reader, opened: OpenShard) -> None:
    """DataError unless the JSON of each sample is an object."""
    columns = opened.index.table[:, [JSON, JSON_SIZE]].tolist()
    for row, (offset, size) in enumerate(columns):
        if offset != ABSENT:
            parse_json(opened.content[offset : offset + size], reader.place(0, row))


def _check_samples(path: Path, manifest: Manifest, reader: Reader, index: Index) -> None:
    """DataError unless every sample can be learnt from."""
    rules = Rules.of(manifest.labels, manifest.tokenizer)
    for row, arrays in enumerate(reader.iter_views(0, range(len(index)))):
        check_sample(arrays, rules, f"{path}, sample {index.key(row)!r}")


def _check_meaning(folder: Path, manifest: Manifest) -> list[Finding]:
    """A finding when the manifest says of sentiment data what cannot be learnt."""
    if manifest.task != "sentiment":
        return []
    try:
        check_manifest(manifest, str(folder / MANIFEST))
    except Refused as error:
        return [Finding(0, str(error))]
    return []


def _count_not_finite(reader: Reader, tar: np.ndarray, index: Index) -> dict[str, int]:
    """Field -> how many of its numbers are nan or infinite."""
    names = set()
    for name, (dtype, _) in index.arrays.items():
        if np.dtype(dtype).kind == "f":
            names.add(name)
    if _is_finite_throughout(tar, index, names):
        return {}
    counts: Counter[str] = Counter()
    for arrays in reader.iter_views(0, range(len(index))):
        for name in names & arrays.keys():
            counts[name] += int(np.sum(~np.isfinite(arrays[name])))
    return {name: count for name, count in sorted(counts.items()) if count}


def _is_finite_throughout(tar: np.ndarray, index: Index, names: Iterable[str]) -> bool:
    """Whether all bytes of the tar, headers too, are finite float32 numbers; a fast look that
    often makes the one at each array needless. False also where it cannot tell."""
    for name in names:
        offset = index.table[:, index.column(name)]
        is_unaligned = (offset != ABSENT) & (offset % 4 > 0)
        if index.arrays[name][0] != "float32" or is_unaligned.any():
            return False
    numbers = tar[: len(tar) // 4 * 4].view(np.float32)
    for start in range(0, len(numbers), PIECE):
        if not np.isfinite(numbers[start : start + PIECE]).all():
            return False
    return True


def _check_extras(folder: Path, manifest: Manifest) -> list[Finding]:
    """The further files of the folder that the manifest vouches for."""
    findings = []
    for name, sha256 in manifest.extras.items():
        path = folder / name
        is_file_name = "/" not in name and "." in name
        if not (is_file_name and isinstance(sha256, str) and len(sha256) == 64):
            continue  # a fact, not a file
        if not path.is_file():
            problem = f"{path} is missing; restore the file or make it again"
            findings.append(Finding(0, problem))
        elif sha256_of_file(path) != sha256:
            problem = f"{path} is damaged: its checksum is wrong; restore it or make it again"
            findings.append(Finding(path.stat().st_size, problem))
    return findings


def _numbers(keys: Iterable[str]) -> np.ndarray:
    """(S,) uint64, the same for equal keys: eight bytes a sample are kept, and not its name."""
    digests = [hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys]
    return np.frombuffer(b"".join(digests), np.uint64)


def _check_keys(
    folder: Path, fields: dict[str, Field], shards: Sequence[Shard], findings: Sequence[Finding]
) -> list[Finding]:
    """A finding when a key is in several shards.

    Args:
        findings: of the shards, in their order.
    """
    nothing = np.empty(0, np.uint64)
    numbers = np.sort(np.concatenate([nothing, *[finding.keys for finding in findings]]))
    suspects = np.unique(numbers[1:][numbers[1:] == numbers[:-1]])
    if not len(suspects):
        return []
    # Numbers of different keys may be equal: the keys themselves decide.
    times: Counter[str] = Counter()
    for shard, finding in zip(shards, findings, strict=True):
        if np.isin(finding.keys, suspects).any():
            times.update(read_index(Folder(folder), shard, fields).keys())
    repeated = [key for key, count in times.items() if count > 1]
    if not repeated:
        return []
    problem = (
        f"{len(repeated)} keys appear in more than one shard, such as {repeated[0]!r}; "
        f"convert again"
    )
    return [Finding(0, problem)]


def _print_findings(findings: list[Finding], seconds: float) -> None:
    corrupt = [finding.corruption for finding in findings if finding.corruption]
    for line in corrupt:
        print(line, file=sys.stderr)
    not_finite: Counter[str] = Counter()
    for finding in findings:
        not_finite.update(finding.not_finite)
    for name, count in not_finite.items():
        print(f"note: field {name!r} holds {count} numbers that are not finite")
    gigabytes = sum(finding.bytes for finding in findings) / 1e9
    verdict = f"{len(corrupt)} damaged" if corrupt else "all sound"
    print(
        f"{len(findings)} files checked, {gigabytes:.3f} GB at {gigabytes / seconds:.2f} GB/s: "
        f"{verdict}"
    )


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("verify", __doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--deep", action="store_true", help="look at every member of every tar, too"
    )
    parser.add_argument(
        "--workers", type=int, help="threads, or with --deep processes (default: one per core)"
    )
    options = parse(parser, argv)

    def work() -> int:
        started = time.perf_counter()
        findings = verify(options.folder, deep=options.deep, workers=options.workers, progress=True)
        _print_findings(findings, time.perf_counter() - started)
        return DAMAGED if any(finding.corruption for finding in findings) else DONE

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
