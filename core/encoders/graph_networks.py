"""Graph encoders over a sparse edge list: the diagonal attention network of MCLEA and a plain graph
convolution.

Nothing here is (N, N), and nothing is (E, D) either: neighbours are summed by ``embedding_bag``,
whose forward and backward walk the edge list row by row. Edges are (2, E), sorted by their first
row, with a self-loop at every entity. When only some entities are asked for, each layer computes
exactly the entities that the next one needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DiagonalGAT(nn.Module):
    """Layers of diagonal graph attention with averaged heads and ELU between (MCLEA section 3.2;
    EVA).

    A head scales every feature by its own number instead of multiplying by a matrix, and the
    softmax is over *minus* the leaky score, exp(-LeakyReLU(a . [x_i; x_j])), as in the released
    code. No bias, no dropout.
    """

    def __init__(self, width: int, layers: int = 2, heads: int = 2):
        super().__init__()
        self.layers = nn.ModuleList(DiagonalAttention(width, heads) for _ in range(layers))

    def forward(self, features: Tensor, edges: Tensor, entities: Tensor | None = None) -> Tensor:
        """(N, D) features and (2, E) edges to the (N, D) rows of all entities, or (M, D) of the
        (M,) ``entities``."""
        blocks, features = neighbourhoods(features, edges, entities, len(self.layers))
        for depth, (layer, block) in enumerate(zip(self.layers, blocks, strict=True)):
            if depth:
                features = F.elu(features)
            features = layer(features, block)
        return features if entities is None else features[blocks[-1].row_of[entities]]


class DiagonalAttention(nn.Module):
    """One layer: per head, x = w * features, and row i becomes the attention-weighted mean of its
    neighbours' x."""

    def __init__(self, width: int, heads: int, slope: float = 0.2):
        super().__init__()
        bound = 1 / math.sqrt(2 * width)
        self.scale = nn.Parameter(torch.ones(heads, width))
        self.source = nn.Parameter(torch.empty(heads, width).uniform_(-bound, bound))
        self.target = nn.Parameter(torch.empty(heads, width).uniform_(-bound, bound))
        self.slope = slope

    def forward(self, features: Tensor, block: Block) -> Tensor:
        """(S, D) features of a block's sources to the (R, D) of its rows."""
        # both halves of a . [x_i; x_j] in one product; taking rows of it is far cheaper than taking
        # rows of features
        halves_of_a = torch.cat([self.scale * self.source, self.scale * self.target])
        as_row, as_neighbour = (features @ halves_of_a.T).chunk(2, dim=1)  # (S, heads) each
        as_row = as_row.index_select(0, block.self_column)  # (R, heads)
        logits = as_row.index_select(0, block.rows) + as_neighbour.index_select(0, block.columns)
        scores = -F.leaky_relu(logits, self.slope)  # (E, heads)
        attention = segment_softmax(scores, block.rows, len(as_row))
        mean = features.new_zeros(len(as_row), features.shape[1])
        for scale, weight in zip(self.scale / len(self.scale), attention.unbind(1), strict=True):
            summed = neighbour_sum(features, block.columns, block.offsets, weight)
            # scaling after the sum instead of before is the same, and fuses with the mean over
            # heads
            mean = torch.addcmul(mean, summed, scale)
        return mean


class GCN(nn.Module):
    """Graph convolutions, D^-1/2 A D^-1/2 X W, with ReLU between (Kipf and Welling, ICLR 2017,
    arXiv:1609.02907)."""

    def __init__(self, width: int, layers: int = 2):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))

    def forward(self, features: Tensor, edges: Tensor, entities: Tensor | None = None) -> Tensor:
        """(N, D) features and (2, E) edges to the (N, D) rows of all entities, or (M, D) of the
        (M,) ``entities``."""
        root = torch.bincount(edges[0], minlength=len(features)).to(features.dtype).rsqrt()
        blocks, features = neighbourhoods(features, edges, entities, len(self.layers))
        for depth, (layer, block) in enumerate(zip(self.layers, blocks, strict=True)):
            near = root[block.inputs]
            weight = near[block.self_column][block.rows] * near[block.columns]  # (E,)
            if depth:
                features = F.relu(features)
            features = neighbour_sum(layer(features), block.columns, block.offsets, weight)
        return features if entities is None else features[blocks[-1].row_of[entities]]


@dataclass(frozen=True)
class Block:
    """What one layer computes: R rows from S inputs, over E edges from a row to a column, which is
    an input."""

    inputs: Tensor  # (S,) entities whose features go in, ascending
    self_column: Tensor  # (R,) the column of the row's own entity
    rows: Tensor  # (E,) ascending
    columns: Tensor  # (E,) numbers of inputs
    offsets: Tensor  # (R,) where each row's edges start
    row_of: Tensor  # (N,) the row of an entity; meaningless for those without one


