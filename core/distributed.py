"""The few collectives the project needs. Each works without a process group, as one rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over ranks, as a new tensor without gradient."""
    total = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def gather_rows(rows: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    """Rows of all ranks in rank order, (sum of sizes, ...), without gradient.

    Ranks may hold different numbers of rows.

    Args:
        sizes: rows per rank where the caller knows them; without it one more small collective finds
            out.
    """
    rows = rows.detach()
    if world_size() == 1:
        return rows
    if sizes is None:
        sizes = gather_sizes(len(rows), rows.device)
    # all_gather wants equal shapes
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


def gather_sizes(size: int, device: torch.device) -> list[int]:
    """``size`` of every rank, in rank order."""
    if world_size() == 1:
        return [size]
    return [row[0] for row in gather_numbers([size], device)]


def gather_numbers(numbers: Sequence[int], device: torch.device) -> list[list[int]]:
    """As many numbers of every rank, in rank order, read from the device by one copy."""
    if world_size() == 1:
        return [list(numbers)]
    mine = torch.tensor(numbers, dtype=torch.int64, device=device)
    gathered = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(gathered, mine)
    return torch.stack(gathered).tolist()
