"""Exact ranking of aligned entities, in tiles: no (L, L) matrix ever exists.

Candidates are rows of unit length; similarity is their cosine. A rank counts the candidates above
the gold one, plus half of those that tie with it, so no order of entities can help. Candidates with
equal embeddings (an entity that is listed twice) are computed once, because equal rows may leave a
matrix product with unequal last bits.

With ``divided`` the tiles are dealt out to the ranks, which sum what each has found. The tiles are
those of one process, so the results are, too.

CSLS (Conneau et al., ICLR 2018, arXiv:1710.04087) subtracts from a similarity s the mean of the k
largest of its row and of its column. As in the released code of MCLEA, s = 2 cos - 1, so ranks are
those of 4 cos - r_row - r_col up to a constant of the row, where r are means of 2 cos - 1.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from core import distributed
from core.rows import unit_rows

# one tile of similarities; ranking needs a few of this size beside the embeddings
TILE_BYTES = 64 << 20

Ranks = list[
    np.ndarray
]  # (L,) plain ranks, and after them those with CSLS where they are asked for


def alignment_scores(left: Tensor, right: Tensor, csls: int = 3) -> dict[str, float]:
    """Hits@1/10/50, mean rank and mean reciprocal rank of L aligned pairs, (L, D) rows in the same
    order on each side.

    Names: ``Hits@1`` is left to right, ``r2l/`` right to left, ``csls/`` with CSLS of ``csls``
    neighbours (0: without).
    """
    return scores_of(all_ranks(left, right, csls))


def scores_of(ranks: tuple[Ranks, Ranks]) -> dict[str, float]:
    """The scores of ``all_ranks``."""
    scores: dict[str, float] = {}
    for direction, by_kind in zip(("", "r2l/"), ranks, strict=True):
        for kind, values in zip(("", "csls/"), by_kind, strict=False):
            for name, value in summary(values).items():
                scores[f"{kind}{direction}{name}"] = value
    return scores


def summary(ranks: np.ndarray) -> dict[str, float]:
    """Scores of (L,) ranks, which start at 1."""
    scores = {f"Hits@{k}": float((ranks <= k).mean()) for k in (1, 10, 50)}
    scores["MR"] = float(ranks.mean())
    scores["MRR"] = float((1 / ranks).mean())
    return scores


def pair_ranks(left: Tensor, right: Tensor, csls: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(L,) rank of each pair's right entity among all right ones, and of its left entity among all
    left ones.

    Raises:
        ValueError: no pairs, sides of unequal shape, or a value that is not finite.
    """
    left_to_right, right_to_left = all_ranks(left, right, csls)
    return left_to_right[-1], right_to_left[-1]


def all_ranks(
    left: Tensor, right: Tensor, csls: int, *, divided: bool = False
) -> tuple[Ranks, Ranks]:
    """Left to right and right to left; with CSLS too if ``csls``, its number of neighbours, is not
    0.

    Args:
        divided: share the work among all ranks, which give equal rows and all get the results.

    Raises:
        ValueError: no pairs, sides of unequal shape, or a value that is not finite.
    """
    if left.shape != right.shape or len(left) == 0:
        raise ValueError(
            f"ranking needs as many left as right rows, at least one; got {tuple(left.shape)} and {tuple(right.shape)}"
        )
    for name, side in (("left", left), ("right", right)):
        is_finite = side.isfinite().all(1)
        if not bool(is_finite.all()):
            row = int((~is_finite).nonzero()[0])
            raise ValueError(
                f"the {name} embedding of pair {row} is not finite; the model has diverged"
            )
    left, right = unit(left), unit(right)
    left_candidates, right_candidates = Candidates(left), Candidates(right)
    left_hubs = right_hubs = None
    if csls:
        # of each left row, among the right candidates; and the other way round
        left_hubs = mean_of_nearest(left, right_candidates, csls, divided=divided)
        right_hubs = mean_of_nearest(right, left_candidates, csls, divided=divided)
    left_to_right = _ranks(left, right_candidates, right_hubs, divided)
    return left_to_right, _ranks(right, left_candidates, left_hubs, divided)


