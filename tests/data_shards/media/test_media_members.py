"""Files of sound and pictures as members of shards: what they become, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from media_files import brightening, tone, write_clip
from PIL import Image

from core.command import Refused
from data_shards.extract.media import Unreadable
from data_shards.media.media_kinds import SOUND, Media, parse_media, suffix_of
from data_shards.media.member_codec import MEMBER_LIMITS, decode_member, encode_sound
from data_shards.media.packed_frames import encode_picture, pack

PICTURES = Media("pictures", 4.0, 24)


def packed(count: int = 3, rate: float = 4.0, picture_format: str = "jpeg") -> bytes:
    files = []
    for number in range(count):
        pixels = brightening(number, count, (48, 32))
        files.append(encode_picture(pixels, picture_format, 95))
    return pack(files, rate)


@pytest.mark.parametrize(
    ("sound_format", "tolerance"), [("flac", 1e-4), ("wav", 1e-4), ("opus", 0.1)]
)
def test_sound_comes_back(sound_format: str, tolerance: float):
    samples = tone(1.3, 16_000)
    body = encode_sound(samples, sound_format)
    assert body == encode_sound(samples, sound_format)
    assert suffix_of(body) == sound_format
    found = decode_member(body, SOUND)
    assert found.dtype == np.float32
    assert abs(len(found) - len(samples)) <= 320
    shared = min(len(found), len(samples))
    assert np.abs(found[:shared, 0] - samples[:shared]).max() < tolerance


def test_silence_is_sound():
    found = decode_member(encode_sound(np.zeros(3000, np.float32), "flac"), SOUND)
    assert found.shape == (3000, 1)
    assert not found.any()


@pytest.mark.parametrize("picture_format", ["jpeg", "webp"])
def test_pictures_come_back_as_the_middle_square(picture_format: str):
    found = decode_member(packed(3, picture_format=picture_format), PICTURES)
    assert (found.shape, found.dtype) == ((3, 3 * 24 * 24), np.uint8)
    blue = found.reshape(3, 3, 24, 24)[:, 2, 20, 20].astype(int)
    assert np.abs(blue - [0, 85, 170]).max() < 16


def test_a_video_becomes_pictures_at_a_steady_rate(tmp_path: Path):
    body = write_clip(tmp_path / "clip.mp4", 1.4).read_bytes()
    found = decode_member(body, PICTURES)
    assert found.shape == (6, 3 * 24 * 24)
    blue = found.reshape(6, 3, 24, 24)[:, 2, 20, 20].astype(int)
    assert (np.diff(blue) > 10).all()


def gif() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "GIF")
    return buffer.getvalue()


def wide_webp() -> bytes:
    """8,000 x 8,000 pixels by its header, which is changed to say so."""
    body = bytearray(encode_picture(np.zeros((16, 16, 3), np.uint8), "webp", 50))
    at = body.index(b"\x9d\x01\x2a") + 3
    body[at : at + 4] = (8000).to_bytes(2, "little") * 2
    return bytes(body)


BODIES = {
    "cut off": lambda: encode_sound(tone(1.0, 16_000), "flac")[:5000],
    "noise": lambda: b"fLaC" + bytes(range(256)) * 9,
    "frames cut off": lambda: packed()[:-10],
    "frames without a header": lambda: packed()[:9],
    "frames without sizes": lambda: packed()[:20],
    "none": lambda: pack([], 4.0),
    "another rate": lambda: packed(rate=5.0),
    "a picture of another kind": lambda: pack([gif()], 4.0),
    "a damaged picture": lambda: pack([packed()[40:400]], 4.0),
    "a huge picture": lambda: pack([wide_webp()], 4.0),
    "too long": lambda: pack([b"x"] * 2500, 4.0),
    "a playlist": lambda: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
}


@pytest.mark.parametrize(
    ("kind", "media", "said"),
    [
        ("cut off", SOUND, "cut off|damaged|unreadable"),
        ("noise", SOUND, "unreadable|damaged|neither"),
        ("frames cut off", PICTURES, "its pictures end at"),
        ("frames without a header", PICTURES, "cut off within its header"),
        ("frames without sizes", PICTURES, "cut off within the sizes"),
        ("none", PICTURES, "no packed pictures"),
        ("another rate", PICTURES, "5 pictures a second, and its field has 4"),
        ("a picture of another kind", PICTURES, "damaged: picture 0"),
        ("a damaged picture", PICTURES, "damaged: picture 0"),
        ("a huge picture", PICTURES, "too large: picture 0 is 8000 x 8000"),
        ("too long", PICTURES, "too long: 625 s, and at most 600"),
        ("a playlist", SOUND, "no file of media; sound is flac"),
        ("cut off", PICTURES, "a flac file; pictures is frames, mp4, mkv"),
    ],
)
def test_what_cannot_be_decoded_is_said(kind: str, media: Media, said: str):
    with pytest.raises(Unreadable, match=said):
        decode_member(BODIES[kind](), media)


def test_limits_hold_before_anything_is_decoded(tmp_path: Path):
    limits = replace(MEMBER_LIMITS, seconds=1.0)
    long_sound = encode_sound(tone(1.5, 16_000), "flac")
    with pytest.raises(Unreadable, match="too long"):
        decode_member(long_sound, SOUND, limits)
    video = write_clip(tmp_path / "clip.mp4", 2.0).read_bytes()
    with pytest.raises(Unreadable, match="too long: 2 s"):
        decode_member(video, PICTURES, limits)
    small = replace(MEMBER_LIMITS, bytes=1000)
    sound = encode_sound(tone(1.0, 16_000), "wav")
    with pytest.raises(Unreadable, match="too large: 32044 bytes"):
        decode_member(sound, SOUND, small)
    huge = Media("pictures", 4.0, 2048)
    with pytest.raises(Unreadable, match="too large: 300 pictures of 2048"):
        decode_member(pack([b"x"] * 300, 4.0), huge)


def test_columns_are_said_on_the_command_line():
    assert parse_media("audio") == ("audio", SOUND)
    assert parse_media("face=2.5:96") == ("face", Media("pictures", 2.5, 96))
    for words in ("face=2", "face=x:9", "=1:2", "face=0:9", "face=2:99999"):
        with pytest.raises(Refused, match=r"--media '.*expected COLUMN"):
            parse_media(words)
