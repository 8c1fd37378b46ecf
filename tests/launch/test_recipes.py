"""What recipes promise: that their steps are those of the code whose settings they take over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from contracts import still

from core.batch import Utterances
from core.encoders.text import TextConfig
from core.model import DataSpec
from core.models.self_mm import SelfMM
from launch.config import Run, load_recipe
from launch.engine.optimizer import optimizer_for

MakeUtterances = Callable[..., Utterances]
STEPS = 10
SUMMED = 4  # batches whose gradients MMSA sums for a step


@dataclass(frozen=True)
class Published:
    """MMSA's settings of one data set: learning rates and weight decays of sound, video and the
    rest."""

    batch: int
    rates: tuple[float, float, float]
    decays: tuple[float, float, float]


MMSA = {
    "mosi": Published(16, (5e-3, 5e-3, 1e-3), (1e-3, 1e-3, 1e-3)),
    "mosei": Published(32, (5e-3, 1e-4, 1e-3), (0.0, 0.0, 1e-2)),
    "sims": Published(32, (5e-3, 5e-3, 1e-3), (1e-2, 1e-2, 1e-3)),
    "simsv2": Published(16, (1e-3, 1e-3, 1e-3), (0.0, 0.0, 1e-3)),
}


def small_self_mm(run: Run, data: DataSpec) -> SelfMM:
    """The recipe's model with a tiny text encoder, without dropout; always the same weights."""
    torch.manual_seed(3)
    model = SelfMM(replace(run.options, text=TextConfig(width=16, layers=1, heads=2)), data)
    still(model).train()
    model.begin_epoch(0)
    return model


def part(batch: Utterances, start: int, size: int) -> Utterances:
    rows = batch.map(lambda tensor: tensor[start : start + size])
    return replace(rows, loss_scale=1 / size)


def loss_of(model: SelfMM, batch: Utterances) -> torch.Tensor:
    losses = model.losses(model(batch), batch)
    return torch.stack(list(losses.values())).sum()


def weights(model: SelfMM) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def mmsa_steps(run: Run, data: DataSpec, whole: Utterances, published: Published) -> torch.Tensor:
    """Weights after plain PyTorch's Adam: 4 batches backward, their gradients summed, one step."""
    model = small_self_mm(run, data)
    groups = [model.param_groups()[name] for name in ("audio", "vision", "main")]
    optimizer = torch.optim.Adam(
        [
            {"params": parameters, "lr": rate, "weight_decay": decay}
            for parameters, rate, decay in zip(
                groups, published.rates, published.decays, strict=True
            )
        ]
    )
    optimizer.zero_grad()
    for number in range(STEPS * SUMMED):
        loss_of(model, part(whole, number * published.batch, published.batch)).backward()
        if number % SUMMED == SUMMED - 1:
            optimizer.step()
            optimizer.zero_grad()
    return weights(model)


def recipe_steps(run: Run, data: DataSpec, whole: Utterances, size: int) -> torch.Tensor:
    """Weights after the optimiser of ``run``, a batch at a time."""
    model = small_self_mm(run, data)
    optimizer = optimizer_for(model, run)
    for number in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, part(whole, number * size, size)).backward()
        optimizer.step()
    return weights(model)


def with_whole_decay(run: Run) -> Run:
    """The run with decay and epsilon as if its batches' mean gradient were MMSA's sum."""
    groups = {
        name: replace(group, weight_decay=SUMMED * group.weight_decay)
        for name, group in run.optim.groups.items()
    }
    return replace(run, optim=replace(run.optim, groups=groups, eps=SUMMED * run.optim.eps))


@pytest.mark.parametrize("name", MMSA)
def test_steps_of_self_mm_are_those_of_mmsa(
    name: str, spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    """One batch stands for 4 whose gradients are summed, with Adam's coupled decay on the sum."""
    published = MMSA[name]
    run = load_recipe(f"self_mm/{name}")
    assert run.batch_size == SUMMED * published.batch
    size = 8  # of the small batches here
    published = replace(published, batch=size // SUMMED)
    whole = make_utterances(STEPS * size)
    data = replace(spec, num_train=STEPS * size)
    wanted = mmsa_steps(run, data, whole, published)
    moved = (wanted - weights(small_self_mm(run, data))).norm()
    found = recipe_steps(run, data, whole, size)
    assert (found - wanted).norm() < 2e-3 * moved
    undivided = recipe_steps(with_whole_decay(run), data, whole, size)
    assert (undivided - wanted).norm() > 0.1 * moved
