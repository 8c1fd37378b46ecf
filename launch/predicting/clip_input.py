"""Clips as something to score: the extractors that made the training data are opened again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from core.command import Refused
from core.files import sha256_of_bytes
from data_shards.extract.clip import ClipSource, ExtractedClip, extract_clip, open_extractors
from data_shards.extract.clip_table import ClipRow, find_clips
from data_shards.extract.recipe import ExtractionRecipe
from data_shards.extract.windows import Windows, windows_of
from data_shards.shards.split_names import split_called
from launch.predicting.input_kinds import Item, ItemInput
from launch.predicting.samples import NewSample, SampleMaker


class ClipMaker:
    """Makes samples of clips by the recipe of a model's training data.

    Args:
        folders: modality -> where the folder of its extractor's model lies on this machine.

    Raises:
        Refused: the model's data were not made from clips here, or an extractor cannot be opened.
    """

    def __init__(self, maker: SampleMaker, folders: Mapping[str, str] | None = None):
        self.maker = maker
        self.extractors = open_extractors(recipe_of(maker), folders)

    def item(self, clip: ClipSource) -> Item:
        """A clip whose turn is still to come."""
        return Item(clip.id, self._making(clip))

    def _making(self, clip: ClipSource) -> Callable[[], NewSample]:
        return lambda: self.sample(clip)[0]

    def sample(self, clip: ClipSource) -> tuple[NewSample, ExtractedClip]:
        """The sample of one clip, and what was found in it. What it lacks is noted."""
        found = extract_clip(clip, self.extractors)
        notes = [f"{name}: {why}" for name, why in found.missing.items()]
        arrays: dict[str, Any] = {}
        for name, frames in found.arrays.items():
            if name in self.maker.wanted and len(frames):
                arrays[name] = self.maker.check(name, frames, clip.id)
        text = self.maker.text_field
        if text is not None and text not in arrays and found.transcript:
            problem = self.maker.why_no_words()
            if problem:
                notes.append(problem)
            else:
                arrays[text], more = self.maker.encode(found.transcript, clip.id)
                notes += more
        return NewSample(clip.id, arrays, tuple(notes), found.transcript), found


def recipe_of(maker: SampleMaker) -> ExtractionRecipe:
    """How the features of the training data were made from clips."""
    trained = maker.trained
    if trained.extraction is None:
        raise Refused(
            f"{trained.source} was trained on features that were not made by concord extract, so "
            "nobody knows how to make them of new clips; give a table of such features "
            "(docs/predict.md), or train on what concord extract makes"
        )
    return ExtractionRecipe.from_json(json.dumps(trained.extraction), trained.source)


def clip_input(
    maker: SampleMaker,
    source: Path,
    *,
    split: str | None = None,
    windows: Windows | None = None,
    folders: Mapping[str, str] | None = None,
) -> ItemInput:
    """A clip, all clips of a folder and below it, or those of a table."""
    clips = ClipMaker(maker, folders)
    rows = [row for row in find_clips(source) if _is_of(row, split)]
    if not rows:
        raise Refused(f"{source} has no clips of split {split!r}")

    def items() -> Iterator[Item]:
        for row in rows:
            parts = [row.clip] if windows is None else windows_of(row.clip, windows)
            for clip in parts:
                yield clips.item(clip)

    identity = {"clips": _digest(rows), "windows": str(windows)}
    return ItemInput(maker, items, identity, None if windows else len(rows))


def _is_of(row: ClipRow, split: str | None) -> bool:
    return split is None or split_called(str(row.cells.get("split", ""))) == split


def _digest(rows: list[ClipRow]) -> str:
    """Changes with the clips, their order, and the sizes of their files."""
    lines = []
    for row in rows:
        clip = row.clip
        size = clip.file.stat().st_size if clip.file.is_file() else -1
        lines.append(f"{clip.id} {clip.start} {clip.end} {size} {clip.transcript}")
    return sha256_of_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
