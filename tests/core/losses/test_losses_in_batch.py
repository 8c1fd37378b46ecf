"""ICL, IAL and SupCon against the published values, naive restatements and edge cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from core.kernels.supcr.grouping import RowError
from core.losses.info_nce import ICL, info_nce
from core.losses.inter_modal import IAL, ial
from core.losses.supcon import SupCon, supcon

torch.set_num_threads(1)


def pairs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four pairs of a view (3 dimensions) and of a joint embedding (5), drawn once for MCLEA's
    golden values."""
    rng = np.random.RandomState(0)
    view, joint = rng.randn(8, 3), rng.randn(8, 5)
    view, joint = (
        torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))
        for rows in (view, joint)
    )
    return view[:4], view[4:], joint[:4], joint[4:]


@pytest.mark.parametrize(
    ("form", "golden"), [("half_sum", 4.3580586685558), ("log_mean", 3.8694487196387)]
)
def test_icl_gives_the_golden_value(form, golden):
    left, right, _, _ = pairs()
    assert ICL(0.1, form=form)(left, right).item() == pytest.approx(golden, rel=1e-12)


@pytest.mark.parametrize(
    ("scale", "golden"), [("mean", 0.0061664514348746), ("released", 7.708064293592e-05)]
)
def test_ial_gives_the_golden_value(scale, golden):
    left, right, *joint = pairs()
    assert IAL(4.0, scale=scale)((left, right), tuple(joint)).item() == pytest.approx(
        golden, rel=1e-12
    )


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("form", ["half_sum", "log_mean"])
def test_icl_is_the_sum_over_pairs_it_says_it_is(alpha, form):
    left, right, _, _ = pairs()
    a, b, temperature = left.numpy(), right.numpy(), 0.2

    def q(x: np.ndarray, y: np.ndarray, i: int) -> float:
        exp = lambda u, v: np.exp(u @ v / temperature)  # noqa: E731
        others = [j for j in range(4) if j != i]
        return exp(x[i], y[i]) / (
            exp(x[i], y[i])
            + sum(exp(x[i], x[j]) for j in others)
            + sum(exp(x[i], y[j]) for j in others)
        )

    both = [(q(a, b, i), q(b, a, i)) for i in range(4)]
    if form == "half_sum":
        naive = -np.mean([alpha * np.log(p) + (1 - alpha) * np.log(r) for p, r in both])
    else:
        naive = -np.mean([np.log(alpha * p + (1 - alpha) * r) for p, r in both])
    assert info_nce(left, right, temperature, alpha=alpha, form=form).item() == pytest.approx(
        naive, rel=1e-12
    )


def test_ial_moves_the_view_but_not_the_joint_embedding():
    rows = [part.clone().requires_grad_() for part in pairs()]
    IAL(4.0)((rows[0], rows[1]), (rows[2], rows[3])).backward()
    assert rows[0].grad is not None
    assert rows[0].grad.abs().sum() > 0
    assert rows[2].grad is None


def test_supcon_is_the_mean_over_positives_of_the_log_softmax():
    features = torch.cat(pairs()[:2])
    labels = [0, 1, 0, 2, 1, 0, 3, 1]  # 2 and 3 have no positive
    rows, losses = features.numpy(), []
    for i in range(8):
        others = [k for k in range(8) if k != i]
        positives = [k for k in others if labels[k] == labels[i]]
        total = np.log(sum(np.exp(rows[i] @ rows[k] / 0.3) for k in others))
        if positives:
            losses.append(np.mean([total - rows[i] @ rows[k] / 0.3 for k in positives]))
    loss = SupCon(0.3)(features, torch.tensor(labels))
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-12)


def test_gradients_are_those_of_the_values():
    view = [part.clone().requires_grad_() for part in pairs()]
    temperature = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 0, 1])
    assert torch.autograd.gradcheck(
        lambda a, b, t: info_nce(a, b, t, form="log_mean"), (*view[:2], temperature)
    )
    joint = [part.detach() for part in view[2:]]
    assert torch.autograd.gradcheck(
        lambda a, b: ial(a, b, joint[0], joint[1], 0.3), tuple(view[:2])
    )
    assert torch.autograd.gradcheck(lambda a, t: supcon(a, labels, t), (view[0], temperature))


def test_no_pairs_give_zero_and_a_gradient():
    left, right = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, 3)
    loss = (
        ICL(0.1)(left, right)
        + IAL(4.0)((left, right), (right, right))
        + SupCon(0.1)(left, torch.zeros(0))
    )
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)  # two roundings of one product
    assert left.grad is not None


def test_one_pair_has_no_negatives_and_no_loss():
    left = torch.randn(1, 3, requires_grad=True)
    loss = ICL(0.1)(left, torch.randn(1, 3))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)  # two roundings of one product
    assert left.grad is not None
    assert left.grad.isfinite().all()


