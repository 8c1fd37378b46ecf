# mypy: disable-error-code="call-arg"
"""Attention of narrow heads, GRU and exponentials of the CPU's loops, against torch's operators."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.dropout import SampleDropout, keep_mask, sample_masks
from core.encoders.attention import Attention, attend
from core.encoders.sequence import BiGRU, LSTMEncoder
from core.kernels.attention import narrow_attention
from core.kernels.compiled_loop import compiled
from core.kernels.recurrent import layers_in_loops
from core.kernels.vector_math import exponential, sigmoid, tanh

LAYER, RATE = 5, 0.3


def plain(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, p: float) -> Tensor:
    """With every pair written out."""
    score = query @ key.transpose(2, 3) * 0.4
    if allowed is not None:
        score = score.masked_fill(~allowed, -math.inf)
    share = score.softmax(-1).nan_to_num(0.0)
    if p:
        share = share * keep_mask(share.shape, p, LAYER, share.device) / (1 - p)
    return share @ value


def masks(samples: int, rows: int, columns: int) -> dict[str, Tensor | None]:
    frames = torch.arange(columns) < torch.tensor([columns, 4, 0])[:samples, None]
    causal = torch.arange(columns) <= torch.arange(rows)[:, None] - 2  # two see nothing
    holes = torch.rand(samples, 1, rows, columns) > 0.6
    return {
        "none": None,
        "frames": frames[:, None, None],
        "causal": causal[None, None],
        "frames and causal": frames[:, None, None] & causal,
        "holes": holes,
    }


@pytest.mark.parametrize("p", [0.0, RATE])
@pytest.mark.parametrize("kind", ["none", "frames", "causal", "frames and causal", "holes"])
def test_narrow_attention_is_softmax_and_dropout_over_all_pairs(kind: str, p: float) -> None:
    torch.manual_seed(3)
    inputs: Any = [torch.randn(3, 2, n, 5, dtype=torch.float64) for n in (7, 37, 37)]
    allowed = masks(3, 7, 37)[kind]
    dropout = SampleDropout(p, LAYER).train()
    upstream = torch.randn(3, 2, 7, 5, dtype=torch.float64)
    results = []
    with sample_masks(11, 2, torch.tensor([4, 8, 1])):
        assert narrow_attention.serves(*inputs, allowed, p)
        for once in (
            lambda q, k, v: attend(q, k, v, allowed, dropout, 0.4),
            lambda q, k, v: plain(q, k, v, allowed, p),
        ):
            leaves: Any = [part.clone().requires_grad_() for part in inputs]
            mixed = once(*leaves)
            mixed.backward(upstream)
            results.append([mixed.detach(), *(leaf.grad for leaf in leaves)])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)


def test_narrow_attention_in_float32_is_as_exact_as_torch() -> None:
    torch.manual_seed(4)
    exact: Any = [torch.randn(2, 3, n, 8, dtype=torch.float64) * 3 for n in (40, 300, 300)]
    wanted = plain(*exact, None, 0.0)
    rough: Any = [part.float() for part in exact]
    found = attend(*rough, None, nn.Identity(), 0.4)
    by_torch = plain(*rough, None, 0.0)
    error = float((found - wanted).abs().max())
    assert error < 2 * float((by_torch - wanted).abs().max()) + 1e-7


def test_what_is_no_number_stays_seen() -> None:
    inputs: Any = [torch.randn(1, 1, n, 4) for n in (3, 6, 6)]
    inputs[1][0, 0, 2, 1] = math.nan
    assert attend(*inputs, None, nn.Identity()).isnan().all()


def test_wide_heads_and_added_masks_are_left_to_torch() -> None:
    wide: Any = [torch.randn(1, 1, 4, 33) for _ in range(3)]
    narrow: Any = [torch.randn(1, 1, 4, 8) for _ in range(3)]
    assert not narrow_attention.serves(*wide, None, 0.0)
    assert narrow_attention.serves(*narrow, None, 0.0)
    assert not narrow_attention.serves(*narrow, torch.zeros(1, 1, 4, 4), 0.0)
    assert not narrow_attention.serves(*(part.bfloat16() for part in narrow), None, 0.0)


def test_a_query_without_keys_gives_zeros_in_a_whole_attention() -> None:
    attention = Attention(8, 2, out=False)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    seen = attention(torch.randn(2, 4, 8), torch.randn(2, 3, 8), mask)
    assert seen[0].abs().min() > 0
    assert not seen[1].any()


ENCODERS = {
    "gru": lambda: BiGRU(6, 4, 1),
    "gru of three layers": lambda: BiGRU(6, 4, 3),
    "lstm": lambda: LSTMEncoder(6, 5),
}


@pytest.mark.parametrize("kind", list(ENCODERS))
def test_the_loops_of_recurrent_layers_are_torchs(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    encoder = ENCODERS[kind]().double()
    mask = torch.arange(9) < torch.tensor([9, 0, 5, 1])[:, None]
    mask[0, 3] = False  # a hole
    frames = torch.randn(4, 9, 6, dtype=torch.float64)

    def run() -> dict[str, Any]:
        encoder.zero_grad()
        leaf = frames.clone().requires_grad_()
        states = encoder(leaf, mask)
        (states.sin() * torch.arange(states.shape[-1])).sum().backward()
        gradients = {name: p.grad for name, p in encoder.named_parameters()}
        return {"states": states.detach(), "frames": leaf.grad, **gradients}

    found = run()
    monkeypatch.setattr(layers_in_loops, "serves", lambda frames: False)
    wanted = run()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12, msg=name)


def test_a_gru_of_samples_without_frames_has_gradients_of_zero() -> None:
    encoder = BiGRU(3, 2, 1)
    states = encoder(torch.randn(2, 4, 3), torch.zeros(2, 4, dtype=torch.bool))
    states.sum().backward()
    assert not states.any()
    for parameter in encoder.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_a_gru_takes_half_precision() -> None:
    encoder = BiGRU(3, 2, 1)
    frames, mask = torch.randn(2, 4, 3), torch.ones(2, 4, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        states = encoder(frames.bfloat16(), mask)
    torch.testing.assert_close(states, encoder(frames, mask), rtol=2e-2, atol=2e-2)


def each(x: Any, out: Any) -> None:
    for place in range(len(x)):
        out[0, place] = exponential(x[place])
        out[1, place] = sigmoid(x[place])
        out[2, place] = tanh(x[place])


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_exponentials_are_exact_to_the_last_digits(kind: type) -> None:
    x = np.concatenate([np.linspace(-86, 87, 4001), np.linspace(-1, 1, 2001)]).astype(kind)
    out: Any = np.empty((3, len(x)), kind)
    compiled(each)(x, out)
    exact: Any = x.astype(np.longdouble)
    digit = float(np.finfo(kind).eps)
    np.testing.assert_allclose(out[0], np.exp(exact), rtol=4 * digit)
    np.testing.assert_allclose(out[1], 1 / (1 + np.exp(-exact)), rtol=6 * digit)
    np.testing.assert_allclose(out[2], np.tanh(exact), rtol=0, atol=4 * digit)
    compiled(each)(np.array([np.nan], kind), out)
    assert np.isnan(out[:, 0]).all()
