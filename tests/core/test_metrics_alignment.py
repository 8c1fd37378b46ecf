"""Ranking metrics against a naive float64 implementation, ties and duplicates on purpose."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.metrics import ranking
from core.metrics.ranking import alignment_scores, mutual_nearest, pair_ranks, ranks_among, summary


def naive_ranks(left: np.ndarray, right: np.ndarray, csls: int) -> tuple[np.ndarray, np.ndarray]:
    """The whole matrix, rank = mean of the best and the worst place among ties, rounded against
    float noise."""
    left = left / np.maximum(np.linalg.norm(left, axis=1, keepdims=True), 1e-12)
    right = right / np.maximum(np.linalg.norm(right, axis=1, keepdims=True), 1e-12)
    s = 2 * left @ right.T - 1
    if csls:
        k = min(csls, len(s))
        rows = np.sort(s, axis=1)[:, -k:].mean(1)
        columns = np.sort(s, axis=0)[-k:].mean(0)
        s = 2 * s - rows[:, None] - columns[None, :]
    s = s.round(9)

    def ranks(scores: np.ndarray) -> np.ndarray:
        gold = np.diag(scores)[:, None]
        best, worst = 1 + (scores > gold).sum(1), (scores >= gold).sum(1)
        return (best + worst) / 2

    return ranks(s), ranks(s.T)


@pytest.mark.parametrize("csls", [0, 1, 3, 10])
@pytest.mark.parametrize("size", [1, 2, 7, 60])
@pytest.mark.parametrize("copies", [0, 3])
def test_ranks_equal_the_naive_ones(
    monkeypatch: pytest.MonkeyPatch, csls: int, size: int, copies: int
) -> None:
    monkeypatch.setattr(
        ranking, "TILE_BYTES", 8 * size * 3
    )  # three rows a tile, so that tiles end unevenly
    rng = np.random.default_rng(size + copies)
    left = rng.normal(size=(size, 4))
    right = left + 0.7 * rng.normal(size=(size, 4))
    for _ in range(copies if size > 2 else 0):  # some entities occur twice, on either side
        right[rng.integers(size)] = right[rng.integers(size)]
        left[rng.integers(size)] = left[rng.integers(size)]
    expected = naive_ranks(left, right, csls)
    found = pair_ranks(torch.from_numpy(left), torch.from_numpy(right), csls)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_other_candidates_count_but_are_not_queries() -> None:
    rng = np.random.default_rng(7)
    left, right, others = (rng.normal(size=(size, 4)) for size in (9, 9, 20))
    others[3] = right[5]
    expected = naive_ranks(np.concatenate([left, others]), np.concatenate([right, others]), 0)[0][
        :9
    ]
    found = ranks_among(*(torch.from_numpy(rows) for rows in (left, right, others)))
    np.testing.assert_array_equal(found, expected)


def test_a_duplicated_entity_ties_with_its_copy() -> None:
    """As in FB15K-DB15K, where four entities have two partners each: neither copy can win."""
    rows = torch.eye(5)
    left, right = rows[[0, 1, 2, 3, 4]], rows[[0, 1, 2, 3, 3]]
    l2r, r2l = pair_ranks(left, right)
    assert l2r.tolist() == [
        1,
        1,
        1,
        1.5,
        3,
    ]  # the last gold has similarity 0, as three other candidates
    assert r2l[3] == 1


def test_a_collapsed_model_gets_the_middle_rank_in_float32() -> None:
    rows = torch.full((11, 3), 0.3)
    scores = alignment_scores(rows, rows)
    assert scores["MR"] == scores["r2l/MR"] == scores["csls/MR"] == 6
    assert scores["Hits@1"] == 0
    assert summary(pair_ranks(torch.zeros(11, 3), torch.zeros(11, 3))[0])["MR"] == 6


def test_a_perfect_model_scores_one_everywhere() -> None:
    torch.manual_seed(0)
    scores = alignment_scores(rows := torch.randn(80, 8), 3 * rows)
    assert {
        scores[f"{p}{d}{m}"]
        for p in ("", "csls/")
        for d in ("", "r2l/")
        for m in ("Hits@1", "MR", "MRR")
    } == {1.0}


def test_the_order_of_pairs_does_not_matter() -> None:
    torch.manual_seed(1)
    left = torch.randn(40, 6).repeat_interleave(2, 0)  # every left entity twice
    right = torch.randn(80, 6)
    order = torch.randperm(80)
    for csls in (0, 3):
        ranks, shuffled = pair_ranks(left, right, csls), pair_ranks(left[order], right[order], csls)
        for before, after in zip(ranks, shuffled, strict=True):
            np.testing.assert_array_equal(before[order.numpy()], after)


def test_csls_equals_the_arithmetic_of_a_hand_made_case() -> None:
    left = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    right = torch.tensor([[0.8, 0.6], [0.0, 1.0]])
    # cos = [[.8, 0], [.96, .8]]; s = 2cos-1 = [[.6, -1], [.92, .6]]; k=1: rows .6, .92; columns
    # .92, .6 csls = [[1.2-.6-.92, -2-.6-.6], [1.84-.92-.92, 1.2-.92-.6]] = [[-.32, -3.2], [0,
    # -.32]]
    assert [ranks.tolist() for ranks in pair_ranks(left, right)] == [[1, 2], [2, 1]]
    assert [ranks.tolist() for ranks in pair_ranks(left, right, 1)] == [[1, 2], [2, 1]]


def test_mutual_nearest_finds_exactly_the_mutual_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "TILE_BYTES", 200)
    rng = np.random.default_rng(5)
    left, right = rng.normal(size=(23, 3)), rng.normal(size=(31, 3))
    s = (left / np.linalg.norm(left, axis=1, keepdims=True)) @ (
        right / np.linalg.norm(right, axis=1, keepdims=True)
    ).T
    expected = [(i, j) for i, j in enumerate(s.argmax(1)) if s[:, j].argmax() == i]
    pairs, similarity = mutual_nearest(torch.from_numpy(left), torch.from_numpy(right))
    assert [tuple(pair) for pair in pairs.tolist()] == expected
    np.testing.assert_allclose(similarity.numpy(), [s[i, j] for i, j in expected])
    assert len(mutual_nearest(torch.zeros(0, 3), torch.zeros(4, 3))[0]) == 0


def test_bad_input_is_refused_with_its_place() -> None:
    rows = torch.randn(4, 3)
    with pytest.raises(ValueError, match="as many left as right"):
        pair_ranks(rows, rows[:3])
    with pytest.raises(ValueError, match="at least one"):
        pair_ranks(rows[:0], rows[:0])
    broken = rows.clone()
    broken[2, 1] = torch.nan
    with pytest.raises(ValueError, match="right embedding of pair 2"):
        pair_ranks(rows, broken)
