"""Short words between ranks, off the accelerator: who was asked to stop, whose file is written, what to load.

They travel over a gloo group, also where tensors travel over NCCL, so that asking never waits for the accelerator.
Without a process group there is one rank, which talks to itself.
"""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

from core import distributed

_group: dist.ProcessGroup | None = None


def open_group(timeout: timedelta) -> None:
    """Collective; once, after the processes have joined."""
    global _group
    gloo = dist.get_backend() == "gloo"
    _group = (
        None
        if gloo or distributed.world_size() == 1
        else dist.new_group(backend="gloo", timeout=timeout)
    )


def any_rank(wish: bool) -> bool:
    """Whether this is so on any rank. Collective."""
    if distributed.world_size() == 1:
        return wish
    flag = torch.tensor([int(wish)], dtype=torch.int32)
    dist.all_reduce(flag, dist.ReduceOp.MAX, group=_group)
    return bool(flag)


def gather_text(text: str, limit: int = 2048) -> list[str]:
    """Every rank's text, in rank order, cut off at ``limit`` bytes. Collective."""
    if distributed.world_size() == 1:
        return [text]
    mine = _encode(text.encode()[:limit].ljust(limit, b"\0"))
    parts = [torch.empty_like(mine) for _ in range(distributed.world_size())]
    dist.all_gather(parts, mine, group=_group)
    return [bytes(part.tolist()).rstrip(b"\0").decode(errors="replace") for part in parts]


def broadcast_text(text: str) -> str:
    """What rank 0 said. Collective."""
    if distributed.world_size() == 1:
        return text
    size = torch.tensor([len(text.encode())], dtype=torch.int64)
    dist.broadcast(size, 0, group=_group)
    body = (
        _encode(text.encode())
        if distributed.rank() == 0
        else torch.empty(int(size), dtype=torch.uint8)
    )
    dist.broadcast(body, 0, group=_group)
    return bytes(body.tolist()).decode()


def _encode(body: bytes) -> torch.Tensor:
    return torch.tensor(list(body), dtype=torch.uint8)
