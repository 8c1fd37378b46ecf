"""Weights that are cast together: the numbers of autocast, by fewer operators."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from operator_counts import OperatorCounter
from torch import nn

from core.batch import Utterances
from core.encoders.text import TextConfig, TextEncoder
from core.model import DataSpec
from core.weight_casts import WeightCasts

CPU = torch.device("cpu")
LAYERS = 3


def gradients(model: nn.Module, run: Callable[[], torch.Tensor]) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    run().float().square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_weights_and_gradients_are_those_of_autocast_bit_for_bit():
    torch.manual_seed(0)
    twice = nn.Linear(8, 8)
    plain = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), twice, nn.Tanh(), twice, nn.Linear(8, 2, bias=False)
    )
    plain.append(nn.Linear(2, 2))
    x = torch.randn(5, 6)

    def run(model: nn.Module, casts: WeightCasts | None) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            if casts is None:
                return model[:-1](x)  # the last one is not used
            with casts.made(CPU):
                return model[:-1](x)

    together = copy.deepcopy(plain)
    casts = WeightCasts(together)
    expected = gradients(plain, lambda: run(plain, None))
    found = gradients(together, lambda: run(together, casts))
    assert found.keys() == expected.keys()
    assert found["6.weight"] is None
    for name, gradient in expected.items():
        if gradient is not None:
            assert torch.equal(found[name], gradient), name
    assert torch.equal(run(together, casts), run(plain, None))
    assert torch.equal(together(x), plain(x))  # outside of autocast


def test_an_encoder_has_one_cast_each_way_and_one_product_for_queries_keys_and_values(
    spec: DataSpec, make_utterances: Callable[..., Utterances]
):
    torch.manual_seed(0)
    batch = make_utterances()
    config = TextConfig(source="small", width=16, layers=LAYERS, heads=2)
    plain = TextEncoder(config, spec).eval()
    together = copy.deepcopy(plain)
    casts = WeightCasts(together)

    def run(model: TextEncoder) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16), casts.made(CPU):
            return model(batch.frames["text"], batch.mask["text"])[0]

    counters = []
    found = []
    for model in (plain, together):
        with OperatorCounter() as counter:
            found.append(gradients(model, lambda model=model: run(model)))
        counters.append(counter.counts)
    for name, gradient in found[0].items():
        # products of one shape and of another round apart
        torch.testing.assert_close(found[1][name], gradient, rtol=0.05, atol=0.02, msg=name)
    before, after = counters
    linear = 6 * LAYERS
    assert after["_foreach_copy_"] == 2
    assert before["_to_copy"] - after["_to_copy"] >= 2 * 2 * linear
    assert before["addmm"] - after["addmm"] == 2 * LAYERS
    assert before["mm"] - after["mm"] == 4 * LAYERS
    assert after.total() < before.total() - 5 * linear


def test_what_does_not_learn_is_left_alone():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    casts = WeightCasts(model)
    with torch.autocast("cpu", torch.bfloat16), casts.made(CPU):
        model(torch.ones(1, 2)).sum().backward()
    assert model[0].weight.grad is None
    assert model[1].weight.grad is not None
    assert "forward" not in vars(model[0])
