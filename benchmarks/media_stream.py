"""How fast raw media come out of shards: samples a second of sound and pictures, decoded and padded.

    python benchmarks/media_stream.py work=FOLDER [samples=160] [seconds=3] [repeats=3]

Shards of made-up clips are made in ``work``: FLAC of 16,000 samples a second, and two JPEG pictures a
second of 224 pixels a side. Two readers then go through all of them, in this process:

- this project's stream, with one thread that decodes and with two;
- plain webdataset, whose pipeline decodes the same members with the same functions, in its one thread.

The fastest of the repeats counts. The table is printed, written into ``docs/large.md``, and saved with
machine and versions as ``benchmarks/results/media_stream.json``.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import made_by, paste, read_words, refuse_others, run_command  # noqa: E402
from launch.reports.tables import markdown_table  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "media_stream.json"
DEFAULTS = {"work": "", "samples": "160", "seconds": "3", "repeats": "3"}
SIDE, RATE, BATCH = 224, 2.0, 16


def make_shards(work: Path, samples: int, seconds: int) -> Path:
    """The shards that are measured, unless they are there."""
    from data_shards.convert import convert
    from data_shards.media.media_kinds import SOUND, Media
    from data_shards.media.member_codec import encode_sound
    from data_shards.media.packed_frames import encode_picture, pack
    from data_shards.shards.manifest import Labels
    from data_shards.sources.raw_dataset import Options

    out = work / f"shards-{samples}-{seconds}"
    if (out / "manifest.json").exists():
        return out
    rng = np.random.default_rng(0)
    work.mkdir(parents=True, exist_ok=True)
    moment = np.arange(seconds * 16_000) / 16_000
    ramp = np.linspace(0, 255, SIDE)
    with open(work / "table.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "split", "label", "audio", "vision"])
        for number in range(samples):
            noise = rng.normal(size=len(moment)) * 0.02
            voice = 0.3 * np.sin(2 * np.pi * (120 + number) * moment) + noise
            sound = encode_sound(voice.astype(np.float32), "flac")
            (work / f"{number}.flac").write_bytes(sound)
            pictures = []
            for _ in range(int(seconds * RATE)):
                pixels = (
                    np.add.outer(ramp, ramp)[..., None] / 2 + rng.normal(size=(SIDE, SIDE, 3)) * 9
                )
                pictures.append(encode_picture(pixels.clip(0, 255).astype(np.uint8), "jpeg", 90))
            (work / f"{number}.frames").write_bytes(pack(pictures, RATE))
            writer.writerow([number, "train", 0.5, f"{number}.flac", f"{number}.frames"])
    media = {"audio": SOUND, "vision": Media("pictures", RATE, SIDE)}
    convert(work / "table.csv", out, Options(labels=Labels(), media=media), shard_size=40)
    return out


def stream_all(folder: Path, threads: int) -> int:
    """Samples that the stream of this project gives in one epoch."""
    from data_shards.stream import Stream

    stream = Stream(folder, "train", global_batch=BATCH, shuffle=False, decode_threads=threads)
    count = 0
    for (batch,) in stream.epoch(0):
        count += len(batch.index)
    stream.close()
    return count


def webdataset_all(folder: Path) -> int:
    """Samples that webdataset gives, decoded by the same functions and padded to batches."""
    import torch
    import webdataset

    from data_shards.media.batch_decoder import padded
    from data_shards.media.member_codec import decode_member
    from data_shards.shards.manifest import read_manifest

    media: dict[str, Any] = {}
    for name, field in read_manifest(folder).fields.items():
        if field.media is not None:
            media[name] = field.media
    suffixes = {"audio": "audio.flac", "vision": "vision.frames"}

    def decoded(sample: dict[str, bytes]) -> dict[str, np.ndarray]:
        return {name: decode_member(sample[suffixes[name]], media[name]) for name in media}

    def batched(samples: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        batch = {}
        for name in media:
            batch[name], _ = padded([sample[name] for sample in samples], media[name], False)
        return batch

    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    pipeline = webdataset.WebDataset(tars, shardshuffle=False).map(decoded)
    count = 0
    for batch in pipeline.batched(BATCH, collation_fn=batched):
        count += len(batch["audio"])
    return count


def per_second(read: Callable[[], int], samples: int, repeats: int) -> float:
    """Samples a second of the fastest of some readings."""
    fastest = float("inf")
    for _ in range(repeats):
        begun = time.perf_counter()
        if read() != samples:
            raise RuntimeError(f"not all of {samples} samples came")
        fastest = min(fastest, time.perf_counter() - begun)
    return samples / fastest


def main() -> None:
    words, others = read_words(DEFAULTS)
    refuse_others(others, DEFAULTS)
    samples, repeats = int(words["samples"]), int(words["repeats"])
    folder = make_shards(Path(words["work"]), samples, int(words["seconds"]))
    readers: dict[str, Callable[[], int]] = {
        "webdataset, one thread": lambda: webdataset_all(folder),
        "this project, one thread decodes": lambda: stream_all(folder, 1),
        "this project, two threads decode": lambda: stream_all(folder, 2),
    }
    rows = {name: per_second(read, samples, repeats) for name, read in readers.items()}
    result = {"made_by": made_by(), "seconds": int(words["seconds"]), "rows": rows}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    lines = [[name, f"{row:.0f}"] for name, row in rows.items()]
    table = markdown_table(["", "samples a second"], lines)
    print(table)
    paste(table, "media_stream", ROOT / "docs" / "large.md")


if __name__ == "__main__":
    sys.exit(run_command(main))
