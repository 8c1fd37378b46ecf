"""Shards as something to score: every split, or one; the labels in them are not looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core import distributed
from core.batch import Utterances
from data_shards.batches import utterances
from data_shards.reading.storage import open_store
from data_shards.shards.manifest import Manifest, parse_manifest
from data_shards.shards.sentiment_schema import check_manifest
from data_shards.stream import Stream
from launch.config import ConfigError
from launch.predicting.input_kinds import Part
from launch.predicting.scorer import nothing_of
from launch.predicting.trained import TrainedModel
from launch.tasks.data_record import record_of_manifest, side_by_side
from launch.tasks.data_spec import in_roles

Facts = dict[str, str]


class ShardInput:
    """A shard folder or its URL. Implements ``launch.predicting.input_kinds.Input``."""

    def __init__(self, trained: TrainedModel, source: str, split: str | None):
        self.trained = trained
        self.source = source
        store = open_store(source)
        self.manifest: Manifest = parse_manifest(store.read_manifest(), f"{source}/manifest.json")
        if self.manifest.task != "sentiment":
            raise ConfigError(f"{source} holds {self.manifest.task} data, which have no scores")
        check_manifest(self.manifest, source)
        refuse_other_kind(trained, self.manifest, source)
        if split is not None and split not in self.manifest.splits:
            known = ", ".join(self.manifest.splits)
            raise ConfigError(f"{source} has no split {split!r}; it has {known}")
        self.splits = list(self.manifest.splits) if split is None else [split]
        self.total: int | None = sum(self.manifest.samples(name) for name in self.splits)
        shards = [shard.sha256 for name in self.splits for shard in self.manifest.splits[name]]
        self.identity = {"shards": shards, "splits": self.splits}
        missing = [name for name in trained.wanted if name not in self.manifest.fields]
        self.notes = [f"the shards have no {name}" for name in missing]

    def _stream(self, split: str, size: int) -> Stream:
        return Stream(
            self.source if "://" in self.source else Path(self.source),
            split,
            global_batch=size,
            rank=distributed.rank(),
            ranks=distributed.world_size(),
            shuffle=False,
        )

    def parts(self, start: int, size: int) -> Iterator[Part]:
        """See ``Input``."""
        before = 0
        for split in self.splits:
            samples = self.manifest.samples(split)
            if start < before + samples:
                yield from self._parts_of(split, before, max(0, start - before), size)
            before += samples

    def _parts_of(self, split: str, before: int, start: int, size: int) -> Iterator[Part]:
        """The steps of one split from the one that holds sample ``start``."""
        stream = self._stream(split, size)
        whole_steps = start // size * size
        stream.load_state_dict(stream.state_dict() | {"samples": whole_steps})
        for (arrays,) in stream.epoch(0):
            batch = in_roles(utterances(arrays), self.trained.names)
            batch = _with_all(batch, self.trained)
            real = batch.weight > 0
            if not real.any():  # a rank without a sample of this part
                yield Part([], [], None, [])
                continue
            batch = _rows(batch, real)
            numbers = batch.index.tolist()
            ids = stream.ids(numbers)
            places = [before + number for number in numbers]
            yield Part(places, ids, batch, [()] * len(ids))
        stream.close()


def _rows(batch: Utterances, chosen: Tensor) -> Utterances:
    """The batch with some of its rows; ``chosen`` is (B,) bool."""
    return batch.map(lambda tensor: tensor[chosen])


def _with_all(batch: Utterances, trained: TrainedModel) -> Utterances:
    """The batch with an empty modality for each that the model reads and the shards lack."""
    frames, mask = dict(batch.frames), dict(batch.mask)
    size = len(batch)
    for name in trained.model.inputs.modalities:
        if name in frames:
            continue
        frames[name] = nothing_of(name, trained.data, size)
        mask[name] = torch.zeros((size, 1), dtype=torch.bool)
    return replace(batch, frames=frames, mask=mask, present=dict(mask))


def refuse_other_kind(trained: TrainedModel, manifest: Manifest, source: str) -> None:
    """Refuse shards whose numbers mean something else than those that the model knows.

    A modality that is not there is missing, and one that the model does not read is left alone.

    Raises:
        ConfigError: with what the model was trained on and what there is, side by side.
    """
    fields = [name for name in trained.wanted if name in manifest.fields]
    there = replace(trained.record, views=tuple(fields)).facts()
    here = record_of_manifest(manifest, fields).facts()
    if trained.classes != "given":  # the model's classes were made of scores
        there["labels"] = here["labels"] = f"scores, by classes={trained.classes}"
        if manifest.labels.kind == "classes":
            here["labels"] = f"classes {', '.join(manifest.labels.names)}"
    extraction = None if manifest.extraction is None else asdict(manifest.extraction)
    if trained.extraction is not None and extraction is not None:
        there |= extractor_facts(trained.extraction, fields)
        here |= extractor_facts(extraction, fields)
    differ = [name for name in dict.fromkeys([*there, *here]) if there.get(name) != here.get(name)]
    if not differ:
        return
    titles = (f"{trained.source} was trained on", f"{source} holds")
    raise ConfigError(
        f"{trained.source} was trained on data of another kind than {source} holds "
        f"({', '.join(differ)} differ); make these data as those were made",
        side_by_side(titles, there, here, differ),
    )


def extractor_facts(extraction: Mapping[str, Any], fields: list[str]) -> Facts:
    """How each field was made from clips, in words that can be compared."""
    facts = {}
    for record in extraction["extractors"]:
        if record["modality"] not in fields:
            continue
        options = _shown_options(record["options"])
        words = [record["name"], record["version"], options, record["checksum"][:12]]
        facts[f"{record['modality']} made by"] = " ".join(word for word in words if word)
    return facts


def _shown_options(options: Mapping[str, Any]) -> str:
    """All but where a model lies: its checksum says which one it is."""
    shown = [f"{key}={value}" for key, value in sorted(options.items()) if key != "path"]
    return ",".join(shown)
