"""Graph encoders over a sparse edge list: the diagonal attention network of MCLEA and a plain graph convolution.

Nothing here is (N, N), and nothing is (E, D) either: neighbours are summed by ``embedding_bag``, whose forward and
backward walk the edge list row by row. Edges are (2, E), sorted by their first row, with a self-loop at every entity.
"""

from __future__ import annotations

import math

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

    def forward(self, features: Tensor, edges: Tensor) -> Tensor:
        """(N, D) features and (2, E) edges to (N, D)."""
        offsets = row_offsets(edges, len(features))
        for depth, layer in enumerate(self.layers):
            features = layer(F.elu(features) if depth else features, edges, offsets)
        return features


class DiagonalAttention(nn.Module):
    """One layer: per head, x = w * features, and row i becomes the attention-weighted mean of its neighbours' x."""

    def __init__(self, width: int, heads: int, slope: float = 0.2):
        super().__init__()
        bound = 1 / math.sqrt(2 * width)
        self.scale = nn.Parameter(torch.ones(heads, width))
        self.source = nn.Parameter(torch.empty(heads, width).uniform_(-bound, bound))
        self.target = nn.Parameter(torch.empty(heads, width).uniform_(-bound, bound))
        self.slope = slope

    def forward(self, features: Tensor, edges: Tensor, offsets: Tensor) -> Tensor:
        rows, columns = edges
        source = features @ (self.scale * self.source).T  # (N, heads)
        target = features @ (self.scale * self.target).T
        scores = -F.leaky_relu(source[rows] + target[columns], self.slope)  # (E, heads)
        attention = segment_softmax(scores, rows, len(features))
        mean = torch.zeros_like(features)
        for scale, weight in zip(self.scale / len(self.scale), attention.unbind(1), strict=True):
            # scaling after the sum instead of before is the same, and fuses with the mean over heads
            mean = torch.addcmul(mean, neighbour_sum(features, columns, offsets, weight), scale)
        return mean


class GCN(nn.Module):
    """Graph convolutions, D^-1/2 A D^-1/2 X W, with ReLU between (Kipf and Welling, ICLR 2017, arXiv:1609.02907)."""

    def __init__(self, width: int, layers: int = 2):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))

    def forward(self, features: Tensor, edges: Tensor) -> Tensor:
        """(N, D) features and (2, E) edges to (N, D)."""
        rows, columns = edges
        offsets = row_offsets(edges, len(features))
        degree = torch.bincount(rows, minlength=len(features)).to(features.dtype)
        weight = (degree[rows] * degree[columns]).rsqrt()  # (E,)
        for depth, layer in enumerate(self.layers):
            features = neighbour_sum(layer(F.relu(features) if depth else features), columns, offsets, weight)
        return features


def neighbour_sum(features: Tensor, columns: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """Row i: the sum of ``weight[e] * features[columns[e]]`` over its edges e, from ``offsets[i]`` on; (N, D)."""
    return F.embedding_bag(columns, features, offsets, mode="sum", per_sample_weights=weight.to(features.dtype))


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
        raise ValueError("edges must be sorted by their first row; make them with core.encoders.graph.symmetric_edges")
    if bool((offsets[1:] == offsets[:-1]).any()) or int(offsets[-1]) != len(rows):
        raise ValueError(
            f"every entity of 0..{num_rows - 1} needs a self-loop and no edge may leave that range; "
            "make edges with core.encoders.graph.symmetric_edges"
        )
    return offsets[:-1]


def symmetric_edges(heads: Tensor, tails: Tensor, num_entities: int) -> Tensor:
    """(2, E) sorted edges of an undirected graph with self-loops and no duplicates, from the ends of its triples."""
    loops = torch.arange(num_entities, device=heads.device)
    rows = torch.cat([heads, tails, loops])
    columns = torch.cat([tails, heads, loops])
    keys = torch.unique(rows * num_entities + columns)  # sorted
    return torch.stack([keys // num_entities, keys % num_entities])
