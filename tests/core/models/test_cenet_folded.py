"""CENet's products that are done once a batch: the plain form, restated frame by frame, gives the
same scores, gradients and entropies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.batch import Utterances
from core.encoders.text import TextConfig
from core.model import DataSpec
from core.models.cenet import CENet
from core.models.cenet_layers import Codes

MakeUtterances = Callable[..., Utterances]
SMALL = CENet.Config(text=TextConfig(width=16, layers=3, heads=2), slots=5)


class Plain(nn.Module):
    """A CENet whose frames each go through every layer."""

    def __init__(self, model: CENet):
        super().__init__()
        self.model = model

    def memory(self, m: str, x: Tensor) -> Tensor:
        if m not in self.model.memories:
            return x
        memory = self.model.memories[m]
        asked = x if memory.norm is None else memory.norm(x)
        query = F.linear(asked, memory.query.weight, memory.query.bias)
        score = query @ memory.key(memory.slots).T / memory.slots.shape[1] ** 0.5
        share = score.softmax(-1)
        self.spread[m] = torch.special.entr(share.detach()).sum(-1)
        read = share @ memory.value(memory.slots)
        return read if memory.gate is None else x + memory.gate * read

    def front(self, m: str, frames: Tensor, mask: Tensor) -> Tensor:
        front = self.model.fronts[m]
        if isinstance(front, Codes):
            return front.words(front.nearest(frames).masked_fill(~mask, len(front.centres)))
        return front.layers(frames)

    def attend(self, m: str, x: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        layers = self.model.attend[m]
        query, key, value = (
            F.linear(y, layer.weight, layer.bias)
            for y, layer in ((x, layers.query), (keys, layers.key), (keys, layers.value))
        )
        score = query @ key.transpose(1, 2) * (self.model.config.scale or x.shape[2] ** -0.5)
        if mask is None:
            return score.softmax(-1) @ value
        sees_any = mask.any(1)[:, None, None]
        score = score.masked_fill(~mask[:, None] & sees_any, -torch.inf)
        return score.softmax(-1) @ value * sees_any

    def enhance(
        self,
        hidden: Tensor,
        frames: dict[str, Tensor],
        mask: dict[str, Tensor],
        entropy: dict[str, Tensor],
    ) -> Tensor:
        self.spread: dict[str, Tensor] = {}
        hidden = self.memory("text", hidden)
        masks, seen = {"text": mask["text"]}, []
        for m in self.model.fronts:
            x, exists = frames[m], mask[m]
            if not self.model.config.frame_mask:
                short = max(0, self.model.longest[m] - x.shape[1])
                x, exists = F.pad(x, (0, 0, 0, short)), F.pad(exists, (0, short))
            masks[m] = exists
            keys = self.memory(m, self.front(m, x, exists))
            key_mask = exists if self.model.config.frame_mask else None
            seen.append(self.attend(m, hidden, keys, key_mask))
        for m, spread in self.spread.items():
            entropy[m] = torch.stack([(spread * masks[m]).sum(), masks[m].sum()])
        mix = self.model.mix
        return hidden + F.linear(torch.cat(seen, 2), mix.weight, mix.bias)


def run(model: CENet, batch: Utterances) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Scores, entropies and gradients."""
    model.zero_grad()
    output = model(batch)
    output.score.double().square().sum().backward()
    return output.score, output.entropy, {n: p.grad for n, p in model.named_parameters()}


@pytest.fixture
def batch(make_utterances: MakeUtterances) -> Utterances:
    """One sample has no sound."""
    made = make_utterances(5)
    audio = made.mask["audio"].clone()
    audio[2] = False
    mask = {**made.mask, "audio": audio}
    frames = {
        m: values.double() if values.is_floating_point() else values
        for m, values in made.frames.items()
    }
    frames["audio"] = frames["audio"] * audio[..., None]
    return replace(made, frames=frames, mask=mask, present=mask)


@pytest.mark.parametrize("frame_mask", [True, False])
@pytest.mark.parametrize("memory", [("text", "audio", "vision"), ("vision",), ()])
@pytest.mark.parametrize("front", ["codes", "mlp"])
def test_what_is_done_once_a_batch_is_the_plain_form(
    front: str,
    memory: tuple[str, ...],
    frame_mask: bool,
    spec: DataSpec,
    batch: Utterances,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes: dict[str, Any] = {"front": front, "memory": memory, "frame_mask": frame_mask}
    torch.manual_seed(4)
    model = CENet(replace(SMALL, **changes), spec).double().eval()
    score, entropy, gradients = run(model, batch)
    monkeypatch.setattr(model, "_enhance", Plain(model).enhance)
    plain_score, plain_entropy, plain_gradients = run(model, batch)
    torch.testing.assert_close(score, plain_score, rtol=0, atol=1e-6)  # a score is float32
    assert entropy.keys() == plain_entropy.keys()
    for m in entropy:
        torch.testing.assert_close(entropy[m].double(), plain_entropy[m], rtol=1e-6, atol=1e-6)
    for name, gradient in gradients.items():
        assert gradient is not None, name
        torch.testing.assert_close(gradient, plain_gradients[name], rtol=1e-6, atol=1e-6, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("front", ["codes", "mlp"])
def test_hidden_states_agree_to_rounding(front: str, spec: DataSpec, batch: Utterances) -> None:
    torch.manual_seed(5)
    model = CENet(replace(SMALL, front=front), spec).double().eval()
    frames, mask = model.inputs(batch)
    hidden = torch.randn(*mask["text"].shape, 16, dtype=torch.float64)
    once = model._enhance(hidden, frames, mask, {})
    plain = Plain(model).enhance(hidden, frames, mask, {})
    assert float((once - plain).abs().max()) < 1e-14 * float(plain.abs().max())
