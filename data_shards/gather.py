"""Copy arrays of different lengths from many places of files into padded batches, without Python in the loop.

The only raw memory access of the project. It reads with ``pread``: a file that is cut while it is in use is a short
read, where a memory map would end the process. The arrays of a small sample lie close together, so that one read
fetches them all into a buffer that stays in the processor's cache; larger arrays are read straight into the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import int32, njit, types

_pread = types.ExternalFunction("pread", types.intp(types.int32, types.intp, types.intp, types.int64))
_memmove = types.ExternalFunction("memmove", types.intp(types.intp, types.intp, types.intp))
_memset = types.ExternalFunction("memset", types.intp(types.intp, types.int32, types.intp))

SMALL = 256 << 10  # bytes of a sample that is read at once; about what a core's cache holds beside the batch
SPARE = 16 << 10  # bytes between the arrays wanted (headers, other fields) that are cheaper read than skipped

Kernel = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], int]
LookUp = Callable[[np.ndarray, np.ndarray, np.ndarray], None]


@njit  # type: ignore[untyped-decorator]
def _read(file: int, to: int, size: int, offset: int) -> bool:
    done = 0
    while done < size:
        got = _pread(int32(file), to + done, size - done, offset + done)
        if got <= 0:
            return False
        done += got
    return True


def _gather(file: np.ndarray, offset: np.ndarray, length: np.ndarray, layout: np.ndarray) -> int:
    """Fill F padded arrays of B rows each. Gives the first row that could not be read whole, or -1.

    Array f is (B, lead, longest, inner) bytes at an address; ``layout`` is (F, 4): lead, inner, longest, address.
    Its row b comes from ``lead`` runs of ``length[f, b]`` frames of ``inner`` bytes, one after the other at
    ``offset[f, b]`` of ``file[b]``. Frames past the length become zero; a length of zero reads nothing. The caller
    vouches that no length exceeds ``longest`` and that every address has room.
    """
    fields, rows = offset.shape
    buffer = np.empty(SMALL, np.uint8)
    near = buffer.ctypes.data
    for b in range(rows):
        low, high, needed = 1 << 62, 0, 0
        for f in range(fields):
            size = layout[f, 0] * length[f, b] * layout[f, 1]
            if size:
                low, high = min(low, int(offset[f, b])), max(high, int(offset[f, b] + size))
                needed += size
        together = 0 < high - low <= min(SMALL, 2 * needed + SPARE)
        if together and not _read(file[b], near, high - low, low):
            return b
        for f in range(fields):
            lead, inner, longest, address = layout[f]
            run, used = longest * inner, length[f, b] * inner
            row = address + b * lead * run
            start = near + offset[f, b] - low
            if used and not together:  # all runs at the start of the row: there is room, as used <= run
                if not _read(file[b], row, lead * used, offset[f, b]):
                    return b
                start = row
            for i in range(lead - 1, -1, -1):  # the last first, so that runs in the row itself find their place
                if used:
                    _memmove(row + i * run, start + i * used, used)
                _memset(row + i * run + used, int32(0), run - used)
    return -1


def _look_up(table: np.ndarray, row: np.ndarray, found: np.ndarray) -> None:
    """``found``, (C, B): the C numbers in line ``row[b]`` of the table, (S, C) int64, at the address ``table[b]``."""
    size = np.int64(8)
    for b in range(len(row)):
        for c in range(len(found)):
            _memmove(found.ctypes.data + (c * len(row) + b) * size, table[b] + (row[b] * len(found) + c) * size, size)


def _compiled(signature: str, function: Callable) -> Callable:
    """``function`` without the interpreter's lock; kept on disk between processes where there is a folder for it."""
    try:
        return njit(signature, nogil=True, cache=True)(function)
    except RuntimeError:
        return njit(signature, nogil=True)(function)


# Made here and not when first called: most of the time goes into numba's own imports.
gather: Kernel = _compiled("int64(int64[::1],int64[:,::1],int64[:,::1],int64[:,::1])", _gather)
look_up: LookUp = _compiled("void(int64[::1],int64[::1],int64[:,::1])", _look_up)
