"""The nearest neighbours of very many rows, found by FAISS (Johnson et al., 2019, arXiv:1702.08734)
without comparing every pair.

Candidates are dealt into cells around centres (an inverted file), and a query looks into the cells
whose centres are nearest. How many it must look into for a wanted recall depends on the data, so it
is measured: on some of the queries, against all candidates. Few candidates are all compared, with
the same index as in the exact ranking beside this file but in FAISS's own loops.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core import distributed
from core.command import Refused

FEWEST = 10_000  # candidates; fewer are all compared
SAMPLE = 1000  # queries that recall is measured on
PER_CELL = 64  # rows that a centre is learnt from; FAISS asks for 39 at least
QUERIES = 16_384  # searched at a time


@dataclass(frozen=True)
class Found:
    """The neighbours of L queries."""

    which: Tensor  # (L,) int64, the most similar candidate
    similarity: Tensor  # (L,) float32, its cosine
    recall: float  # share of the sampled queries whose true neighbour was found


def approximate_nearest(
    queries: Tensor, candidates: Tensor, recall: float, *, divided: bool = False
) -> Found:
    """The most similar candidate of each query; rows of unit length.

    Args:
        queries, candidates: (L, D) and (M, D), on any device; the search is on the CPU.
        recall: the share of queries for which it must be the true one, as measured on a sample.
        divided: share the queries among all ranks, which give equal rows and all get the results.

    Raises:
        ValueError: a recall that is no share, or no candidates.
    """
    if not 0 < recall <= 1:
        raise ValueError(f"recall must be above 0 and at most 1, got {recall}")
    if not len(candidates):
        raise ValueError("there are no candidates to find neighbours among")
    rows, wanted = _as_array(candidates), _as_array(queries)
    index, measured = _index(rows, wanted, recall)
    first, every = (distributed.rank(), distributed.world_size()) if divided else (0, 1)
    which = np.zeros(len(wanted), np.int64)
    similarity = np.zeros(len(wanted), np.float32)
    for start in range(first * QUERIES, len(wanted), every * QUERIES):
        part = slice(start, min(start + QUERIES, len(wanted)))
        found, places = index.search(wanted[part], 1)
        similarity[part], which[part] = found[:, 0], places[:, 0]
    result = [torch.from_numpy(part).to(queries.device) for part in (which, similarity)]
    if divided:
        result = [distributed.all_reduce_sum(part) for part in result]
    return Found(result[0], result[1], measured)


def approximate_mutual_nearest(
    left: Tensor, right: Tensor, recall: float, *, divided: bool = False
) -> tuple[Tensor, Tensor, float]:
    """(M, 2) rows of left and right that are each other's nearest as far as was found, their (M,)
    similarity, and the lower of both sides' measured recall. Rows of unit length."""
    if len(left) == 0 or len(right) == 0:
        no_pairs = torch.empty(0, 2, dtype=torch.int64, device=left.device)
        return no_pairs, left.new_empty(0), 1.0
    to_right = approximate_nearest(left, right, recall, divided=divided)
    to_left = approximate_nearest(right, left, recall, divided=divided)
    row = torch.arange(len(left), device=left.device)
    mutual = to_left.which[to_right.which] == row
    pairs = torch.stack([row[mutual], to_right.which[mutual]], 1)
    measured = min(to_right.recall, to_left.recall)
    return pairs, to_right.similarity[mutual].to(left.dtype), measured


def _as_array(rows: Tensor) -> np.ndarray:
    """(L, D) float32 in C order, as FAISS reads it."""
    return np.ascontiguousarray(rows.detach().cpu().numpy(), np.float32)


def _index(rows: np.ndarray, queries: np.ndarray, recall: float) -> tuple[Any, float]:
    """An index of the rows that finds the nearest of so many queries, and the recall measured."""
    faiss = _faiss()
    faiss.omp_set_num_threads(torch.get_num_threads())
    flat = faiss.IndexFlatIP(rows.shape[1])
    flat.add(rows)
    if len(rows) < FEWEST or recall == 1:
        return flat, 1.0
    cells = min(int(4 * math.sqrt(len(rows))), len(rows) // PER_CELL)
    centres = faiss.IndexFlatIP(rows.shape[1])
    index = faiss.IndexIVFFlat(centres, rows.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.spherical = True
    index.train(_spread(rows, PER_CELL * cells))
    index.add(rows)
    sample = _spread(queries, SAMPLE)
    truth, _ = flat.search(sample, 1)
    measured = 0.0
    for looked_into in _doubling(cells):
        index.nprobe = looked_into
        found, _ = index.search(sample, 1)
        # by similarity: of candidates that are equally near, any is the nearest
        measured = float((found >= truth - 1e-5).mean())
        if measured >= recall:
            break
    return index, measured


def _doubling(most: int) -> list[int]:
    """1, 2, 4, ... up to ``most``."""
    return [1 << power for power in range(most.bit_length()) if 1 << power < most] + [most]


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    """Up to ``most`` of the rows, evenly spread."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def _faiss() -> Any:
    """FAISS, of the extra ``neighbours``; Refused where it is not installed."""
    try:
        import faiss
    except ModuleNotFoundError:
        raise Refused(
            "approximate neighbours need FAISS: pip install faiss-cpu, or set the recall to 0"
        ) from None
    return faiss
