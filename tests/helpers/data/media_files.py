"""Clips of every kind, made with PyAV: a picture that brightens, or a face that moves; a tone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np

SIZE = (320, 180)  # width, height
FACE_BOX = (slice(0, 300), slice(90, 390))  # of the astronaut's picture
# options of a container whose sound and pictures are encrypted
ENCRYPTED = {
    "encryption_scheme": "cenc-aes-ctr",
    "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
    "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
}


def tone(seconds: float, rate: int = 44_100, loudness: float = 0.3) -> np.ndarray:
    """A tone of 220 Hz."""
    time = np.arange(round(seconds * rate)) / rate
    return (loudness * np.sin(2 * np.pi * 220 * time)).astype(np.float32)


def brightening(number: int, count: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A picture whose blue says its number, with a red mark in the corner top left."""
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 2] = 255 * number // count
    pixels[: height // 4, : width // 4] = (255, 0, 0)
    return pixels


@cache
def astronaut() -> np.ndarray:
    """A face of 300 x 300 pixels."""
    from skimage.data import astronaut

    return np.ascontiguousarray(astronaut()[FACE_BOX])


def face_at(left: int, top: int, size: tuple[int, int] = (480, 360)) -> np.ndarray:
    """The face on grey, with its upper left corner there."""
    width, height = size
    pixels = np.full((height, width, 3), 90, np.uint8)
    face = astronaut()
    pixels[top : top + 300, left : left + 300] = face[: height - top, : width - left]
    return pixels


def write_clip(
    path: Path,
    seconds: float = 2.0,
    *,
    pictures: Callable[[int], np.ndarray] | None = None,
    shown_at: Iterable[float] | None = None,
    fps: int = 25,
    sound: np.ndarray | None = None,
    has_sound: bool = True,
    has_pictures: bool = True,
    rate: int = 44_100,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    format: str | None = None,
    sound_codec: str = "aac",
) -> Path:
    """A clip.

    Args:
        pictures: number -> pixels (H, W, 3); by default they brighten.
        shown_at: seconds at which each picture appears; by default ``fps`` a second.
        sound: samples; by default a tone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    times = [n / fps for n in range(round(seconds * fps))] if shown_at is None else list(shown_at)
    make = pictures or (lambda number: brightening(number, len(times)))
    samples = tone(seconds, rate) if sound is None else sound
    with av.open(str(path), "w", options=options or {}, format=format) as container:
        video = audio = None
        if has_pictures:
            height, width = make(0).shape[:2]
            video = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast"})
            video.width, video.height, video.pix_fmt = width, height, "yuv420p"
            video.codec_context.time_base = Fraction(1, 1000)
            if rotation:
                video.set_display_rotation(rotation)
        if has_sound:
            audio = container.add_stream(sound_codec, rate=rate)
            audio.layout = "mono"
        if video is not None:
            for number, time in enumerate(times):
                frame = av.VideoFrame.from_ndarray(make(number), format="rgb24")
                frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
                container.mux(video.encode(frame))
            container.mux(video.encode())
        if audio is not None:
            for start in range(0, len(samples), 1024):
                piece = av.AudioFrame.from_ndarray(
                    samples[None, start : start + 1024], format="fltp", layout="mono"
                )
                piece.sample_rate, piece.pts = rate, start
                piece.time_base = Fraction(1, rate)
                container.mux(audio.encode(piece))
            container.mux(audio.encode())
    return path


def write_talking_face(path: Path, seconds: float = 1.0) -> Path:
    """A small clip with a face that moves to the right, and a tone."""
    return write_clip(
        path, seconds, pictures=lambda number: face_at(40 + 2 * number, 30), fps=10, rate=16_000
    )
