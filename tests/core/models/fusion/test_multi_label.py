"""MLF-DNN, MTFN and MLMF: what the heads of single modalities learn, and from which samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from contracts import losses_of, rows
from small_models import small_options

from core.batch import Utterances
from core.model import DataSpec
from core.models import MODELS
from core.models.fusion.unimodal_heads import MultiTask

MakeUtterances = Callable[..., Utterances]
every_one = pytest.mark.parametrize("name", ["mlf_dnn", "mtfn", "mlmf"])


def build(name: str, data: DataSpec, **changes: Any) -> MultiTask:
    torch.manual_seed(0)
    model = MODELS[name](small_options(name, **changes), data)
    assert isinstance(model, MultiTask)
    return model.train()


NO_DROPOUT = {"drop_audio": 0.0, "drop_vision": 0.0, "drop_heads": 0.0}


@every_one
@torch.no_grad()
def test_losses_are_weighted_means_over_the_samples_with_labels(
    name: str, spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances()
    lacking = {m: mask.clone() for m, mask in batch.mask.items()}
    lacking["vision"][5] = False
    batch = replace(batch, mask=lacking, present=lacking)
    weights = {"text": 0.5, "audio": 0.25, "vision": 2.0}
    named = {f"{m}_weight": weight for m, weight in weights.items()}
    model = build(name, spec, fusion_weight=0.3, **named, **NO_DROPOUT)
    counted = replace(batch, loss_denominators=model.loss_denominators(batch))
    output = model(counted)
    found = model.losses(output, counted)
    assert set(found) == {"task", *weights}
    wanted = 0.3 * (output.score - batch.label).abs().mean()
    torch.testing.assert_close(found["task"], wanted)
    for m, weight in weights.items():
        human = batch.unimodal_labels[m]
        known = human.isfinite() & lacking[m].any(1)
        assert 0 < known.sum() < 8
        error = (output.views[m] - human).abs()[known].mean()
        torch.testing.assert_close(found[m], weight * error)


@every_one
def test_a_head_of_weight_zero_is_left_out(
    name: str, spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    model = build(name, spec, text_weight=0.0, audio_weight=0.3, vision_weight=0.0)
    assert set(model.heads) == {"audio"}
    assert set(losses_of(model, [make_utterances()])) == {"task", "audio"}


@every_one
def test_the_answer_is_the_fused_score_alone(
    name: str, spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = replace(make_utterances(), unimodal_labels={})
    model = build(name, spec).eval()
    output = model(batch)
    assert output.views == {}
    assert set(model.losses(output, batch)) == {"task"}


@every_one
def test_data_without_unimodal_labels_are_refused(name: str, spec: DataSpec) -> None:
    with pytest.raises(ValueError, match=f"{name} learns from human labels of text, vision"):
        build(name, replace(spec, unimodal_labels=("audio",)), audio_weight=0.0, text_weight=1.0)
    build(name, replace(spec, unimodal_labels=("text",)), audio_weight=0.0, vision_weight=0.0)


@every_one
def test_a_part_of_a_batch_without_any_label_adds_nothing(
    name: str, spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances()
    nowhere = {m: labels.clone() for m, labels in batch.unimodal_labels.items()}
    for labels in nowhere.values():
        labels[4:] = torch.nan
    batch = replace(batch, unimodal_labels=nowhere)
    model = (
        build(name, spec, drop_fusion=0.0, **NO_DROPOUT)
        if name != "mlmf"
        else build(name, spec, **NO_DROPOUT)
    )
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    whole = losses_of(model, [batch])
    parts = losses_of(model, [rows(batch, slice(0, 4)), rows(batch, slice(4, 8))])
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value)
    nothing = replace(batch, unimodal_labels={m: x * torch.nan for m, x in nowhere.items()})
    found = losses_of(model, [nothing])
    assert all(found[m] == 0 for m in model.heads)


def test_groups_are_those_with_decays_of_their_own(spec: DataSpec) -> None:
    common = {"text_net", "audio", "vision", "main"}
    assert set(build("mlf_dnn", spec).param_groups()) == common
    assert set(build("mtfn", spec).param_groups()) == common
    assert set(build("mlmf", spec).param_groups()) == common | {"factors"}


@every_one
def test_classes_are_answered_by_the_fusion(
    name: str, spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    model = build(name, replace(spec, num_classes=3))
    batch = replace(make_utterances(), label=torch.arange(8.0) % 3)
    assert model(batch).score.shape == (8, 3)
    assert all(value.isfinite() for value in losses_of(model, [batch]).values())
