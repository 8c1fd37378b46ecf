"""Memory of batches, used again: fresh pages cost more than the copy into them."""

from __future__ import annotations

import weakref
from collections import defaultdict, deque
from math import prod

import numpy as np
import torch
from torch import Tensor

LARGE = 64 << 10  # bytes; smaller arrays come from the allocator, which keeps such memory itself
# Free blocks kept of one size: more than a loop with prefetching has in hand at once.
KEPT = 4
SIZES = 8  # sizes of blocks to a doubling, so that at most an eighth of one is unused


class BufferPool:
    """Gives uninitialised tensors, and takes back the memory of a large one when nothing refers to
    it any more."""

    def __init__(self) -> None:
        # size in bytes -> blocks that wait for their next use
        self._free: defaultdict[int, deque[np.ndarray]] = defaultdict(lambda: deque(maxlen=KEPT))

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype, pin: bool = False) -> Tensor:
        size = prod(shape) * dtype.itemsize
        if pin or size < LARGE:  # torch keeps pinned memory itself
            return torch.empty(shape, dtype=dtype, pin_memory=pin)
        block_size = round_up(size)
        free = self._free[block_size]
        try:
            block = free.pop()
        except IndexError:
            block = torch.empty(block_size, dtype=torch.uint8).numpy()  # aligned as torch wants it
        lent = block[:size]  # the tensor, and every view of it, keeps this very object alive
        weakref.finalize(lent, free.append, block).atexit = False
        return torch.from_numpy(lent).view(dtype).view(shape)


def round_up(size: int) -> int:
    """``size``, up to the next of the sizes in which memory is kept."""
    step = 1 << max(size.bit_length() - 1, 0)
    step = max(step // SIZES, 1)
    return -(-size // step) * step
