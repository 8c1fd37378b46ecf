"""CENet and its memory: equations restated in NumPy, codes, the place of injection, switches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts import padded

from core.batch import Utterances
from core.encoders.text import TextConfig
from core.model import DataSpec
from core.models.cenet import CENet
from core.models.cenet_layers import Codes, ExternalMemory

MakeUtterances = Callable[..., Utterances]
Array = np.ndarray
SMALL = CENet.Config(text=TextConfig(width=16, layers=3, heads=2), slots=8)


def build(data: DataSpec, **changes: Any) -> CENet:
    torch.manual_seed(4)
    return CENet(replace(SMALL, **changes), data)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class Restated:
    def __init__(self, model: CENet):
        self.weights = {name: value.double().numpy() for name, value in model.state_dict().items()}

    def linear(self, name: str, x: Array) -> Array:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def read(self, m: str, x: Array, mode: str) -> Array:
        at = f"memories.{m}"
        asked = x
        if mode == "residual":
            asked = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
            asked = asked * self.weights[f"{at}.norm.weight"] + self.weights[f"{at}.norm.bias"]
        slots = self.weights[f"{at}.slots"]
        query, key, value = (
            self.linear(f"{at}.{part}", y)
            for part, y in (("query", asked), ("key", slots), ("value", slots))
        )
        found = softmax(query @ key.T / np.sqrt(slots.shape[1])) @ value
        return found if mode == "replace" else x + self.weights[f"{at}.gate"] * found

    def enhance(self, hidden: Array, coded: dict[str, Array], scale: float, mode: str) -> Array:
        hidden = self.read("text", hidden, mode)
        mixed = []
        for m in ("audio", "vision"):
            e = self.read(m, coded[m], mode)
            query, key, value = (
                self.linear(f"attend.{m}.{part}", y)
                for part, y in (("query", hidden), ("key", e), ("value", e))
            )
            mixed.append(softmax(scale * query @ key.T) @ value)
        return hidden + self.linear("mix", np.concatenate(mixed, -1))


@torch.no_grad()
@pytest.mark.parametrize(("mode", "scale"), [("residual", 8.0), ("replace", 0.0)])
def test_what_is_put_into_the_encoder_is_the_spec_restated(
    mode: str, scale: float, spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances(4)
    model = build(spec, memory_mode=mode, scale=scale).eval()
    restated = Restated(model)
    before, after = [], []
    layer = model.text.layers[1]
    first = model.text.layers[0].register_forward_hook(
        lambda module, inputs, out: before.append(out)
    )
    original = layer.forward

    def spy(hidden: torch.Tensor, *rest: Any, **named: Any) -> Any:
        after.append(hidden)
        return original(hidden, *rest, **named)

    layer.forward = spy  # type: ignore[method-assign]
    model(batch)
    first.remove()
    for row in range(4):
        length = {m: int(mask[row].sum()) for m, mask in batch.mask.items()}
        coded = {}
        for m in ("audio", "vision"):
            frames = batch.frames[m][row, : length[m]].double().numpy()
            mean, std = (np.array(values) for values in spec.moments[m])
            apart = np.linalg.norm(
                ((frames - mean) / std)[:, None] - spec.codebooks[m].astype(np.float64), axis=-1
            )
            coded[m] = restated.weights[f"fronts.{m}.words.weight"][apart.argmin(1)]
        hidden = before[0][row, : length["text"]].double().numpy()
        wanted = restated.enhance(hidden, coded, scale or 16**-0.5, mode)
        np.testing.assert_allclose(after[0][row, : length["text"]], wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_reading_keeps_the_shape_of_the_query() -> None:
    torch.manual_seed(0)
    memory = ExternalMemory(6, 5, None)
    for shape in ((4, 6), (4, 1, 6), (4, 3, 6)):
        read, share = memory(torch.randn(shape))
        assert read.shape == shape
        torch.testing.assert_close(share.sum(-1), torch.ones(shape[:-1]))


@torch.no_grad()
def test_frames_count_for_the_nearest_centre_and_padding_for_the_zero_word(spec: DataSpec) -> None:
    centres = torch.from_numpy(spec.codebooks["audio"])
    codes = Codes(centres, 4, frame_mask=True)
    frames = centres[[3, 0, 3, 7]][None] + 0.01
    words, counts = codes(frames, torch.tensor([[True, True, True, False]]))
    assert torch.equal(words, codes.words.weight)
    assert not words[-1].any()
    wanted = torch.zeros(1, len(centres) + 1)
    wanted[0, [0, 3, -1]] = torch.tensor([1.0, 2, 1])
    assert torch.equal(counts, wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert codes.nearest(frames).tolist() == [[3, 0, 3, 7]]


@torch.no_grad()
def test_layers_before_the_injection_see_text_only(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances(3)
    other = replace(
        batch,
        frames=batch.frames
        | {"audio": batch.frames["audio"].flip(0) * batch.mask["audio"][..., None]},
    )
    for layer in range(3):
        model = build(spec, layer=layer).eval()
        seen: list[torch.Tensor] = []
        for block in model.text.layers:
            block.register_forward_hook(lambda module, inputs, out, seen=seen: seen.append(out))
        model(batch)
        model(other)
        for number in range(3):
            assert torch.equal(seen[number], seen[3 + number]) == (number < layer)


@torch.no_grad()
@pytest.mark.parametrize("front", ["codes", "mlp"])
def test_padding_that_takes_part_is_that_of_the_file_and_not_of_the_batch(
    front: str, spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    """Without the mask, batches of any length give what they give padded to the data's longest."""
    batch = make_utterances(3)
    score = build(spec, front=front, frame_mask=False).eval()(batch).score
    for by in (1, 2):
        longer = build(spec, front=front, frame_mask=False).eval()(padded(batch, by)).score
        torch.testing.assert_close(longer, score)
    masked = build(spec, front=front).eval()(batch).score
    assert not torch.allclose(masked, score)


