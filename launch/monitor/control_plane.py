"""Short texts between ranks, off the accelerator: who was asked to stop, whose file is written,
what to load.

They travel over a gloo group, also where tensors travel over NCCL, so that asking never waits for
the accelerator. Without a process group there is one rank, which talks to itself. Texts are tensors
of bytes, not the pickles of ``torch.distributed.all_gather_object``: what one rank sends can run no
code on another.
"""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

from core import distributed

_group: dist.ProcessGroup | None = None
# of the threads that write checkpoints: their messages pass those of the training by
_background_group: dist.ProcessGroup | None = None


def open_group(timeout: timedelta) -> None:
    """Collective; once, after the processes have joined."""
    global _group, _background_group
    if distributed.world_size() > 1:
        _background_group = dist.new_group(backend="gloo", timeout=timeout)
    if dist.get_backend() == "gloo" or distributed.world_size() == 1:
        _group = None  # the default group will do
    else:
        _group = dist.new_group(backend="gloo", timeout=timeout)


def any_rank(wish: bool) -> bool:
    """Whether any rank wishes it. Collective."""
    return any_rank_each([wish])[0]


def any_rank_each(wishes: list[bool]) -> list[bool]:
    """For each wish, whether any rank has it; in one message. Collective."""
    if distributed.world_size() == 1:
        return wishes
    flags = torch.tensor(wishes, dtype=torch.int32)
    dist.all_reduce(flags, dist.ReduceOp.MAX, group=_group)
    return [flag > 0 for flag in flags.tolist()]


def gather_text(text: str, limit: int = 2048, *, background: bool = False) -> list[str]:
    """Every rank's text, in rank order, cut off at ``limit`` bytes. Collective.

    Args:
        background: among the ranks' threads that write checkpoints.
    """
    if distributed.world_size() == 1:
        return [text]
    local = _encode(text.encode()[:limit].ljust(limit, b"\0"))
    received = [torch.empty_like(local) for _ in range(distributed.world_size())]
    dist.all_gather(received, local, group=_background_group if background else _group)
    padded = [bytes(message.tolist()) for message in received]
    return [body.rstrip(b"\0").decode(errors="replace") for body in padded]


def broadcast_text(text: str) -> str:
    """Rank 0's text, of any length. Collective."""
    if distributed.world_size() == 1:
        return text
    body = _encode(text.encode())
    size = torch.tensor([len(body)], dtype=torch.int64)
    dist.broadcast(size, 0, group=_group)
    if distributed.rank() > 0:
        body = torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(body, 0, group=_group)
    return bytes(body.tolist()).decode()


def _encode(body: bytes) -> torch.Tensor:
    return torch.tensor(list(body), dtype=torch.uint8)
