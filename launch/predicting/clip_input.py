"""Clips as something to score: the extractors that made the training data are opened again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.extract.media import Unreadable, clip_seconds

from core.command import Refused
from core.file_access.regular_files import read_regular_text
from data_shards.extract.clip import ClipSource, ExtractedClip, extract_clip, open_extractors
from data_shards.extract.recipe import ExtractionRecipe
from launch.predicting.inputs import Item, ItemInput
from launch.predicting.samples import NewSample, SampleMaker

# What lies beside clips and is none.
NO_CLIPS = {".txt", ".csv", ".json", ".jsonl", ".parquet", ".md", ".npy", ".npz", ".srt", ".vtt"}
SHORTEST_WINDOW = 0.5  # seconds; a rest that is shorter belongs to the window before it


@dataclass(frozen=True)
class Window:
    """A part of a clip, in seconds from the start of its file."""

    start: float
    end: float

    @property
    def name(self) -> str:
        """As media fragments are written."""
        return f"t={self.start:g},{self.end:g}"


class ClipMaker:
    """Makes samples of clips by the recipe of a model's training data.

    Args:
        windows: seconds of the parts that clips are cut into; None: they are whole.
        folders: modality -> where the folder of its extractor's model lies on this machine.

    Raises:
        Refused: the model's data were not made from clips here, or an extractor cannot be opened.
    """

    def __init__(
        self,
        maker: SampleMaker,
        windows: float | None = None,
        folders: Mapping[str, str] | None = None,
    ):
        recipe = recipe_of(maker)
        self.maker = maker
        self.windows = windows
        self.extractors = open_extractors(recipe, folders)

    def items(
        self, name: str, file: Path, start: float, end: float | None, transcript: str
    ) -> Iterator[Item]:
        """One item of a clip, or one of each window."""
        if self.windows is None:
            yield Item(name, self._maker(ClipSource(name, file, start, end, transcript)))
            return
        try:
            seconds = clip_seconds(file, start, end)
        except Unreadable as problem:
            yield Item(name, _failed(name, str(problem)))
            return
        for window in cut(start, start + seconds, self.windows):
            part = f"{name}#{window.name}"
            # what is said in a window is not known from the transcript of the whole
            yield Item(part, self._maker(ClipSource(part, file, window.start, window.end)))

    def _maker(self, clip: ClipSource) -> Callable[[], NewSample]:
        return lambda: self.sample(clip)[0]

    def sample(self, clip: ClipSource) -> tuple[NewSample, ExtractedClip]:
        """The sample of one clip, and what was found in it. What it lacks is noted."""
        found = extract_clip(clip, self.extractors)
        notes = [f"{name}: {why}" for name, why in found.missing.items()]
        arrays: dict[str, Any] = {}
        for name, frames in found.arrays.items():
            if name in self.maker.wanted and len(frames):
                arrays[name] = self.maker.check(name, frames, clip.id)
        name = self.maker.text_field
        if name is not None and name not in arrays and found.transcript:
            problem = self.maker.why_no_words()
            if problem:
                notes.append(problem)
            else:
                arrays[name], more = self.maker.encode(found.transcript, clip.id)
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
    path: Path,
    windows: float | None,
    folders: Mapping[str, str] | None = None,
) -> ItemInput:
    """A clip, or all clips of a folder and below it. A transcript may lie beside a clip, in a
    ``.txt`` of the same name."""
    clips = ClipMaker(maker, windows, folders)
    files = list(_files(path)) if path.is_dir() else [path]
    if not files:
        raise Refused(f"{path} holds no clips")
    folder = path if path.is_dir() else path.parent

    def items() -> Iterator[Item]:
        for file in files:
            name = file.relative_to(folder).as_posix()
            yield from clips.items(name, file, 0.0, None, _transcript_of(file))

    sizes = [[file.relative_to(folder).as_posix(), file.stat().st_size] for file in files]
    identity = {"clips": sizes, "windows": windows}
    return ItemInput(maker, items, identity, None if windows else len(files))


def _files(folder: Path) -> Iterator[Path]:
    """Clips by name, hidden files and folders left out."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(root) / name
            if not name.startswith(".") and file.suffix.lower() not in NO_CLIPS:
                yield file


def _transcript_of(file: Path) -> str:
    """What is said in a clip, where somebody has written it down."""
    path = file.with_suffix(".txt")
    return " ".join(read_regular_text(path).split()) if path.is_file() else ""


def _failed(name: str, why: str) -> Callable[[], NewSample]:
    return lambda: NewSample(name, notes=(why,))


def cut(start: float, end: float, length: float) -> list[Window]:
    """The windows of a clip, one behind the other; the last may be shorter, or a little longer."""
    windows = []
    begin = start
    while end - begin > length + SHORTEST_WINDOW:
        windows.append(Window(begin, begin + length))
        begin += length
    return [*windows, Window(begin, end)]
