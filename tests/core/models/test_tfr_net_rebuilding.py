"""TFR-Net's rebuilding: its losses restated, and what the released code does otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from contracts import assert_same, gradients, padded, rows, still
from tfr_nets import SMALL, build, counted, damaged

from core.batch import Utterances
from core.encoders.cross_attention import positions
from core.losses.subspaces import central_moment_discrepancy
from core.model import DataSpec
from core.models.tfr_net_layers import discrepancy_of_moments, power_sums

MakeUtterances = Callable[..., Utterances]
Array = np.ndarray


@torch.no_grad()
def test_rebuilding_is_a_masked_mean_that_sleeps_for_one_epoch(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = damaged(make_utterances(4))
    model = build(spec).train()
    batch = counted(model, batch)
    output = model(batch)
    assert {name: bool(value) for name, value in model.losses(output, batch).items()} == {
        "task": True, "rebuild_text": False, "rebuild_audio": False, "rebuild_vision": False,
    }  # fmt: skip
    model.begin_epoch(1)
    losses = model.losses(output, batch)
    complete = model.inputs.complete(batch)
    for m, factor in zip(("text", "audio", "vision"), SMALL.lambdas, strict=True):
        lost = (batch.mask[m] & ~batch.present[m]).numpy()
        if m != "text":
            assert torch.equal(output.target[m], complete[m])
        apart = np.abs((output.rebuilt[m] - output.target[m]).double().numpy())
        smooth = np.where(apart < 1, apart**2 / 2, apart - 0.5)
        wanted = (smooth * lost[..., None]).sum() / (lost.sum() * smooth.shape[2] + 1e-4)
        assert float(losses[f"rebuild_{m}"]) == pytest.approx(factor * wanted, rel=1e-4)
    whole = make_utterances(4)
    assert model.losses(model(whole), counted(model, whole))["rebuild_audio"] == 0
    assert set(model.eval().losses(model(batch), batch)) == {"task"}


def restated_discrepancy(left: Array, right: Array) -> float:
    """Over all rows and without powers of the range, as the released code writes it."""

    def distance(a: Array, b: Array) -> float:
        return float(np.sqrt(((a - b) ** 2).sum() + 1e-12))

    found = distance(left.mean(0), right.mean(0))
    left, right = left - left.mean(0), right - right.mean(0)
    for order in (2, 3):
        found += distance((left**order).mean(0), (right**order).mean(0))
    return found


@torch.no_grad()
def test_the_moment_discrepancy_is_that_of_the_released_code(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    """All rows up to the file's length, those that were not dropped as zeros; the mask over the
    features."""
    batch = damaged(make_utterances(4))
    model = build(spec, cmd=5.0).train()
    model.begin_epoch(1)
    batch = counted(model, batch)
    output = model(batch)
    losses = model.global_batch_losses(model.global_batch_rows(output), batch.target, batch.weight)
    for m, factor in zip(("text", "audio", "vision"), SMALL.lambdas, strict=True):
        lost = (batch.mask[m] & ~batch.present[m]).numpy()[..., None]
        missing = spec.max_length[m] - lost.shape[1]
        both = []
        for frames in (output.rebuilt[m], output.target[m]):
            hidden = frames.double().numpy() * lost
            padded = np.pad(hidden, ((0, 0), (0, missing), (0, 0)))
            both.append(padded.reshape(-1, hidden.shape[2]))
        expanded = np.broadcast_to(lost, output.target[m].shape)
        wanted = factor * 5 * restated_discrepancy(*both) / (expanded.sum() + 1e-4)
        assert float(losses[f"moments_{m}"]) == pytest.approx(wanted, rel=1e-5)


def test_micro_batches_and_padding_leave_the_moment_discrepancy_alone(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = damaged(make_utterances(6))
    model = build(spec, cmd=5.0)
    still(model).train()
    model.begin_epoch(1)
    whole = gradients(model, [batch])
    assert {"moments_text", "moments_audio", "moments_vision"} < whole[0].keys()
    assert_same(gradients(model, [rows(batch, slice(0, 2)), rows(batch, slice(2, 6))]), whole)
    assert_same(gradients(model, [padded(batch, 2)]), whole)


def test_a_frame_whose_whole_neighbourhood_was_dropped_can_go_without_position(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    """The released code takes what is exactly zero for padding, which has no position."""
    batch = make_utterances(2)
    present = batch.mask["audio"].clone()
    present[:, :3] = False  # the kernel is 5 wide: nothing is left to see at the first place
    batch = replace(batch, present=batch.present | {"audio": present})
    x = torch.zeros(1, 4, 12)
    x[0, 1:] = torch.randn(3, 12)
    mask = torch.ones(1, 4, dtype=torch.bool)
    order = positions(4, 12, x.device)
    placed, unplaced = (
        build(spec, place_dropped=placed).own["audio"].eval() for placed in (True, False)
    )
    scaled = np.sqrt(12) * x[0]
    torch.testing.assert_close(placed._embed(x, mask)[0], scaled + order)
    order[0] = 0
    torch.testing.assert_close(unplaced._embed(x, mask)[0], scaled + order)
    with torch.no_grad():
        scores = [build(spec, place_dropped=placed).eval()(batch).score for placed in (True, False)]
    assert not torch.allclose(*scores)


def test_rebuilding_is_padded_to_what_its_heads_divide(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    """The published 25 heads fit 50 tokens, and 51 with a summary in front as well."""
    model = build(spec, rebuild_heads=5).train()
    assert {m: encoder.width for m, encoder in model.rebuild.items()} == {
        "text": 15, "audio": 15, "vision": 20,
    }  # fmt: skip
    model.begin_epoch(1)
    batch = damaged(make_utterances(3))
    output = model(batch)
    assert {m: x.shape[1] for m, x in output.rebuilt.items()} == {
        m: mask.shape[1] for m, mask in batch.mask.items()
    }
    losses = model.losses(output, counted(model, batch))
    assert all(value.isfinite() for value in losses.values())
    assert build(spec).rebuild["text"].width == spec.max_length["text"]


def test_moment_discrepancy_has_its_golden_value() -> None:
    left = torch.tensor([[1.0, 2], [3, 4], [5, 0]])
    right = torch.tensor([[0.0, 1], [2, 2], [4, 6]])
    assert float(central_moment_discrepancy(left, right)) == pytest.approx(9.414213, abs=1e-5)
    assert float(restated_discrepancy(left.numpy(), right.numpy())) == pytest.approx(9.414213)
    means = [power_sums(rows) / len(rows) for rows in (left, right)]
    assert float(discrepancy_of_moments(*means)) == pytest.approx(9.414213, abs=1e-5)
    same = left.clone().requires_grad_()
    central_moment_discrepancy(same, left).backward()
    assert same.grad is not None
    assert same.grad.isfinite().all()
