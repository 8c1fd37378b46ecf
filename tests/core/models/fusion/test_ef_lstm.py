"""EF-LSTM: torch's stacked LSTM on what is joined, its clock, and the released batch norm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from small_models import small_options
from torch import nn

from core.batch import Utterances
from core.encoders.text import TextConfig
from core.model import DataSpec
from core.models.fusion.ef_lstm import EFLSTM, StepNorm

MakeUtterances = Callable[..., Utterances]


@torch.no_grad()
def test_it_is_a_stacked_lstm_over_each_sample_alone(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    """Aligned features: side by side at every word, read up to the last word."""
    batch = make_utterances(text=6)
    length = 7
    aligned = {m: x[:, :length] for m, x in batch.frames.items()}
    mask = torch.arange(length) < torch.tensor([7, 3, 1, 5, 7, 2, 4, 6])[:, None]
    masks = dict.fromkeys(aligned, mask)
    batch = replace(batch, frames=aligned, mask=masks, present=masks)
    data = replace(spec, features=spec.features | {"text": 6}, moments={})
    options = EFLSTM.Config(hidden=5, layers=2, text=TextConfig(source="given"))
    model = EFLSTM(options, data).eval()
    stacked = nn.LSTM(31, 5, 2, batch_first=True)
    for number, layer in enumerate(model.layers):
        for name, value in layer.named_parameters():
            getattr(stacked, name.replace("l0", f"l{number}")).copy_(value)
    first, last = model.predict[1], model.predict[4]
    for row in range(8):
        own = [
            aligned[m][row : row + 1, : int(mask[row].sum())] for m in ("text", "audio", "vision")
        ]
        _, (state, _) = stacked(torch.cat(own, dim=2))
        hidden = torch.relu(state[-1] @ first.weight.T + first.bias)
        wanted = (hidden @ last.weight.T + last.bias)[0, 0]
        torch.testing.assert_close(model(batch).score[row], wanted)


@torch.no_grad()
def test_batch_norm_as_released_is_of_each_time_step(spec: DataSpec) -> None:
    norm = StepNorm(["text", "audio"], replace(spec, max_length={"text": 4, "audio": 4}))
    frames = torch.randn(3, 2, 6)
    found = norm(frames)
    assert found.shape == frames.shape
    mean = frames.mean((0, 2), keepdim=True)
    variance = frames.var((0, 2), unbiased=False, keepdim=True)
    torch.testing.assert_close(found, (frames - mean) / (variance + 1e-5).sqrt())


def test_batch_norm_needs_the_longest_length(spec: DataSpec) -> None:
    options = small_options("ef_lstm", batch_norm=True)
    assert EFLSTM(options, spec).norm.longest == 18
    with pytest.raises(ValueError, match="batch_norm=true needs DataSpec.max_length"):
        EFLSTM(options, replace(spec, max_length={}))


def test_classes_and_fewer_modalities(spec: DataSpec, make_utterances: MakeUtterances) -> None:
    options = small_options("ef_lstm", modalities=("audio",))
    model = EFLSTM(options, replace(spec, num_classes=3)).eval()
    batch = replace(make_utterances(), label=torch.arange(8.0) % 3)
    output = model(batch)
    assert output.score.shape == (8, 3)
    assert model.losses(output, batch)["task"].isfinite()
