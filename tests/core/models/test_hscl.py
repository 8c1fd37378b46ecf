"""HSCL: its equations restated in NumPy, its golden values, its parity and ablation switches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from core.batch import Utterances
from core.encoders.attention import largest_heads
from core.encoders.text import TextConfig
from core.model import DataSpec, GlobalBatchRows
from core.models.hscl import HSCL, Output

MakeUtterances = Callable[..., Utterances]
Array = np.ndarray
SMALL = HSCL.Config(
    text=TextConfig(width=24, layers=1, heads=4),
    layers=2,
    projection_width=16,
    hidden=16,
    fusion_heads=4,
)


def build(data: DataSpec, **changes: Any) -> HSCL:
    torch.manual_seed(2)
    return HSCL(replace(SMALL, **changes), data)


@torch.no_grad()
def losses(model: HSCL, batch: Utterances) -> dict[str, float]:
    output = model(batch)
    found = model.losses(output, batch) | model.global_batch_losses(
        model.global_batch_rows(output), batch.label, batch.weight
    )
    return {name: float(value) for name, value in found.items()}


class Restated:
    """The paper's network for one sample at a time, without padding, in float64."""

    def __init__(self, model: HSCL):
        self.weights = {name: value.double().numpy() for name, value in model.state_dict().items()}

    def linear(self, name: str, x: Array) -> Array:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attention(self, name: str, x: Array, source: Array, heads: int) -> Array:
        query, key, value = (
            self.linear(f"{name}.{part}", y).reshape(len(y), heads, -1).swapaxes(0, 1)
            for part, y in (("query", x), ("key", source), ("value", source))
        )
        score = query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1])
        share = np.exp(score - score.max(-1, keepdims=True))
        mixed = share / share.sum(-1, keepdims=True) @ value
        return self.linear(f"{name}.out", mixed.swapaxes(0, 1).reshape(len(x), -1))

    def encode(self, m: str, frames: Array, heads: int) -> Array:
        d = frames.shape[1]
        x = np.concatenate([self.weights[f"encoders.{m}.summary"][None], frames])
        position, column = np.arange(len(x))[:, None], np.arange(d)[None]
        angle = position * 10000.0 ** (-2 * (column // 2) / d)
        x = np.sqrt(d) * x + np.where(column % 2 == 0, np.sin(angle), np.cos(angle))
        for layer in range(2):
            at = f"encoders.{m}.layers.{layer}"
            x = self.norm(
                f"{at}.norm_attention", x + self.attention(f"{at}.attention", x, x, heads)
            )
            fed = self.linear(f"{at}.feed.3", np.maximum(self.linear(f"{at}.feed.0", x), 0))
            x = self.norm(f"{at}.norm_feed", x + fed)
        return x

    def fuse(self, m: str, text: Array, other: Array, from_text: bool) -> Array:
        at = f"fuse.{m}"
        hidden = self.norm(f"{at}.norms.0", text + self.attention(f"{at}.itself", text, text, 4))
        crossed = self.attention(f"{at}.other", hidden, other, 4)
        fused = self.norm(f"{at}.norms.1", (text if from_text else hidden) + crossed)
        fed = self.linear(f"{at}.feed.3", np.maximum(self.linear(f"{at}.feed.0", fused), 0))
        return self.norm(f"{at}.norms.2", fused + fed)[0]

    def predict(self, r: Array) -> float:
        for name in ("predict.1", "predict.3"):
            r = np.tanh(self.linear(name, r))
        return float(self.linear("predict.5", r)[0])

    def project(self, view: str, r: Array) -> Array:
        return np.maximum(self.linear(f"project.{view}.1", r), 0)


def supcr(rows: Array, labels: Array, temperature: float) -> float:
    """Naive: every anchor, every other, every candidate."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    n, total = len(rows), 0.0
    for i in range(n):
        for j in range(n):
            if j == i:
                continue
            apart = abs(labels[i] - labels[j])
            candidates = [k for k in range(n) if k != i and abs(labels[i] - labels[k]) >= apart]
            denominator = sum(np.exp(unit[i] @ unit[k] / temperature) for k in candidates)
            total -= np.log(np.exp(unit[i] @ unit[j] / temperature) / denominator)
    return total / (n * (n - 1))


@torch.no_grad()
@pytest.mark.parametrize("residual", ["previous", "text"])
def test_the_network_is_the_papers(
    residual: str, spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    spec = replace(spec, moments={})
    batch = make_utterances(5)
    model = build(spec, residual=residual).eval()
    restated = Restated(model)
    output = model(batch)
    text_states = model.text(batch.frames["text"], batch.mask["text"])[0]
    projected: dict[str, list[Array]] = {view: [] for view in output.projected}
    for row in range(5):
        length = {m: int(mask[row].sum()) for m, mask in batch.mask.items()}
        text = text_states[row, : length["text"]].detach().double().numpy()
        coded = {
            m: restated.encode(m, batch.frames[m][row, : length[m]].double().numpy(), heads)
            for m, heads in (("audio", 1), ("vision", 5))
        }
        summary = {"text": text[0]} | {m: x[0] for m, x in coded.items()}
        summary |= {
            f"text_{m}": restated.fuse(m, text, x, residual == "text") for m, x in coded.items()
        }
        score = restated.predict((summary["text_audio"] + summary["text_vision"]) / 2)
        np.testing.assert_allclose(float(output.score[row]), score, rtol=1e-4, atol=1e-5)
        for view, found in projected.items():
            found.append(restated.project(view, summary[view]))
            np.testing.assert_allclose(
                output.projected[view][row].detach(), found[-1], rtol=1e-4, atol=1e-5
            )

    z, y = (
        {view: np.stack(found) for view, found in projected.items()},
        batch.label.double().numpy(),
    )
    twice = np.concatenate([y, y])

    def contrast(a: str, b: str) -> float:
        return supcr(np.concatenate([z[a], z[b]]), twice, 0.5)

    wanted = {
        "task": np.abs(output.score.detach().numpy() - y).mean(),
        "similarity": 0.01
        * 0.1
        * sum(((z["text"] - z[m]) ** 2).sum(1).mean() for m in ("audio", "vision")),
        "unimodal": 0.01 * (contrast("text", "audio") + contrast("text", "vision")),
        "bimodal": 0.1 * contrast("text_audio", "text_vision"),
    }
    assert losses(model, batch) == pytest.approx(wanted, rel=1e-4)


@torch.no_grad()
def test_golden_values_of_the_contrast_and_the_similarity(spec: DataSpec) -> None:
    left = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    right = torch.tensor([[0.8, 0.6], [0.6, 0.8], [1.0, 1.0]])
    embeddings = {"text": left, "audio": right}
    has_modality = dict.fromkeys(("text", "audio"), torch.ones(3, dtype=torch.bool))
    rows = GlobalBatchRows(embeddings, has_modality, torch.arange(3))
    label = torch.tensor([1.0, -2.0, 0.5])
    for denominator, wanted in (("ik", 1.121675), ("jk", 1.391400)):
        model = build(spec, denominator=denominator)
        loss = model.draw(*model._compared(rows, "text", "audio", label, torch.ones(3)))
        assert float(loss) == pytest.approx(wanted, abs=2e-6)
    for similarity, wanted in (("l2", 0.570708), ("squared", 0.333333)):
        model = build(spec, similarity=similarity)
        output = Output(torch.zeros(3), embeddings, has_modality, torch.arange(3))
        distance = model._distance(output, "text", "audio")
        assert float(distance.mean()) == pytest.approx(wanted, abs=1e-6)


def test_published_numbers_of_heads_follow_from_the_widths() -> None:
    published = {5: 1, 20: 5, 74: 2, 35: 5, 709: 1, 33: 3, 25: 5, 177: 3}
    assert {width: largest_heads(width, 5, narrowest=4) for width in published} == published
    assert [largest_heads(width, 12) for width in (768, 384, 64)] == [12, 12, 8]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"unimodal": False}, {"task", "bimodal"}),
        ({"bimodal": False}, {"task", "similarity", "unimodal"}),
        ({"unimodal": False, "bimodal": False}, {"task"}),
        ({"modalities": ("text",)}, {"task"}),
        ({"modalities": ("audio",)}, {"task"}),
        ({"modalities": ("text", "vision")}, {"task", "similarity", "unimodal"}),
        ({"modalities": ("vision", "audio")}, {"task", "similarity", "unimodal"}),
        ({"contrast": "supcon"}, {"task", "similarity", "unimodal", "bimodal"}),
        ({"contrast": "simclr"}, {"task", "similarity", "unimodal", "bimodal"}),
        ({"text_mask": False}, {"task", "similarity", "unimodal", "bimodal"}),
    ],
)
def test_switches_leave_the_right_losses_and_no_idle_parameter(
    changes: dict[str, Any], names: set[str], spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances(6)
    batch = replace(batch, label=batch.label.round())  # equal labels, so that SupCon has positives
    model = build(spec, **changes)
    output = model(batch)
    found = model.losses(output, batch) | model.global_batch_losses(
        model.global_batch_rows(output), batch.label, batch.weight
    )
    assert set(found) == names
    torch.stack(list(found.values())).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@torch.no_grad()
def test_label_free_contrast_ignores_labels(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances(6)
    model = build(spec, contrast="simclr").eval()
    other = replace(batch, label=-batch.label)
    first, second = losses(model, batch), losses(model, other)
    assert first["unimodal"] == second["unimodal"]
    assert first["bimodal"] == second["bimodal"]

    rows = model(batch).projected
    stacked = nn.functional.normalize(torch.cat([rows["text_audio"], rows["text_vision"]]), dim=1)
    logits = (stacked @ stacked.T / 0.5).fill_diagonal_(-torch.inf)
    partner = torch.arange(12).roll(6)
    wanted = 0.1 * nn.functional.cross_entropy(logits, partner)
    assert first["bimodal"] == pytest.approx(float(wanted), rel=1e-5)


def test_a_random_summary_makes_evaluation_random(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances(4)
    model = build(spec, cls="random").eval()
    assert not torch.equal(model(batch).score, model(batch).score)
    assert not any("summary" in name for name in model.state_dict())


@torch.no_grad()
def test_a_sample_without_sound_takes_no_part_in_contrast_with_sound(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances(6)
    model = build(spec).eval()
    keep = torch.arange(6) > 0
    audio = batch.mask["audio"] & keep[:, None]
    lacking = replace(
        batch, mask=batch.mask | {"audio": audio}, present=batch.present | {"audio": audio}
    )
    rest = replace(batch.map(lambda x: x[1:]), loss_scale=batch.loss_scale)
    z = {view: model(rest).projected[view] for view in ("text", "audio", "vision")}
    of_audio = model.draw(torch.cat([z["text"], z["audio"]]), rest.label.repeat(2))
    whole = model(batch).projected
    of_vision = model.draw(torch.cat([whole["text"], whole["vision"]]), batch.label.repeat(2))
    assert losses(model, lacking)["unimodal"] == pytest.approx(
        0.01 * float(of_audio + of_vision), rel=1e-5
    )


@torch.no_grad()
def test_the_projection_is_linear_in_the_paper_and_behind_a_relu_as_released(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances(4)
    released = build(spec).eval()(batch).projected
    linear = build(spec, projection="linear").eval()(batch).projected
    for view, rows in linear.items():
        assert (rows < 0).any()
        torch.testing.assert_close(released[view], rows.relu())


def test_a_number_for_the_projection_is_its_width_as_in_runs_of_before() -> None:
    for options in (HSCL.Config(projection=24), replace(SMALL, projection=24)):  # type: ignore[arg-type]
        assert (options.projection, options.projection_width) == ("relu", 24)


def test_wrong_settings_are_refused(spec: DataSpec) -> None:
    with pytest.raises(ValueError, match="residual\\n.*should be 'previous' or 'text'"):
        build(spec, residual="E_t")
    with pytest.raises(ValueError, match="modalities.1\\n.*should be 'text', 'audio' or 'vision'"):
        build(spec, modalities=("text", "smell"))
    with pytest.raises(ValueError, match="use options.contrast=supcr or simclr"):
        build(replace(spec, target_names=("joy", "fear")), contrast="supcon")
    with pytest.raises(ValueError, match="use options.denominator=ik for classes"):
        build(replace(spec, num_classes=3), denominator="jk")
