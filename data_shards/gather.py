"""Copy arrays of different lengths from many places in memory into one padded batch, without Python in the loop.

The only raw memory access of the project. Addresses come from an index that was checked against the mapped file
(``Index.from_bytes``), so every copy stays inside a map that the caller holds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import int32, njit, types

_memcpy = types.ExternalFunction("memcpy", types.intp(types.intp, types.intp, types.intp))
_memset = types.ExternalFunction("memset", types.intp(types.intp, types.int32, types.intp))

Kernel = Callable[[np.ndarray, np.ndarray, int, int, int, int], None]


def _gather(address: np.ndarray, length: np.ndarray, lead: int, inner: int, longest: int, out: int) -> None:
    """Row b of ``out``, (B, lead, longest, inner) bytes, from ``lead`` runs of ``length[b]`` frames at ``address[b]``.

    Frames past the length become zero. A length of zero reads nothing, whatever the address.
    """
    for b in range(len(address)):
        used = length[b] * inner
        for i in range(lead):
            start = out + (b * lead + i) * longest * inner
            if used:
                _memcpy(start, address[b] + i * used, used)
            _memset(start + used, int32(0), longest * inner - used)


@cache
def kernel() -> Kernel:
    """The compiled loop; it runs without the interpreter's lock. Kept on disk between processes where possible."""
    signature = "void(int64[::1],int64[::1],int64,int64,int64,int64)"
    try:
        return njit(signature, nogil=True, cache=True)(_gather)
    except RuntimeError:  # no folder to keep it in
        return njit(signature, nogil=True)(_gather)
