"""The tensors of a checkpoint as they were at one moment: one copy in host memory, laid out as the
safetensors file that it becomes.

Taking it is all that training waits for. The file is the header and the copy as they are, so that
writing it needs no second copy.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

# as the format calls them, https://huggingface.co/docs/safetensors
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Snapshot:
    """A safetensors file that is not written yet."""

    header: bytes  # its own length, and the place of each tensor
    body: Tensor  # (bytes,) uint8 in host memory, the tensors one behind the other

    def parts(self) -> tuple[memoryview, memoryview]:
        """What the file holds, in order."""
        return memoryview(self.header), memoryview(self.body.numpy())  # type: ignore[arg-type]


class HostMemory:
    """Memory that snapshots are taken into, one piece for each file, kept for the next checkpoint.

    New memory costs more than the copy into it: the system has to find and clear each of its pages,
    and where there is a GPU they are pinned, so that the GPU copies by itself. Keeping it makes no
    peak higher than giving it back would, for every checkpoint needs as much again.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}
        self._pinned = torch.cuda.is_available()
        self._reserving: threading.Thread | None = None

    def reserve(self, sizes: Mapping[str, int]) -> None:
        """Have memory of these sizes (file -> bytes) ready for the first snapshot, by a thread
        beside whatever comes next."""
        device = torch.cuda.current_device() if self._pinned else -1

        def touch_pages() -> None:
            # a thread begins with the first GPU; this process may use another
            with suppress(RuntimeError), torch.cuda.device(device):
                for file, size in sizes.items():
                    # no room is a RuntimeError, which the first snapshot meets as well and raises
                    self.take(file, size).zero_()

        thread = threading.Thread(target=touch_pages, name="checkpoint memory", daemon=True)
        thread.start()
        self._reserving = thread

    def finish_reserving(self) -> None:
        """Wait until what was reserved is there. In front of the first ``take``."""
        thread, self._reserving = self._reserving, None
        if thread is not None:
            thread.join()

    def take(self, file: str, size: int) -> Tensor:
        """(size,) uint8 for ``file``; its earlier snapshot must be written by now."""
        memory = self._kept.get(file)
        if memory is None or len(memory) < size:
            memory = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
            self._kept[file] = memory
        return memory[:size]


def take(file: str, tensors: Mapping[str, Tensor], memory: HostMemory) -> Snapshot:
    """Copy the tensors as they are now, on whatever device they lie.

    On a GPU the copies are only begun: call ``finish_copies`` before the snapshot is read, or the
    tensors are let go.
    """
    # wide elements first: then each tensor begins at a multiple of its element's size
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    ends = list(itertools.accumulate((tensors[name].nbytes for name in order), initial=0))
    body = memory.take(file, ends[-1])
    described = {}
    for name, (begin, end) in zip(order, itertools.pairwise(ends), strict=True):
        tensor = tensors[name].detach()
        body[begin:end].view(tensor.dtype).view(tensor.shape).copy_(tensor, non_blocking=True)
        described[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    return Snapshot(_header(described), body)


def finish_copies() -> None:
    """Wait until what ``take`` has begun is there."""
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()


def _header(described: Mapping[str, object]) -> bytes:
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text
