"""Ranking that is divided over ranks gives what one process gives, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ranks import run_ranks

from core.metrics import ranking
from core.metrics.ranking import all_ranks, mutual_nearest, nearest, unit

ROWS = 61
TILE = 8 * ROWS * 5  # bytes: five rows, so that there are more tiles than ranks, and an uneven last


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    left = torch.randn(ROWS, 6, dtype=torch.float64, generator=generator)
    right = left + 0.6 * torch.randn(ROWS, 6, dtype=torch.float64, generator=generator)
    right[7] = right[11]  # some entities occur twice
    left[2] = left[3]
    return left, right


def found(divided: bool) -> dict[str, Any]:
    left, right = rows()
    by_direction = all_ranks(left, right, 3, divided=divided)
    best, similarity = nearest(unit(left), unit(right), divided=divided)
    pairs, of_pairs = mutual_nearest(left, right[:50], divided=divided)
    return {
        "ranks": [np.asarray(kind).tolist() for direction in by_direction for kind in direction],
        "nearest": [best.tolist(), similarity.tolist()],
        "mutual": [pairs.tolist(), of_pairs.tolist()],
    }


def on_a_rank() -> dict[str, Any]:
    ranking.TILE_BYTES = TILE
    dist.init_process_group("gloo")
    result = found(divided=True)
    dist.barrier()
    dist.destroy_process_group()
    return result


def test_divided_ranking_is_that_of_one_process(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(ranking, "TILE_BYTES", TILE)
    alone = found(divided=False)
    assert run_ranks(3, tmp_path / "ranks", on_a_rank) == [alone] * 3
    assert found(divided=True) == alone
