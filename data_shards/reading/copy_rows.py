"""Copy arrays of different lengths from many places of files into padded batches, without Python in the loop.

The only raw memory access of the project. It reads with ``preadv``: a file that is cut while it is in use is a short
read, where a memory map would end the process. All arrays of a sample come in one call and without a copy in between:
each goes straight to its row, and the headers between them to a waste buffer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import int32, njit, types

_preadv = types.ExternalFunction(
    "preadv", types.intp(types.int32, types.intp, types.int32, types.int64)
)
_memmove = types.ExternalFunction("memmove", types.intp(types.intp, types.intp, types.intp))
_memset = types.ExternalFunction("memset", types.intp(types.intp, types.int32, types.intp))

SPARE = (
    8 << 10
)  # bytes between the arrays wanted (headers, other fields) that are cheaper read than skipped

Kernel = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], int]
LookUp = Callable[[np.ndarray, np.ndarray, np.ndarray], None]


@njit  # type: ignore[untyped-decorator]
def _read(file: int, pieces: np.ndarray, count: int, offset: int) -> bool:
    """Fill ``count`` pieces, each (address, size), from one stretch of a file."""
    first = 0
    while first < count:
        got = _preadv(int32(file), pieces[first:].ctypes.data, int32(count - first), offset)
        if got <= 0:
            return False
        offset += got
        while first < count and got >= pieces[first, 1]:
            got -= pieces[first, 1]
            first += 1
        if first < count:  # a short read, which the end of the file or a signal makes
            pieces[first, 0] += got
            pieces[first, 1] -= got
    return True


def _gather(file: np.ndarray, offset: np.ndarray, length: np.ndarray, layout: np.ndarray) -> int:
    """Fill F padded arrays of B rows each. Gives the first row that could not be read whole, or -1.

    Array f is (B, lead, longest, inner) bytes at an address; ``layout`` is (F, 4): lead, inner, longest, address.
    Its row b comes from ``lead`` runs of ``length[f, b]`` frames of ``inner`` bytes, one after the other at
    ``offset[f, b]`` of ``file[b]``. Frames past the length become zero; a length of zero reads nothing. The caller
    vouches that no length exceeds ``longest`` and that every address has room.
    """
    fields, rows = offset.shape
    order = np.empty(fields, np.int64)
    pieces = np.empty((2 * fields, 2), np.int64)
    waste = np.empty(SPARE, np.uint8)
    for b in range(rows):
        wanted = 0
        for f in range(fields):  # those with anything to read, by their place in the file
            if layout[f, 0] * length[f, b] * layout[f, 1] == 0:
                continue
            at = wanted
            while at and offset[order[at - 1], b] > offset[f, b]:
                order[at] = order[at - 1]
                at -= 1
            order[at] = f
            wanted += 1
        count, start, end = 0, np.int64(0), np.int64(0)
        for i in range(wanted):
            f = order[i]
            lead, inner, longest, address = layout[f]
            gap = offset[f, b] - end
            if count and not 0 <= gap <= SPARE:
                if not _read(file[b], pieces, count, start):
                    return b
                count = 0
            if count == 0:
                start = offset[f, b]
            elif gap:
                pieces[count, 0], pieces[count, 1] = waste.ctypes.data, gap
                count += 1
            size = lead * length[f, b] * inner
            # all runs at the start of the row: there is room, as no length exceeds the longest
            pieces[count, 0], pieces[count, 1] = address + b * lead * longest * inner, size
            count += 1
            end = offset[f, b] + size
        if count and not _read(file[b], pieces, count, start):
            return b
        for f in range(fields):
            lead, inner, longest, address = layout[f]
            run, used = longest * inner, length[f, b] * inner
            row = address + b * lead * run
            for i in range(lead - 1, -1, -1):  # the last first, so that each finds its place free
                if i and used:
                    _memmove(row + i * run, row + i * used, used)
                _memset(row + i * run + used, int32(0), run - used)
    return -1


def _look_up(table: np.ndarray, row: np.ndarray, found: np.ndarray) -> None:
    """``found``, (C, B): the C numbers in line ``row[b]`` of the table, (S, C) int64, at the address ``table[b]``."""
    size = np.int64(8)
    for b in range(len(row)):
        for c in range(len(found)):
            _memmove(
                found.ctypes.data + (c * len(row) + b) * size,
                table[b] + (row[b] * len(found) + c) * size,
                size,
            )


def _compiled(signature: str, function: Callable) -> Callable:
    """``function`` without the interpreter's lock; kept on disk between processes where there is a folder for it."""
    try:
        return njit(signature, nogil=True, cache=True)(function)
    except RuntimeError:
        return njit(signature, nogil=True)(function)


# Made here and not when first called: most of the time goes into numba's own imports.
gather: Kernel = _compiled("int64(int64[::1],int64[:,::1],int64[:,::1],int64[:,::1])", _gather)
look_up: LookUp = _compiled("void(int64[::1],int64[::1],int64[:,::1])", _look_up)
