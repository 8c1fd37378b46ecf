"""EVA and GCN-Align: their losses restated in NumPy, what moves what, and what they read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from contracts import losses_of, total

from core.batch import EntityGraph
from core.losses.entity_pairs import NCA, Margin
from core.model import DataSpec
from core.models.entities.eva import EVA
from core.models.entities.gcn_align import GCNAlign

Make = Callable[..., tuple[DataSpec, EntityGraph]]


def sides(seed: int = 0, size: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(2, size, 3, generator=generator, dtype=torch.float64)
    return left, right


def unit(rows: torch.Tensor) -> np.ndarray:
    return (rows / rows.norm(dim=1, keepdim=True)).numpy()


def test_neighbourhood_components_are_their_formula() -> None:
    left, right = sides()
    a, b = unit(left), unit(right)
    expected = 0.0
    for i in range(5):
        others = [j for j in range(5) if j != i]
        expected += np.log(1 + sum(np.exp(4 * a[i] @ b[j]) for j in others)) / 4
        expected += np.log(1 + sum(np.exp(4 * a[j] @ b[i]) for j in others)) / 4
        expected -= 7 * np.log(1 + max(0.0, a[i] @ b[i]))
    assert NCA(4, 7)(left, right).item() == pytest.approx(expected / 5)


def test_the_margin_is_its_formula() -> None:
    left, right = sides()
    a, b = unit(left), unit(right)

    def apart(i: int, j: int) -> float:
        return float(np.abs(a[i] - b[j]).sum())

    terms = []
    for i in range(5):
        for j in range(5):
            if j != i:
                terms.append(max(0.0, apart(i, i) + 0.8 - apart(i, j)))
                terms.append(max(0.0, apart(i, i) + 0.8 - apart(j, i)))
    assert Margin(0.8)(left, right).item() == pytest.approx(np.mean(terms))


@pytest.mark.parametrize("loss", [NCA(4, 7), Margin(0.8)])
def test_pairs_of_weight_0_take_no_part_and_few_are_survived(loss: torch.nn.Module) -> None:
    left, right = sides()
    weight = torch.tensor([1.0, 0, 1, 1, 0])
    kept = weight > 0
    torch.testing.assert_close(loss(left, right, weight), loss(left[kept], right[kept]))
    for size in (0, 1):
        rows = left[:size].clone().requires_grad_()
        loss(rows, right[:size]).backward()
        assert rows.grad is not None
        assert rows.grad.isfinite().all()


@pytest.mark.parametrize("detached", [True, False])
def test_the_joint_loss_of_eva_moves_the_weights_alone_as_released(
    make_graph: Make, detached: bool
) -> None:
    spec, batch = make_graph()
    torch.manual_seed(0)
    model = EVA(EVA.Config(graph_hidden=6, hidden=4, detach_views=detached), spec)
    losses_of(model, [batch])["joint"].backward()
    assert model.fusion.grad is not None
    assert model.fusion.grad.any()
    moved = [p.grad is not None and bool(p.grad.any()) for p in model.encoder.parameters()]
    assert any(moved) != detached


def test_gcn_align_puts_its_views_together_by_their_share(make_graph: Make) -> None:
    spec, batch = make_graph()
    torch.manual_seed(0)
    config = GCNAlign.Config(graph_hidden=32, attribute_hidden=24, share=0.7)
    model = GCNAlign(config, spec).eval()
    joint = model(batch).joint
    torch.testing.assert_close(joint[:, :32].square().sum(1), torch.full((len(joint),), 0.7))
    torch.testing.assert_close(joint[:, 32:].square().sum(1), torch.full((len(joint),), 0.3))


def test_gcn_align_reads_structure_alone_where_there_is_nothing_else(make_graph: Make) -> None:
    spec, batch = make_graph()
    bare = replace(spec, features={"relation": spec.features["relation"]})
    model = GCNAlign(GCNAlign.Config(graph_hidden=6), bare)
    assert model.views == ("graph",)
    total(losses_of(model, [batch])).backward()
    with pytest.raises(ValueError, match="reads graph and attribute, not relation"):
        GCNAlign(GCNAlign.Config(views=("relation",)), bare)
    with pytest.raises(ValueError, match="no view 'attribute'"):
        GCNAlign(GCNAlign.Config(views=("attribute",)), bare)
