"""Tables and shards of sound and pictures as they are: samples that can be told apart."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from media_files import tone

from data_shards.convert import convert
from data_shards.media.media_kinds import SOUND, Media
from data_shards.media.member_codec import encode_sound
from data_shards.media.packed_frames import encode_picture, pack
from data_shards.shards.manifest import Labels, Manifest
from data_shards.sources.raw_dataset import Options

SIDE = 16
MEDIA = {"audio": SOUND, "vision": Media("pictures", 2.0, SIDE)}


def write_media_table(
    folder: Path, samples: int = 24, splits: Sequence[str] = ("train", "train", "valid", "test")
) -> Path:
    """A table of ``samples`` clips: sound the louder, pictures the brighter, the higher the score.

    Every fifth lacks its pictures, every seventh its sound.
    """
    (folder / "files").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(samples):
        level = (number % 8) / 8
        row = {"id": f"clip{number}", "split": splits[number % len(splits)], "label": 4 * level - 2}
        row["text"] = " ".join("abcdefgh"[number % 8] for _ in range(1 + number % 3))
        if number % 7:
            row["audio"] = f"files/{number}.{('flac', 'wav')[number % 2]}"
            samples_of = tone(0.15 + 0.02 * (number % 4), 16_000, 0.05 + 0.5 * level)
            body = encode_sound(samples_of, ("flac", "wav")[number % 2])
            (folder / row["audio"]).write_bytes(body)
        if number % 5:
            row["vision"] = f"files/{number}.frames"
            pixels = np.full((SIDE, SIDE, 3), round(255 * level), np.uint8)
            pictures = [encode_picture(pixels, "jpeg", 90)] * (1 + number % 3)
            (folder / row["vision"]).write_bytes(pack(pictures, 2.0))
        rows.append(row)
    columns = ["id", "split", "label", "text", "audio", "vision"]
    with open(folder / "table.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return folder / "table.csv"


def convert_media(
    table: Path, out: Path, tokenizer: Path | None = None, shard_size: int = 4
) -> Manifest:
    """The shards of such a table."""
    options = Options(
        labels=Labels(low=-3.0, high=3.0),
        media=MEDIA,
        tokenizer=None if tokenizer is None else str(tokenizer),
    )
    return convert(table, out, options, shard_size=shard_size)