def ranks_among(queries: Tensor, gold: Tensor, others: Tensor) -> np.ndarray:
    """(L,) rank of each query's gold row, in the same order, among all (L, D) gold rows and the (M,
    D) others."""
    candidates = Candidates(unit(torch.cat([gold, others])))
    return _ranks(unit(queries), candidates, None)[0]


class Candidates:
    """The distinct rows among (L, D) candidates, and how often each one occurs."""

    def __init__(self, rows: Tensor):
        # the bytes of a row are its identity; sorting them is far cheaper than torch.unique over D
        # columns
        values = np.ascontiguousarray(rows.detach().cpu().numpy() + 0.0)  # minus zero becomes zero
        row_type = np.dtype((np.void, values.itemsize * values.shape[1]))
        keys = values.view(row_type).ravel()
        _, first, inverse, count = np.unique(
            keys, return_index=True, return_inverse=True, return_counts=True
        )
        # (U,) where each distinct row occurs first
        self.first = torch.from_numpy(first).to(rows.device)
        if len(first) == len(rows):
            # nothing occurs twice: keep the order as it is, and make no copy
            self.rows = rows
            self.distinct_of = torch.arange(len(rows), device=rows.device)
            self.count = torch.ones(len(rows), device=rows.device, dtype=rows.dtype)
            return
        # (U, D)
        self.rows = rows[self.first]
        # (L,) which distinct row each candidate is
        self.distinct_of = torch.from_numpy(inverse.ravel()).to(rows.device)
        # (U,)
        self.count = torch.from_numpy(count).to(rows.device, rows.dtype)


def _ranks(
    queries: Tensor, candidates: Candidates, hubs: Tensor | None, divided: bool = False
) -> Ranks:
    """(L,) rank of candidate i for query i: plain, and with CSLS where there are ``hubs``.

    Args:
        hubs: (L,) mean similarity of each candidate to its nearest queries.
    """
    plain = torch.zeros(len(queries), dtype=torch.float64)
    with_csls = torch.zeros(len(queries), dtype=torch.float64)
    # the CSLS mean of the query itself shifts its whole row, so it cannot change a rank
    hub = None if hubs is None else _of_distinct(hubs, candidates)
    for rows, tile in tiles(queries, candidates.rows, divided):
        gold = candidates.distinct_of[rows].unsqueeze(1)
        plain[rows] = _ranks_in(tile, gold, candidates.count)
        if hub is not None:
            with_csls[rows] = _ranks_in(tile.mul_(4).sub_(hub), gold, candidates.count)
    found = [plain] if hub is None else [plain, with_csls]
    if divided:
        found = [_sum_over_ranks(part, queries.device) for part in found]
    return [part.numpy() for part in found]


def _sum_over_ranks(part: Tensor, device: torch.device) -> Tensor:
    """What all ranks have found, each in its own tiles and zero elsewhere."""
    return distributed.all_reduce_sum(part.to(device)).to(part.device)


def _ranks_in(scores: Tensor, gold: Tensor, count: Tensor) -> Tensor:
    """Ranks of the (rows, 1) gold columns in (rows, U) scores, where column u stands for
    ``count[u]`` candidates."""
    best = scores.gather(1, gold)
    above = (scores > best).to(scores.dtype) @ count
    ties = (scores == best).to(scores.dtype) @ count  # the gold one included
    return (1 + above.double() + (ties.double() - 1) / 2).cpu()


def _of_distinct(values: Tensor, candidates: Candidates) -> Tensor:
    """(U,) values of the distinct candidates, of (L,) values of all."""
    distinct = values.new_empty(len(candidates.rows))
    return distinct.scatter_(0, candidates.distinct_of, values)


