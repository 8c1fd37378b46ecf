"""Pictures of one clip as one member, ``<key>.vision.frames``: JPEG or WebP files one behind the other.

8 bytes   CFRAMES1
uint32    how many pictures, little-endian like all that follow
float32   pictures in a second
uint32    bytes of each picture, one number for each
...       the pictures
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import numpy as np

from core.command import Refused
from data_shards.extract.media import Limits, Unreadable
from data_shards.media.media_kinds import FRAMES_MAGIC

PictureFormat = Literal["jpeg", "webp"]

_HEAD = struct.Struct("<8sIf")
MARGIN = 1.5  # side of the square around a face, in sides of the square around its landmarks


@dataclass(frozen=True)
class PackedFrames:
    """The pictures of a member, not yet decoded."""

    rate: float
    pictures: Sequence[bytes]


def pack(pictures: Sequence[bytes], rate: float) -> bytes:
    """The member that holds these files."""
    sizes = np.array([len(picture) for picture in pictures], "<u4")
    return b"".join([_HEAD.pack(FRAMES_MAGIC, len(sizes), rate), sizes.tobytes(), *pictures])


def unpack(body: bytes, limits: Limits) -> PackedFrames:
    """The files in a member.

    Raises:
        Unreadable: its sizes do not add up, or there are more than the limits allow.
    """
    if len(body) < _HEAD.size:
        raise Unreadable("damaged: cut off within its header")
    magic, count, rate = _HEAD.unpack_from(body)
    if magic != FRAMES_MAGIC or not 0 < rate < 1e4 or count == 0:
        raise Unreadable("damaged: no packed pictures")
    if count > limits.seconds * rate + 1:
        raise Unreadable(
            f"too long: {count / rate:.0f} s, and at most {limits.seconds:g} are taken"
        )
    start = _HEAD.size + 4 * count
    if len(body) < start:
        raise Unreadable("damaged: cut off within the sizes of its pictures")
    sizes = np.frombuffer(body, "<u4", count, _HEAD.size).astype(np.int64)
    ends = start + np.cumsum(sizes)
    if int(ends[-1]) != len(body):
        raise Unreadable(f"damaged: {len(body)} bytes, and its pictures end at {int(ends[-1])}")
    edges = [start, *ends.tolist()]
    pictures = [body[first:last] for first, last in zip(edges[:-1], edges[1:], strict=True)]
    return PackedFrames(float(rate), pictures)


def encode_picture(pixels: np.ndarray, picture_format: PictureFormat, quality: int) -> bytes:
    """The file of a picture (H, W, 3) uint8."""
    buffer = BytesIO()
    _library().fromarray(pixels).save(buffer, picture_format.upper(), quality=quality)
    return buffer.getvalue()


def decode_picture(body: bytes, number: int, limits: Limits) -> np.ndarray:
    """The pixels (H, W, 3) uint8 of a JPEG or WebP file.

    Raises:
        Unreadable: it is neither, damaged, or larger than the limits allow; ``number`` says which.
    """
    image = _library()
    try:
        # of these two kinds only; the size is in the header, before any pixel is made
        with image.open(BytesIO(body), formats=("JPEG", "WEBP")) as opened:
            width, height = opened.size
            if width * height > limits.pixels:
                raise Unreadable(f"too large: picture {number} is {width} x {height}")
            return np.asarray(opened.convert("RGB"))
    except Unreadable:
        raise
    except Exception as error:  # whatever damaged bytes make the library raise
        said = " ".join(str(error).split())[:120]
        raise Unreadable(f"damaged: picture {number}: {said}") from None


def squares(pictures: Iterable[np.ndarray], side: int) -> np.ndarray:
    """(T, 3 * side * side) uint8: the middle square of each (H, W, 3), made ``side`` wide."""
    rows = [square(pixels, side).transpose(2, 0, 1).reshape(-1) for pixels in pictures]
    return np.stack(rows)


def square(pixels: np.ndarray, side: int) -> np.ndarray:
    """(side, side, 3): the middle square of a picture (H, W, 3)."""
    height, width = pixels.shape[:2]
    smaller = min(height, width)
    top, left = (height - smaller) // 2, (width - smaller) // 2
    middle = pixels[top : top + smaller, left : left + smaller]
    if smaller == side:
        return middle
    image = _library()
    resized = image.fromarray(middle).resize((side, side), image.Resampling.BILINEAR)
    return np.asarray(resized)


def square_around(pixels: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The square around a face, black where it reaches beyond the picture.

    Args:
        pixels: (H, W, 3) uint8.
        landmarks: (68, 2), columns and lines in pixels.
    """
    low, high = landmarks.min(axis=0), landmarks.max(axis=0)
    side = max(8, round(MARGIN * float((high - low).max())))
    left, top = np.round((low + high) / 2 - side / 2).astype(int)
    square = np.zeros((side, side, 3), np.uint8)
    height, width = pixels.shape[:2]
    seen = pixels[max(top, 0) : min(top + side, height), max(left, 0) : min(left + side, width)]
    row, column = max(-top, 0), max(-left, 0)
    square[row : row + seen.shape[0], column : column + seen.shape[1]] = seen
    return square


def _library() -> Any:
    """Pillow, which is in an extra."""
    try:
        from PIL import Image
    except ImportError:
        raise Refused(
            "pictures are read with the package pillow, which is not there; "
            "install it: pip install 'concord-train[clips]'"
        ) from None
    return Image
