"""What a field of media is: sound or pictures, stored as the bytes of a file.

In a tar such a field is a member ``<key>.<field>.<suffix>`` (``a1.audio.flac``, ``a1.vision.mp4``),
which other readers of WebDataset decode by its suffix. For the index it is an array of bytes,
uint8 of shape (n,), so that it is found, ordered, copied and vouched for like any other array.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from core.command import Refused
from data_shards.extract.extractors.protocol import SOUND_RATE

MediaKind = Literal["sound", "pictures"]

SOUND_SUFFIXES = ("flac", "wav", "opus", "mp3", "m4a")
PICTURE_SUFFIXES = ("frames", "mp4", "mkv")
SUFFIXES = (*SOUND_SUFFIXES, *PICTURE_SUFFIXES)
FRAMES_MAGIC = b"CFRAMES1"  # of packed JPEG or WebP pictures, see packed_frames.py

LARGEST_SIDE = 2048  # pixels
HIGHEST_RATE = 120.0  # pictures in a second


@dataclass(frozen=True)
class Media:
    """What the bytes of a field become when they are decoded.

    Sound becomes (S, 1) float32 from -1 to 1; pictures become (T, 3 * side * side) uint8, each
    picture a row in the order channel, line, column.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    kind: MediaKind
    rate: float  # samples of sound, or pictures, in a second
    side: int = 0  # pixels of a side of a picture, which is square; 0: sound

    @property
    def width(self) -> int:
        """Numbers of one row of what is decoded."""
        return 1 if self.kind == "sound" else 3 * self.side * self.side

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What the names of its members may end in."""
        return SOUND_SUFFIXES if self.kind == "sound" else PICTURE_SUFFIXES

    @property
    def problem(self) -> str:
        """Why there can be no such media; empty where there can."""
        if self.kind == "sound":
            is_known = self.rate == SOUND_RATE and self.side == 0
            return "" if is_known else f"sound of {self.rate:g} samples a second, not {SOUND_RATE}"
        if not 0 < self.rate <= HIGHEST_RATE:
            return f"{self.rate:g} pictures a second, not 0 to {HIGHEST_RATE:g}"
        if not 0 < self.side <= LARGEST_SIDE:
            return f"pictures of {self.side} pixels a side, not 1 to {LARGEST_SIDE}"
        return ""


@dataclass(frozen=True)
class MediaMember:
    """Of one sample: what its member is called, and how long it is when decoded."""

    suffix: str
    length: int  # samples of sound, or pictures


SOUND = Media("sound", float(SOUND_RATE))


def suffix_of(body: bytes) -> str:
    """What a file of these bytes is called here; empty where it is of no known kind."""
    if body.startswith(FRAMES_MAGIC):
        return "frames"
    if body.startswith(b"fLaC"):
        return "flac"
    if body.startswith(b"RIFF") and body[8:12] == b"WAVE":
        return "wav"
    if body.startswith(b"OggS"):
        return "opus"
    if body.startswith(b"\x1a\x45\xdf\xa3"):
        return "mkv"
    if body[4:8] == b"ftyp":
        return "m4a" if body[8:11] in (b"M4A", b"M4B") else "mp4"
    is_mp3 = body.startswith(b"ID3") or (body[:1] == b"\xff" and body[1:2] >= b"\xe0")
    return "mp3" if is_mp3 else ""


def parse_media(words: str) -> tuple[str, Media]:
    """``audio`` is sound, ``vision=2:224`` is two pictures a second of 224 pixels a side.

    Raises:
        Refused: neither.
    """
    name, equals, numbers = words.partition("=")
    expected = "expected COLUMN for sound, or COLUMN=RATE:SIDE for pictures, such as vision=2:224"
    if not name:
        raise Refused(f"--media {words!r}: {expected}")
    if not equals:
        return name, SOUND
    rate, _, side = numbers.partition(":")
    try:
        media = Media("pictures", float(rate), int(side))
    except ValueError:
        raise Refused(f"--media {words!r}: {expected}") from None
    if media.problem:
        raise Refused(f"--media {words!r}: {media.problem}; {expected}")
    return name, media