def neighbourhoods(
    features: Tensor, edges: Tensor, entities: Tensor | None, layers: int
) -> tuple[list[Block], Tensor]:
    """One block per layer, and the features of the first one's inputs.

    The last block's rows are ``entities`` (any shape; None: all N), and each block's inputs are the
    rows of the one before it.
    """
    size = len(features)
    offsets = row_offsets(edges, size)
    if entities is None:
        everyone = torch.arange(size, device=edges.device)
        block = Block(everyone, everyone, edges[0], edges[1], offsets, everyone)
        return [block] * layers, features
    degree = torch.diff(offsets, append=offsets.new_tensor([edges.shape[1]]))
    blocks: list[Block] = []
    wanted = _distinct(entities, size)
    for _ in range(layers):
        block = _block_of(wanted, edges, offsets, degree)
        blocks.append(block)
        wanted = block.inputs
    return blocks[::-1], features[wanted]


def _block_of(wanted: Tensor, edges: Tensor, offsets: Tensor, degree: Tensor) -> Block:
    """The block that computes the (R,) ``wanted`` entities; ``offsets`` and ``degree`` (N,) are of
    the whole graph."""
    size = len(offsets)
    counts = degree[wanted]
    ends = counts.cumsum(0)
    starts = ends - counts
    rows = torch.repeat_interleave(torch.arange(len(wanted), device=edges.device), counts)
    # the edges of a row lie next to each other: its first one, and how far into the row
    edge = torch.arange(len(rows), device=edges.device) + (offsets[wanted] - starts)[rows]
    neighbours = edges[1][edge]
    inputs = _distinct(neighbours, size)
    column_of = _numbers(inputs, size)
    return Block(
        inputs=inputs,
        self_column=column_of[wanted],
        rows=rows,
        columns=column_of[neighbours],
        offsets=starts,
        row_of=_numbers(wanted, size),
    )


def _distinct(entities: Tensor, size: int) -> Tensor:
    """The distinct ones of these entities, ascending; faster than sorting them."""
    mask = torch.zeros(size, dtype=torch.bool, device=entities.device)
    mask[entities.flatten()] = True
    return mask.nonzero().squeeze(1)


def _numbers(entities: Tensor, size: int) -> Tensor:
    """(N,) the number of an entity among these; 0 for others."""
    numbers = torch.zeros(size, dtype=torch.int64, device=entities.device)
    numbers[entities] = torch.arange(len(entities), device=entities.device)
    return numbers


def neighbour_sum(features: Tensor, columns: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """Row i: the sum of ``weight[e] * features[columns[e]]`` over its edges e, from ``offsets[i]``
    on; (N, D)."""
    weight = weight.to(features.dtype)
    return F.embedding_bag(columns, features, offsets, mode="sum", per_sample_weights=weight)


def segment_softmax(scores: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Softmax of (E, heads) scores over the edges of each row; any finite score is safe."""
    index = rows.unsqueeze(1).expand_as(scores)
    highest = scores.new_full((num_rows, scores.shape[1]), -torch.inf)
    highest = highest.scatter_reduce(0, index, scores.detach(), "amax")
    powers = (scores - highest[rows]).exp()
    total = torch.zeros_like(highest).index_add(0, rows, powers)
    return powers / total[rows]


def row_offsets(edges: Tensor, num_rows: int) -> Tensor:
    """(N,) where each row's edges start.

    Raises:
        ValueError: edges that are not sorted by row, or an entity without any edge, not even to
            itself.
    """
    rows = edges[0].contiguous()
    offsets = torch.searchsorted(rows, torch.arange(num_rows + 1, device=rows.device))
    is_sorted = bool((rows[1:] >= rows[:-1]).all())
    if not is_sorted:
        raise ValueError(
            "edges must be sorted by their first row; make them with core.encoders.graph_networks.symmetric_edges"
        )
    any_without_edge = bool((offsets[1:] == offsets[:-1]).any())
    any_outside = int(offsets[-1]) != len(rows)
    if any_without_edge or any_outside:
        raise ValueError(
            f"every entity of 0..{num_rows - 1} needs a self-loop and no edge may leave that range; "
            "make edges with core.encoders.graph_networks.symmetric_edges"
        )
    return offsets[:-1]


def symmetric_edges(heads: Tensor, tails: Tensor, num_entities: int) -> Tensor:
    """(2, E) sorted edges of an undirected graph with self-loops and no duplicates, from the ends
    of its triples."""
    loops = torch.arange(num_entities, device=heads.device)
    rows = torch.cat([heads, tails, loops])
    columns = torch.cat([tails, heads, loops])
    keys = torch.unique(rows * num_entities + columns)  # sorted
    return torch.stack([keys // num_entities, keys % num_entities])
