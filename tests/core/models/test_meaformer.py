"""MEAformer: the meta-modality weights as read and as printed, its layer in NumPy, and its
objective."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from core.batch import EntityGraph
from core.dropout import number_dropouts, sample_masks
from core.model import DataSpec
from core.models.meaformer import MEAformer, TokenLayer, meta_weights

Make = Callable[..., tuple[DataSpec, EntityGraph]]


def small(**changes: object) -> MEAformer.Config:
    return MEAformer.Config(**{"hidden": 8, "heads": 2, "feedforward": 12, **changes})  # type: ignore[arg-type]


def golden_attention() -> torch.Tensor:
    rng = np.random.RandomState(0)
    rng.randn(8, 3), rng.randn(8, 5)
    return torch.from_numpy(rng.randn(1, 2, 4, 4)).softmax(-1)


def test_golden_value_of_the_meta_weights() -> None:
    weights = meta_weights(golden_attention(), torch.ones(1, 4, dtype=torch.bool))
    np.testing.assert_allclose(
        weights[0].numpy(), [0.22528621, 0.28657264, 0.23922476, 0.24891639], rtol=1e-7
    )


def test_the_printed_formula_gives_every_view_the_same_weight() -> None:
    """Sum over j of softmax_j is one, whatever the attention says: the reason why we sum over
    queries."""
    attention, has = golden_attention(), torch.ones(1, 4, dtype=torch.bool)
    printed = torch.stack([attention[0, :, m, :].sum() for m in range(4)]) / np.sqrt(
        4 * 2
    )  # as in the paper
    torch.testing.assert_close(printed.softmax(0), torch.full((4,), 0.25, dtype=torch.float64))
    torch.testing.assert_close(meta_weights(attention, has, "printed")[0], printed.softmax(0))
    assert meta_weights(attention, has).std() > 0.02


def test_permuting_the_views_permutes_the_weights() -> None:
    torch.manual_seed(0)
    layer, tokens = (
        TokenLayer(8, 2, 12, 0.0, first_dropout=0).double(),
        torch.randn(5, 4, 8, dtype=torch.float64),
    )
    has, order = torch.ones(5, 4, dtype=torch.bool), torch.tensor([2, 0, 3, 1])
    late, attention = layer(tokens, has)
    moved, moved_attention = layer(tokens[:, order], has)
    torch.testing.assert_close(moved, late[:, order])
    torch.testing.assert_close(
        meta_weights(moved_attention, has), meta_weights(attention, has)[:, order]
    )


def test_attention_sums_to_one_and_ignores_views_that_an_entity_lacks() -> None:
    torch.manual_seed(0)
    layer = TokenLayer(8, 2, 12, 0.1, first_dropout=0).eval()
    tokens, has = (
        torch.randn(3, 4, 8),
        torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [1, 0, 0, 0]], dtype=torch.bool),
    )
    late, attention = layer(tokens, has)
    torch.testing.assert_close(attention.sum(-1), torch.ones(3, 2, 4))
    weights = meta_weights(attention, has)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3))
    assert not weights[~has].any()
    other = torch.where(has[..., None], tokens, torch.randn(3, 4, 8))
    torch.testing.assert_close(layer(other, has)[0][has], late[has])
    torch.testing.assert_close(meta_weights(layer(other, has)[1], has), weights)


def test_one_view_alone_has_weight_one_and_is_the_joint_embedding(make_graph: Make) -> None:
    spec, batch = make_graph()
    model = MEAformer(small(views=("graph",)), spec).eval()
    output = model(batch)
    torch.testing.assert_close(output.weights, torch.ones(spec.num_train, 1))
    torch.testing.assert_close(
        output.joint, torch.nn.functional.normalize(output.views["graph"], dim=1)
    )


def test_the_layer_equals_its_equations() -> None:
    torch.manual_seed(1)
    layer = TokenLayer(6, 2, 10, 0.0, first_dropout=0).double()
    tokens = torch.randn(4, 3, 6, dtype=torch.float64)
    found, attention = layer(tokens, torch.ones(4, 3, dtype=torch.bool))
    w = {name: p.detach().numpy() for name, p in layer.named_parameters()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x: np.ndarray) -> np.ndarray:
        return x * 0.5 * (1 + torch.erf(torch.from_numpy(x) / np.sqrt(2)).numpy())

    for entity in range(4):
        x = tokens[entity].numpy()
        q, k, v = (x @ w[f"{n}.weight"].T + w[f"{n}.bias"] for n in ("query", "key", "value"))
        parts = []
        for head in range(2):
            columns = slice(3 * head, 3 * head + 3)
            scores = np.exp(q[:, columns] @ k[:, columns].T / np.sqrt(3))
            beta = scores / scores.sum(1, keepdims=True)
            np.testing.assert_allclose(attention[entity, head].detach().numpy(), beta, rtol=1e-10)
            parts.append(beta @ v[:, columns])
        x = norm(np.concatenate(parts, 1) @ w["out.weight"].T + w["out.bias"] + x, "norm")
        inner = gelu(x @ w["feedforward.0.weight"].T + w["feedforward.0.bias"])
        x = norm(
            inner @ w["feedforward.2.weight"].T + w["feedforward.2.bias"] + x, "feedforward_norm"
        )
        np.testing.assert_allclose(found[entity].detach().numpy(), x, rtol=1e-9, atol=1e-12)


def test_the_objective_names_every_view_early_and_late_with_one_shared_weight(
    make_graph: Make,
) -> None:
    spec, batch = make_graph(double=True)
    torch.manual_seed(0)
    model = MEAformer(small(dropout=0.0), spec).double()
    assert model.view_weights is not None
    s = [0.3, -0.2, 0.5]
    with torch.no_grad():
        model.view_weights.log_variance.copy_(torch.tensor(s, dtype=torch.float64))
    output = model(batch)
    losses = model.global_batch_losses(model.global_batch_rows(output), batch.index, batch.weight)
    assert model.views == ("graph", "relation", "attribute")
    for m, view in enumerate(model.views):
        has = (
            batch.present[view][batch.links].all(1)
            if view != "graph"
            else torch.ones(len(batch), dtype=torch.bool)
        )
        for when, rows in (("early", output.views[view]), ("late", output.late[view])):
            plain = model.icl(rows[has, 0], rows[has, 1])
            assert losses[f"{when}_{view}"].item() == pytest.approx(
                (np.exp(-s[m]) * plain + s[m]).item()
            )


def test_swapping_the_graphs_leaves_the_loss_unchanged(make_graph: Make) -> None:
    spec, batch = make_graph(double=True)
    torch.manual_seed(0)
    model = MEAformer(small(dropout=0.0), spec).double()
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


def test_dropout_belongs_to_the_link_so_that_parts_equal_the_whole(make_graph: Make) -> None:
    spec, batch = make_graph(pairs=9)
    torch.manual_seed(0)
    model = number_dropouts(MEAformer(small(dropout=0.3), spec))

    def rows(part: slice) -> torch.Tensor:
        some = EntityGraph(
            **{
                **vars(batch),
                "links": batch.links[part],
                "index": batch.index[part],
                "weight": batch.weight[part],
            }
        )
        with sample_masks(7, 3, some.index):
            return model(some).joint

    whole = rows(slice(0, 9))
    torch.testing.assert_close(torch.cat([rows(slice(0, 4)), rows(slice(4, 9))]), whole)
    assert not torch.allclose(whole, model.eval()(batch).joint[batch.links])


def test_heads_must_divide_the_width(make_graph: Make) -> None:
    spec, _ = make_graph()
    with pytest.raises(ValueError, match="3 heads do not divide the width 8"):
        MEAformer(small(heads=3), spec)


def test_eight_links_are_learnt_by_heart(make_graph: Make) -> None:
    spec, batch = make_graph(pairs=8)
    torch.manual_seed(0)
    model = MEAformer(small(hidden=16, dropout=0.0, layers=2), spec)
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
    model = MEAformer(small(dropout=0.0), spec)
    expected = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(batch)
    assert found.joint.dtype == found.weights.dtype == torch.float32
    torch.testing.assert_close(found.joint, expected.joint, atol=0.02, rtol=0.1)
    found.joint.sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "query" in name)
