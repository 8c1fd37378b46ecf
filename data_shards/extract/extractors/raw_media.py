"""``--audio raw`` and ``--vision raw``: sound and pictures as they are, for models that encode them
themselves.

Sound becomes a file of 16,000 samples a second (``format=flac``, ``wav`` or ``opus``). Pictures
become JPEG or WebP files (``format=jpeg``, ``webp``) of the middle square of the picture, or with
``crop=face`` of the square around the face, ``fps`` of them a second, ``side`` pixels wide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

import numpy as np

from core.command import Refused
from data_shards.extract.extractors.protocol import SOUND_RATE, Missing, Picture
from data_shards.extract.recipe import ExtractorRecord, Option
from data_shards.media.media_kinds import Media
from data_shards.media.member_codec import SoundFormat, encode_sound
from data_shards.media.packed_frames import (
    PictureFormat,
    encode_picture,
    pack,
    square,
    square_around,
)

VERSION = "1"
CROPS = ("face", "frame")


class RawSound:
    """Sound as the bytes of a file; a ``SoundExtractor``."""

    def __init__(self, record: ExtractorRecord, sound_format: Any):
        self.record = record
        self.sound_format: SoundFormat = sound_format

    def frames(self, sound: Iterator[np.ndarray]) -> np.ndarray:
        """The file, (n,) uint8."""
        samples = np.concatenate([np.zeros(0, np.float32), *sound])
        if not len(samples):
            raise Missing("no sound")
        return np.frombuffer(encode_sound(samples, self.sound_format), np.uint8)


class RawPictures:
    """Pictures as the bytes of one file; a ``PictureExtractor``.

    Args:
        tracker: finds the face that is cut out; None: the middle of the picture is.
    """

    def __init__(self, record: ExtractorRecord, media: Media, tracker: Any):
        self.record = record
        self.media = media
        self.longest_side = max(640, 2 * media.side)
        self._tracker = tracker

    def frames(self, pictures: Iterator[Picture]) -> np.ndarray:
        """The packed pictures, (n,) uint8."""
        if self._tracker is not None:
            self._tracker.begin()
        files: list[bytes] = []
        number = -1
        found_any = False
        for picture in pictures:
            if picture.number == number:  # the same picture, shown for longer
                files.append(files[-1])
                continue
            number = picture.number
            shown = self._shown(picture)
            found_any = found_any or shown is not None
            files.append(self._encode(shown))
        if not found_any:
            raise Missing("no face")
        return np.frombuffer(pack(files, self.media.rate), np.uint8)

    def _shown(self, picture: Picture) -> np.ndarray | None:
        """The part of the picture that is kept; None where there is no face."""
        if self._tracker is None:
            return picture.pixels
        landmarks = self._tracker.find(picture)
        return None if landmarks is None else square_around(picture.pixels, landmarks)

    def _encode(self, pixels: np.ndarray | None) -> bytes:
        side = self.media.side
        kept = np.zeros((side, side, 3), np.uint8) if pixels is None else square(pixels, side)
        picture_format: Any = self.record.options["format"]
        return encode_picture(kept, picture_format, int(self.record.options["quality"]))


def build(modality: str, options: Mapping[str, Option]) -> RawSound | RawPictures:
    """The extractor of sound, or, where ``options`` have ``fps``, of pictures."""
    is_sound = "fps" not in options
    formats = get_args(SoundFormat if is_sound else PictureFormat)
    if options["format"] not in formats:
        raise Refused(f"--{modality} raw: format={options['format']}: it is {', '.join(formats)}")
    if is_sound:
        return RawSound(_record(modality, options, 1, float(SOUND_RATE)), options["format"])
    crop = options["crop"]
    if crop not in CROPS:
        raise Refused(f"--{modality} raw: crop={crop}: it is one of {', '.join(CROPS)}")
    media = Media("pictures", float(options["fps"]), int(options["side"]))
    if media.problem or int(options["quality"]) > 100:
        raise Refused(f"--{modality} raw: {media.problem or 'quality is at most 100'}")
    version, tracker = VERSION, None
    if crop == "face":
        from data_shards.extract.extractors.face68 import open_tracker  # needs dlib

        dlib_version, _, tracker = open_tracker(f"--{modality} raw with crop=face", 5)
        version = f"{version} dlib {dlib_version}"
    record = _record(modality, options, media.width, media.rate, version)
    return RawPictures(record, media, tracker)


def _record(
    modality: str,
    options: Mapping[str, Option],
    width: int,
    rate: float,
    version: str = VERSION,
) -> ExtractorRecord:
    return ExtractorRecord(
        modality=modality,
        name="raw",
        version=version,
        options=dict(options),
        width=width,
        frame_rate=rate,
        licence="that of the clips",
    )
