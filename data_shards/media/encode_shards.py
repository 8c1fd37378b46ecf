"""Shards of sound and pictures to shards of an encoder's frames: ``python -m
data_shards.media.encode_shards SHARDS --audio DIR --vision DIR --out DIR``.

A frozen encoder says the same of a sample in every epoch. This runs it once and keeps what it says;
models then read the frames as ``features``. Keys, records, labels and text stay as they are, and so
do the splits and the order. Each sample is encoded alone, so that nothing depends on its neighbours.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from core.arguments import command_parser, parse
from core.command import Refused, run
from core.encoders.backbones.adaptation import base_facts
from core.encoders.backbones.media_encoders import ENCODED, EncoderConfig, MediaEncoder
from core.encoders.backbones.pooling import Rule
from core.file_access.targets import check_folder
from core.model import DataSpec
from data_shards.media.batch_decoder import Decoding, MediaReader
from data_shards.reading.sampler import Rows
from data_shards.reading.storage import Folder
from data_shards.shards.frame_moments import Moments, add_frames, mean_and_std
from data_shards.shards.manifest import (
    DataError,
    Field,
    Manifest,
    Sample,
    Shard,
    read_manifest,
    write_manifest,
)
from data_shards.shards.writer import write_shard


@dataclass
class _Found:
    """What is known of the frames of the shards that are done."""

    max_length: dict[str, int] = field(default_factory=dict)
    moments: list[dict[str, Moments]] = field(default_factory=list)  # of each train shard


def encode_shards(
    source: Path,
    out: Path,
    encoders: Mapping[str, str],
    pool: Rule = "auto",
    *,
    progress: bool = False,
) -> Manifest:
    """Write the shards of ``source`` into the new folder ``out``, and last its manifest.

    Args:
        encoders: field -> folder or hub name of the encoder that makes its frames.
        pool: see ``EncoderConfig``.

    Raises:
        DataError: a field holds no media; a member cannot be decoded.
        Refused: ``out`` is not empty, or there is no such encoder.
    """
    manifest = read_manifest(source)
    check_folder(out)
    if out.exists() and any(out.iterdir()):
        raise Refused(f"{out} is not empty; give another --out, or empty it first")
    opened = {name: _opened(name, encoders[name], pool, manifest, source) for name in encoders}
    if not opened:
        raise Refused("give the encoder of a field with --audio DIR or --vision DIR")
    out.mkdir(parents=True, exist_ok=True)
    found = _Found()
    splits: dict[str, Sequence[Shard]] = {}
    samples = sum(manifest.samples(split) for split in manifest.splits)
    with tqdm(total=samples, unit="sample", desc="encode", disable=not progress) as bar:
        for split, shards in manifest.splits.items():
            written = []
            reader = MediaReader(
                Folder(source), shards, manifest.fields, keep=1, threads=0, decoding=Decoding()
            )
            for number, shard in enumerate(shards):
                made = _samples(reader, number, opened, found, is_train=split == "train")
                written.append(write_shard(out, shard.name, made))
                bar.update(shard.samples)
            reader.close()
            splits[split] = tuple(written)
    described = _described(manifest, opened, splits, found)
    write_manifest(out, described, described.to_json())
    return described


def _opened(name: str, encoder: str, pool: Rule, manifest: Manifest, source: Path) -> MediaEncoder:
    media = manifest.fields[name].media if name in manifest.fields else None
    if media is None:
        holding = [other for other, known in manifest.fields.items() if known.media]
        raise DataError(
            f"--{name}: {source} holds no sound or pictures as {name!r}; it has media in "
            f"{', '.join(holding) or 'no field'}"
        )
    data = DataSpec(
        task="sentiment",
        features={name: media.width},
        max_length={name: manifest.max_length.get(name, 0)},
        media={name: media.kind},
    )
    try:
        return MediaEncoder(name, EncoderConfig(train="none", source=encoder, pool=pool), data)
    except ValueError as error:
        raise Refused(str(error)) from None


def _samples(
    reader: MediaReader,
    number: int,
    encoders: Mapping[str, MediaEncoder],
    found: _Found,
    *,
    is_train: bool,
) -> Iterator[tuple[str, Sample]]:
    """The samples of a shard with frames in place of media."""
    moments: dict[str, Moments] = {}
    index = reader.shard(number).index
    for row in range(len(index)):
        views = reader.views(number, row)
        batch = reader.collate(Rows(np.array([number]), np.array([row])))
        arrays: dict[str, np.ndarray] = {}
        for name, view in views.items():
            if name not in encoders:
                arrays[name] = view
                continue
            length = int(batch.lengths[name][0])
            frames = _encoded(encoders[name], batch.arrays[name], length)
            arrays[name] = frames
            found.max_length[name] = max(found.max_length.get(name, 0), len(frames))
            if is_train:
                add_frames(moments, name, frames)
        record = reader.record(number, row)
        text = record.pop("text", None)
        yield index.key(row), Sample(record.pop("id"), arrays, text, record)
    if is_train:
        found.moments.append(moments)


@torch.inference_mode()
def _encoded(encoder: MediaEncoder, decoded: torch.Tensor, length: int) -> np.ndarray:
    """Frames (T, width) of what was decoded of one sample, (1, S, D)."""
    mask = torch.arange(decoded.shape[1])[None] < length
    frames, exists = encoder(decoded, mask)
    return np.ascontiguousarray(frames[0][exists[0]].numpy(), dtype="<f4")


def _described(
    manifest: Manifest,
    encoders: Mapping[str, MediaEncoder],
    splits: dict[str, Sequence[Shard]],
    found: _Found,
) -> Manifest:
    fields = dict(manifest.fields)
    made_by: dict[str, Any] = {}
    for name, encoder in encoders.items():
        fields[name] = Field("float32", (None, encoder.width))
        (made_by[name],) = base_facts(encoder).values()
    others = {name: n for name, n in manifest.max_length.items() if name not in encoders}
    return replace(
        manifest,
        fields=fields,
        splits=splits,
        moments={**manifest.moments, **mean_and_std(found.moments)},
        max_length={**others, **found.max_length},
        source={**manifest.source, "encoded": made_by},
        # the recipe makes sound and pictures of clips, which these are no more
        extraction=None,
    )


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("encode", __doc__)
    parser.add_argument("shards", type=Path, help="a shard folder with sound or pictures")
    parser.add_argument("--out", type=Path, required=True, help="folder for the new shards")
    for name in ENCODED:
        parser.add_argument(f"--{name}", metavar="DIR", help=f"the encoder of the field {name}")
    parser.add_argument(
        "--pool",
        choices=["auto", "first", "mean", "last"],
        default="auto",
        help="of sound: auto keeps all hidden states, the others make one frame of them; of "
        "pictures: what makes a frame of the parts of each (default: auto)",
    )
    return parse(parser, argv)


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code."""
    arguments = _arguments(argv)

    def work() -> None:
        given = {name: getattr(arguments, name) for name in ENCODED}
        chosen = {name: encoder for name, encoder in given.items() if encoder is not None}
        encode_shards(arguments.shards, arguments.out, chosen, arguments.pool, progress=True)
        print(f"shards of frames are in {arguments.out}; train on them with data={arguments.out}")

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
