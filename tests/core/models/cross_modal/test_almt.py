"""ALMT: golden values of its layers, and what its answer depends on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from golden import TO_1E_7, fill, fill_linear, fill_norm, filled, float64, wave
from torch import Tensor, nn

from core.batch import Utterances
from core.encoders.text import TextConfig
from core.encoders.token_layers import (
    HyperModality,
    TokenFusion,
    TokenLayer,
    TokenShape,
    TokenTransformer,
)
from core.model import DataSpec
from core.models.cross_modal.almt import ALMT

SHAPE = TokenShape(width=4, heads=2, head_width=3, hidden=5)
SMALL = {"width": 8, "heads": 2, "head_width": 4, "tokens": 2, "hyper_heads": 2}


def fill_layer(layer: TokenLayer, k: int) -> int:
    """Norms, query, key, value, out, norm and what follows, 17 numbers."""
    for norm in (layer.norm_query, layer.norm_key, layer.norm_value):
        k = fill_norm(norm, k)
    attention = layer.attention
    for linear in (attention.query, attention.key, attention.value, attention.out):
        k = fill_linear(linear, k)
    norm, first, _, second = layer.feed
    return fill_linear(second, fill_linear(first, fill_norm(norm, k)))


def hyper_layer(plain: bool) -> Tensor:
    """(2, 3, 4), the new hyper-modality."""
    layer = HyperModality(4, 2, ["audio", "vision"], plain)
    fill_norm(layer.norm_text, 0)
    fill_norm(layer.norms["audio"], 2)
    fill_norm(layer.norms["vision"], 4)
    if isinstance(layer.norm_hyper, nn.LayerNorm):
        fill_norm(layer.norm_hyper, 6)
    linears = [layer.query, layer.keys["audio"], layer.keys["vision"]]
    linears += [layer.values["audio"], layer.values["vision"]]
    fill([linear.weight for linear in linears], 8)
    fill_linear(layer.out, 13)
    text, audio, vision, hyper = (wave(k, 2, 3, 4) for k in range(4))
    return layer(hyper, text, {"audio": audio, "vision": vision})


@pytest.mark.parametrize(
    ("plain", "wanted"),
    [
        (False, [-0.76781983, -0.66955554, 1.15165673, 1.73498008]),
        (True, [-0.63824626, -1.02879882, -0.16637975, -0.81146818]),
    ],
)
def test_golden_values_of_the_hyper_modality(plain: bool, wanted: list[float]) -> None:
    with float64(), torch.no_grad():
        found = hyper_layer(plain)[0, 0]
    torch.testing.assert_close(found, torch.tensor(wanted).double(), **TO_1E_7)


def test_golden_values_of_the_fusion() -> None:
    with float64(), torch.no_grad():
        fusion = TokenFusion(SHAPE, tokens=3, layers=1)
        fusion.source_positions.copy_(filled(0, (4, 4)))
        fusion.target_positions.copy_(filled(1, (4, 4)))
        fusion.token.copy_(filled(2, (1, 4)))
        fill_layer(fusion.layers[0], 3)
        found = fusion(wave(0, 2, 3, 4), wave(1, 2, 3, 4))[:, 0]
    wanted = [
        [1.90412061, 0.80236511, 1.15275796, -0.03395370],
        [1.99280924, 0.81540060, 0.99200447, 0.00986258],
    ]
    torch.testing.assert_close(found, torch.tensor(wanted).double(), **TO_1E_7)


def golden_embedding() -> TokenTransformer:
    embed = TokenTransformer(SHAPE, longest=3, layers=2, tokens=2)
    with torch.no_grad():
        embed.positions.copy_(filled(0, (5, 4)))
        embed.tokens.copy_(filled(1, (2, 4)))
    k = 2
    for layer in embed.layers:
        k = fill_layer(layer, k)
    return embed


def test_golden_values_of_the_embedding() -> None:
    with float64(), torch.no_grad():
        found = golden_embedding()(wave(0, 2, 3, 4))
    wanted = [
        [-0.05283785, 0.25337811, 1.44514678, 0.16335622],
        [-0.22086199, 0.44284944, 1.26870594, 0.20353615],
    ]
    assert found.shape == (2, 2, 4)
    torch.testing.assert_close(found[:, 0], torch.tensor(wanted).double(), **TO_1E_7)


def test_padding_of_any_length_is_out_of_sight() -> None:
    """Also behind the last learnt position."""
    with float64(), torch.no_grad():
        embed = golden_embedding()
        short = embed(wave(0, 2, 3, 4)[:, :2])
        mask = (torch.arange(7) < 2).expand(2, 7)
        longer = torch.cat([wave(0, 2, 3, 4)[:, :2], wave(7, 2, 5, 4)], dim=1)
        torch.testing.assert_close(embed(longer, mask), short)


def test_nothing_is_found_in_a_modality_that_is_missing(
    spec: DataSpec, make_utterances: Callable[..., Utterances]
) -> None:
    """What its tokens are does not matter then."""
    torch.manual_seed(0)
    batch = make_utterances()
    nobody = {"audio": torch.zeros_like(batch.mask["audio"])}
    lacking = replace(batch, mask=batch.mask | nobody, present=batch.present | nobody)
    model = ALMT(ALMT.Config(**SMALL, text=TextConfig(width=16, layers=1, heads=2)), spec).eval()
    scores = model(lacking).score
    nn.init.ones_(model.embed["audio"].tokens)
    torch.testing.assert_close(model(lacking).score, scores)
    assert not torch.allclose(model(batch).score, scores)


@torch.no_grad()
def test_a_hyper_modality_of_ones_is_zero_behind_its_norm(spec: DataSpec) -> None:
    for start, is_nothing in (("ones", True), ("random", False)):
        guided = ALMT(ALMT.Config(**SMALL, hyper_start=start), spec).guided
        assert bool((guided.layers[0].norm_hyper(guided.hyper) == 0).all()) == is_nothing


def test_text_and_one_more_are_needed(spec: DataSpec) -> None:
    for modalities in (("audio", "vision"), ("text",)):
        with pytest.raises(ValueError, match="must hold text and one of them"):
            ALMT(ALMT.Config(modalities=modalities), spec)
