"""The bytes of one member to numbers and back: FLAC, WAV, Opus, MP3 and M4A sound; packed pictures,
MP4 and Matroska video.

Decoding is by ``extract/media.py`` (PyAV) and Pillow. Nothing in a member is executed, no other file
is opened, and what is beyond the limits is refused before its memory is taken.
"""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Literal

import numpy as np

from data_shards.extract.extractors.protocol import SOUND_RATE, Missing
from data_shards.extract.media import SILENT, Limits, Unreadable, clip_seconds, pictures, sound
from data_shards.media.media_kinds import Media, suffix_of
from data_shards.media.packed_frames import decode_picture, squares, unpack

SoundFormat = Literal["flac", "wav", "opus"]

# Of one member; a longer clip is cut into windows before it is stored.
MEMBER_LIMITS = Limits(bytes=1 << 28, seconds=600.0, pixels=8192 * 4352)
MOST_DECODED = 1 << 30  # bytes that one member may become


def decode_member(body: bytes, media: Media, limits: Limits = MEMBER_LIMITS) -> np.ndarray:
    """What a member holds: sound (S, 1) float32, or pictures (T, 3 * side * side) uint8.

    Raises:
        Unreadable: it is damaged, of another kind than its field, or beyond the limits.
    """
    suffix = suffix_of(body)
    if suffix not in media.suffixes:
        found = f"a {suffix} file" if suffix else "no file of media"
        raise Unreadable(f"{found}; {media.kind} is {', '.join(media.suffixes)}")
    if len(body) > limits.bytes:
        raise Unreadable(f"too large: {len(body)} bytes, and at most {limits.bytes} are taken")
    if media.kind == "sound":
        return _decode_sound(body, limits)
    if suffix == "frames":
        return _decode_frames(body, media, limits)
    return _decode_video(body, media, limits)


def _decode_sound(body: bytes, limits: Limits) -> np.ndarray:
    pieces: list[np.ndarray] = []
    try:
        pieces.extend(sound(body, limits=limits))
    except Missing as reason:  # silence is sound too
        if str(reason) != SILENT:
            raise Unreadable(str(reason)) from None
    return np.concatenate(pieces)[:, None]


def _decode_frames(body: bytes, media: Media, limits: Limits) -> np.ndarray:
    packed = unpack(body, limits)
    if abs(packed.rate - media.rate) > 1e-3 * media.rate:
        raise Unreadable(f"{packed.rate:g} pictures a second, and its field has {media.rate:g}")
    _check_decoded(len(packed.pictures), media)
    decoded = (decode_picture(file, n, limits) for n, file in enumerate(packed.pictures))
    return squares(decoded, media.side)


def _decode_video(body: bytes, media: Media, limits: Limits) -> np.ndarray:
    # first how long it is, so that nothing is decoded of a video that is too long
    seconds = clip_seconds(body, 0.0, None, limits)
    _check_decoded(int(seconds * media.rate) + 1, media)
    # twice the side, so that the shorter side of a wide picture still has as many pixels
    longest_side = max(2 * media.side, 256)
    try:
        shown = pictures(body, 0.0, None, media.rate, longest_side, limits)
        return squares((picture.pixels for picture in shown), media.side)
    except Missing as reason:
        raise Unreadable(str(reason)) from None


def _check_decoded(count: int, media: Media) -> None:
    size = count * media.width
    if size > MOST_DECODED:
        raise Unreadable(f"too large: {count} pictures of {media.side} pixels a side")


def encode_sound(samples: np.ndarray, sound_format: SoundFormat) -> bytes:
    """The file of mono sound (n,) float32 from -1 to 1, in 16 bits or as Opus."""
    whole = np.clip(np.round(samples * 32767.0), -32768, 32767).astype("<i2")
    if sound_format == "wav":
        return _wav(whole.tobytes())
    codec = "flac" if sound_format == "flac" else "libopus"
    container_format = "flac" if sound_format == "flac" else "ogg"
    return _encode(whole, codec, container_format)


def _wav(samples: bytes) -> bytes:
    layout = struct.pack("<HHIIHH", 1, 1, SOUND_RATE, 2 * SOUND_RATE, 2, 16)
    chunks = b"WAVEfmt " + struct.pack("<I", len(layout)) + layout
    chunks += b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def _encode(samples: np.ndarray, codec: str, container_format: str) -> bytes:
    """(n,) int16 through an encoder of FFmpeg's libraries."""
    import av

    buffer = BytesIO()
    options = {"fflags": "+bitexact"}  # the same bytes every time
    with av.open(buffer, "w", format=container_format, options=options) as container:
        stream = container.add_stream(codec, rate=SOUND_RATE)
        stream.layout = "mono"
        for start in range(0, len(samples), SOUND_RATE):
            piece = samples[None, start : start + SOUND_RATE]
            frame = av.AudioFrame.from_ndarray(piece, format="s16", layout="mono")
            frame.sample_rate, frame.pts = SOUND_RATE, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()
