"""BBFN: golden values of a pair, deeper levels restated, and what holds the sides apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from contracts import gradients, still
from golden import TO_1E_7, fill, fill_attention, fill_linear, fill_norm, float64, wave

from core.batch import Utterances
from core.encoders.text import TextConfig
from core.model import DataSpec
from core.models.cross_modal.bbfn import BBFN, GatedLayer, MeanState, Pair, separation_loss

MakeUtterances = Callable[..., Utterances]
SMALL = {"width": 8, "heads": 2, "levels": 2}
TEXT = TextConfig(width=16, layers=1, heads=2)


def fill_layer(layer: GatedLayer, k: int) -> None:
    k = fill_attention(layer.attention, k)
    k = fill(layer.feed.parameters(), k)
    k = fill_norm(layer.between, fill_norm(layer.before, k))
    fill_linear(layer.fuse, fill_linear(layer.retain, k))


def test_golden_values_of_a_pair() -> None:
    with float64(), torch.no_grad():
        pair = Pair(BBFN.Config(width=4, heads=2, levels=1)).eval()
        level = pair.levels[0]
        fill_linear(level.encode_text.linear, 0)
        fill_linear(level.encode_other.linear, 2)
        fill_linear(level.discriminate[0], 4)
        fill_linear(level.discriminate[2], 6)
        fill_layer(level.text_layer, 10)
        fill_layer(level.other_layer, 30)
        mask = torch.arange(3) < torch.tensor([[3], [2]])
        text, other, logits = pair(wave(0, 2, 3, 4), wave(1, 2, 3, 4), mask, mask)
        loss = separation_loss(logits).mean()
    assert float(loss) == pytest.approx(0.86057722, abs=1e-7)
    wanted = [
        [-0.00100916, 1.24539802, 1.06907158, -0.88609130],
        [0.51240883, 1.64010084, 0.54186218, 0.17842826],
    ]
    torch.testing.assert_close(text[:, 0], torch.tensor(wanted).double(), **TO_1E_7)
    other_wanted = [1.48726889, 0.77213418, 0.41269691, -0.86871597]
    torch.testing.assert_close(other[0, 0], torch.tensor(other_wanted).double(), **TO_1E_7)


@torch.no_grad()
def test_later_levels_sum_up_the_states_of_both_directions() -> None:
    """Each sample's own length, and the mean of the directions."""
    torch.manual_seed(0)
    summary = MeanState(4)
    x = torch.randn(2, 5, 4)
    found = summary(x, torch.arange(5) < torch.tensor([[5], [3]]))
    for row, length in enumerate((5, 3)):
        states, _ = summary.states.gru(x[row : row + 1, :length])
        wanted = (states[0, :, :4] + states[0, :, 4:]).mean(0) / 2
        torch.testing.assert_close(found[row], wanted)


def build(spec: DataSpec, **changes: object) -> BBFN:
    torch.manual_seed(0)
    model = BBFN(BBFN.Config(**SMALL, text=TEXT, **changes), spec)
    still(model)
    return model


def test_only_samples_with_both_sides_are_told_apart(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances()
    model = build(spec)
    output = model(batch)
    wanted = torch.stack([separation_loss(output.told_apart[m]) for m in ("audio", "vision")])
    losses = model.losses(output, batch)
    torch.testing.assert_close(losses["separator"], 0.1 * wanted.mean())
    nobody = {m: torch.zeros_like(mask) for m, mask in batch.mask.items() if m != "text"}
    lacking = replace(batch, mask=batch.mask | nobody, present=batch.present | nobody)
    losses, _ = gradients(model, [lacking])
    assert losses["separator"] == 0


@torch.no_grad()
def test_a_modality_that_is_missing_adds_zeros_and_lets_the_text_pass(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances()
    nobody = {"audio": torch.zeros_like(batch.mask["audio"])}
    lacking = replace(batch, mask=batch.mask | nobody, present=batch.present | nobody)
    model = build(spec).eval()
    seen: list[torch.Tensor] = []
    hook = model.predict.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(batch)
    model(lacking)
    hook.remove()
    parts = [fused.chunk(4, dim=1) for fused in seen]  # text, audio, text, vision
    assert not parts[1][1].any()
    assert not torch.allclose(parts[1][0], parts[0][0])
    torch.testing.assert_close(parts[1][2:], parts[0][2:])


def test_without_a_separator_there_is_no_discriminator(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances()
    losses, found = gradients(build(spec, separator=0.0), [batch])
    assert set(losses) == {"task"}
    assert not any("discriminate" in name for name in found)


def test_layers_of_a_small_encoder_are_not_frozen(spec: DataSpec) -> None:
    with pytest.raises(ValueError, match="frozen_layers=9 is of a pretrained text encoder"):
        build(spec, frozen_layers=9)
