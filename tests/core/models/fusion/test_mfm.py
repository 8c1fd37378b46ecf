"""MFM: the discrepancy against drawn numbers, its losses, and what predicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from contracts import dropped, losses_of
from small_models import small_options

from core.batch import Utterances
from core.losses.subspaces import discrepancy_from_normal
from core.model import DataSpec
from core.models.fusion.mfm import MFM

MakeUtterances = Callable[..., Utterances]


def test_the_discrepancy_is_what_many_drawn_numbers_give() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(6, 3, generator=generator, dtype=torch.float64) * 2 + 1
    drawn = torch.randn(4000, 3, generator=generator, dtype=torch.float64)

    def kernel(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return torch.exp(-(left[:, None] - right[None]).square().sum(2) / 9).mean()

    expected = kernel(rows, rows) - 2 * kernel(rows, drawn) + kernel(drawn, drawn)
    assert discrepancy_from_normal(rows).item() == pytest.approx(expected.item(), abs=5e-3)
    near = discrepancy_from_normal(drawn)
    assert abs(near.item()) < 1e-3 < expected.item()
    assert discrepancy_from_normal(rows[:0]) == 0


def built(data: DataSpec, **options: float) -> MFM:
    torch.manual_seed(1)
    return MFM(replace(small_options("mfm"), **options), data).train()


def test_a_loss_of_weight_0_is_not_there(spec: DataSpec, make_utterances: MakeUtterances) -> None:
    batch = make_utterances()
    assert set(losses_of(built(spec), [batch])) == {"task", "rebuild", "prior"}
    assert set(losses_of(built(spec, rebuild=0.0), [batch])) == {"task", "prior"}
    bare = built(spec, rebuild=0.0, prior=0.0)
    assert set(losses_of(bare, [batch])) == {"task"}
    assert not bare.encoders
    assert not bare.has_global_batch_losses


def test_only_the_common_factor_predicts(spec: DataSpec, make_utterances: MakeUtterances) -> None:
    batch = make_utterances()
    model = built(spec)
    model.zero_grad()
    losses_of(model, [batch])["task"].backward()
    for part in (model.encoders, model.rebuild):
        assert all(parameter.grad is None for parameter in part.parameters())
    assert all(parameter.grad is not None for parameter in model.fusion.parameters())


def test_a_modality_that_a_sample_lacks_has_no_part_in_rebuilding(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = dropped(make_utterances())
    mask = {m: values.clone() for m, values in batch.mask.items()}
    mask["audio"][2] = False
    batch = replace(batch, mask=mask, present={m: batch.present[m] & mask[m] for m in mask})
    model = built(spec, prior=0.0)
    output = model(batch)
    losses = model.losses(output, batch)
    errors = torch.stack([output.errors[m] * output.given[m] for m in model.modalities])
    assert not output.given["audio"][2]
    torch.testing.assert_close(losses["rebuild"], 0.1 * batch.mean(errors.mean(0)))
