"""MAG-BERT: golden values of the gate, what it leaves alone, and frames at the places of words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from golden import TO_1E_7, fill_linear, fill_norm, float64, wave
from torch import Tensor

from core.batch import Utterances
from core.encoders.frame_layers import pooled_to_words
from core.encoders.text import TextConfig
from core.model import DataSpec
from core.models.cross_modal.mag_bert import AdaptationGate, MAGBert

SMALL_TEXT = TextConfig(width=16, layers=1, heads=2)


def golden_gate() -> tuple[AdaptationGate, Tensor, dict[str, Tensor]]:
    gate = AdaptationGate(4, {"vision": 2, "audio": 3}, beta=1.0, dropout=0.5).eval()
    fill_linear(gate.gates["vision"], 0)
    fill_linear(gate.gates["audio"], 2)
    fill_linear(gate.values["vision"], 4)
    fill_linear(gate.values["audio"], 6)
    fill_norm(gate.norm, 8)
    frames = {"vision": wave(1, 2, 3, 2), "audio": wave(2, 2, 3, 3)}
    for values in frames.values():
        values[1, 2] = 0
    return gate, wave(0, 2, 3, 4), frames


def test_golden_values_of_the_gate() -> None:
    """A word of zero frames is moved by the biases in the released code, and not at all here."""
    with float64(), torch.no_grad():
        gate, z, frames = golden_gate()
        everywhere = torch.ones(2, 3, dtype=torch.bool)
        released = gate(z, frames, {"vision": everywhere, "audio": everywhere})
        exists = everywhere.clone()
        exists[1, 2] = False
        found = gate(z, frames, {"vision": exists, "audio": exists})
        unmoved = gate.norm(z[1, 2])
    first = [-0.68452577, -1.02348805, 0.92214874, -0.98548558]
    last = [-0.13898285, -1.66711269, -0.81765150, 0.49475224]
    torch.testing.assert_close(released[0, 0], torch.tensor(first).double(), **TO_1E_7)
    torch.testing.assert_close(released[1, 2], torch.tensor(last).double(), **TO_1E_7)
    torch.testing.assert_close(found[1, 2], unmoved)
    torch.testing.assert_close(found[0], released[0])


def test_golden_values_of_the_share() -> None:
    with float64(), torch.no_grad():
        gate, z, frames = golden_gate()
        shift = torch.zeros_like(z)
        for m, values in frames.items():
            opened = gate.gates[m](torch.cat([values, z], dim=2)).relu()
            shift = shift + opened * gate.values[m](values)
        found = gate.share(z, shift)[0, :, 0]
        still = gate.share(z, torch.zeros_like(z))
    wanted = torch.tensor([0.81588266, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, **TO_1E_7)
    assert (still == 1).all()


def test_biases_move_words_without_frames_only_where_asked(
    spec: DataSpec, make_utterances: Callable[..., Utterances]
) -> None:
    """Nobody has sound or video: the scores are those of the text behind a norm, or moved."""
    batch = make_utterances()
    nobody = {m: torch.zeros_like(batch.mask[m]) for m in ("audio", "vision")}
    batch = replace(batch, mask=batch.mask | nobody, present=batch.mask | nobody)
    scores = []
    for bias_at_padding in (False, True):
        torch.manual_seed(0)
        config = MAGBert.Config(text=SMALL_TEXT, bias_at_padding=bias_at_padding)
        model = MAGBert(config, spec).eval()
        scores.append(model(batch).score)
        for m in ("audio", "vision"):
            torch.nn.init.ones_(model.shift.values[m].bias)
        scores.append(model(batch).score)
    torch.testing.assert_close(scores[1], scores[0])
    assert not torch.allclose(scores[3], scores[2])


def pooled(own: int, words: int, summary: bool = False, places: int = 8) -> Tensor:
    """Numbers of the frames, counted from 1, pooled to the places of one text; 0 where none are."""
    frames = torch.arange(1.0, 7.0).reshape(1, 6, 1)
    mask = (torch.arange(6) < own)[None]
    text_mask = (torch.arange(places) < words)[None]
    mean, exists = pooled_to_words(frames, mask, text_mask, summary)
    assert torch.equal(exists, mean[..., 0] > 0)
    return mean[0, :, 0]


@pytest.mark.parametrize(
    ("own", "words", "wanted"),
    [
        (4, 4, [1, 2, 3, 4]),  # aligned: as they are
        (6, 3, [1.5, 3.5, 5.5]),
        (5, 3, [1.5, 3, 4.5]),  # bins overlap where they do not divide
        (2, 5, [1, 1, 1.5, 2, 2]),
        (3, 5, [0, 1, 2, 3, 0]),  # of the words alone, without [CLS] and [SEP]
        (4, 0, [2.5]),  # no text: the mean at its first place
        (0, 4, [0, 0, 0, 0]),
    ],
)
def test_frames_are_pooled_to_words_by_true_lengths(
    own: int, words: int, wanted: list[float]
) -> None:
    found = pooled(own, words)
    assert found.tolist() == pytest.approx(wanted + [0] * (8 - len(wanted)))


def test_no_frame_belongs_to_a_summary() -> None:
    assert pooled(3, 4, summary=True).tolist() == [0, 1, 2, 3, 0, 0, 0, 0]
    assert pooled(2, 5, summary=True).tolist() == [0, 1, 1, 2, 2, 0, 0, 0]
    assert pooled(4, 0, summary=True).tolist() == [2.5, 0, 0, 0, 0, 0, 0, 0]


def test_text_is_needed(spec: DataSpec) -> None:
    with pytest.raises(ValueError, match="must hold text"):
        MAGBert(MAGBert.Config(modalities=("audio", "vision")), spec)
