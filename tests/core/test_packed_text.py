"""A BERT on existing tokens alone gives what it gives on padded sentences: states, gradients, the
bits of dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from core.dropout import SampleDropout, number_dropouts, sample_masks
from core.encoders import packed_text
from core.encoders.text import TextConfig, TextEncoder
from core.model import DataSpec

LENGTHS = torch.tensor([9, 3, 0, 6])


def encoder(features: int) -> TextEncoder:
    torch.manual_seed(2)
    data = DataSpec(
        task="sentiment",
        features={"text": features},
        max_length={"text": 9},
        vocab_size=0 if features else 50,
        num_train=8,
    )
    text = TextEncoder(TextConfig(width=64, layers=3, heads=4, dropout=0.2), data)
    return number_dropouts(text.double()).train()


def run(
    text: TextEncoder, frames: Tensor, first_only: bool, change: Callable[[Tensor], Tensor] | None
) -> dict[str, Any]:
    """States where text is, and all gradients."""
    text.zero_grad()
    mask = torch.arange(9) < LENGTHS[:, None]
    with sample_masks(3, 7, torch.tensor([5, 0, 9, 2])):
        hidden, exists = text(frames, mask, change, 1, first_only)
    kept = hidden[:, 0] if first_only else hidden[exists]
    (kept.sin() * torch.arange(1, 65)).sum().backward()
    gradients = {name: p.grad for name, p in text.named_parameters()}
    return {"states": kept.detach(), **gradients}


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("features", [0, 6])
def test_packed_tokens_give_what_padded_sentences_give(
    features: int, first_only: bool, changed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = encoder(features)
    frames = torch.randint(1, 50, (4, 9))
    if features:
        frames = torch.randn(4, 9, features, dtype=torch.float64)
    change = (lambda hidden: hidden + hidden.cos()) if changed else None
    with monkeypatch.context() as patch:
        calls: list[bool] = []
        packed = packed_text.encode
        patch.setattr(packed_text, "encode", lambda *given: calls.append(True) or packed(*given))
        found = run(text, frames, first_only, change)
        assert calls
    monkeypatch.setattr(packed_text, "serves", lambda *given: False)
    wanted = run(text, frames, first_only, change)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-10, msg=name)


def test_without_sample_masks_dropout_is_torchs_own() -> None:
    text = encoder(0)
    mask = torch.arange(9) < LENGTHS[:, None]
    torch.manual_seed(1)
    once = text(torch.ones(4, 9, dtype=torch.int64), mask)[0]
    again = text(torch.ones(4, 9, dtype=torch.int64), mask)[0]
    assert not torch.equal(once, again)


def test_only_whole_berts_with_a_first_token_are_packed() -> None:
    text = encoder(0)
    mask = torch.arange(9) < torch.tensor([[9], [2]])
    assert packed_text.serves(text.backbone, mask)
    assert not packed_text.serves(text.backbone, mask.flip(1))
    layer = text.backbone.encoder.layer[0]
    layer.forward = layer.forward
    assert not packed_text.serves(text.backbone, mask)


def test_half_precision_draws_the_same_bits() -> None:
    dropout = SampleDropout(0.4, 3).train()
    whole, places = torch.ones(2, 5, 8), torch.tensor([1, 4, 0])
    samples = torch.tensor([0, 0, 1])
    with sample_masks(1, 2, torch.tensor([7, 8])):
        wanted = dropout(whole)[samples, places]
        with packed_text.token_rows(samples, places):
            rows = whole[samples, places]
            assert torch.equal(dropout(rows), wanted)
            assert torch.equal(dropout(rows.bfloat16()) > 0, wanted > 0)
