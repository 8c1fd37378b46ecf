"""Self-MM's unimodal tasks: which there are, human labels for them, and what is kept of each
sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from core.batch import Utterances
from core.model import DataSpec
from core.models.label_memory import FUSION
from core.models.self_mm import SelfMM

MakeUtterances = Callable[..., Utterances]
HUMAN = ("text", "audio", "vision")


def labelled(batch: Utterances) -> Utterances:
    """With human labels: the text's a little above the common one, the audio's unknown of sample
    2."""
    audio = batch.label / 2
    audio[2] = torch.nan
    human = {"text": batch.label + 0.5, "audio": audio, "vision": -batch.label}
    return replace(batch, unimodal_labels=human)


def step(model: SelfMM, batch: Utterances) -> dict[str, float]:
    """One batch through the model and its memory: the losses."""
    output = model(batch)
    losses = model.losses(output, batch)
    model.update_memory_bank(model.memory_bank_rows(output, batch))
    return {name: float(value.detach()) for name, value in losses.items()}


@pytest.mark.parametrize("tasks", [(), ("text",), ("text", "audio"), HUMAN])
def test_tasks_are_left_out_and_the_input_stays_whole(
    tasks: tuple[str, ...], spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances()
    torch.manual_seed(0)
    whole = SelfMM(SelfMM.Config(), spec).eval()
    torch.manual_seed(0)
    model = SelfMM(SelfMM.Config(tasks=tasks), spec).eval()
    assert torch.equal(model(batch).score, whole(batch).score)
    assert set(model(batch).views) == set(tasks)
    model.train()
    for _ in range(3):
        losses = step(model, batch)
    assert set(losses) == {"task", *tasks}
    assert all(losses[m] > 0 for m in tasks)
    assert model.resting_losses() == set(tasks)
    assert {name.rpartition("_")[2] for name in model.sample_record()} == {FUSION, *tasks}


def test_a_task_of_a_modality_that_is_not_read_is_refused(spec: DataSpec) -> None:
    with pytest.raises(
        ValueError, match="tasks=vision names vision, which options.modalities=text"
    ):
        SelfMM(SelfMM.Config(modalities=("text", "audio"), tasks=("vision",)), spec)
    alone = SelfMM(SelfMM.Config(modalities=("text",)), spec)
    assert alone.tasks == ["text"]


def test_human_labels_are_learnt_as_they_are(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = labelled(make_utterances())
    config = SelfMM.Config(labels="human", drop_text=0.0, drop_audio=0.0)
    model = SelfMM(config, replace(spec, unimodal_labels=HUMAN)).train()
    output = model(batch)
    losses = model.losses(output, batch)
    expected = (output.views["text"] - batch.unimodal_labels["text"]).abs().mean()
    torch.testing.assert_close(losses["text"], expected)
    error = (output.views["audio"] - batch.unimodal_labels["audio"]).abs()
    torch.testing.assert_close(losses["audio"], error.nansum() / len(batch))
    assert model.resting_losses() == set()
    assert model.report() == {}


def test_human_labels_of_a_modality_that_a_sample_lacks_are_not_learnt(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = labelled(make_utterances())
    for m in ("audio", "vision"):
        batch.mask[m][:] = False
        batch.present[m][:] = False
    model = SelfMM(SelfMM.Config(labels="human"), replace(spec, unimodal_labels=HUMAN)).train()
    losses = step(model, batch)
    assert losses["audio"] == losses["vision"] == 0
    assert losses["text"] > 0


def test_data_without_human_labels_are_refused(spec: DataSpec) -> None:
    with pytest.raises(ValueError, match="human labels of text, audio, vision, .* no modality"):
        SelfMM(SelfMM.Config(labels="human"), replace(spec, unimodal_labels=()))
    only_text = replace(spec, unimodal_labels=("text",))
    SelfMM(SelfMM.Config(labels="human", tasks=("text",)), only_text)


def test_the_record_has_the_labels_of_now_and_the_scores_of_this_epoch(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances()
    model = SelfMM(SelfMM.Config(drop_text=0.0, drop_audio=0.0), spec).train()
    for epoch in range(3):
        model.begin_epoch(epoch)
        step(model, batch)
    record = model.sample_record()
    assert {len(values) for values in record.values()} == {spec.num_train}
    met = batch.index
    assert torch.equal(record["label_fusion"][met], batch.label)
    generated = model.memory.labels("audio", met, batch.label)
    assert torch.equal(record["label_audio"][met], generated)
    assert (generated - batch.label).abs().max() > 0
    views = model(batch).views
    torch.testing.assert_close(record["score_audio"][met], views["audio"].detach())
    unmet = torch.arange(len(batch), spec.num_train)
    assert all(values[unmet].isnan().all() for values in record.values())
    model.begin_epoch(3)
    assert "score_audio" not in model.sample_record()


def test_the_record_of_human_labels_is_theirs(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = labelled(make_utterances())
    model = SelfMM(SelfMM.Config(labels="human"), replace(spec, unimodal_labels=HUMAN)).train()
    step(model, batch)
    record = model.sample_record()
    assert torch.equal(record["label_text"][batch.index], batch.unimodal_labels["text"])
    assert record["label_audio"][2].isnan()
    assert not record["score_audio"][2].isnan()


def test_nothing_is_recorded_where_nobody_asks(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances()
    model = SelfMM(SelfMM.Config(record=False), spec).train()
    step(model, batch)
    assert model.sample_record() == {}
    assert not any("score" in name for name in model.memory_bank_rows(model(batch), batch))
