"""One clip through all extractors: ``extract_clip``. What it lacks is said, and nothing takes its
place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from core.command import Refused
from data_shards.extract.extractors import registry
from data_shards.extract.extractors.protocol import Missing, Word
from data_shards.extract.extractors.registry import Extractors
from data_shards.extract.media import LIMITS, Limits, Unreadable, clip_seconds, pictures, sound
from data_shards.extract.recipe import ExtractionRecipe
from data_shards.extract.word_times import mean_by_word

NO_TRANSCRIPT = "no transcript"
NO_WORDS = "no word times"


@dataclass(frozen=True)
class ClipSource:
    """Where a clip is: a file, or a part of one."""

    id: str
    file: Path
    start: float = 0.0  # seconds from the start of the file
    end: float | None = None  # None: to its end
    transcript: str = ""
    words: tuple[Word, ...] = ()  # with times from the start of the clip, where they are known


@dataclass(frozen=True)
class ExtractedClip:
    """What extractors found in a clip."""

    arrays: dict[str, np.ndarray]  # modality -> (T, D) float32, or the bytes (n,) uint8 of media
    missing: dict[str, str]  # modality -> why it is not there; "text" too
    transcript: str  # empty where there is none
    words: list[Word]
    seconds: float  # 0 where the file cannot be read

    @property
    def is_empty(self) -> bool:
        """Whether nothing at all is known of the clip."""
        return not self.arrays and not self.transcript


def open_extractors(
    recipe: ExtractionRecipe, folders: Mapping[str, str] | None = None
) -> Extractors:
    """The extractors of a recipe, for new clips; see ``extractors.registry``."""
    return registry.open_extractors(recipe, folders)


def extract_clip(
    clip: ClipSource, extractors: Extractors, limits: Limits = LIMITS
) -> ExtractedClip:
    """Features, transcript and words of a clip.

    A file that cannot be read, or is beyond the limits, has every modality but a given transcript
    missing, with the reason.
    """
    found = _Found(clip.transcript, list(clip.words))
    try:
        found.seconds = clip_seconds(clip.file, clip.start, clip.end, limits)
    except Unreadable as problem:
        found.file_problem = str(problem)
    for modality, (kind, extractor) in extractors.opened.items():
        try:
            _run(kind, modality, extractor, clip, limits, found)
        except (Missing, Unreadable) as reason:
            found.missing[modality] = str(reason)
        except Refused:
            raise
        except Exception as error:  # of a library, at this clip: it is named, and others go on
            said = " ".join(str(error).split())[:200]
            found.missing[modality] = f"failed: {type(error).__name__}: {said}"
    if extractors.recipe.align == "words":
        _align(found, extractors.recipe)
    return ExtractedClip(found.arrays, found.missing, found.transcript, found.words, found.seconds)


@dataclass
class _Found:
    """A clip's results as they come."""

    transcript: str
    words: list[Word]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    file_problem: str = ""


def _run(
    kind: str, modality: str, extractor: Any, clip: ClipSource, limits: Limits, found: _Found
) -> None:
    """One extractor; Missing or Unreadable where it has nothing to say."""
    if kind == "transcript":
        if not found.transcript:
            raise Missing(NO_TRANSCRIPT)
        return
    if found.file_problem:
        raise Unreadable(found.file_problem)
    if kind == "speech":
        found.words = extractor.words(sound(clip.file, clip.start, clip.end, limits))
        found.transcript = " ".join(word.text for word in found.words)
        return
    if kind == "sound":
        frames = extractor.frames(sound(clip.file, clip.start, clip.end, limits))
    else:
        rate = extractor.record.frame_rate
        shown = pictures(clip.file, clip.start, clip.end, rate, extractor.longest_side, limits)
        frames = extractor.frames(shown)
    dtype = "u1" if frames.dtype == np.uint8 else "<f4"  # bytes of media stay as they are
    found.arrays[modality] = np.ascontiguousarray(frames, dtype=dtype)


def _align(found: _Found, recipe: ExtractionRecipe) -> None:
    """Every array to one frame per word; a clip without word times has none of them."""
    for modality in list(found.arrays):
        record = recipe.record(modality)
        if not found.words or record is None:
            del found.arrays[modality]
            found.missing[modality] = NO_WORDS
            continue
        frames = found.arrays[modality]
        found.arrays[modality] = mean_by_word(frames, record.frame_rate, found.words)
