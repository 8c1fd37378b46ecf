"""MCLEA: its objective restated in NumPy, absent views, and what swapping the graphs changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from core.batch import EntityGraph
from core.losses.uncertainty import Uncertainty
from core.model import DataSpec
from core.models.mclea import MCLEA

Make = Callable[..., tuple[DataSpec, EntityGraph]]


def naive_icl(left: np.ndarray, right: np.ndarray, temperature: float) -> float:
    """Equations 6 and 7, with the released code's half sum."""
    total = 0.0
    for a, b in ((left, right), (right, left)):
        for i in range(len(a)):
            gold = np.exp(a[i] @ b[i] / temperature)
            others = sum(
                np.exp(a[i] @ x[j] / temperature) for x in (a, b) for j in range(len(a)) if j != i
            )
            total -= 0.5 * np.log(gold / (gold + others)) / len(a)
    return total


def naive_ial(view: list[np.ndarray], joint: list[np.ndarray], temperature: float) -> float:
    """Equation 9: the distribution of each row over all rows but itself, in the view and in the
    joint embedding."""

    def distribution(sides: list[np.ndarray], i: int) -> np.ndarray:
        rows = np.concatenate(sides)
        powers = np.exp(rows @ rows[i] / temperature)
        powers[i] = 0
        return powers / powers.sum()

    size = 2 * len(view[0])
    total = 0.0
    for i in range(size):
        p, q = distribution(joint, i), distribution(view, i)
        total += sum(p[j] * np.log(p[j] / q[j]) for j in range(size) if j != i) / size
    return total


@pytest.mark.parametrize("regulariser", ["paper", "released"])
def test_the_objective_equals_its_equations(make_graph: Make, regulariser: str) -> None:
    spec, batch = make_graph(double=True)
    torch.manual_seed(0)
    config = MCLEA.Config(graph_hidden=6, hidden=4, inter_weight=0.7, regulariser=regulariser)  # type: ignore[arg-type]
    model = MCLEA(config, spec).double()
    with torch.no_grad():
        model.intra_weights.log_variance.copy_(torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64))
        model.inter_weights.log_variance.copy_(torch.tensor([-0.4, 0.1, 0.2], dtype=torch.float64))
        model.fusion.copy_(torch.tensor([0.5, 1.5, -0.3], dtype=torch.float64))
    output = model(batch)
    found = {
        name: v.item()
        for name, v in model.global_batch_losses(
            model.global_batch_rows(output), batch.index, batch.weight
        ).items()
    }

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)

    views = {view: unit(rows.detach().numpy()) for view, rows in output.views.items()}
    share = np.exp([0.5, 1.5, -0.3]) / np.exp([0.5, 1.5, -0.3]).sum()
    joint = unit(
        np.concatenate([w * views[view] for w, view in zip(share, model.views, strict=True)], -1)
    )
    expected = {"joint": naive_icl(joint[:, 0], joint[:, 1], 0.1)}
    strength = 0.5 if regulariser == "paper" else 1.0
    for m, view in enumerate(model.views):
        has = np.ones(len(batch), bool)
        if view != "graph":
            has = batch.present[view][batch.links].all(1).numpy()
        intra = naive_icl(views[view][has, 0], views[view][has, 1], 0.1)
        pairs = [x[has] for x in (views[view][:, 0], views[view][:, 1])]
        inter = 0.7 * naive_ial(pairs, [joint[has, 0], joint[has, 1]], 4.0)
        for kind, loss, s in (
            ("intra", intra, [0.3, -0.2, 0.5][m]),
            ("inter", inter, [-0.4, 0.1, 0.2][m]),
        ):
            expected[f"{kind}_{view}"] = np.exp(-s) * loss + strength * s
    assert found == pytest.approx(expected, rel=1e-9)


def test_swapping_the_graphs_leaves_the_loss_unchanged(make_graph: Make) -> None:
    spec, batch = make_graph(double=True)
    torch.manual_seed(0)
    model = MCLEA(MCLEA.Config(graph_hidden=6, hidden=4), spec).double()
    both = []
    for links in (batch.links, batch.links.flip(1)):
        swapped = EntityGraph(**{**vars(batch), "links": links})
        both.append(
            model.global_batch_losses(
                model.global_batch_rows(model(swapped)), batch.index, batch.weight
            )
        )
    assert {k: v.item() for k, v in both[0].items()} == pytest.approx(
        {k: v.item() for k, v in both[1].items()}
    )