@pytest.mark.parametrize(
    "changes",
    [
        {"enhance": False},
        {"memory": ()},
        {"memory": ("text",)},
        {"memory": ("audio", "vision")},
        {"front": "mlp"},
        {"modalities": ("text", "audio")},
        {"frame_mask": False},
        {"freeze_embeddings": True},
        {"squared": True},
        {"memory_mode": "replace"},
    ],
)
def test_switches_leave_no_idle_parameter(
    changes: dict[str, Any], spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances(5)
    model = build(spec, **changes)
    sum(model.losses(model(batch), batch).values()).backward()  # type: ignore[union-attr]
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert bool(frozen) == (changes == {"freeze_embeddings": True})


def test_text_features_work_with_the_small_encoder(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    model = build(replace(spec, features=spec.features | {"text": 7}))
    assert model(make_utterances(3, text=7)).score.isfinite().all()


def test_entropy_of_reads_is_reported_over_real_places(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances(5)
    model = build(spec).train()
    with torch.no_grad():
        for memory in model.memories.values():
            memory.query.weight.zero_()
            memory.query.bias.zero_()  # all slots alike
    model.losses(model(batch), batch)
    assert model.report() == pytest.approx(
        dict.fromkeys((f"{m}_memory_entropy" for m in model.memories), np.log(8))
    )
    assert model.entropy[:, 1].tolist() == [int(batch.mask[m].sum()) for m in model.memories]
    model.begin_epoch(1)
    assert set(model.report().values()) == {0.0}


def test_any_bert_is_enhanced_and_has_its_own_group(
    spec: DataSpec, make_utterances: MakeUtterances, minilm: Path
) -> None:
    batch = make_utterances(3)
    model = build(replace(spec, vocab_size=30522), text=TextConfig(source=str(minilm)))
    sum(model.losses(model(batch), batch).values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in model.parameters())
    assert set(model.param_groups()) == {"text", "text_no_decay", "main"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 3}, "layer=3, but the text encoder has 3 layers"),
        ({"front": "vae"}, "front\\n.*should be 'codes' or 'mlp'"),
        ({"memory_mode": "add"}, "memory_mode\\n.*should be 'residual' or 'replace'"),
        ({"modalities": ("audio",)}, "must hold text"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str, spec: DataSpec) -> None:
    with pytest.raises(ValueError, match=message):
        build(spec, **changes)


def test_missing_codebooks_are_asked_for(spec: DataSpec) -> None:
    with pytest.raises(
        ValueError, match="codebook of audio; make it with: python -m data_shards.codebook DIR"
    ):
        build(replace(spec, codebooks={}))
    with pytest.raises(ValueError, match="no layers where BERT has them"):
        build(replace(spec, features=spec.features | {"text": 7}), text=TextConfig(source="given"))
