"""Graph encoders over a sparse edge list: the diagonal attention network of MCLEA and a plain graph convolution.

Nothing here is (N, N), and nothing is (E, D) either: neighbours are summed by ``embedding_bag``, whose forward and
backward walk the edge list row by row. Edges are (2, E), sorted by their first row, with a self-loop at every entity.
When only some entities are asked for, each layer computes exactly the entities that the next one needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DiagonalGAT(nn.Module):
    """Layers of diagonal graph attention with averaged heads and ELU between (MCLEA section 3.2; EVA).

    A head scales every feature by its own number instead of multiplying by a matrix, and the softmax is over
    *minus* the leaky score, exp(-LeakyReLU(a . [x_i; x_j])), as in the released code. No bias, no dropout.
    """

    def __init__(self, width: int, layers: int = 2, heads: int = 2):
        super().__init__()
        self.layers = nn.ModuleList(DiagonalAttention(width, heads) for _ in range(layers))

    def forward(self, features: Tensor, edges: Tensor, entities: Tensor | None = None) -> Tensor:
        """(N, D) features and (2, E) edges to the (N, D) rows of all entities, or to (M, D) of the (M,) ones given."""
        blocks, features = neighbourhoods(features, edges, entities, len(self.layers))
        for depth, (layer, block) in enumerate(zip(self.layers, blocks, strict=True)):
            features = layer(F.elu(features) if depth else features, block)
        return features if entities is None else features[blocks[-1].place[entities]]


class DiagonalAttention(nn.Module):
    """One layer: per head, x = w * features, and row i becomes the attention-weighted mean of its neighbours' x."""

    def __init__(self, width: int, heads: int, slope: float = 0.2):
        super().__init__()
        bound = 1 / math.sqrt(2 * width)
        self.scale = nn.Parameter(torch.ones(heads, width))
        self.source = nn.Parameter(torch.empty(heads, width).uniform_(-bound, bound))
        self.target = nn.Parameter(torch.empty(heads, width).uniform_(-bound, bound))
        self.slope = slope

    def forward(self, features: Tensor, block: Block) -> Tensor:
        """(S, D) features of a block's sources to the (R, D) of its rows."""
        # both halves of a . [x_i; x_j] in one product; taking rows of it is far cheaper than taking rows of features
        halves = (
            features @ torch.cat([self.scale * self.source, self.scale * self.target]).T
        )  # (S, 2 heads)
        source, target = halves.chunk(2, dim=1)
        source = source.index_select(0, block.own)  # (R, heads)
        logits = source.index_select(0, block.rows) + target.index_select(0, block.columns)
        scores = -F.leaky_relu(logits, self.slope)  # (E, heads)
        attention = segment_softmax(scores, block.rows, len(source))
        mean = features.new_zeros(len(source), features.shape[1])
        for scale, weight in zip(self.scale / len(self.scale), attention.unbind(1), strict=True):
            # scaling after the sum instead of before is the same, and fuses with the mean over heads
            mean = torch.addcmul(
                mean, neighbour_sum(features, block.columns, block.offsets, weight), scale
            )
        return mean


class GCN(nn.Module):
    """Graph convolutions, D^-1/2 A D^-1/2 X W, with ReLU between (Kipf and Welling, ICLR 2017, arXiv:1609.02907)."""

    def __init__(self, width: int, layers: int = 2):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))

    def forward(self, features: Tensor, edges: Tensor, entities: Tensor | None = None) -> Tensor:
        """(N, D) features and (2, E) edges to the (N, D) rows of all entities, or to (M, D) of the (M,) ones given."""
        root = torch.bincount(edges[0], minlength=len(features)).to(features.dtype).rsqrt()
        blocks, features = neighbourhoods(features, edges, entities, len(self.layers))
        for depth, (layer, block) in enumerate(zip(self.layers, blocks, strict=True)):
            near = root[block.sources]
            weight = near[block.own][block.rows] * near[block.columns]  # (E,)
            hidden = layer(F.relu(features) if depth else features)
            features = neighbour_sum(hidden, block.columns, block.offsets, weight)
        return features if entities is None else features[blocks[-1].place[entities]]


