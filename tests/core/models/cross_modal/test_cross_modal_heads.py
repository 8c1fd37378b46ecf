"""What all cross-modal models answer: a score, or the logits of classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from contracts import losses_of, total
from small_models import small_options

from core.batch import Utterances
from core.model import DataSpec
from core.models import MODELS

CROSS_MODAL = sorted(name for name, model in MODELS.items() if ".cross_modal." in model.__module__)


def test_there_are_six() -> None:
    assert CROSS_MODAL == ["almt", "bbfn", "lnln", "mag_bert", "mult", "tetfn"]


@pytest.mark.parametrize("name", CROSS_MODAL)
def test_labels_may_be_classes(
    name: str, spec: DataSpec, make_utterances: Callable[..., Utterances]
) -> None:
    """One logit a class, the cross-entropy as the task's loss, and gradients for every weight."""
    torch.manual_seed(0)
    label = torch.tensor([0, 1, 2, 2, 1, 0, 1])
    batch = make_utterances(7, label=label)
    model = MODELS[name](small_options(name), replace(spec, num_classes=3)).eval()
    score = model(batch).score
    assert score.shape == (7, 3)
    losses = losses_of(model, [batch])
    wanted = torch.nn.functional.cross_entropy(score, label)
    torch.testing.assert_close(losses["task"], wanted)
    total(losses_of(model.train(), [batch])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key


@pytest.mark.parametrize("name", CROSS_MODAL)
def test_fewer_modalities_make_a_smaller_model(
    name: str, spec: DataSpec, make_utterances: Callable[..., Utterances]
) -> None:
    torch.manual_seed(0)
    batch = make_utterances(5)
    whole = MODELS[name](small_options(name), spec)
    model = MODELS[name](small_options(name, modalities=("vision", "text")), spec).eval()
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in whole.parameters())
    score = model(batch).score
    changed = {**batch.frames, "audio": torch.zeros_like(batch.frames["audio"])}
    assert torch.equal(model(replace(batch, frames=changed)).score, score)
    assert score.shape == (5,)
