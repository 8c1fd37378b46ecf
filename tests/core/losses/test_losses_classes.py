"""Losses of classes and of several labels: against PyTorch's and formulas written out; SupCR by
distances against its definition."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from core.losses.labels import LabelLoss, task_loss
from core.losses.supcr import supcr
from core.losses.supcr_distances import SupCRByDistance

SCORE = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0], [-3.0, 1.0, 30.0]])
CLASS = torch.tensor([0.0, 2.0, 1.0])
LABELS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])


def test_classes_cost_their_cross_entropy() -> None:
    found = task_loss(SCORE, CLASS)
    expected = F.cross_entropy(SCORE, CLASS.long(), reduction="none")
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    weight = torch.tensor([1.0, 3.0, 0.0])
    torch.testing.assert_close(task_loss(SCORE, CLASS, weight=weight), expected * weight)


@pytest.mark.parametrize("focal", [0.5, 2.0])
def test_the_focal_loss_is_its_formula(focal: float) -> None:
    share = SCORE.double().softmax(1)[torch.arange(3), CLASS.long()]
    expected = -((1 - share) ** focal) * share.log()
    found = task_loss(SCORE, CLASS, how=LabelLoss(focal=focal))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    right = torch.where(LABELS > 0, SCORE, -SCORE).double().sigmoid()
    expected = (-((1 - right) ** focal) * right.log()).mean(1)
    found = task_loss(SCORE, LABELS, how=LabelLoss(multilabel=True, focal=focal))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_certain_answer_has_a_finite_gradient() -> None:
    score = torch.tensor([[200.0, -200.0]], requires_grad=True)
    for how in (LabelLoss(focal=0.5), LabelLoss(focal=2.0)):
        (gradient,) = torch.autograd.grad(task_loss(score, torch.zeros(1), how=how).sum(), score)
        assert gradient.isfinite().all()


def test_labels_cost_the_mean_of_their_binary_cross_entropies() -> None:
    weight = torch.tensor([[2.0, 1.0, 1.0]]).expand(3, 3)
    found = task_loss(SCORE, LABELS, weight=weight, how=LabelLoss(multilabel=True))
    expected = F.binary_cross_entropy_with_logits(SCORE, LABELS, weight=weight, reduction="none")
    torch.testing.assert_close(found, expected.mean(1))


def test_scores_are_learnt_as_ever() -> None:
    score = torch.tensor([1.0, -2.0])
    found = task_loss(score, torch.zeros(2), how=LabelLoss(focal=2.0))
    torch.testing.assert_close(found, torch.tensor([1.0, 2.0]), rtol=0, atol=0)


def draws(seed: int) -> tuple[torch.Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(9, 4, generator=generator, dtype=torch.float64), generator


def test_supcr_of_classes_is_its_definition_on_distances_of_0_and_1() -> None:
    features, generator = draws(0)
    labels = torch.randint(0, 3, (9,), generator=generator)
    rows = F.normalize(features)
    one_hot = F.one_hot(labels).double()  # half of whose distances are 0 and 1
    expected = supcr(rows, one_hot, 0.3)
    torch.testing.assert_close(SupCRByDistance(0.3, "classes")(features, labels), expected)


def test_supcr_of_vectors_is_its_definition() -> None:
    """Ties included, values and gradients."""
    features, generator = draws(1)
    labels = torch.randint(0, 3, (9, 2), generator=generator).double() / 3
    rows = features.clone().requires_grad_()
    found = SupCRByDistance(0.3, "vectors", resolution=1 / 3)(rows, labels)
    (gradient,) = torch.autograd.grad(found, rows)
    same = features.clone().requires_grad_()
    expected = supcr(F.normalize(same), (labels * 3).round(), 0.3)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, same)[0])


def test_supcr_by_distance_leaves_out_rows_of_weight_0_and_survives_few() -> None:
    features, _ = draws(2)
    labels = torch.arange(9) % 2
    weight = torch.ones(9)
    weight[[1, 4]] = 0
    loss = SupCRByDistance(0.5, "classes")
    kept = weight > 0
    torch.testing.assert_close(loss(features, labels, weight), loss(features[kept], labels[kept]))
    assert loss(features[:1], labels[:1]) == 0
    assert loss(features[:2], labels[:2]) == 0  # one candidate, which is always found
    with pytest.raises(ValueError, match="SupCR of classes needs 1 axes of labels"):
        loss(features, labels[:, None])
