"""What every sentiment model promises where labels are no scores: classes, and several labels at
once, with weights and the focal loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from contracts import (
    AnyModel,
    Contract,
    assert_same,
    build,
    gradients,
    losses_of,
    prediction,
    rows,
    still,
    total,
)
from torch.nn import functional as F

from core.batch import Utterances
from core.losses.labels import LabelLoss
from core.model import DataSpec
from core.models import MODELS

SENTIMENT = sorted(name for name, model in MODELS.items() if model.task == "sentiment")
NUMBER = 3  # of classes, and of labels
WEIGH_THEIR_TASK = ("lnln", "mlf_dnn", "mlmf", "mtfn")  # among their losses

every_sentiment_model = pytest.mark.parametrize("name", SENTIMENT)
every_kind = pytest.mark.parametrize("kind", ["classes", "labels"])


@pytest.fixture
def contract(
    name: str, kind: str, spec: DataSpec, make_utterances: Callable[..., Utterances]
) -> Contract:
    if kind == "classes":
        data = replace(spec, num_classes=NUMBER)
    else:
        data = replace(spec, target_names=("joy", "fear", "anger"), multilabel=True)

    def make(size: int = 8) -> Utterances:
        batch = make_utterances(size=size)
        number = torch.arange(size)
        weights = torch.tensor([0.5, 1.0, 2.0])
        if kind == "classes":
            label = number % NUMBER
            return replace(batch, label=label.float(), label_weight=weights[label])
        labels = torch.stack([number % 2, number % 3 // 2, number // 2 % 2], dim=1).float()
        counted = torch.where(labels > 0, weights, 1.0)
        how = LabelLoss(multilabel=True)
        return replace(batch, label=labels, label_weight=counted, label_loss=how)

    return Contract(name, data, make)


def with_focal(batch: Utterances) -> Utterances:
    return replace(batch, label_loss=replace(batch.label_loss, focal=2.0))


def task_of(model: AnyModel, batch: Utterances) -> float:
    return float(losses_of(model, [batch])["task"].detach())


def plain_error(score: torch.Tensor, batch: Utterances) -> torch.Tensor:
    """(B,) cross-entropy with weights, by PyTorch."""
    assert batch.label_weight is not None
    if batch.label.ndim == 1:
        error = F.cross_entropy(score, batch.label.long(), reduction="none")
        return error * batch.label_weight
    error = F.binary_cross_entropy_with_logits(
        score, batch.label, weight=batch.label_weight, reduction="none"
    )
    return error.mean(1)


@every_sentiment_model
@every_kind
def test_logits_are_learnt_by_weighted_cross_entropy(contract: Contract) -> None:
    batch = contract.make(7)
    model = contract.warm(batch)
    output = model(replace(batch, loss_denominators=model.loss_denominators(batch)))
    assert output.score.shape == (7, NUMBER)
    losses, found = gradients(model, [batch])
    assert all(value.isfinite() for value in losses.values())
    expected = batch.mean(plain_error(output.score, batch))
    if contract.name not in WEIGH_THEIR_TASK:
        torch.testing.assert_close(losses["task"], expected.detach())
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert key in found, f"{key} gets no gradient"
            assert found[key].isfinite().all(), f"{key} gets a gradient that is not finite"


@every_sentiment_model
@every_kind
def test_a_batch_in_two_parts_is_the_same_batch(contract: Contract) -> None:
    """With weights and the focal loss."""
    batch = with_focal(contract.make())
    model = contract.warm(batch)
    parts = [rows(batch, slice(0, 5)), rows(batch, slice(5, 8))]
    assert_same(gradients(model, parts), gradients(model, [batch]))


@pytest.mark.parametrize("name", ["cenet", "hscl", "self_mm", "tfr_net"])
@pytest.mark.parametrize("kind", ["classes"])
def test_a_few_steps_learn_what_is_there(contract: Contract) -> None:
    """Of models that have more losses than the task's, or none of them for classes."""
    batch = contract.make()
    torch.manual_seed(1)
    model = build(contract.name, contract.data)
    still(model).train()
    before = task_of(model, batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(20):
        optimizer.zero_grad()
        total(losses_of(model, [batch])).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert task_of(model, batch) < 0.75 * before
    assert prediction(model.eval(), batch).isfinite().all()
