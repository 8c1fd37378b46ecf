"""Ten thousand shards, a million samples: opening, resuming, and memory while reading.

    python benchmarks/streaming_scale.py FOLDER

``FOLDER`` holds one shard, as ``streaming_readers.py concord write scale 100`` makes it. The last
line is JSON.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from data_shards.shards.manifest import read_manifest  # noqa: E402
from data_shards.shards.writer import index_name  # noqa: E402
from data_shards.stream import Stream  # noqa: E402

SHARDS = 10_000
BATCH = 64


def multiply(source: Path, folder: Path) -> None:
    """A folder with the first shard of ``source`` under many names."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    few = read_manifest(source)
    shards = tuple(
        replace(few.splits["train"][0], name=f"train-{i:06d}.tar") for i in range(SHARDS)
    )
    for shard in shards:
        for name in (shard.name, index_name(shard.name)):
            (folder / name).hardlink_to(source / name.replace(shard.name[:-4], "train-000000"))
    (folder / "manifest.json").write_text(replace(few, splits={"train": shards}).to_json())


def start(folder: Path, state: dict[str, Any] | None = None) -> tuple[Stream, Iterator, float]:
    """A stream, its steps after the first, and the seconds from nothing to the first batch."""
    began = time.perf_counter()
    stream = Stream(folder, "train", global_batch=BATCH)
    if state:
        stream.load_state_dict(state)
    steps = stream.epoch(0)
    next(steps)
    return stream, steps, time.perf_counter() - began


def main() -> None:
    source = Path(sys.argv[1])
    folder = source.parent / "many"
    multiply(source, folder)
    stream, steps, opened = start(folder)
    steps.close()
    state = stream.state_dict() | {"samples": len(stream) * 9 // 10 // BATCH * BATCH}
    _, steps, resumed = start(folder, state)
    steps.close()
    found = {
        "shards": SHARDS,
        "samples": len(stream),
        "first batch, s": opened,
        "first batch at 90 %, s": resumed,
    }
    process = psutil.Process()
    stream, steps, _ = start(folder)
    for number, _parts in enumerate(steps, 2):
        if number in (1_000, 4_000, len(stream) // BATCH):
            found[f"resident MB after {number * BATCH} samples"] = round(
                process.memory_info().rss / 1e6
            )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
