"""Is a tar, byte for byte, what this project's writer makes of its index and numbers? All headers
are compared at once.

A walk through the headers one by one takes longer than all checksums. This answers the same
question for a tar of our own: every byte that is not a payload follows from the index. For any
other tar the answer is no, and says nothing bad.

What is checked, in this order:

1. keys and fields are ones that the writer takes, and columns of absent members hold what it puts
   there;
2. the members that the index names fill the tar without a gap, sample by sample, as its offsets
   say;
3. the zeros behind the last member and behind each payload are there, and are zeros;
4. each member's header, and the header of each array inside its member, has the bytes that the
   writer gives it;
5. each sample has the CRC-32 of the index.
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
from data_shards.shards.writer import BLOCK, RECORD, is_plain_key, npy_header, tar_header

# Where a tar header holds what differs between members.
NAME = slice(0, 100)
SIZE = slice(124, 135)
CHECKSUM = slice(148, 154)
MAX_SIZE = 8**11  # from here on, the digits do not fit SIZE
_IN_BLOCK = np.arange(BLOCK, dtype=np.int16)


@dataclass(frozen=True)
class _Members:
    """The M members of one suffix, such as all ``.audio.npy``."""

    row: np.ndarray  # (M,) the sample
    start: np.ndarray  # (M,) of the header
    size: np.ndarray  # (M,) bytes after the header
    names: list[bytes]
    npy_headers: list[bytes]  # what each must begin with; empty for text and JSON


@dataclass(frozen=True)
class _Layout:
    """All M members of a tar in the order of their offsets."""

    row: np.ndarray  # (M,) the sample
    start: np.ndarray  # (M,) of the header
    size: np.ndarray  # (M,) bytes after the header
    end: np.ndarray  # (M,) after the padding

    @staticmethod
    def of(groups: list[_Members]) -> _Layout:
        row = np.concatenate([members.row for members in groups])
        start = np.concatenate([members.start for members in groups])
        size = np.concatenate([members.size for members in groups])
        order = np.argsort(start)
        padding = -size % BLOCK
        end = start + BLOCK + size + padding
        return _Layout(row[order], start[order], size[order], end[order])


def is_canonical(tar: np.ndarray, index: Index) -> bool:
    """Whether ``tar``, (bytes,) uint8, is what the writer makes of ``index`` and the payloads."""
    keys = index.keys()
    if len(tar) != index.tar_bytes or not _has_plain_names(index, keys):
        return False
    if not _absent_columns_are_canonical(index):
        return False
    groups = _members_by_suffix(index, keys)
    if not groups:
        return False
    layout = _Layout.of(groups)
    if not _fills_the_tar(layout, index) or not _ends_in_zeros(tar, int(layout.end[-1])):
        return False
    # whole blocks from here on: the checks above have added up all sizes
    blocks = tar.reshape(-1, BLOCK)
    if not _padding_is_zero(blocks, layout):
        return False
    for members in groups:
        if not _tar_headers_agree(blocks, members) or not _npy_headers_agree(tar, members):
            return False
    return _checksums_agree(tar, index)


def _has_plain_names(index: Index, keys: list[str]) -> bool:
    keys_differ = len(set(keys)) == len(keys)
    keys_are_plain = all(is_plain_key(key) for key in keys)
    # an index made from a tar has field names in lower case, as WebDataset gives them
    fields_are_lower = all(field == field.lower() for field in index.arrays)
    return keys_differ and keys_are_plain and fields_are_lower


def _absent_columns_are_canonical(index: Index) -> bool:
    """Whether shapes and sizes of absent members are the writer's; no field is always absent."""
    table = index.table
    for field, column in columns(index.arrays).items():
        axes = index.arrays[field][1]
        absent = table[:, column] == ABSENT
        shapes = table[absent, column + 1 : column + 1 + axes]
        if absent.all() or shapes.any():
            return False
    for offset, size in ((JSON, JSON_SIZE), (TEXT, TEXT_SIZE)):
        absent = table[:, offset] == ABSENT
        if (table[absent, size] != ABSENT).any():
            return False
    return True


