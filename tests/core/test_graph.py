"""Graph encoders against a dense float64 restatement."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.encoders.graph_networks import (
    GCN,
    DiagonalGAT,
    neighbour_sum,
    row_offsets,
    segment_softmax,
    symmetric_edges,
)


def random_edges(num_entities: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(0, num_entities, (2, 3 * num_entities), generator=generator)
    return symmetric_edges(ends[0], ends[1], num_entities)


def dense_gat(
    features: np.ndarray, edges: np.ndarray, layers: list[dict[str, np.ndarray]]
) -> np.ndarray:
    """The printed equations: e_ij = exp(-LeakyReLU(a . [w x_i; w x_j])), h_i = sum e_ij w x_j / sum
    e_ij."""
    size = len(features)
    adjacency = np.zeros((size, size))
    adjacency[edges[0], edges[1]] = 1
    for depth, layer in enumerate(layers):
        if depth:
            features = np.where(features > 0, features, np.expm1(features))
        heads = []
        for w, left, right in zip(layer["scale"], layer["source"], layer["target"], strict=True):
            x = features * w
            logits = (x @ left)[:, None] + (x @ right)[None, :]
            e = adjacency * np.exp(-np.where(logits > 0, logits, 0.2 * logits))
            heads.append(e @ x / e.sum(1, keepdims=True))
        features = np.mean(heads, axis=0)
    return features


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (2, 2), (3, 1)])
def test_diagonal_attention_equals_its_printed_equations(layers: int, heads: int) -> None:
    torch.manual_seed(1)
    net = DiagonalGAT(5, layers, heads).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    features, edges = torch.randn(11, 5, dtype=torch.float64), random_edges(11)
    weights = [
        {name: p.detach().numpy() for name, p in layer.named_parameters()} for layer in net.layers
    ]
    expected = dense_gat(features.numpy(), edges.numpy(), weights)
    np.testing.assert_allclose(net(features, edges).detach().numpy(), expected, rtol=1e-12)


def test_attention_gradients_are_right() -> None:
    torch.manual_seed(2)
    net, edges = DiagonalGAT(3).double(), random_edges(6)
    features = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: net(x, edges), features)
    weight = torch.rand(edges.shape[1], dtype=torch.float64, requires_grad=True)
    offsets = row_offsets(edges, 6)
    assert torch.autograd.gradcheck(
        lambda x, w: neighbour_sum(x, edges[1], offsets, w), (features, weight)
    )


def test_convolution_equals_the_dense_normalised_adjacency() -> None:
    torch.manual_seed(3)
    net, edges = GCN(4).double(), random_edges(9)
    features = torch.randn(9, 4, dtype=torch.float64)
    adjacency = torch.zeros(9, 9, dtype=torch.float64)
    adjacency[edges[0], edges[1]] = 1
    degree = adjacency.sum(1)
    normal = adjacency / (degree[:, None] * degree[None, :]).sqrt()
    first, second = (layer.weight for layer in net.layers)
    expected = normal @ torch.relu(normal @ features @ first.T) @ second.T
    torch.testing.assert_close(net(features, edges), expected)


def test_segment_softmax_survives_scores_that_overflow_exp() -> None:
    rows = torch.tensor([0, 0, 1])
    attention = segment_softmax(torch.tensor([[2000.0], [2000.0], [-3000.0]]), rows, 2)
    torch.testing.assert_close(attention, torch.tensor([[0.5], [0.5], [1.0]]))


def test_edges_are_symmetric_sorted_unique_and_have_self_loops() -> None:
    edges = symmetric_edges(torch.tensor([0, 0, 2, 1]), torch.tensor([1, 1, 2, 0]), 4)
    assert edges.tolist() == [[0, 0, 1, 1, 2, 3], [0, 1, 0, 1, 2, 3]]


def test_unsorted_edges_and_missing_self_loops_are_refused() -> None:
    with pytest.raises(ValueError, match="sorted"):
        row_offsets(torch.tensor([[1, 0], [1, 0]]), 2)
    with pytest.raises(ValueError, match="self-loop"):
        row_offsets(torch.tensor([[0, 0], [0, 1]]), 2)
    with pytest.raises(ValueError, match="range"):
        row_offsets(torch.tensor([[0, 1, 2], [0, 1, 2]]), 2)


def test_renumbering_the_entities_renumbers_the_output() -> None:
    torch.manual_seed(4)
    net, features = DiagonalGAT(6), torch.randn(8, 6)
    edges, order = random_edges(8), torch.randperm(8)
    place = torch.argsort(order)  # old number -> new number
    moved = place[edges]
    moved = moved[:, torch.argsort(moved[0], stable=True)]
    torch.testing.assert_close(net(features[order], moved), net(features, edges)[order])


@pytest.mark.parametrize("kind", [DiagonalGAT, GCN])
@pytest.mark.parametrize("asked", [[[3, 7], [7, 0]], [[5, 5]], [[i, 19 - i] for i in range(20)]])
def test_asking_for_some_entities_changes_neither_their_rows_nor_the_gradients(
    kind: type[torch.nn.Module], asked: list[list[int]]
) -> None:
    torch.manual_seed(5)
    net, edges, entities = kind(4).double(), random_edges(20), torch.tensor(asked)
    found = []
    for some in (None, entities):
        features = torch.randn(
            20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        )
        features.requires_grad_()
        rows = net(features, edges, some)
        rows = rows[entities] if some is None else rows
        gradients = torch.autograd.grad((rows.sin() ** 2).sum(), [features, *net.parameters()])
        found.append([rows, *gradients])
    for whole, part in zip(*found, strict=True):
        torch.testing.assert_close(part, whole)
