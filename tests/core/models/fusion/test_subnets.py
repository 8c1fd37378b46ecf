"""LF-DNN, TFN and LMF: golden values of subnets and fusions, and what is done without a modality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from golden import TO_1E_7, fill, fill_norm, filled, wave
from small_models import small_options
from torch import Tensor, nn

from core.batch import Utterances
from core.model import DataSpec
from core.models.fusion.lf_dnn import LFDNN, LateFusion
from core.models.fusion.lmf import LMF, LowRankFusion
from core.models.fusion.subnets import FrameSubnet, TextSubnet
from core.models.fusion.tfn import TFN, TensorFusion, outer_product

MakeUtterances = Callable[..., Utterances]
IN_FLOAT32 = {"rtol": 0.0, "atol": 1e-6}
RELEASED_TFN = [-0.86448138, -0.88346200]
WIDTH = {"audio": 2, "vision": 2, "text": 2}


def assert_golden(found: Tensor, wanted: Any, tolerance: dict[str, float] = TO_1E_7) -> None:
    expected = torch.tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(found.double(), expected, **tolerance)


def frame_subnet(width: int, k: int) -> FrameSubnet:
    """As released, with batch norm, in evaluation."""
    subnet = FrameSubnet(width, hidden=2, dropout=0.3, batch_norm=True).double().eval()
    fill_norm(subnet.norm, k)
    fill(subnet.layers.parameters(), k + 2, scale=1.0)
    return subnet


def text_subnet(hidden: int) -> TextSubnet:
    subnet = TextSubnet(4, hidden, 2).double()
    fill(subnet.last.parameters(), 22)
    fill(subnet.out.parameters(), 26)
    return subnet


def vectors(text_hidden: int) -> dict[str, Tensor]:
    everything = torch.ones(2, 3, dtype=torch.bool)
    return {
        "audio": frame_subnet(3, 0)(wave(1, 2, 3)),
        "vision": frame_subnet(2, 13)(wave(2, 2, 2)),
        "text": text_subnet(text_hidden)(wave(0, 2, 3, 4), everything),
    }


def test_golden_subnets_with_batch_norm_as_released() -> None:
    found = vectors(text_hidden=3)
    assert_golden(found["audio"], [[1.07629547, 0.95587935], [0.98935825, 0.86431055]])
    assert_golden(found["vision"], [[1.69321117, 1.17716182], [1.78699332, 1.24331118]])
    assert_golden(found["text"], [[0.03710621, 0.04124061], [0.06040659, 0.05027588]])


def test_golden_tensor_fusion_as_released() -> None:
    found = vectors(text_hidden=3)
    first = [1.0, 0.03710621, 0.04124061, 1.69321117, 0.06282864, 0.06982906, 1.17716182]
    assert_golden(outer_product(found)[0, :9], [*first, 0.04368001, 0.04854687])
    fusion = TensorFusion(WIDTH, 3, 1, 0.5, bounds=(-3.0, 3.0)).double().eval()
    fill(fusion.parameters(), 36)
    assert_golden(fusion.predict(outer_product(found)).sigmoid()[:, 0] * 6 - 3, RELEASED_TFN)
    assert_golden(fusion(found)[:, 0], RELEASED_TFN, IN_FLOAT32)


def low_rank_fusion(frozen_weights: bool = False) -> LowRankFusion:
    fusion = LowRankFusion(WIDTH, 2, 1, frozen_weights).double()
    with torch.no_grad():
        for k, m in enumerate(WIDTH):
            fusion.factor(m).copy_(filled(30 + k, (2, 3, 1)))
        fusion.weight.copy_(filled(33, (1, 2)))
        fusion.bias.copy_(filled(34, (1, 1)))
    return fusion


def test_golden_low_rank_fusion() -> None:
    found, fusion = vectors(text_hidden=4), low_rank_fusion()
    products = fusion.products(found)[..., 0].T
    assert_golden(products, [[-0.04323745, 0.07598850], [-0.05741006, 0.08104505]])
    assert_golden(fusion(found)[:, 0], [-0.21885749, -0.22216275])


def test_weights_of_the_ranks_are_trained_unless_as_released() -> None:
    assert all(parameter.requires_grad for parameter in low_rank_fusion().parameters())
    frozen = low_rank_fusion(frozen_weights=True)
    assert [p.requires_grad for p in (frozen.weight, frozen.bias)] == [False, False]
    assert all(parameter.requires_grad for parameter in frozen.factors())


def test_low_rank_fusion_is_the_tensor_with_its_layer_in_factors() -> None:
    """sum over r of w_r f_a f_v f_t is a linear layer on TFN's outer product."""
    found, fusion = vectors(text_hidden=3), low_rank_fusion()
    audio, vision, text = (fusion.factor(m)[..., 0] for m in WIDTH)  # (ranks, 3) each
    layer = torch.einsum("r,ri,rj,rk->ijk", fusion.weight[0], audio, vision, text).flatten()
    wanted = outer_product(found) @ layer + fusion.bias[0]
    torch.testing.assert_close(fusion(found)[:, 0], wanted)