def _members_by_suffix(index: Index, keys: list[str]) -> list[_Members]:
    """All members that the index names; suffixes that no sample has are left out."""
    table = index.table
    encoded_keys = [key.encode("utf-8") for key in keys]
    groups = []
    for field, column in columns(index.arrays).items():
        dtype, axes = index.arrays[field]
        row = np.flatnonzero(table[:, column] != ABSENT)
        shapes = table[row, column + 1 : column + 1 + axes]
        numbers = np.dtype(dtype)
        headers = [npy_header(numbers.str, tuple(shape)) for shape in shapes.tolist()]
        header_sizes = np.array([len(header) for header in headers], np.int64)
        array_sizes = np.prod(shapes, axis=1, dtype=np.int64) * numbers.itemsize
        # the index points to the numbers, before which stand the array's header and the member's
        start = table[row, column] - header_sizes - BLOCK
        names = _names(encoded_keys, row, f".{field}.npy")
        groups.append(_Members(row, start, header_sizes + array_sizes, names, headers))
    for suffix, offset, size in ((".json", JSON, JSON_SIZE), (".txt", TEXT, TEXT_SIZE)):
        row = np.flatnonzero(table[:, offset] != ABSENT)
        start = table[row, offset] - BLOCK
        names = _names(encoded_keys, row, suffix)
        groups.append(_Members(row, start, table[row, size], names, []))
    return [members for members in groups if len(members.row)]


def _names(encoded_keys: list[bytes], rows: np.ndarray, suffix: str) -> list[bytes]:
    ending = suffix.encode("utf-8")
    return [encoded_keys[row] + ending for row in rows.tolist()]


def _fills_the_tar(layout: _Layout, index: Index) -> bool:
    """Whether members follow each other from the first byte on, as the index says."""
    row, start, end = layout.row, layout.start, layout.end
    begins_at_zero = start[0] == 0
    has_no_gaps = (start[1:] == end[:-1]).all()
    in_order_of_samples = (np.diff(row) >= 0).all()
    if not (begins_at_zero and has_no_gaps and in_order_of_samples):
        return False
    samples = np.arange(len(index))
    first_member = np.searchsorted(row, samples)
    last_member = np.searchsorted(row, samples, "right") - 1
    if (last_member < first_member).any():
        return False  # a sample without members
    starts_agree = (index.table[:, START] == start[first_member]).all()
    ends_agree = (index.table[:, END] == end[last_member]).all()
    return bool(starts_agree and ends_agree)


def _ends_in_zeros(tar: np.ndarray, end: int) -> bool:
    """Whether two blocks of zeros follow, and zeros up to a whole record, as ``tarfile`` writes."""
    end_mark = 2 * BLOCK
    to_whole_record = -(end + end_mark) % RECORD
    tail = tar[end:]
    return len(tail) == end_mark + to_whole_record and not tail.any()


def _padding_is_zero(blocks: np.ndarray, layout: _Layout) -> bool:
    used = np.where(layout.size > 0, (layout.size - 1) % BLOCK + 1, BLOCK)
    last_blocks = blocks[layout.end // BLOCK - 1]  # (M, BLOCK)
    is_padding = _IN_BLOCK >= used.astype(np.int16)[:, None]
    return not ((last_blocks > 0) & is_padding).any()


def _tar_headers_agree(blocks: np.ndarray, members: _Members) -> bool:
    longest_name = max(len(name) for name in members.names)
    if longest_name > NAME.stop or members.size.max() >= MAX_SIZE:
        return False  # these would need more than the plain header
    expected = np.empty((len(members.names), BLOCK), np.uint8)
    expected[:] = np.frombuffer(tar_header("", 0, ""), np.uint8)
    names = np.array(members.names, f"S{NAME.stop}")
    expected[:, NAME] = names.view(np.uint8).reshape(-1, NAME.stop)
    expected[:, SIZE] = _octal_digits(members.size, SIZE)
    # a checksum counts its own field as blanks, the NUL behind its digits included
    expected[:, CHECKSUM] = ord(" ")
    checksum = expected.sum(1, dtype=np.int64) + ord(" ")
    expected[:, CHECKSUM] = _octal_digits(checksum, CHECKSUM)
    return np.array_equal(expected, blocks[members.start // BLOCK])


def _octal_digits(numbers: np.ndarray, columns: slice) -> np.ndarray:
    """(M,) numbers as (M, digits) ASCII, with zeros in front to fill these columns of a header."""
    width = columns.stop - columns.start
    shifts = 3 * np.arange(width - 1, -1, -1)
    return (numbers[:, None] >> shifts) % 8 + ord("0")


def _npy_headers_agree(tar: np.ndarray, members: _Members) -> bool:
    # headers of equal length are compared together
    by_length: dict[int, list[int]] = {}
    for number, header in enumerate(members.npy_headers):
        by_length.setdefault(len(header), []).append(number)
    for length, numbers in by_length.items():
        joined = b"".join([members.npy_headers[number] for number in numbers])
        expected = np.frombuffer(joined, np.uint8).reshape(-1, length)
        start = members.start[numbers] + BLOCK
        found = tar[start[:, None] + np.arange(length)]
        if not np.array_equal(expected, found):
            return False
    return True


def _checksums_agree(tar: np.ndarray, index: Index) -> bool:
    view = tar.data
    for start, end, expected in index.table[:, [START, END, CRC]].tolist():
        if zlib.crc32(view[start:end]) != expected:
            return False
    return True
