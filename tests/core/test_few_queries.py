"""Attention of few queries on a CPU, whose keys and values are never made, is attention with
them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from core.dropout import number_dropouts, sample_masks
from core.encoders import attention as home
from core.encoders.attention import Attention

WIDTH, KEYS = 24, 40


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("masks", ["none", "keys", "keys and pairs"])
def test_few_queries_see_what_all_keys_would_show_them(
    masks: str, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    attention = Attention(WIDTH, 3, key_width=7, dropout=0.3, bias=bias)
    attention = number_dropouts(attention.double()).train()
    inputs = [torch.randn(3, n, w, dtype=torch.float64) for n, w in ((2, WIDTH), (KEYS, 7))]
    mask = torch.arange(KEYS) < torch.tensor([KEYS, 5, 0])[:, None]
    pairs = torch.arange(KEYS) < torch.tensor([[0], [9]])
    given = {"none": (), "keys": (mask,), "keys and pairs": (mask, pairs)}[masks]

    def run() -> dict[str, Any]:
        attention.zero_grad()
        leaves = [part.clone().requires_grad_() for part in inputs]
        with sample_masks(2, 5, torch.tensor([3, 1, 4])):
            seen = attention(*leaves, *given)
        seen.sin().sum().backward()
        gradients = {name: p.grad for name, p in attention.named_parameters()}
        return {"seen": seen.detach(), "x": leaves[0].grad, "keys": leaves[1].grad, **gradients}

    calls: list[bool] = []
    few = home.attend_few
    with monkeypatch.context() as patch:
        patch.setattr(home, "attend_few", lambda *g: calls.append(True) or few(*g))
        found = run()
    assert calls
    monkeypatch.setattr(home, "projects_few", lambda *g: False)
    wanted = run()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=name)


def test_many_queries_and_weights_kept_elsewhere_take_the_plain_way() -> None:
    attention = Attention(WIDTH, 3)
    keys = torch.randn(1, KEYS, WIDTH)
    few, many = torch.randn(1, 3, 1, 8), torch.randn(1, 3, KEYS, 8)
    assert home.projects_few(attention.key, attention.value, few, keys)
    assert not home.projects_few(attention.key, attention.value, many, keys)
    with torch.autocast("cpu", torch.bfloat16):
        assert not home.projects_few(attention.key, attention.value, few, keys)
    weight: Any = attention.value.weight
    weight.ds_id = 1  # as ZeRO's third stage marks it
    assert not home.projects_few(attention.key, attention.value, few, keys)
    adapted = parametrize.register_parametrization(nn.Linear(WIDTH, WIDTH), "weight", nn.Tanh())
    assert not home.projects_few(attention.key, adapted, few, keys)
