"""MISA: golden values of the released code, both ways to draw shared parts together, and what its
losses over a batch leave out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from contracts import gradients, losses_of, rows, still
from golden import TO_1E_7, fill, fill_attention, fill_linear, fill_norm, wave
from small_models import small_options
from torch import Tensor, nn

from core.batch import Utterances
from core.losses.subspaces import central_moment_discrepancy, soft_orthogonality
from core.model import DataSpec, GlobalBatchRows
from core.models.disentangled.misa import MISA, Output, reversed_gradient
from core.models.disentangled.misa_layers import (
    Fusion,
    FusionOptions,
    Parts,
    Subspaces,
    UtteranceEncoder,
)

MakeUtterances = Callable[..., Utterances]
WIDTHS = {"text": 5, "vision": 6, "audio": 3}
VECTORS = {"text": wave(0, 3, 5), "vision": wave(1, 3, 6), "audio": wave(2, 3, 3)}
EVERYWHERE = {m: torch.ones(3, dtype=torch.bool) for m in WIDTHS}
ONES = {"difference": 1.0, "similarity": 1.0, "reconstruction": 1.0}


def near(found: Tensor, wanted: float | list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), **TO_1E_7)


@torch.no_grad()
def golden_parts() -> tuple[Parts, Tensor]:
    """The parts, and what their fusion gives."""
    subspaces = Subspaces(WIDTHS, 4, rebuilds=True).double()
    for number, m in enumerate(WIDTHS):
        project = subspaces.project[m]
        assert isinstance(project, nn.Sequential)
        fill_norm(project[2], fill_linear(project[0], 4 * number))
        fill_linear(subspaces.private[m], 12 + 2 * number)
        fill_linear(subspaces.rebuild[m], 20 + 2 * number)
    fill_linear(subspaces.shared, 18)
    fusion = Fusion(3, FusionOptions(width=4, feed=5), 1).double().eval()
    layer = fusion.layer
    k = fill_attention(layer.attention, 26)
    k = fill_norm(layer.norm_attention, fill(layer.feed.parameters(), k))
    fill(fusion.head.parameters(), fill_norm(layer.norm_feed, k))
    parts = subspaces(VECTORS, EVERYWHERE)
    return parts, fusion(parts, EVERYWHERE).squeeze(1)


def test_golden_values_are_those_of_the_released_code(spec: DataSpec) -> None:
    parts, score = golden_parts()
    near(parts.shared["text"][0], [0.39811611, 0.67533043, 0.76017728, 0.32108901])
    near(score, [-1.22448332, -1.14036116, -0.96421389])
    model = MISA(MISA.Config(**ONES), spec)
    output = Output(score, parts, EVERYWHERE, None, torch.arange(3))
    label = torch.zeros(3)
    rebuilding = []
    for m in WIDTHS:
        rebuilding.append((parts.rebuilt[m] - parts.projected[m]).square().mean())
    near(torch.stack(rebuilding).mean(), 2.78004919)
    batch = Utterances(torch.arange(3), torch.ones(3), 1 / 3, label, {}, {}, {})
    assert float(model.losses(output, batch)["reconstruction"]) == pytest.approx(2.78004919)
    embeddings = {f"shared_{m}": values for m, values in parts.shared.items()}
    embeddings |= {f"private_{m}": values for m, values in parts.private.items()}
    whole = GlobalBatchRows(embeddings, EVERYWHERE)
    losses = model.global_batch_losses(whole, label, torch.ones(3))
    near(losses["similarity"], 0.33772448)
    near(losses["difference"], 2.21377509)


def test_golden_values_of_the_losses_and_their_gradients() -> None:
    near(central_moment_discrepancy(wave(0, 3, 2), wave(1, 4, 2), 5), 1.59835204)
    x = wave(0, 3, 2).requires_grad_()
    loss = central_moment_discrepancy(x, wave(1, 3, 2), 5)
    near(loss.detach(), 1.42110308)
    near(torch.autograd.grad(loss, x)[0][0], [0.29013846, 0.81323173])
    loss = soft_orthogonality(x, wave(1, 3, 2))
    near(loss.detach(), 0.40819804)
    near(torch.autograd.grad(loss, x)[0][0], [0.94030877, 2.67710221])


@torch.no_grad()
def test_golden_values_of_the_sequence_encoder() -> None:
    encoder = UtteranceEncoder(2).double()
    k = fill(encoder.first.parameters(), 0)
    k = fill(encoder.second.parameters(), k)
    assert fill_norm(encoder.norm, k) == 18
    mask = torch.arange(4) < torch.tensor([[4], [2]])
    wanted = [-0.05255065, -0.06778479, 0.23395344, -0.03197260]
    wanted += [-0.08733342, 0.07468729, -0.22592218, -0.06507790]
    near(encoder(wave(0, 2, 4, 2), mask)[1], wanted)


@torch.no_grad()
def test_on_the_clock_of_the_text_later_frames_are_not_read(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    """As released; sound that is shorter than its text is read on into the padding."""
    batch = make_utterances()
    tokens = batch.mask["text"].sum(1)
    later = torch.arange(16) >= tokens[:, None]
    assert (later & batch.mask["vision"]).any()
    vision = torch.where(later[..., None], torch.tensor(5.0), batch.frames["vision"])
    changed = replace(batch, frames=batch.frames | {"vision": vision})
    for clock, alike in (("text", True), ("own", False)):
        model = MISA(small_options("misa", clock=clock), spec).eval()
        found, wanted = model(changed).score, model(batch).score
        assert torch.allclose(found, wanted) == alike
    model = MISA(small_options("misa", clock="text"), spec).eval()
    short = {name: getattr(batch, name)["audio"][:, :2] for name in ("frames", "mask", "present")}
    long = {"frames": short["frames"].new_zeros(8, 12, 5), "mask": torch.zeros(8, 12).bool()}
    long["frames"][:, :2], long["mask"][:, :2] = short["frames"], short["mask"]
    long["present"] = long["mask"]
    scores = []
    for audio in (short, long):
        sound = {name: getattr(batch, name) | {"audio": x} for name, x in audio.items()}
        scores.append(model(replace(batch, **sound)).score)
    torch.testing.assert_close(*scores)
    with pytest.raises(ValueError, match="clock=text"):
        MISA(small_options("misa", clock="text", modalities=("audio",)), spec)


def test_a_sample_by_itself_is_neither_drawn_nor_held(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    """Nor are two that have no two modalities in common."""
    model = MISA(small_options("misa"), spec)
    batch = make_utterances(2)
    apart = {m: mask.clone() for m, mask in batch.mask.items()}
    for row, m in enumerate(apart):
        if row < 2:
            apart[m][row] = False
    apart["vision"][:] = False
    for few in (rows(batch, slice(0, 1)), replace(batch, mask=apart, present=apart)):
        whole = model.global_batch_rows(model(few))
        losses = model.global_batch_losses(whole, few.target, few.weight)
        assert [value.item() for value in losses.values()] == [0, 0]
        total = torch.stack(list(losses.values())).sum()
        for gradient in torch.autograd.grad(total, list(whole.embeddings.values())):
            assert not gradient.any()


def test_the_discriminator_learns_what_the_shared_parts_unlearn(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances()
    found = {}
    for reverse in (0.0, 1.0, 2.0):
        options = small_options("misa", similar="adversarial", reverse=reverse)
        torch.manual_seed(1)
        model = still(MISA(options, spec)).train()
        losses = model.losses(model(batch), batch)
        assert set(losses) == {"task", "reconstruction", "similarity"}
        losses["similarity"].backward()
        assert model.discriminator is not None
        found[reverse] = [model.discriminator[0].weight.grad, model.subspaces.shared.weight.grad]
    for reverse in (1.0, 2.0):
        torch.testing.assert_close(found[reverse][0], found[1.0][0])
        torch.testing.assert_close(found[reverse][1], reverse * found[1.0][1])
    assert not found[0.0][1].any()
    x = torch.tensor([1.5, -0.25], requires_grad=True)
    turned = reversed_gradient(x, 2.0)
    assert torch.equal(turned, x)
    turned.sum().backward()
    assert torch.equal(x.grad, torch.tensor([-2.0, -2.0]))


def test_the_adversarial_variant_reaches_every_parameter(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    model = MISA(small_options("misa", similar="adversarial"), spec)
    losses, found = gradients(still(model).train(), [make_utterances(7)])
    assert set(losses) == {"task", "reconstruction", "similarity", "difference"}
    for name, _ in model.named_parameters():
        assert name.endswith("key.bias") or found[name].any(), name


@pytest.mark.parametrize("modalities", [("text",), ("audio", "vision")])
def test_fewer_modalities_and_weights_of_zero(
    modalities: tuple[str, ...], spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances()
    model = MISA(small_options("misa", modalities=modalities), spec)
    assert set(losses_of(model, [batch])) >= {"task", "reconstruction", "difference"}
    zeros = {"difference": 0.0, "similarity": 0.0, "reconstruction": 0.0}
    model = MISA(small_options("misa", modalities=modalities, **zeros), spec)
    assert set(losses_of(model, [batch])) == {"task"}
    assert not model.has_global_batch_losses


def test_classes_are_learnt(spec: DataSpec, make_utterances: MakeUtterances) -> None:
    model = MISA(small_options("misa"), replace(spec, num_classes=3))
    batch = make_utterances(label=torch.tensor([0.0, 1, 2, 0, 1, 2, 0, 1]))
    assert model(batch).score.shape == (8, 3)
    assert losses_of(model, [batch])["task"].isfinite()
