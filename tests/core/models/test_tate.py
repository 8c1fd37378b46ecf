"""TATE: tags, pair spaces, block and losses restated in NumPy, and the frozen teacher."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from core.batch import Utterances
from core.encoders.text import TextConfig
from core.model import DataSpec
from core.models.tate import TATE, TEACHER_OPTIONS, TEACHER_WEIGHTS, Block

MakeUtterances = Callable[..., Utterances]
Array = np.ndarray
SMALL = TATE.Config(width=12, heads=2, text=TextConfig(width=16, layers=1, heads=2))


def build(data: DataSpec, **changes: Any) -> TATE:
    torch.manual_seed(8)
    return TATE(replace(SMALL, **changes), data)


def without(batch: Utterances, *modalities: str) -> Utterances:
    """Whole modalities dropped from every sample."""
    return replace(batch, present=batch.present | {m: batch.mask[m] & False for m in modalities})


def export(model: TATE, folder: Path) -> None:
    folder.mkdir()
    (folder / TEACHER_OPTIONS).write_text(json.dumps(asdict(model.config)))
    save_file(model.state_dict(), folder / TEACHER_WEIGHTS)


class Restated:
    def __init__(self, module: torch.nn.Module):
        self.weights = {name: value.double().numpy() for name, value in module.state_dict().items()}

    def linear(self, name: str, x: Array) -> Array:
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0)

    def norm(self, name: str, x: Array) -> Array:
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-8)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def block(self, at: str, x: Array, heads: int, there: Array) -> Array:
        query, key, value = (
            self.linear(f"{at}.attention.{part}", x).reshape(len(x), heads, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        score = np.where(
            there[None, None], query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1]), -(2.0**32) + 1
        )
        share = np.exp(score - score.max(-1, keepdims=True))
        share = share / share.sum(-1, keepdims=True) * there[None, :, None]
        y = self.norm(
            f"{at}.norm_attention", (share @ value).swapaxes(0, 1).reshape(len(x), -1) + x
        )
        fed = self.linear(f"{at}.feed.2", np.maximum(self.linear(f"{at}.feed.0", y), 0))
        return self.norm(f"{at}.norm_feed", y + fed)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@torch.no_grad()
def test_network_and_losses_are_the_spec_restated(
    spec: DataSpec, make_utterances: MakeUtterances, tmp_path: Path
) -> None:
    spec = replace(spec, moments={})
    batch = without(make_utterances(3), "audio")
    torch.manual_seed(1)
    teacher = TATE(replace(SMALL, dropout=0.0), spec).eval()
    export(teacher, tmp_path / "teacher")
    model = build(spec, teacher=str(tmp_path / "teacher"))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    output = model.train()(batch)
    restated = Restated(model)
    text = model.text(batch.frames["text"], batch.mask["text"])[0]
    found: dict[str, list[float]] = {"forward": [], "backward": [], "tag": []}
    for row in range(3):
        length = {m: int(mask[row].sum()) for m, mask in batch.mask.items()}
        raw = {
            "vision": batch.frames["vision"][row, : length["vision"]].double().numpy(),
            "audio": np.zeros((length["audio"], 5)),
            "text": text[row, : length["text"]].double().numpy(),
        }
        e = {}
        for m, x in raw.items():
            there = np.abs(x).sum(1) > 0
            e[m] = restated.block(f"encoders.{m}", restated.linear(f"into.{m}", x), 2, there)

        def space(pair: str, x: Array) -> Array:
            return restated.linear(f"pairs.{pair}", x)

        tokens = np.concatenate(
            [
                np.concatenate(
                    [space("vision_audio", e["vision"]), space("vision_text", e["vision"])], 1
                ),
                np.concatenate(
                    [space("vision_audio", e["audio"]), space("audio_text", e["audio"])], 1
                ),
                np.concatenate(
                    [space("vision_text", e["text"]), space("audio_text", e["text"])], 1
                ),
            ]
        )
        tag = np.array([0.0, 0, 1, 0])
        x = np.concatenate([tokens, np.tile(tag, (len(tokens), 1))], 1)
        everywhere = np.ones(len(x), bool)
        h = restated.block("joint", x, 2, everywhere)
        d = restated.block("decoder", h, 2, everywhere)
        u = restated.linear("pool.value", h) / (1 + np.exp(-restated.linear("pool.gate", h)))
        p = softmax(restated.linear("pool.score", u)[:, 0]) @ h
        score = restated.linear("answer", restated.linear("narrow", p))[0]
        there = output.mask[row]
        np.testing.assert_allclose(output.joint[row][there], x, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(output.hidden[row][there], h, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(float(output.score[row]), score, rtol=1e-3, atol=1e-3)

        def apart(left: Array, right: Array) -> float:
            left, right = softmax(left).clip(1e-7, 1), softmax(right).clip(1e-7, 1)
            return float((left * np.log(left / right) + right * np.log(right / left)).sum(1).mean())

        shown = teacher(replace(batch, present=batch.mask)).hidden[row][there].double().numpy()
        found["forward"].append(apart(h, shown))
        found["backward"].append(apart(d, x))
        found["tag"].append(float(np.abs(tag - 1 / (1 + np.exp(-p[-4:]))).mean()))
    losses = {name: float(value) for name, value in model.losses(output, batch).items()}
    answer = model.answer
    wanted = {name: 0.1 * float(np.mean(values)) for name, values in found.items()}
    wanted["task"] = float((output.score - batch.label).abs().mean())
    wanted["norm"] = 1e-4 / 2 * float(answer.weight.square().sum() + answer.bias.square().sum())
    assert losses == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize(
    ("missing", "tag"),
    [
        ((), [1, 0, 0, 0]),
        (("vision",), [0, 1, 0, 0]),
        (("audio",), [0, 0, 1, 0]),
        (("text",), [0, 0, 0, 1]),
        (("audio", "text"), [0, 0, 1, 1]),
        (("vision", "text"), [0, 1, 0, 1]),
        (("vision", "audio"), [0, 1, 1, 0]),
    ],
)
@torch.no_grad()
def test_tags_name_what_is_missing(
    missing: tuple[str, ...], tag: list[int], spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    """Each sample's own, whether a modality was dropped or never there."""
    whole = make_utterances(4)
    part = without(whole, *missing)
    mixed = replace(
        whole,
        present={m: torch.cat([part.present[m][:2], whole.mask[m][2:]]) for m in whole.mask},
        mask={
            m: torch.cat([whole.mask[m][:1], part.present[m][1:2], whole.mask[m][2:]])
            for m in whole.mask
        },
    )
    model = build(spec)
    assert model(mixed).tag.tolist() == [tag, tag, [1, 0, 0, 0], [1, 0, 0, 0]]
    assert build(spec, tag_mode="constant")(mixed).tag.tolist() == [[0, 0, 0, 1]] * 4