def mean_of_nearest(
    queries: Tensor, candidates: Candidates, k: int, *, divided: bool = False
) -> Tensor:
    """(L,) mean of the k largest 2 cos - 1 between a query and all candidates, repeated ones
    counted as often."""
    wanted = min(k, len(candidates.distinct_of))
    means = queries.new_zeros(len(queries))
    for rows, tile in tiles(queries, candidates.rows, divided):
        nearest, which = tile.topk(min(wanted, tile.shape[1]), dim=1)
        count = candidates.count[which]
        before = count.cumsum(1) - count
        # how many of each distinct row are among the k
        among_nearest = (wanted - before).clamp(min=0).minimum(count)
        means[rows] = 2 * (nearest * among_nearest).sum(1) / wanted - 1
    if divided:
        means = distributed.all_reduce_sum(means)
    # equal queries must have equal means, whatever tile they fell in
    distinct = Candidates(queries)
    if len(distinct.rows) == len(queries):
        return means
    return means[distinct.first][distinct.distinct_of]


def tiles(
    queries: Tensor, candidates: Tensor, divided: bool = False
) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the queries, each with its similarities to all candidates, (rows, candidates);
    tiles are fresh.

    Args:
        divided: only those tiles of which it is this rank's turn.
    """
    row_bytes = candidates.element_size() * max(1, len(candidates))
    step = max(1, TILE_BYTES // row_bytes)
    first, every = (distributed.rank(), distributed.world_size()) if divided else (0, 1)
    for start in range(first * step, len(queries), every * step):
        rows = slice(start, min(start + step, len(queries)))
        yield rows, queries[rows] @ candidates.T


def nearest(queries: Tensor, candidates: Tensor, *, divided: bool = False) -> tuple[Tensor, Tensor]:
    """(L,) the most similar candidate of each query, and the similarity; rows of unit length."""
    best = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    similarity = queries.new_zeros(len(queries))
    for rows, tile in tiles(queries, candidates, divided):
        similarity[rows], best[rows] = tile.max(1)
    if divided:
        best = distributed.all_reduce_sum(best)
        similarity = distributed.all_reduce_sum(similarity)
    return best, similarity


def mutual_nearest(left: Tensor, right: Tensor, *, divided: bool = False) -> tuple[Tensor, Tensor]:
    """(M, 2) rows of left and right that are each other's nearest, and their (M,) similarity."""
    if len(left) == 0 or len(right) == 0:
        no_pairs = torch.empty(0, 2, dtype=torch.int64, device=left.device)
        return no_pairs, left.new_empty(0)
    left, right = unit(left), unit(right)
    partner, similarity = nearest(left, right, divided=divided)
    partner_of_right, _ = nearest(right, left, divided=divided)
    row = torch.arange(len(left), device=left.device)
    mutual = partner_of_right[partner] == row
    return torch.stack([row[mutual], partner[mutual]], 1), similarity[mutual]


def greedy_pairs(left: Tensor, right: Tensor, wanted: int) -> Tensor:
    """(<= wanted, 2) rows of left and right, most similar first, each row in one pair at most.

    Mutual nearest neighbours are exactly the pairs that the greedy choice makes next among their
    rows, so rounds of them give the greedy result without sorting all pairs.
    """
    open_left = torch.arange(len(left), device=left.device)
    open_right = torch.arange(len(right), device=right.device)
    pairs, scores = open_left.new_empty(0, 2), left.new_empty(0)
    while len(open_left) and len(open_right):
        found, similarity = mutual_nearest(left[open_left], right[open_right])
        if len(scores) >= wanted and scores.topk(wanted).values[-1] >= similarity.max():
            break  # nothing that is left can be among the first ``wanted``
        new = torch.stack([open_left[found[:, 0]], open_right[found[:, 1]]], 1)
        pairs, scores = torch.cat([pairs, new]), torch.cat([scores, similarity])
        open_left = open_left[~torch.isin(open_left, new[:, 0])]
        open_right = open_right[~torch.isin(open_right, new[:, 1])]
    return pairs[scores.argsort(descending=True, stable=True)[:wanted]]


def unit(rows: Tensor) -> Tensor:
    """Rows of length one, at least float32; a row of zeros stays zero."""
    return unit_rows(rows.detach())
