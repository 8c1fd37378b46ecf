"""MMIM: golden values as released and as read here, who learns from which loss, and its memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from contracts import losses_of, remember, still
from golden import TO_1E_7, fill, filled, wave
from small_models import small_options
from torch import Tensor

from core.batch import Utterances
from core.model import DataSpec
from core.models.disentangled.mmim import MMIM
from core.models.disentangled.mutual_information import (
    Candidates,
    ConditionalDensity,
    Density,
    FixedCode,
    group_entropy,
    predictive_coding,
)
from core.rows import unit_rows

MakeUtterances = Callable[..., Utterances]


def near(found: Tensor, wanted: float | list[float]) -> None:
    wanted_values = torch.tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(found.detach(), wanted_values, **TO_1E_7)


@pytest.mark.parametrize(("density", "wanted"), [("released", -3.82640967), ("full", -4.31109692)])
def test_golden_values_of_the_density(density: Density, wanted: float) -> None:
    estimator = ConditionalDensity(5, 8, density).double()
    fill(estimator.parameters(), 0)
    fit, bound = estimator(wave(0, 6, 5), wave(1, 6, 8))
    near(fit.mean(), wanted)
    near(bound.mean(), wanted)


def test_a_bounded_density_does_not_reward_what_shrinks_to_a_point() -> None:
    estimator = ConditionalDensity(5, 8, "bounded").double()
    x, y = wave(0, 6, 5), torch.zeros(6, 8, dtype=torch.float64)
    for parameter in estimator.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.constant_(estimator.log_variance[2].bias, -100.0)
    fit, _ = estimator(x, y)
    torch.testing.assert_close(fit, torch.full_like(fit, 8 * 0.5))
    # the plain likelihood does: the smaller the variance, the more without end
    estimator.density = "full"
    fit, _ = estimator(x, y)
    torch.testing.assert_close(fit, torch.full_like(fit, 8 * 50.0))


@pytest.mark.parametrize(("ridge", "wanted"), [(0.0, -2.32049565), (1e-4, -2.31787819)])
def test_golden_values_of_the_entropy(ridge: float, wanted: float) -> None:
    code = FixedCode(8).double()
    code.get_buffer("weight").copy_(filled(8, (2, 8)))
    code.get_buffer("bias").copy_(filled(9, (2,)))
    remembered = torch.tanh(wave(5, 4, 2))
    codes = torch.cat([code(wave(1, 6, 8)), remembered])
    # of labels 1, -2, 0, 0.5, -1, 2, and the remembered ones
    group = torch.tensor([0, 1, -1, 0, 1, 0, 0, 1, 0, 1])
    near(group_entropy(codes, group, 2, ridge), wanted)


@pytest.mark.parametrize(
    ("candidates", "wanted"), [("predictions", 1.57146880), ("inputs", 1.58203533)]
)
def test_golden_values_of_the_coding(candidates: Candidates, wanted: float) -> None:
    x = wave(0, 4, 3).requires_grad_()
    predictions = wave(1, 4, 5) @ filled(0, (3, 5)).T + filled(1, (3,))
    loss = predictive_coding(unit_rows(x), unit_rows(predictions), candidates)
    near(loss, wanted)
    if candidates == "predictions":
        gradient = torch.autograd.grad(loss, x)[0][0]
        near(gradient, [0.04457474, -0.10343932, 0.07429945])


def test_few_rows_have_a_finite_entropy_and_none_have_none() -> None:
    codes = torch.randn(3, 4, requires_grad=True)
    entropy = group_entropy(codes, torch.tensor([0, 0, 1]), 2, 1e-4)
    entropy.backward()
    assert entropy.isfinite()
    assert codes.grad is not None
    assert codes.grad.isfinite().all()
    assert codes.grad[0].any()
    assert not codes.grad[2].any()
    assert group_entropy(codes, torch.tensor([0, 1, -1]), 2, 1e-4) == 0
    assert predictive_coding(codes[:0], codes[:0], "inputs") == 0


def test_likelihood_trains_the_densities_alone_and_the_bound_all_others(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    model = still(MMIM(small_options("mmim", with_va=True), spec)).train()
    batch = make_utterances(7)
    densities = {id(p) for p in model.param_groups()["mmilb"]}
    assert len(densities) == 3 * 2 * 4
    for loss, trains_densities in (("likelihood", True), ("bound", False)):
        model.zero_grad()
        model.losses(model(batch), batch)[loss].backward()
        reached = {id(p) for p in model.parameters() if p.grad is not None and p.grad.any()}
        assert (reached == densities) if trains_densities else reached
        assert trains_densities or not reached & densities


def test_the_newest_rows_that_are_in_a_group_are_remembered(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    model = still(MMIM(small_options("mmim"), spec)).train()
    name = "text_audio"
    group = model.get_buffer(f"memory_group_{name}")
    assert group.tolist() == [-1] * 6
    batch = make_utterances(5, label=torch.tensor([1.0, -1.0, 0.0, 2.0, -2.0]))
    lacking = batch.mask["audio"].clone()
    lacking[1] = False
    lacks_one = {"audio": lacking}
    batch = replace(batch, mask=batch.mask | lacks_one, present=batch.present | lacks_one)
    remember(model, batch)
    assert group.tolist() == [-1, -1, -1, 0, 0, 1]
    assert model.get_buffer("memory_group_text_vision").tolist() == [-1, -1, 0, 1, 0, 1]
    codes = model(batch).codes[name]
    remembered = model.get_buffer(f"memory_{name}")
    torch.testing.assert_close(remembered[3:], codes[[0, 3, 4]].detach())
    remember(model, make_utterances(8, seed=4, label=torch.tensor([1.0, -1.0]).repeat(4)))
    assert group.tolist() == [0, 1, 0, 0, 1, 0]  # 6 of 8, spread over the batch
    before = losses_of(model, [batch])["entropy"]
    remembered.mul_(0.5)
    assert not torch.allclose(losses_of(model, [batch])["entropy"], before)
    assert model.eval().memory_bank_rows(model(batch), batch) == {}


def test_codes_are_of_a_map_that_is_saved_and_never_trained(spec: DataSpec) -> None:
    model = MMIM(small_options("mmim"), spec)
    assert "codes.text_audio.weight" in model.state_dict()
    assert not any(name.startswith("codes.") for name, _ in model.named_parameters())


def test_each_class_is_a_group(spec: DataSpec, make_utterances: MakeUtterances) -> None:
    model = MMIM(small_options("mmim"), replace(spec, num_classes=3))
    batch = make_utterances(label=torch.tensor([0.0, 1, 2, 0, 1, 2, 0, 1]))
    remember(model.train(), batch)
    assert set(model.get_buffer("memory_group_text_audio").tolist()) == {0, 1, 2}
    assert model(batch).score.shape == (8, 3)
    assert losses_of(model, [batch])["entropy"].isfinite()


@pytest.mark.parametrize("modalities", [("text",), ("audio", "vision"), ("text", "vision")])
def test_bounds_are_of_the_pairs_that_are_there(
    modalities: tuple[str, ...], spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    model = MMIM(small_options("mmim", modalities=modalities), spec)
    bounded = {"likelihood", "bound", "entropy"} if modalities == ("text", "vision") else set()
    batch = make_utterances()
    assert set(losses_of(model, [batch])) == {"task", "cpc"} | bounded
    options = small_options("mmim", modalities=modalities, alpha=0.0, beta=0.0)
    model = MMIM(options, spec)
    assert set(losses_of(model, [batch])) == {"task"}
    assert not model.has_global_batch_losses