def test_the_joint_embedding_moves_only_views_in_the_alignment_loss(make_graph: Make) -> None:
    spec, batch = make_graph()
    model = MCLEA(MCLEA.Config(graph_hidden=6, hidden=4), spec)
    losses = model.global_batch_losses(
        model.global_batch_rows(model(batch)), batch.index, batch.weight
    )
    (gradient,) = torch.autograd.grad(losses["inter_relation"], [model.fusion], allow_unused=True)
    assert gradient is None


def test_entities_without_a_view_have_zeros_there_and_rows_of_length_one(make_graph: Make) -> None:
    spec, batch = make_graph()
    model = MCLEA(MCLEA.Config(graph_hidden=6, hidden=4), spec).eval()
    output = model(batch)
    assert output.joint.shape == (spec.num_train, 6 + 4 + 4)
    torch.testing.assert_close(output.joint.norm(dim=1), torch.ones(spec.num_train))
    absent = ~batch.present["attribute"]
    assert absent.any()
    assert not output.joint[absent][:, -4:].any()
    assert output.joint[~absent][:, -4:].any(1).all()


def test_training_and_evaluation_give_the_same_rows(make_graph: Make) -> None:
    spec, batch = make_graph()
    model = MCLEA(MCLEA.Config(graph_hidden=6, hidden=4), spec)
    trained = model.train().global_batch_rows(model(batch))
    evaluated = model.eval().global_batch_rows(model(batch))
    for name, rows in trained.embeddings.items():
        torch.testing.assert_close(rows, evaluated.embeddings[name])
    for view, present in trained.present.items():
        assert torch.equal(present, evaluated.present[view])


def test_a_loss_without_samples_does_not_move_its_weight() -> None:
    weights = Uncertainty(("a", "b"))
    losses = weights({"a": torch.tensor(2.0, requires_grad=True), "b": torch.tensor(0.0)})
    sum(losses.values(), torch.zeros(())).backward()
    assert weights.log_variance.grad is not None
    assert weights.log_variance.grad.tolist() == [0.5 - 2.0, 0.0]


def test_the_best_weight_of_a_loss_is_one_over_it() -> None:
    """Stationary point of exp(-s) L + s / 2: 1 / alpha^2 = 1 / (2 L); of the released form 1 /
    L."""
    for regulariser, expected in (("paper", 1 / 6), ("released", 1 / 3)):
        weights = Uncertainty(("a",), regulariser)  # type: ignore[arg-type]
        with torch.no_grad():
            weights.log_variance.fill_(-np.log(expected))
        weights({"a": torch.tensor(3.0)})["a"].backward()
        assert weights.log_variance.grad is not None
        assert abs(weights.log_variance.grad.item()) < 1e-6


def test_a_view_that_the_data_lack_is_refused(make_graph: Make) -> None:
    spec, _ = make_graph()
    with pytest.raises(ValueError, match="no view 'image'; they have graph, relation, attribute"):
        MCLEA(MCLEA.Config(views=("graph", "image")), spec)


def test_eight_links_are_learnt_by_heart(make_graph: Make) -> None:
    spec, batch = make_graph(pairs=8)
    torch.manual_seed(0)
    model = MCLEA(MCLEA.Config(graph_hidden=16, hidden=8), spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(60):
        loss = sum(
            model.global_batch_losses(
                model.global_batch_rows(model(batch)), batch.index, batch.weight
            ).values(),
            torch.zeros(()),
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in model.parameters())
    joint = model.eval()(batch).joint
    scores = joint[batch.links[:, 0]] @ joint[batch.links[:, 1]].T
    assert scores.argmax(1).tolist() == list(range(8))


def test_bfloat16_layers_give_nearly_the_same_embeddings(make_graph: Make) -> None:
    spec, batch = make_graph()
    torch.manual_seed(0)
    model = MCLEA(MCLEA.Config(graph_hidden=6, hidden=4), spec)
    expected = model(batch).joint
    with torch.autocast("cpu", torch.bfloat16):
        found = model(batch)
    assert found.joint.dtype == torch.float32
    torch.testing.assert_close(found.joint, expected, atol=0.02, rtol=0.1)
