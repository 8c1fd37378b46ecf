"""Human labels of single modalities: what they cost, and what is said where the data have none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from core.encoders.inputs import refuse_without_unimodal_labels
from core.losses.labels import unimodal_loss
from core.model import DataSpec


def test_a_sample_without_a_human_label_costs_nothing_and_pulls_nowhere() -> None:
    score = torch.tensor([0.5, -1.0, 2.0], requires_grad=True)
    human = torch.tensor([1.0, torch.nan, 1.5])
    loss = unimodal_loss(score, human)
    torch.testing.assert_close(loss, torch.tensor([0.5, 0.0, 0.5]))
    loss.sum().backward()
    assert score.grad is not None
    assert score.grad.tolist() == [-1.0, 0.0, 1.0]


def test_data_without_human_labels_are_refused_by_name(spec: DataSpec) -> None:
    labelled = replace(spec, unimodal_labels=("text", "audio"))
    refuse_without_unimodal_labels(labelled, "mtfn", ("text", "audio"))
    with pytest.raises(
        ValueError, match="mtfn .* vision, .* have them of text, audio; .*label_vision"
    ):
        refuse_without_unimodal_labels(labelled, "mtfn", ("text", "audio", "vision"))


def test_outputs_are_classes_targets_or_one_score(spec: DataSpec) -> None:
    assert spec.num_outputs == 1
    assert replace(spec, num_classes=3).num_outputs == 3
    assert replace(spec, target_names=("joy", "fear")).num_outputs == 2
