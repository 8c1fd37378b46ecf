"""Sound and pictures of any file that FFmpeg's libraries read, as streams: what a clip needs of
memory does not grow with its length.

Time starts at 0 where the file does. Time stamps decide, not counts of frames: pictures come at a
steady rate from files of any rate, steady or not, and where sound is interrupted there is silence
for as long. Files are opened here, never by name in the library, and a file that asks for others (a
playlist) is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from core.command import Refused
from core.file_access.regular_files import open_regular_file
from data_shards.extract.extractors.protocol import SOUND_RATE, Missing, Picture

NO_SOUND = "no sound"
NO_PICTURES = "no pictures"
SILENT = "silent"
QUIETEST = 1e-4  # a clip whose loudest sample is below is silent: three steps of 16 bits
PREROLL = 1.0  # seconds that are decoded before a part, for codecs that look back
BREAK = 0.05  # seconds; sound whose time stamps jump by more was interrupted
BEYOND = 1.0  # seconds by which a table's times may lie beyond the end of a file
CUT_OFF = 0.1  # part of a stream that may be missing at its end, and a second at least
_SLACK = 1e-6  # seconds; time stamps are fractions
# They name other files, which are opened then.
_PLAYLISTS = {"hls", "concat", "dash", "image2", "imf", "sdp", "rtsp", "tty", "lavfi"}


@dataclass(frozen=True)
class Limits:
    """What a file may be at most."""

    bytes: int = 16 << 30
    seconds: float = 6 * 3600.0
    pixels: int = 8192 * 4352  # of one picture: 8K


LIMITS = Limits()


MediaFile = Path | bytes  # by its name, or what it holds


class Unreadable(Exception):
    """A file, or a part of it, that cannot be used; the message is the reason, in a few words."""


def clip_seconds(
    file: MediaFile, start: float, end: float | None, limits: Limits = LIMITS
) -> float:
    """The length of a file, or of the part from ``start`` to ``end``.

    Raises:
        Unreadable: it cannot be opened, is beyond the limits, or ends before the part does.
    """
    with _opened(file, limits) as container:
        length = _length(container)
        if start > 0 or end is not None:
            if start >= length:
                raise Unreadable(f"beyond the end: starts at {start:g} s of {length:g} s")
            if end is not None and end > length + BEYOND:
                raise Unreadable(f"beyond the end: ends at {end:g} s of {length:g} s")
        seconds = min(length, math.inf if end is None else end) - start
    if seconds > limits.seconds:
        raise Unreadable(f"too long: {seconds:.0f} s, and at most {limits.seconds:.0f} are taken")
    return seconds


def sound(
    file: MediaFile, start: float = 0.0, end: float | None = None, limits: Limits = LIMITS
) -> Iterator[np.ndarray]:
    """Sound as pieces (n,) float32 from -1 to 1, mono, ``SOUND_RATE`` samples in a second.

    Raises:
        Missing: there is no sound, or it is silent throughout.
        Unreadable: see ``clip_seconds``; or it is damaged on the way.
    """
    with _opened(file, limits) as container:
        stream = next(iter(container.streams.audio), None)
        if stream is None:
            raise Missing(NO_SOUND)
        _prepare(stream, container, start, limits)
        first = round(start * SOUND_RATE)
        after_last = None if end is None else round(end * SOUND_RATE)
        most = first + round(limits.seconds * SOUND_RATE)
        loudest = 0.0
        position = first
        for piece in _placed(_resampled(container, stream), first, after_last, most):
            loudest = max(loudest, float(np.abs(piece).max(initial=0.0)))
            position += len(piece)
            yield piece
        if position == first:
            raise Missing(NO_SOUND)
        if after_last is None:
            _check_not_cut_off(stream, position / SOUND_RATE)
        if loudest < QUIETEST:
            raise Missing(SILENT)


def pictures(
    file: MediaFile,
    start: float,
    end: float | None,
    rate: float,
    longest_side: int,
    limits: Limits = LIMITS,
) -> Iterator[Picture]:
    """Pictures at ``start``, ``start + 1 / rate`` and so on, each the last one shown until then.

    They are upright, and made smaller where their longer side has more than ``longest_side``
    pixels.

    Raises:
        Missing: there are none.
        Unreadable: see ``clip_seconds``; or one is damaged.
    """
    with _opened(file, limits) as container:
        stream = _moving_pictures(container)
        if stream is None:
            raise Missing(NO_PICTURES)
        if stream.codec_context.width * stream.codec_context.height > limits.pixels:
            raise Unreadable(
                f"too large: pictures of {stream.codec_context.width} x {stream.codec_context.height}, "
                f"and at most {limits.pixels} pixels are taken"
            )
        stream.codec_context.options = {"max_pixels": str(limits.pixels)}
        _prepare(stream, container, start, limits)
        number = 0
        last_time = start
        for shown in _sampled(_timed(container, stream, limits), start, end, rate):
            if shown.picture is None:
                shown.picture = _picture(shown.frame, shown.number, longest_side, stream)
            number += 1
            last_time = shown.until
            yield shown.picture
        if number == 0:
            raise Missing(NO_PICTURES)
        if end is None:
            _check_not_cut_off(stream, last_time)


# opening


@contextmanager
def _opened(file: MediaFile, limits: Limits) -> Iterator[Any]:
    """A container, open for reading; what the library raises while it is open is Unreadable."""
    av = _library()
    try:
        with _bytes_of(file) as opened:
            size = opened.seek(0, 2)
            opened.seek(0)
            if size == 0:
                raise Unreadable("empty file")
            if size > limits.bytes:
                raise Unreadable(f"too large: {size} bytes, and at most {limits.bytes} are taken")
            with av.open(
                opened, mode="r", metadata_errors="replace", io_open=_refuse_other_file
            ) as container:
                kinds = set(container.format.name.split(","))
                if kinds & _PLAYLISTS:
                    raise Unreadable(f"a list of other files: {container.format.name}")
                yield container
    except (Missing, Unreadable, Refused):
        raise
    except FileNotFoundError:
        raise Unreadable("no such file") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        if isinstance(error, av.InvalidDataError):
            reason = f"damaged, encrypted or no media ({reason})"
        raise Unreadable(f"unreadable: {reason}") from None


def _bytes_of(file: MediaFile) -> IO[bytes]:
    return BytesIO(file) if isinstance(file, bytes) else open_regular_file(file)


def _library() -> Any:
    """PyAV, which is in an extra."""
    try:
        import av
        import av.logging
    except ImportError:
        raise Refused(
            "clips are read with the package av, which is not there; "
            "install it: pip install 'concord-train[clips]'"
        ) from None
    av.logging.set_level(None)  # what is wrong with a file is said once, by this project
    return av


def _refuse_other_file(url: str, flags: int, options: dict[str, str]) -> Any:
    raise Unreadable(f"a list of other files: it asks for {url[:80]!r}")


def _moving_pictures(container: Any) -> Any:
    """The first stream of pictures that is no cover."""
    for stream in container.streams.video:
        is_cover = _library().stream.Disposition.attached_pic in stream.disposition
        if not is_cover:
            return stream
    return None


def _prepare(stream: Any, container: Any, start: float, limits: Limits) -> None:
    """Go near to ``start``; one thread, since clips are done side by side."""
    if stream.codec_context is None:
        raise Unreadable("unreadable: in a codec that is not known")
    stream.codec_context.thread_count = 1
    if start > PREROLL:
        container.seek(int((_origin(container) + start - PREROLL) * 1e6))


def _origin(container: Any) -> float:
    """The time stamp at which the file starts."""
    return (container.start_time or 0) / 1e6


def _length(container: Any) -> float:
    """Seconds from the start of a file to its end; packets are gone through where it does not
    say."""
    if not container.streams.audio and _moving_pictures(container) is None:
        raise Unreadable("neither sound nor pictures")
    if container.duration is not None and container.duration > 0:
        return float(container.duration / 1e6)
    end = 0.0
    for packet in container.demux():
        if packet.pts is not None and packet.time_base is not None:
            after = packet.pts + (packet.duration or 0)
            end = max(end, float(after * packet.time_base))
    return end - _origin(container)


def _check_not_cut_off(stream: Any, end: float) -> None:
    """Unreadable where a stream says that it is longer than what was found of it."""
    if stream.duration is None or stream.time_base is None:
        return
    said = float(stream.duration * stream.time_base)
    if said - end > max(1.0, CUT_OFF * said):
        raise Unreadable(f"cut off: {end:.1f} s of {said:.1f} s are there")


# sound


def _resampled(container: Any, stream: Any) -> Iterator[tuple[int, np.ndarray]]:
    """Position and samples, as they come; there may be gaps and overlaps."""
    resampler = None
    origin = _origin(container)
    expected = 0.0  # time of the next frame if nothing is interrupted
    position = 0
    setup = None
    for frame in container.decode(stream):
        time = expected if frame.time is None else frame.time - origin
        new_setup = (frame.sample_rate, frame.layout.name, frame.format.name)
        goes_on = resampler is not None and abs(time - expected) <= BREAK and setup == new_setup
        if not goes_on:
            if resampler is not None:
                for samples in _samples(resampler, None):
                    yield position, samples
            resampler = _resampler()
            setup = new_setup
            position = round(time * SOUND_RATE)
            expected = time
        expected += frame.samples / frame.sample_rate
        for samples in _samples(resampler, frame):
            yield position, samples
            position += len(samples)
    if resampler is not None:
        for samples in _samples(resampler, None):
            yield position, samples
            position += len(samples)


def _resampler() -> Any:
    return _library().AudioResampler(format="flt", layout="mono", rate=SOUND_RATE)


def _samples(resampler: Any, frame: Any) -> Iterator[np.ndarray]:
    """What comes out when a frame goes in; None: what is left in it."""
    for resampled in resampler.resample(frame):
        samples = resampled.to_ndarray().reshape(-1)
        if not np.isfinite(samples).all():
            raise Unreadable("damaged or encrypted: samples that are no numbers")
        yield samples


def _placed(
    pieces: Iterator[tuple[int, np.ndarray]], first: int, after_last: int | None, most: int
) -> Iterator[np.ndarray]:
    """Pieces one after the other from ``first`` on, silence where there are none in between."""
    position = first
    for begin, samples in pieces:
        if begin + len(samples) <= position:
            continue
        if begin < position:
            samples = samples[position - begin :]
            begin = position
        if after_last is not None:
            samples = samples[: max(0, after_last - begin)]
            begin = min(begin, after_last)
        if begin + len(samples) > most:
            raise Unreadable(f"too long: more than {(most - first) / SOUND_RATE:.0f} s")
        while position < begin:
            gap = min(begin - position, SOUND_RATE)
            yield np.zeros(gap, np.float32)
            position += gap
        if len(samples):
            yield samples
            position += len(samples)
        if after_last is not None and position >= after_last:
            return


# pictures


@dataclass
class _Shown:
    """A decoded frame while it is shown."""

    frame: Any
    number: int
    time: float
    until: float
    picture: Picture | None = None  # made when it is needed


def _timed(container: Any, stream: Any, limits: Limits) -> Iterator[_Shown]:
    """Decoded frames with the time from which they are shown."""
    origin = _origin(container)
    usual = 1 / float(stream.average_rate) if stream.average_rate else 0.0
    expected = 0.0
    for number, frame in enumerate(container.decode(stream)):
        time = expected if frame.time is None else frame.time - origin
        if frame.is_corrupt:
            raise Unreadable(f"damaged or encrypted: at {time:.1f} s")
        if time > limits.seconds + PREROLL and time - expected > BREAK:
            raise Unreadable(f"too long: time stamps jump to {time:.0f} s")
        if frame.width * frame.height > limits.pixels:
            raise Unreadable(
                f"too large: a picture of {frame.width} x {frame.height} at {time:.1f} s"
            )
        stated = float(frame.duration * frame.time_base) if frame.duration else 0.0
        expected = time + (stated or usual)
        yield _Shown(frame, number, time, expected)


def _sampled(
    frames: Iterator[_Shown], start: float, end: float | None, rate: float
) -> Iterator[_Shown]:
    """For each time start + n / rate the frame that is shown then, up to ``end``."""
    n = 0
    current: _Shown | None = None
    for frame in frames:
        if current is not None:
            while start + n / rate < frame.time - _SLACK:
                if end is not None and start + n / rate >= end - _SLACK:
                    return
                yield current
                n += 1
        current = frame
    if current is None:
        return
    stop = max(current.until, current.time + _SLACK)
    if end is not None:
        stop = min(stop, end)
    while start + n / rate < stop - _SLACK:
        yield current
        n += 1


def _picture(frame: Any, number: int, longest_side: int, stream: Any) -> Picture:
    """The frame upright and of square pixels, at most ``longest_side`` long."""
    width, height = frame.width, frame.height
    if stream.sample_aspect_ratio:
        width = max(1, round(width * float(stream.sample_aspect_ratio)))
    scale = min(1.0, longest_side / max(width, height))
    pixels = frame.to_ndarray(
        format="rgb24",
        width=max(1, round(width * scale)),
        height=max(1, round(height * scale)),
        interpolation="AREA",
    )
    quarters = round(frame.rotation / 90)  # counter-clockwise
    if quarters % 4:
        pixels = np.rot90(pixels, quarters)
    return Picture(np.ascontiguousarray(pixels), number)