def test_rows_of_weight_zero_take_no_part():
    left, right, joint_left, joint_right = pairs()
    weight = torch.tensor([1.0, 0.0, 1.0, 1.0])
    keep = weight > 0
    labels = torch.tensor([0, 0, 1, 0])
    assert ICL(0.1)(left, right, weight) == ICL(0.1)(left[keep], right[keep])
    assert IAL(4.0)((left, right), (joint_left, joint_right), weight) == IAL(4.0)(
        (left[keep], right[keep]), (joint_left[keep], joint_right[keep])
    )
    assert SupCon(0.1)(left, labels, weight) == SupCon(0.1)(left[keep], labels[keep])


@pytest.mark.parametrize(
    "loss", [ICL(0.1, learnable=True), IAL(4.0, learnable=True), SupCon(0.1, learnable=True)]
)
def test_a_learnt_temperature_has_a_shape_and_a_gradient(loss):
    left, right, *joint = pairs()
    if isinstance(loss, ICL):
        value = loss(left, right)
    elif isinstance(loss, IAL):
        value = loss((left, right), tuple(joint))
    else:
        value = loss(left, torch.tensor([0, 1, 0, 1]))
    value.backward()
    (parameter,) = loss.parameters()
    assert parameter.shape == (1,)
    assert parameter.grad.abs().item() > 0


@pytest.mark.parametrize("name", ["icl", "ial", "supcon"])
def test_second_derivatives_are_those_of_the_definition_or_refused(name):
    def second(fused: bool) -> Tensor:
        left, right, *joint = (part.clone().requires_grad_() for part in pairs())
        share = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        if name == "icl":
            value = ICL(0.3, fused=fused)(left, right)
        elif name == "ial":
            value = IAL(0.3, fused=fused)((left, right), (joint[0], joint[1]))
        else:
            value = SupCon(0.3, fused=fused)(left, torch.tensor([0, 1, 0, 1]))
        (gradient,) = torch.autograd.grad(
            share * value + left.pow(3).sum(), left, create_graph=True
        )
        return torch.autograd.grad(gradient.square().sum(), left)[0]

    assert second(fused=False).abs().sum() > 0
    with pytest.raises(RuntimeError, match="no second derivative in linear memory"):
        second(fused=True)


@pytest.mark.parametrize("fused", [False, True])
def test_a_row_that_is_not_finite_is_named_as_it_was_given(fused):
    left, right, joint_left, joint_right = (part.clone() for part in pairs())
    left[0, 1] = torch.nan  # of weight zero
    weight, labels = torch.tensor([0.0, 1.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 0])
    spoilt = right.clone()
    spoilt[2, 0] = torch.inf
    calls = [
        lambda bad: ICL(0.1, fused=fused)(left, bad, weight),
        lambda bad: IAL(4.0, fused=fused)((left, bad), (joint_left, joint_right), weight),
        lambda bad: IAL(4.0, fused=fused)((left, right), (right, bad), weight),
        lambda bad: SupCon(0.1, fused=fused)(bad, labels, weight),
    ]
    for call in calls:
        assert call(right).isfinite()
        with pytest.raises(RowError, match="features of row 2 are not finite"):
            call(spoilt)


def test_wrong_settings_are_refused_with_their_value():
    with pytest.raises(ValueError, match="ICL needs a positive temperature, got 0"):
        ICL(0)
    with pytest.raises(ValueError, match=r"alpha between 0 and 1, got 1\.5"):
        ICL(0.1, alpha=1.5)
    with pytest.raises(ValueError, match="scale must be 'mean' or 'released', got 'sum'"):
        IAL(4.0, scale="sum")
    with pytest.raises(ValueError, match="left \\(2, 3\\) and right \\(3, 3\\)"):
        ICL(0.1)(torch.zeros(2, 3), torch.zeros(3, 3))


@pytest.mark.parametrize("strip", [1, 10**6])
@pytest.mark.parametrize(
    "kind", ["icl", "icl log_mean", "ial", "supcon", "supcon without positives"]
)
def test_linear_memory_gives_the_definition(kind, strip, monkeypatch):
    monkeypatch.setattr("core.kernels.in_batch_softmax.CHUNK_ELEMENTS", strip)
    found = {}
    for fused in (False, True):
        left, right, *joint = (part.clone().requires_grad_() for part in pairs())
        if kind.startswith("icl"):
            form = "log_mean" if "log" in kind else "half_sum"
            loss = ICL(0.02, 0.3, form, learnable=True, fused=fused)
            value = loss(left, right)
        elif kind == "ial":
            loss = IAL(0.3, learnable=True, fused=fused)
            value = loss((left, right), (joint[0], joint[1]))
        else:
            loss = SupCon(0.2, learnable=True, fused=fused)
            classes = (
                torch.arange(8) if "without" in kind else torch.tensor([0, 1, 0, 2, 1, 0, 3, 1])
            )
            value = loss(torch.cat([left, right]), classes)
        (1.7 * value).backward()
        found[fused] = [
            value,
            left.grad,
            right.grad,
            *(parameter.grad for parameter in loss.parameters()),
        ]
    torch.testing.assert_close(found[True], found[False], rtol=1e-6, atol=1e-12)