@dataclass(frozen=True)
class Block:
    """What one layer computes: R rows from S sources, over E edges in the numbers of these rows and sources."""

    sources: Tensor  # (S,) entities whose features go in, ascending
    own: Tensor  # (R,) the row's own place among the sources
    rows: Tensor  # (E,) ascending
    columns: Tensor  # (E,) places among the sources
    offsets: Tensor  # (R,) where each row's edges start
    place: Tensor  # (N,) place of an entity among the rows; meaningless for others


def neighbourhoods(
    features: Tensor, edges: Tensor, entities: Tensor | None, layers: int
) -> tuple[list[Block], Tensor]:
    """One block per layer such that the last one's rows are ``entities`` (any shape; None: all N), and the features of
    the first one's sources."""
    size = len(features)
    offsets = row_offsets(edges, size)
    everyone = torch.arange(size, device=edges.device)
    if entities is None:
        return [Block(everyone, everyone, edges[0], edges[1], offsets, everyone)] * layers, features
    degree = torch.diff(offsets, append=offsets.new_tensor([edges.shape[1]]))
    blocks: list[Block] = []
    wanted = _marked(entities, size)
    for _ in range(layers):
        counts = degree[wanted]
        ends = counts.cumsum(0)
        rows = torch.repeat_interleave(torch.arange(len(wanted), device=edges.device), counts)
        # the edges of a row lie next to each other: its first one, and how far into the row
        which = (
            torch.arange(len(rows), device=edges.device) + (offsets[wanted] - ends + counts)[rows]
        )
        columns = edges[1][which]
        sources = _marked(columns, size)
        among = _places(sources, size)
        blocks.append(
            Block(
                sources, among[wanted], rows, among[columns], ends - counts, _places(wanted, size)
            )
        )
        wanted = sources
    return blocks[::-1], features[wanted]


def _marked(entities: Tensor, size: int) -> Tensor:
    """The distinct ones of these entities, ascending; faster than sorting them."""
    mask = torch.zeros(size, dtype=torch.bool, device=entities.device)
    mask[entities.flatten()] = True
    return mask.nonzero().squeeze(1)


def _places(entities: Tensor, size: int) -> Tensor:
    places = torch.zeros(size, dtype=torch.int64, device=entities.device)
    places[entities] = torch.arange(len(entities), device=entities.device)
    return places


def neighbour_sum(features: Tensor, columns: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """Row i: the sum of ``weight[e] * features[columns[e]]`` over its edges e, from ``offsets[i]`` on; (N, D)."""
    return F.embedding_bag(
        columns, features, offsets, mode="sum", per_sample_weights=weight.to(features.dtype)
    )


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
        ValueError: edges that are not sorted by row, or an entity without any edge, not even to itself.
    """
    rows = edges[0].contiguous()
    offsets = torch.searchsorted(rows, torch.arange(num_rows + 1, device=rows.device))
    if bool((rows[1:] < rows[:-1]).any()):
        raise ValueError(
            "edges must be sorted by their first row; make them with core.encoders.graph_networks.symmetric_edges"
        )
    if bool((offsets[1:] == offsets[:-1]).any()) or int(offsets[-1]) != len(rows):
        raise ValueError(
            f"every entity of 0..{num_rows - 1} needs a self-loop and no edge may leave that range; "
            "make edges with core.encoders.graph_networks.symmetric_edges"
        )
    return offsets[:-1]


def symmetric_edges(heads: Tensor, tails: Tensor, num_entities: int) -> Tensor:
    """(2, E) sorted edges of an undirected graph with self-loops and no duplicates, from the ends of its triples."""
    loops = torch.arange(num_entities, device=heads.device)
    rows = torch.cat([heads, tails, loops])
    columns = torch.cat([tails, heads, loops])
    keys = torch.unique(rows * num_entities + columns)  # sorted
    return torch.stack([keys // num_entities, keys % num_entities])
