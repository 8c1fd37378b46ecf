"""Neighbours found by FAISS: the exact index gives what the ranking gives, the approximate one the
recall that was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from core.metrics import approximate
from core.metrics.approximate import approximate_mutual_nearest, approximate_nearest
from core.metrics.ranking import mutual_nearest, nearest, unit

pytest.importorskip("faiss")


def sides(count: int, width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of length one in clusters, and the same with noise: as embeddings of aligned entities
    are."""
    generator = torch.Generator().manual_seed(5)
    centres = torch.randn(50, width, generator=generator)
    of_rows = torch.randint(50, (count,), generator=generator)
    left = centres[of_rows] + 0.5 * torch.randn(count, width, generator=generator)
    right = left + 0.1 * torch.randn(count, width, generator=generator)
    return unit(left), unit(right[torch.randperm(count, generator=generator)])


def test_few_candidates_give_the_exact_neighbours():
    left, right = sides(700)
    found = approximate_nearest(left, right, 0.5)
    which, similarity = nearest(left, right)
    assert found.which.tolist() == which.tolist()
    torch.testing.assert_close(found.similarity, similarity)
    assert found.recall == 1
    pairs, of_pairs, recall = approximate_mutual_nearest(left, right, 0.5)
    expected, of_expected = mutual_nearest(left, right)
    assert pairs.tolist() == expected.tolist()
    torch.testing.assert_close(of_pairs, of_expected)
    assert recall == 1


@pytest.mark.parametrize("recall", [0.5, 0.95])
def test_many_candidates_give_the_recall_that_was_asked_for(monkeypatch, recall):
    monkeypatch.setattr(approximate, "FEWEST", 1000)
    left, right = sides(6000)
    found = approximate_nearest(left, right, recall)
    which, similarity = nearest(left, right)
    true_share = float((found.similarity >= similarity - 1e-5).float().mean())
    assert found.recall >= recall
    assert true_share == pytest.approx(found.recall, abs=0.05)
    agree = found.which == which
    torch.testing.assert_close(found.similarity[agree], similarity[agree])


def test_a_recall_of_one_compares_all(monkeypatch):
    monkeypatch.setattr(approximate, "FEWEST", 10)
    left, right = sides(300)
    assert approximate_nearest(left, right, 1.0).which.tolist() == nearest(left, right)[0].tolist()


def test_what_cannot_be_searched_is_refused():
    left, right = sides(5)
    with pytest.raises(ValueError, match="recall must be above 0"):
        approximate_nearest(left, right, 0.0)
    with pytest.raises(ValueError, match="no candidates"):
        approximate_nearest(left, right[:0], 0.9)
    pairs, _, _ = approximate_mutual_nearest(left, right[:0], 0.9)
    assert pairs.shape == (0, 2)


def on_a_rank() -> dict[str, Any]:
    approximate.QUERIES = 100
    dist.init_process_group("gloo")
    left, right = sides(700)
    found = approximate_nearest(left, right, 0.5, divided=True)
    dist.barrier()
    dist.destroy_process_group()
    return {"which": found.which.tolist()}


def test_queries_are_divided_over_ranks(tmp_path: Path):
    left, right = sides(700)
    expected = {"which": nearest(left, right)[0].tolist()}
    assert run_ranks(3, tmp_path / "ranks", on_a_rank) == [expected] * 3
