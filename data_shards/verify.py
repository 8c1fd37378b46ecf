"""Compare a shard folder with its manifest: ``python -m data_shards.verify DIR [--deep]``.

Sizes and checksums of every tar, index and further file; with ``--deep`` also every member of every tar against the
index, every record, the uniqueness of keys, and how many numbers are not finite. Each damaged file is one line.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from core.arguments import command_parser, parse
from core.command import DAMAGED, DONE, run
from data_shards.index import index_tar, left_out
from data_shards.reading.reader import Reader
from data_shards.reading.storage import Folder
from data_shards.shards.canonical import is_canonical
from data_shards.shards.index_table import ABSENT, JSON, JSON_SIZE, Index, columns
from data_shards.shards.manifest import DataError, Manifest, Shard, read_manifest
from data_shards.shards.writer import index_name

PIECE = 1 << 18  # numbers that are looked at in one go


@dataclass(frozen=True)
class Finding:
    """What was found in one shard."""

    bytes: int = 0
    damage: str = ""
    not_finite: dict[str, int] = field(
        default_factory=dict
    )  # field -> numbers that are nan or infinite
    keys: tuple[str, ...] = ()


def verify(
    folder: Path, *, deep: bool = False, workers: int | None = None, progress: bool = False
) -> list[Finding]:
    """Check every shard of ``folder``; damage is reported in the findings, not raised.

    Raises:
        DataError: there is no manifest, or it cannot be read.
    """
    manifest = read_manifest(folder)
    shards = [shard for split in manifest.splits.values() for shard in split]
    workers = workers or os.cpu_count() or 1
    # checksums free the interpreter's lock, walking members does not
    pool: Executor = ProcessPoolExecutor(workers) if deep else ThreadPoolExecutor(workers)
    with pool:
        check = partial(check_shard, folder, manifest, deep=deep)
        bar = tqdm(pool.map(check, shards), total=len(shards), disable=None if progress else True)
        findings = list(bar)
    return [*findings, *_further(folder, manifest), *_repeated(findings)]


def check_shard(folder: Path, manifest: Manifest, shard: Shard, *, deep: bool) -> Finding:
    """One shard: as a reader checks it on first use, and with ``deep`` member by member."""
    reader = Reader(Folder(folder), (shard,), manifest.fields, keep=1, threads=0)
    try:
        opened = reader.shard(0)
        if not deep:
            return Finding(shard.bytes)
        index, tar = opened.index, np.frombuffer(opened.map, np.uint8)
        if not is_canonical(tar, index):  # then it must be walked through
            found, _ = index_tar(folder / shard.name, left_out(manifest))
            if found.to_bytes() != index.to_bytes():
                raise DataError(
                    f"{folder / index_name(shard.name)} does not describe its tar: {_difference(index, found)}; "
                    f"convert the data again"
                )
        for row, (offset, size) in enumerate(index.table[:, JSON : JSON_SIZE + 1].tolist()):
            if offset != ABSENT and not _is_record(opened.map[offset : offset + size]):
                reader.record(0, row)  # says what is wrong
        return Finding(shard.bytes, "", _not_finite(reader, tar, index), tuple(index.keys()))
    except (DataError, OSError) as error:
        return Finding(shard.bytes, str(error))
    finally:
        reader.close()


def _is_record(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        return False


def _not_finite(reader: Reader, tar: np.ndarray, index: Index) -> dict[str, int]:
    """Field -> how many of its numbers are nan or infinite."""
    floats = {
        field: dtype for field, (dtype, _) in index.arrays.items() if np.dtype(dtype).kind == "f"
    }
    places = columns(index.arrays)
    offsets = index.table[:, [places[name] for name in floats]]
    if set(floats.values()) <= {"float32"} and not ((offsets != ABSENT) & (offsets % 4 > 0)).any():
        # all bytes of the tar in one go, headers too: the look at each array is needed only where this finds something
        numbers = tar[: len(tar) // 4 * 4].view(np.float32)
        if all(np.isfinite(numbers[at : at + PIECE]).all() for at in range(0, len(numbers), PIECE)):
            return {}
    found: Counter[str] = Counter()
    for arrays in reader.walk(0, range(len(index))):
        for name in floats.keys() & arrays.keys():
            found[name] += int(arrays[name].size - np.isfinite(arrays[name]).sum())
    return {name: count for name, count in sorted(found.items()) if count}


def _difference(index: Index, found: Index) -> str:
    if index.arrays != found.arrays:
        return f"fields {index.arrays}, not {found.arrays}"
    if index.keys() != found.keys():
        return f"{len(index)} samples with other keys than the {len(found)} of the tar"
    row, column = np.argwhere(index.table != found.table)[0]
    return f"sample {index.key(int(row))!r}, column {int(column)} of the table"


def _further(folder: Path, manifest: Manifest) -> list[Finding]:
    """The further files of the folder that the manifest vouches for."""
    found = []
    for name, sha256 in manifest.extras.items():
        path = folder / name
        if not (isinstance(sha256, str) and len(sha256) == 64 and "/" not in name and "." in name):
            continue  # a fact, not a file
        if not path.is_file():
            found.append(Finding(0, f"{path} is missing; restore the file or make it again"))
        elif hashlib.sha256(body := path.read_bytes()).hexdigest() != sha256:
            found.append(
                Finding(
                    len(body),
                    f"{path} is damaged: its checksum is wrong; restore it or make it again",
                )
            )
    return found


def _repeated(findings: Iterable[Finding]) -> list[Finding]:
    times = Counter(key for finding in findings for key in finding.keys)
    repeated = [key for key, count in times.items() if count > 1]
    if not repeated:
        return []
    return [
        Finding(
            0,
            f"{len(repeated)} keys appear in more than one shard, such as {repeated[0]!r}; convert again",
        )
    ]


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("verify", __doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--deep", action="store_true", help="look at every member of every tar, too"
    )
    parser.add_argument(
        "--workers", type=int, help="threads, or with --deep processes (default: one per core)"
    )
    given = parse(parser, argv)

    def work() -> int:
        started = time.perf_counter()
        findings = verify(given.folder, deep=given.deep, workers=given.workers, progress=True)
        damaged = [finding.damage for finding in findings if finding.damage]
        for line in damaged:
            print(line, file=sys.stderr)
        not_finite = sum((Counter(finding.not_finite) for finding in findings), Counter[str]())
        for name, count in not_finite.items():
            print(f"note: field {name!r} holds {count} numbers that are not finite")
        size, seconds = sum(finding.bytes for finding in findings), time.perf_counter() - started
        verdict = f"{len(damaged)} damaged" if damaged else "all sound"
        print(
            f"{len(findings)} files checked, {size / 1e9:.3f} GB at {size / 1e9 / seconds:.2f} GB/s: {verdict}"
        )
        return DAMAGED if damaged else DONE

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