@torch.no_grad()
def test_time_has_no_order(spec: DataSpec, make_utterances: MakeUtterances) -> None:
    batch = make_utterances(1)
    model = build(spec).eval()
    vision, length = batch.frames["vision"].clone(), int(batch.mask["vision"].sum())
    vision[:, :length] = vision[:, :length].flip(1)
    turned = model(replace(batch, frames=batch.frames | {"vision": vision}))
    torch.testing.assert_close(turned.pooled, model(batch).pooled, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_pair_shares_one_space(spec: DataSpec, make_utterances: MakeUtterances) -> None:
    batch = make_utterances(2)
    model = build(spec).eval()
    before, mask, _ = model._tokens(batch)
    model.pairs["vision_audio"].weight += 1
    after, _, _ = model._tokens(batch)
    widths = [batch.mask[m].shape[1] for m in ("vision", "audio", "text")]
    same = [
        torch.equal(a, b)
        for a, b in zip(before.split(widths, 1), after.split(widths, 1), strict=True)
    ]
    assert same == [False, False, True]


@torch.no_grad()
def test_a_missing_modality_gives_one_and_the_same_token(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = without(make_utterances(3), "vision")
    tokens, mask, _ = build(spec).eval()._tokens(batch)
    longest = batch.mask["vision"].shape[1]
    found = tokens[:, :longest][mask[:, :longest]]
    assert len(found) > 1
    torch.testing.assert_close(found, found[:1].expand_as(found))


@torch.no_grad()
def test_giving_back_the_input_costs_nothing_when_it_is_given_back(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances(3)
    model = build(spec)
    output = model(batch)
    assert model.losses(replace(output, decoded=output.joint), batch)["backward"] == 0
    assert model.losses(output, batch)["backward"] > 0


def test_the_tags_loss_reaches_only_the_last_four_coordinates(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances(3)
    model = build(spec)
    output = model(batch)
    (gradient,) = torch.autograd.grad(model.losses(output, batch)["tag"], output.pooled)
    assert gradient[:, -4:].all()
    assert not gradient[:, :-4].any()


def test_the_teacher_is_frozen_sees_everything_and_is_not_saved(
    spec: DataSpec, make_utterances: MakeUtterances, tmp_path: Path
) -> None:
    """A student that equals its teacher and misses nothing is like it; one that misses something is
    not."""
    batch = make_utterances(4)
    teacher = build(spec, dropout=0.0, text=TextConfig(width=16, layers=1, heads=2, dropout=0.0))
    export(teacher, tmp_path / "teacher")
    student = TATE(replace(teacher.config, teacher=str(tmp_path / "teacher")), spec).train()
    student.load_state_dict(teacher.state_dict())
    student.begin_epoch(0)
    assert student.state_dict().keys() == teacher.state_dict().keys()
    assert len(list(student.parameters())) == len(list(teacher.parameters()))
    complete = student.losses(student(batch), batch)
    assert float(complete["forward"].detach()) == pytest.approx(0, abs=1e-6)
    blind = without(batch, "text")
    losses = student.losses(student(blind), blind)
    assert losses["forward"] > 1e-3
    losses["forward"].backward()
    assert all(p.grad is None and not p.requires_grad for p in student.teacher().parameters())
    assert student.eval()(blind).teacher is None


def test_a_teacher_that_does_not_serve_is_refused_before_the_first_step(
    spec: DataSpec, make_utterances: MakeUtterances, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="has no options.json and no weights.safetensors"):
        build(spec, teacher=str(tmp_path)).begin_epoch(0)
    for name in ("wide", "odd", "cut"):
        export(build(spec, width=20), tmp_path / name)
    student = build(spec, teacher=str(tmp_path / "wide"))
    student.begin_epoch(0)
    with pytest.raises(ValueError, match="train the teacher with the student's width"):
        student(make_utterances(2))
    for content, message in (
        ("[]", "options.json holds a list"),
        ("{", "options.json is no usable JSON"),
        ('{"width": 8, "width": 9}', "the key 'width' is there twice"),
        ('{"width": "wide"}', "options.json: width='wide': Input should be a valid integer"),
    ):
        (tmp_path / "odd" / TEACHER_OPTIONS).write_text(content)
        with pytest.raises(ValueError, match=message):
            build(spec, teacher=str(tmp_path / "odd")).begin_epoch(0)
    (tmp_path / "cut" / TEACHER_WEIGHTS).write_bytes(b"\xff" * 8 + b"{}")
    with pytest.raises(ValueError, match=f"weights in {tmp_path / 'cut'} do not fit"):
        build(spec, teacher=str(tmp_path / "cut")).begin_epoch(0)
    other = replace(spec, features=spec.features | {"audio": 6}, moments={})
    with pytest.raises(ValueError, match="do not fit this data"):
        build(other, teacher=str(tmp_path / "wide")).begin_epoch(0)


@pytest.mark.parametrize(
    "changes",
    [
        {"backward": 0.0, "tag": 0.0},
        {"distance": "mse"},
        {"modalities": ("text", "audio")},
        {"modalities": ("audio",)},
        {"tag_mode": "constant"},
    ],
)
def test_switches_leave_no_idle_parameter(
    changes: dict[str, Any], spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances(3)
    model = build(spec, **changes)
    torch.stack(list(model.losses(model(batch), batch).values())).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("source", ["small", "given"])
def test_classes_are_learnt_by_cross_entropy(
    source: str, spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    data = replace(spec, num_classes=3, features=spec.features | {"text": 16})
    batch = make_utterances(6, text=16, label=torch.tensor([0.0, 1, 2, 2, 1, 0]))
    model = build(data, text=TextConfig(source=source, width=16, layers=1, heads=2))
    output = model(batch)
    assert output.score.shape == (6, 3)
    wanted = torch.nn.functional.cross_entropy(output.score, batch.label.long())
    torch.testing.assert_close(model.losses(output, batch)["task"], wanted)


@torch.no_grad()
def test_a_block_of_padding_gives_a_constant() -> None:
    torch.manual_seed(0)
    block = Block(8, 2, 0.0)
    x = torch.zeros(2, 3, 8)
    found = block(x, torch.zeros(2, 3, dtype=torch.bool))
    torch.testing.assert_close(found, found[:1, :1].expand_as(found))
    assert found.isfinite().all()


def test_what_reads_sound_or_video_can_have_rates_of_its_own(spec: DataSpec) -> None:
    model = build(spec, own_rates=True)
    found = model.param_groups()
    assert set(found) == {"audio", "vision", "main"}  # a small text encoder learns with the rest
    assert sum(len(ps) for ps in found.values()) == len(list(model.parameters()))
    own = [*model.into["audio"].parameters(), *model.encoders["audio"].parameters()]
    assert [id(p) for p in found["audio"]] == [id(p) for p in own]
    assert set(build(spec).param_groups()) == {"main"}


def test_wrong_settings_are_refused(spec: DataSpec) -> None:
    with pytest.raises(ValueError, match="distance\\n.*should be 'kl' or 'mse'"):
        build(spec, distance="js")
    with pytest.raises(ValueError, match="width=13 does not split into the 2 pair spaces"):
        build(spec, width=13)