def test_late_fusion_is_the_head_on_all_side_by_side() -> None:
    found = vectors(text_hidden=3)
    fusion = LateFusion(WIDTH, 3, 1, 0.2).double().eval()
    fill(fusion.parameters(), 36)
    first, second, last = (layer for layer in fusion.predict if isinstance(layer, nn.Linear))
    joined = torch.cat([found["audio"], found["vision"], found["text"]], dim=1)
    hidden = (joined @ first.weight.T + first.bias).clamp(min=0)
    hidden = (hidden @ second.weight.T + second.bias).clamp(min=0)
    torch.testing.assert_close(fusion(found), hidden @ last.weight.T + last.bias)


@pytest.mark.parametrize("kind", [LFDNN, TFN, LMF])
def test_a_modality_that_a_sample_lacks_is_the_zero_vector(
    kind: type[LFDNN], spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances()
    lacking = {m: mask.clone() for m, mask in batch.mask.items()}
    lacking["text"][0] = False
    lacking["audio"][1] = False
    torch.manual_seed(0)
    model = kind(small_options(NAMES[kind]), spec).eval()
    lacking_batch = replace(batch, mask=lacking, present=lacking)
    found = model.subnets(*model.inputs(lacking_batch))
    assert list(found) == ["audio", "vision", "text"]
    for m, row in (("text", 0), ("audio", 1)):
        assert not found[m][row].any()
        # others are not, though a layer's ReLU may leave nothing of one
        assert found[m][row + 1 :].any(1).sum() > 1


NAMES: dict[type, str] = {LFDNN: "lf_dnn", TFN: "tfn", LMF: "lmf"}


def test_without_a_modality_the_tensor_keeps_the_products_of_the_others() -> None:
    found = vectors(text_hidden=3)
    found["vision"] = torch.zeros_like(found["vision"])
    cube = outer_product(found).unflatten(1, (3, 3, 3))  # audio, vision, text
    assert not cube[:, :, 1:].any()
    wanted = outer_product({m: found[m] for m in ("audio", "text")})
    torch.testing.assert_close(cube[:, :, 0].flatten(1), wanted)


@pytest.mark.parametrize("squash", ["range", "released", "none"])
@torch.no_grad()
def test_scores_are_squashed_into_the_range_of_the_labels_or_as_released(
    squash: str, spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    model = TFN(small_options("tfn", squash=squash), replace(spec, label_range=(0.0, 1.0))).eval()
    last = model.fusion.predict[-1]
    found = []
    for bias in (-80.0, 80.0):
        last.bias.fill_(bias)
        found.append(model(make_utterances()).score)
    low, high = found
    if squash == "none":
        assert (low < -3).all()
        assert (high > 3).all()
    else:
        wanted = (0.0, 1.0) if squash == "range" else (-3.0, 3.0)
        torch.testing.assert_close(low, torch.full_like(low, wanted[0]))
        torch.testing.assert_close(high, torch.full_like(high, wanted[1]))


def test_classes_are_not_squashed(spec: DataSpec, make_utterances: MakeUtterances) -> None:
    for kind, name in NAMES.items():
        model = kind(small_options(name), replace(spec, num_classes=3)).eval()
        batch = replace(make_utterances(), label=torch.tensor([0.0, 1, 2, 0, 1, 2, 0, 1]))
        output = model(batch)
        assert output.score.shape == (8, 3)
        assert model.losses(output, batch)["task"].isfinite()


def test_the_squared_error_is_an_option_of_tfn(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances()
    model = TFN(small_options("tfn", squared=True), spec).eval()
    output = model(batch)
    wanted = (output.score - batch.label).square().mean()
    torch.testing.assert_close(model.losses(output, batch)["task"], wanted)


def test_the_padded_mean_scales_a_clip_by_its_length(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances()
    as_released = LFDNN(small_options("lf_dnn", padded_mean=True), spec).subnets
    model = LFDNN(small_options("lf_dnn"), spec)
    frames, mask = model.inputs(batch)
    right = model.subnets
    length = mask["audio"].sum(1, keepdim=True)
    wanted = right._mean("audio", frames["audio"], mask["audio"]) * length / 15
    torch.testing.assert_close(as_released._mean("audio", frames["audio"], mask["audio"]), wanted)
    with pytest.raises(ValueError, match="max_length of audio"):
        LFDNN(small_options("lf_dnn", padded_mean=True), replace(spec, max_length={}))


def test_groups_are_those_that_recipes_give_rates(spec: DataSpec) -> None:
    assert set(LFDNN(small_options("lf_dnn"), spec).param_groups()) == {"audio", "vision", "main"}
    low_rank = LMF(small_options("lmf"), spec)
    found = low_rank.param_groups()
    assert set(found) == {"audio", "vision", "factors", "main"}
    assert len(found["factors"]) == 3
