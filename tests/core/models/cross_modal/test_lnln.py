"""LNLN: golden values of the adversary, and which way its gradients go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from contracts import dropped, gradients, still
from golden import TO_1E_7, fill_linear, float64, wave
from torch import Tensor

from core.batch import Utterances
from core.encoders.text import TextConfig
from core.model import DataSpec
from core.models.cross_modal.lnln import (
    LNLN,
    discriminator,
    mixed_by_completeness,
    reversed_gradient,
    told_apart,
)

MakeUtterances = Callable[..., Utterances]
SMALL = {"width": 8, "heads": 2, "head_width": 4, "tokens": 2, "hyper_heads": 2}
TEXT = TextConfig(width=16, layers=1, heads=2, dropout=0.0)


def build(spec: DataSpec, **changes: object) -> LNLN:
    torch.manual_seed(0)
    model = LNLN(LNLN.Config(**SMALL, text=TEXT, **changes), spec)
    still(model).train()
    return model


def gradient(model: LNLN, batch: Utterances, loss: str, parameter: str) -> Tensor:
    model.zero_grad()
    model.losses(model(batch), batch)[loss].backward()
    found = model.get_parameter(parameter).grad
    assert found is not None
    return found


def test_golden_values_of_the_adversary() -> None:
    with float64(), torch.no_grad():
        text, proxy, complete = (wave(k, 2, 2, 3) for k in range(3))
        completeness = wave(3, 2, 1).sigmoid()
        judge = discriminator(3, 4)
        fill_linear(judge[2], fill_linear(judge[0], 0))
        dominant = mixed_by_completeness(completeness, proxy, text)
        loss = told_apart(judge(torch.stack([complete, dominant], dim=1))).mean()
    wanted = torch.tensor([0.28161663, 0.31156783], dtype=torch.float64)
    torch.testing.assert_close(completeness[:, 0], wanted, **TO_1E_7)
    wanted = torch.tensor([0.29795827, 0.03569068, -0.24189399], dtype=torch.float64)
    torch.testing.assert_close(dominant[0, 0], wanted, **TO_1E_7)
    assert float(loss) == pytest.approx(0.68077133, abs=1e-7)


def test_a_reversed_gradient_leaves_values_as_they_are() -> None:
    x = torch.randn(5, requires_grad=True)
    turned = reversed_gradient(x)
    assert torch.equal(turned, x)
    turned.square().sum().backward()
    torch.testing.assert_close(x.grad, -2 * x.detach())


def test_the_proxy_works_for_the_sentiment_and_against_the_discriminator(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    """The released code turns the sentiment's gradient on the proxy too, and the adversary's on
    nothing else."""
    batch = dropped(make_utterances())
    here, released = build(spec), build(spec, reversal="proxy")
    for loss, sign in (("task", -1), ("adversary", 1)):
        wanted = sign * gradient(released, batch, loss, "proxy.start")
        assert wanted.any()
        torch.testing.assert_close(gradient(here, batch, loss, "proxy.start"), wanted)
    # the adversary's gradient arrives turned at the text's tokens too, but not in the released code
    of_text = gradient(here, batch, "adversary", "embed.text.tokens")
    torch.testing.assert_close(
        of_text, -gradient(released, batch, "adversary", "embed.text.tokens")
    )
    of_judge = gradient(here, batch, "adversary", "discriminate.0.weight")
    torch.testing.assert_close(
        of_judge, gradient(released, batch, "adversary", "discriminate.0.weight")
    )


def test_a_discriminator_without_reversal_pulls_the_proxy_the_other_way(
    spec: DataSpec, make_utterances: MakeUtterances, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = dropped(make_utterances())
    model = build(spec)
    turned = gradient(model, batch, "adversary", "proxy.start").clone()
    task = gradient(model, batch, "task", "proxy.start").clone()
    monkeypatch.setattr("core.models.cross_modal.lnln.reversed_gradient", lambda x: x)
    torch.testing.assert_close(gradient(model, batch, "adversary", "proxy.start"), -turned)
    torch.testing.assert_close(gradient(model, batch, "task", "proxy.start"), task)


def test_targets_get_no_gradient_unless_asked(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    for batch in (make_utterances(4), dropped(make_utterances(4))):
        for detach in (True, False):
            complete = build(spec, detach=detach)(batch).complete
            assert all(tokens.requires_grad != detach for tokens in complete.values())


def test_complete_data_are_encoded_apart_where_anybody_lost_some(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    """Of the whole global batch: ranks that go through other layers would wait for each other."""
    whole = make_utterances(4)
    model = build(spec)
    calls = []
    model.embed["audio"].register_forward_hook(lambda *arguments: calls.append(1))
    lost = model.loss_denominators(dropped(whole))
    for denominators, wanted in ((model.loss_denominators(whole), 1), (lost, 2)):
        calls.clear()
        model(replace(whole, loss_denominators=denominators))
        assert len(calls) == wanted
    assert float(lost["audio"]) == float(
        (whole.mask["audio"].sum(1) + 1).div(3, rounding_mode="floor").sum()
    )


@torch.no_grad()
def test_completeness_aims_at_the_share_of_tokens_that_are_left(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    whole = make_utterances(4)
    batch = dropped(whole)
    batch.mask["text"][3] = batch.present["text"][3] = False
    output = build(spec)(batch)
    wanted = batch.present["text"].sum(1) / batch.mask["text"].sum(1).clamp(min=1)
    assert torch.equal(output.share_present, wanted)
    assert output.share_present[3] == 0
    assert output.share_present[:3].max() < 1
    assert (build(spec)(make_utterances(4)).share_present == 1).all()


def test_a_sample_without_a_modality_has_no_part_in_its_losses(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    """Weights of its rebuilding get no gradient from a batch in which nobody has it."""
    batch = make_utterances()
    for m in ("text", "audio"):
        batch.mask[m][:] = False
        batch.present[m][:] = False
    losses, found = gradients(build(spec), [batch])
    assert losses["adversary"] == 0
    assert not found["rebuild.audio.positions"].any()
    assert not found["rebuild.text.positions"].any()
    assert found["rebuild.vision.positions"].any()


@torch.no_grad()
def test_evaluation_has_the_sentiment_alone(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances(3)
    model = build(spec).eval()
    assert set(model.losses(model(batch), batch)) == {"task"}
