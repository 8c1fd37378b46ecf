"""Is a tar, byte for byte, what this project's writer makes of its index and numbers? All headers are compared at once.

A walk through the headers one by one takes longer than all checksums. This answers the same question for a tar of our
own: every byte that is not a payload follows from the index. For any other tar the answer is no, and says nothing bad.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from data_shards.shards.index_table import (
    ABSENT,
    CRC,
    END,
    JSON,
    JSON_SIZE,
    START,
    TEXT,
    TEXT_SIZE,
    Index,
    columns,
)
from data_shards.shards.writer import BLOCK, RECORD, header, npy_header, plain_key

NAME, SIZE, CHECKSUM = slice(0, 100), slice(124, 135), slice(148, 154)  # in a tar header
_IN_BLOCK = np.arange(BLOCK, dtype=np.int16)


@dataclass(frozen=True)
class _Members:
    """M members of one suffix."""

    row: np.ndarray  # (M,) the sample
    start: np.ndarray  # (M,) of the header
    size: np.ndarray  # (M,)
    names: list[bytes]
    heads: list[bytes]  # what the payload must start with


def is_canonical(tar: np.ndarray, index: Index) -> bool:
    """Whether ``tar``, (bytes,) uint8, is what the writer makes of ``index`` and the payloads, checksums included."""
    keys = index.keys()
    if len(set(keys)) < len(keys) or not all(plain_key(key) for key in keys):
        return False
    if any(field != field.lower() for field in index.arrays) or len(tar) != index.tar_bytes:
        return False
    if not _absent_as_written(index):
        return False
    kinds = _members(index, [key.encode("utf-8") for key in keys])
    row, start, size = (
        np.concatenate([getattr(kind, name) for kind in kinds]) for name in ("row", "start", "size")
    )
    order = np.argsort(start)
    row, start, size = row[order], start[order], size[order]
    end = start + BLOCK + size + -size % BLOCK
    # the members follow each other from the first byte to the end mark, and sample by sample as the index says
    if not len(start) or start[0] != 0 or (start[1:] != end[:-1]).any() or (np.diff(row) < 0).any():
        return False
    first, last = (
        np.searchsorted(row, np.arange(len(keys))),
        np.searchsorted(row, np.arange(len(keys)), "right") - 1,
    )
    table = index.table
    if (
        (last < first).any()
        or (table[:, START] != start[first]).any()
        or (table[:, END] != end[last]).any()
    ):
        return False
    tail = tar[end[-1] :]
    if len(tail) != 2 * BLOCK + -(int(end[-1]) + 2 * BLOCK) % RECORD or tail.any():
        return False
    blocks = tar.reshape(
        -1, BLOCK
    )  # every member begins with one: the checks above have added up their sizes
    used = np.where(size > 0, (size - 1) % BLOCK + 1, BLOCK).astype(
        np.int16
    )  # (M,) bytes of a member's last block
    if ((blocks[end // BLOCK - 1] > 0) & (_IN_BLOCK >= used[:, None])).any():
        return False
    if not all(_headers_agree(blocks, kind) and _heads_agree(tar, kind) for kind in kinds):
        return False
    view = tar.data
    spans = zip(
        table[:, START].tolist(), table[:, END].tolist(), table[:, CRC].tolist(), strict=True
    )
    return all(zlib.crc32(view[begin:stop]) == crc for begin, stop, crc in spans)


def _absent_as_written(index: Index) -> bool:
    """Whether the columns that belong to nothing hold what the writer puts there, and every field is in some sample."""
    table = index.table
    for field, column in columns(index.arrays).items():
        absent = table[:, column] == ABSENT
        if absent.all() or table[absent, column + 1 : column + 1 + index.arrays[field][1]].any():
            return False
    return all(
        (table[table[:, at] == ABSENT, size] == ABSENT).all()
        for at, size in ((JSON, JSON_SIZE), (TEXT, TEXT_SIZE))
    )


def _members(index: Index, keys: list[bytes]) -> list[_Members]:
    table, found = index.table, []
    for field, column in columns(index.arrays).items():
        dtype, axes = index.arrays[field]
        row = np.flatnonzero(table[:, column] != ABSENT)
        shapes = table[row, column + 1 : column + 1 + axes]
        heads = [npy_header(np.dtype(dtype).str, tuple(shape)) for shape in shapes.tolist()]
        before = np.array([len(head) for head in heads], np.int64)
        size = before + np.prod(shapes, axis=1, dtype=np.int64) * np.dtype(dtype).itemsize
        suffix = f".{field}.npy".encode()
        names = [keys[at] + suffix for at in row.tolist()]
        found.append(_Members(row, table[row, column] - before - BLOCK, size, names, heads))
    for suffix, offset, length in ((b".json", JSON, JSON_SIZE), (b".txt", TEXT, TEXT_SIZE)):
        row = np.flatnonzero(table[:, offset] != ABSENT)
        names = [keys[at] + suffix for at in row.tolist()]
        found.append(_Members(row, table[row, offset] - BLOCK, table[row, length], names, []))
    return [members for members in found if len(members.row)]


def _headers_agree(blocks: np.ndarray, members: _Members) -> bool:
    if max(map(len, members.names)) > NAME.stop or members.size.max() >= 8**11:
        return False  # these would need more than the plain header
    expected = np.empty((len(members.names), BLOCK), np.uint8)
    expected[:] = np.frombuffer(header("", 0, ""), np.uint8)
    expected[:, NAME] = (
        np.array(members.names, f"S{NAME.stop}").view(np.uint8).reshape(-1, NAME.stop)
    )
    expected[:, SIZE] = _octal(members.size, SIZE)
    expected[:, CHECKSUM] = ord(
        " "
    )  # a checksum counts itself as blanks, of which the NUL after it is one
    expected[:, CHECKSUM] = _octal(expected.sum(1, dtype=np.int64) + ord(" "), CHECKSUM)
    return np.array_equal(expected, blocks[members.start // BLOCK])


def _octal(numbers: np.ndarray, place: slice) -> np.ndarray:
    """(M, digits) ASCII."""
    digits = place.stop - place.start
    return (numbers[:, None] >> 3 * np.arange(digits - 1, -1, -1)) % 8 + ord("0")


def _heads_agree(tar: np.ndarray, members: _Members) -> bool:
    by_length: dict[int, list[int]] = {}
    for place, head in enumerate(members.heads):
        by_length.setdefault(len(head), []).append(place)
    for length, places in by_length.items():
        expected = np.frombuffer(b"".join(members.heads[place] for place in places), np.uint8)
        begin = members.start[places] + BLOCK
        if not np.array_equal(
            expected.reshape(-1, length), tar[begin[:, None] + np.arange(length)]
        ):
            return False
    return True
