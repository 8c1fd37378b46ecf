"""Copy arrays of different lengths out of files into padded batches, without Python in the loop.

The only raw memory access of the project. It reads with ``preadv``: a file that is cut while it is
in use is a short read, where a memory map would end the process. All arrays of a sample come in one
call and without a copy in between: each goes straight to its row, and the headers between them to a
waste buffer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import from_dtype, int32, njit, types

from core.environment.compiled import compiled

_preadv = types.ExternalFunction(
    "preadv", types.intp(types.int32, types.intp, types.int32, types.int64)
)
_memmove = types.ExternalFunction("memmove", types.intp(types.intp, types.intp, types.intp))
_memset = types.ExternalFunction("memset", types.intp(types.intp, types.int32, types.intp))

# One padded array of B rows. A row is ``runs`` runs of ``longest`` frames of ``frame_bytes`` each:
# an array (3, T) has three runs, (T, D) has one; one without a time axis is a single frame.
BATCH_ARRAY = np.dtype(
    [
        ("runs", np.int64),
        ("frame_bytes", np.int64),
        ("longest", np.int64),
        ("address", np.int64),
    ]
)
# A stretch of memory to fill: the ``struct iovec`` of preadv.
_PIECE = np.dtype([("address", np.int64), ("size", np.int64)])

# Bytes between the arrays wanted (headers, other fields) that are cheaper read than skipped.
SPARE = 8 << 10

CopyRows = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], int]
LookUpRows = Callable[[np.ndarray, np.ndarray, np.ndarray], None]


@njit  # type: ignore[untyped-decorator]
def _read(file: int, pieces: np.ndarray, count: int, offset: int) -> bool:
    """Fill the first ``count`` pieces from one stretch of a file; False where the file ends
    first."""
    first = 0
    while first < count:
        got = _preadv(int32(file), pieces[first:].ctypes.data, int32(count - first), offset)
        if got <= 0:
            return False
        offset += got
        while first < count and got >= pieces[first].size:
            got -= pieces[first].size
            first += 1
        if first < count:  # a short read, which the end of the file or a signal makes
            pieces[first].address += got
            pieces[first].size -= got
    return True


@njit  # type: ignore[untyped-decorator]
def _sort_by_offset(
    order: np.ndarray, offset: np.ndarray, length: np.ndarray, arrays: np.ndarray, b: int
) -> int:
    """Put the arrays of sample b that have bytes to read into ``order``, as they lie in the file.

    Gives their number. Insertion sort: there are few, and most files hold them in order already.
    """
    wanted = 0
    for f in range(len(arrays)):
        if arrays[f].runs * length[f, b] * arrays[f].frame_bytes == 0:
            continue
        at = wanted
        while at and offset[order[at - 1], b] > offset[f, b]:
            order[at] = order[at - 1]
            at -= 1
        order[at] = f
        wanted += 1
    return wanted


@njit  # type: ignore[untyped-decorator]
def _pad_row(array: Any, b: int, length: int) -> None:
    """Move the runs of row b, which lie one after the other at its start, to their places, and
    fill the rest with zeros. ``array`` is one record of BATCH_ARRAY."""
    run = array.longest * array.frame_bytes
    used = length * array.frame_bytes
    row = array.address + b * array.runs * run
    for i in range(array.runs - 1, -1, -1):  # the last first, so that each finds its place free
        if i and used:
            _memmove(row + i * run, row + i * used, used)
        _memset(row + i * run + used, int32(0), run - used)


def _copy_rows(file: np.ndarray, offset: np.ndarray, length: np.ndarray, arrays: np.ndarray) -> int:
    """Fill F padded arrays of B rows each. Gives the first row that could not be read whole, or -1.

    Row b of array f comes from ``length[f, b]`` frames a run, stored without padding at
    ``offset[f, b]`` of ``file[b]``. Frames past the length become zero; a length of zero reads
    nothing. The caller vouches that no length exceeds ``longest`` and that every address has room.

    Args:
        file: (B,) file handles.
        offset, length: (F, B) int64.
        arrays: (F,) BATCH_ARRAY.
    """
    fields, rows = offset.shape
    order = np.empty(fields, np.int64)
    pieces = np.empty(2 * fields, _PIECE)
    waste = np.empty(SPARE, np.uint8)
    for b in range(rows):
        wanted = _sort_by_offset(order, offset, length, arrays, b)
        # Arrays that lie close together are one stretch, [start, end), and one system call.
        count, start, end = 0, np.int64(0), np.int64(0)
        for i in range(wanted):
            f = order[i]
            gap = offset[f, b] - end
            if count and not 0 <= gap <= SPARE:
                if not _read(file[b], pieces, count, start):
                    return b
                count = 0
            if count == 0:
                start = offset[f, b]
            elif gap:
                pieces[count].address = waste.ctypes.data
                pieces[count].size = gap
                count += 1
            # All runs at the start of the row: there is room, as no length exceeds the longest.
            array = arrays[f]
            size = array.runs * length[f, b] * array.frame_bytes
            row_bytes = array.runs * array.longest * array.frame_bytes
            pieces[count].address = array.address + b * row_bytes
            pieces[count].size = size
            count += 1
            end = offset[f, b] + size
        if count and not _read(file[b], pieces, count, start):
            return b
        for f in range(fields):
            _pad_row(arrays[f], b, length[f, b])
    return -1


def _look_up_rows(table: np.ndarray, row: np.ndarray, found: np.ndarray) -> None:
    """``found``, (C, B): line ``row[b]`` of the (S, C) int64 table at the address ``table[b]``."""
    size = np.int64(8)
    columns, rows = found.shape
    for b in range(rows):
        for c in range(columns):
            _memmove(
                found.ctypes.data + (c * rows + b) * size,
                table[b] + (row[b] * columns + c) * size,
                size,
            )


# Compiled here and not when first called: most of the time goes into numba's own imports.
_vector, _matrix = types.int64[::1], types.int64[:, ::1]
_batch_arrays = from_dtype(BATCH_ARRAY)[::1]
copy_rows: CopyRows = compiled(_copy_rows, (_vector, _matrix, _matrix, _batch_arrays))
look_up_rows: LookUpRows = compiled(_look_up_rows, (_vector, _vector, _matrix))
