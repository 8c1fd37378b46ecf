"""Copy arrays of different lengths from many places of files into one padded batch, without Python in the loop.

The only raw memory access of the project. It reads with ``pread`` straight into the batch: one copy, and a file that
is cut while it is in use is a short read, where a memory map would end the process.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import int32, njit, types

_pread = types.ExternalFunction("pread", types.intp(types.int32, types.intp, types.intp, types.int64))
_memmove = types.ExternalFunction("memmove", types.intp(types.intp, types.intp, types.intp))
_memset = types.ExternalFunction("memset", types.intp(types.intp, types.int32, types.intp))

Kernel = Callable[[np.ndarray, np.ndarray, np.ndarray, int, int, int, int], int]


def _gather(
    file: np.ndarray, offset: np.ndarray, length: np.ndarray, lead: int, inner: int, longest: int, out: int
) -> int:
    """Fill ``out``, (B, lead, longest, inner) bytes: row b from ``lead`` runs of ``length[b]`` frames at ``offset[b]``.

    Frames past the length become zero. A length of zero reads nothing. Gives the first row that could not be read
    whole, or -1. The caller vouches that no length exceeds ``longest`` and that ``out`` is large enough.
    """
    run = longest * inner
    for b in range(len(offset)):
        row, used = out + b * lead * run, length[b] * inner
        done = 0
        while done < lead * used:  # all runs together at the start of the row: there is room, as used <= run
            got = _pread(int32(file[b]), row + done, lead * used - done, offset[b] + done)
            if got <= 0:
                return b
            done += got
        for i in range(lead - 1, -1, -1):  # then each to its place, the last first
            if i and used:
                _memmove(row + i * run, row + i * used, used)
            _memset(row + i * run + used, int32(0), run - used)
    return -1


@cache
def kernel() -> Kernel:
    """The compiled loop; it runs without the interpreter's lock. Kept on disk between processes where possible."""
    signature = "int64(int64[::1],int64[::1],int64[::1],int64,int64,int64,int64)"
    try:
        return njit(signature, nogil=True, cache=True)(_gather)
    except RuntimeError:  # no folder to keep it in
        return njit(signature, nogil=True)(_gather)
