"""What an extractor is: four kinds, by what they are given. Each opens its model once and then takes
clip after clip; what it answers depends on the clip alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

from data_shards.extract.recipe import ExtractorRecord

SOUND_RATE = 16_000  # samples in a second of all sound that extractors are given

# sound and speech: samples; pictures: video; transcript: what the user wrote
Kind = Literal["sound", "pictures", "speech", "transcript"]


class Missing(Exception):
    """A clip lacks a modality; the message is the reason, in a few words: "no face"."""


class Word(NamedTuple):
    """A spoken word and when, in seconds from the start of the clip."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Picture:
    """A picture of a clip, upright."""

    pixels: np.ndarray  # (H, W, 3) uint8, red first
    number: int  # of the decoded frame; equal where the same frame is shown for longer


class SoundExtractor(Protocol):
    """Frames of features from sound."""

    @property
    def record(self) -> ExtractorRecord: ...

    def frames(self, sound: Iterator[np.ndarray]) -> np.ndarray:
        """Features (T, D) float32 of sound, which comes in pieces (n,) float32 from -1 to 1.

        Raises:
            Missing: there is nothing to hear.
        """


class PictureExtractor(Protocol):
    """Frames of features from pictures."""

    @property
    def record(self) -> ExtractorRecord: ...

    @property
    def longest_side(self) -> int:
        """Pictures are made this small before they are handed over."""

    def frames(self, pictures: Iterator[Picture]) -> np.ndarray:
        """Features (T, D) float32 of pictures that come ``frame_rate`` times a second.

        Raises:
            Missing: there is nothing to see.
        """


class SpeechRecogniser(Protocol):
    """Words from sound."""

    @property
    def record(self) -> ExtractorRecord: ...

    def words(self, sound: Iterator[np.ndarray]) -> list[Word]:
        """What is said in sound, as for ``SoundExtractor``.

        Raises:
            Missing: nobody speaks.
        """
