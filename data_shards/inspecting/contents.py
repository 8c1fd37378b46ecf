"""What a data set holds, found by reading all of it; and what its samples share between splits."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from core.command import Refused
from data_shards.inspecting.label_leakage import MeanFrames
from data_shards.reading.open_shards import OpenShard
from data_shards.reading.reader import Reader
from data_shards.reading.storage import open_manifest, open_store
from data_shards.shards.index_table import ABSENT, bytes_of
from data_shards.shards.manifest import Manifest
from data_shards.shards.sentiment_schema import Rules, check_manifest, check_sample


@dataclass
class SplitContents:
    """What was found in one split."""

    # field with a time axis -> lengths of the samples that have it
    lengths: dict[str, list[int]] = field(default_factory=dict)
    present: Counter[str] = field(default_factory=Counter)  # field -> samples that have it
    labels: list[float] = field(default_factory=list)
    # (K,) of each sample, where a label is a vector
    targets: list[np.ndarray] = field(default_factory=list)
    samples: int = 0
    texts: int = 0
    empty: int = 0  # samples without any modality


@dataclass
class Contents:
    """What was found in all splits."""

    name: str  # folder or URL
    manifest: Manifest
    splits: dict[str, SplitContents] = field(default_factory=dict)
    corrupt: list[str] = field(default_factory=list)  # what is wrong with each corrupt shard
    # what would be learnt wrongly: the manifest's, and that of each sample
    unfit: list[str] = field(default_factory=list)
    # simplified id -> (split, id) of each sample
    ids: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    videos: dict[str, set[str]] = field(default_factory=dict)  # video -> splits
    mean_frames: MeanFrames = field(default_factory=MeanFrames)

    def shared_videos(self) -> list[str]:
        """Videos that are in more than one split."""
        return sorted(video for video, splits in self.videos.items() if len(splits) > 1)

    def like_ids(self) -> list[list[tuple[str, str]]]:
        """Groups of samples whose ids are the same but for case, punctuation and leading zeros."""
        return [group for _, group in sorted(self.ids.items()) if len(group) > 1]


def simplify(name: str) -> str:
    """An id without what people write differently: case, punctuation, leading zeros."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    simplified = []
    for word in re.split(r"[\W_]+", folded):
        if word.isdigit():
            simplified.append(word.lstrip("0") or "0")
        elif word:
            simplified.append(word)
    return "_".join(simplified)


def examine(source: str | Path, progress: bool = False) -> Contents:
    """Read all shards of a folder or URL. Corrupt ones are listed and left out."""
    store = open_store(source)
    manifest, _ = open_manifest(store)
    contents = Contents(store.name, manifest)
    if manifest.labels.kind == "classes":
        contents.mean_frames.num_classes = len(manifest.labels.names)
    if manifest.task == "sentiment":
        try:
            check_manifest(manifest, f"{store.name}/manifest.json")
        except Refused as error:
            contents.unfit.append(str(error))
    total = sum(manifest.samples(split) for split in manifest.splits)
    with tqdm(total=total, unit="sample", disable=not progress, leave=False) as bar:
        for split, shards in manifest.splits.items():
            contents.splits[split] = SplitContents()
            reader = Reader(store, shards, manifest.fields, keep=1, threads=0)
            for number, shard in enumerate(shards):
                try:
                    _add_shard(contents, split, reader, number)
                except Refused as error:
                    contents.corrupt.append(str(error))
                bar.update(shard.samples)
            reader.close()
    return contents


def _add_shard(contents: Contents, split: str, reader: Reader, number: int) -> None:
    shard = reader.shard(number)
    found = contents.splits[split]
    _add_fields(found, contents.manifest, shard)
    has_classes = contents.manifest.labels.kind == "classes"
    target = "class" if has_classes else "label"
    rules = Rules.of(contents.manifest.labels, contents.manifest.tokenizer)
    where = f"{contents.name}/{reader.shards[number].name}"
    for row, arrays in enumerate(reader.iter_views(number, range(len(shard.index)))):
        if contents.manifest.task == "sentiment":
            try:
                check_sample(arrays, rules, f"{where}, sample {shard.index.key(row)!r}")
            except Refused as error:
                contents.unfit.append(str(error))
        if target in arrays and arrays[target].size == 1:
            found.labels.append(arrays[target].item())
        elif target in arrays and arrays[target].ndim == 1:
            found.targets.append(np.array(arrays[target]))
        record = reader.record(number, row)
        if contents.manifest.task == "sentiment":
            contents.mean_frames.add(split, arrays, record, contents.manifest.samples(split))
        found.samples += 1
        found.texts += "text" in record
        name = str(record["id"])
        contents.ids.setdefault(simplify(name), []).append((split, name))
        if record.get("video") is not None:
            contents.videos.setdefault(str(record["video"]), set()).add(split)


def _add_fields(found: SplitContents, manifest: Manifest, shard: OpenShard) -> None:
    """How many samples have each field, and how long it is; all from the index."""
    index = shard.index
    sequences = [name for name, kind in manifest.fields.items() if None in kind.shape]
    found.empty += int((bytes_of(index, sequences) == 0).sum())
    for name, kind in manifest.fields.items():
        if name not in index.arrays:
            continue
        column = index.column(name)
        is_present = index.table[:, column] != ABSENT
        found.present[name] += int(is_present.sum())
        if None in kind.shape:
            time = column + 1 + kind.shape.index(None)
            lengths = index.table[is_present, time].tolist()
            found.lengths.setdefault(name, []).extend(lengths)
