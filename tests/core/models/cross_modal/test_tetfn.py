"""TETFN: its network restated in NumPy, its labels, and classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from contracts import remember, still
from restated import Array, Restated

from core.batch import Utterances
from core.encoders.text import TextConfig
from core.model import DataSpec
from core.models.cross_modal.tetfn import TETFN

MakeUtterances = Callable[..., Utterances]
SMALL = {"width": 6, "heads": 2, "audio_hidden": 4, "vision_hidden": 3, "kernels": (1, 3, 5)}
TEXT = TextConfig(width=16, layers=1, heads=2)
MODALITIES = ("text", "audio", "vision")


def build(spec: DataSpec, **changes: object) -> TETFN:
    torch.manual_seed(0)
    model = TETFN(TETFN.Config(**SMALL, text=TEXT, **changes), spec)
    still(model)
    return model


def restated_scores(
    model: TETFN, spec: DataSpec, aligned: dict[str, Array], everywhere: bool
) -> dict[str, Array]:
    """Fused and unimodal scores of one sample from its aligned frames, (T, width) by modality."""
    restated = Restated(model)

    def look(at: str, query: str, x: Array, key: str, source: Array | None, layers: int, on: bool):
        offset = abs(spec.max_length[key] - spec.max_length[query])
        return restated.encode(f"{at}.", x, source, 2, layers, True, offset, placed=on)

    def summary(m: str) -> Array:
        views = []
        for other in MODALITIES:
            x, source = aligned[m], aligned[other]
            if other == m:
                continue
            if "text" in (m, other):
                views.append(look(f"cross.{m}_{other}", m, x, other, source, 2, everywhere))
                continue
            # the source looks at the text first, then the target at what came of it
            source = look(f"lower.{m}_{other}", other, source, "text", aligned["text"], 1, True)
            views.append(look(f"upper.{m}_{other}", m, x, other, source, 2, True))
        return look(f"own.{m}", m, np.concatenate(views, 1), m, None, 2, everywhere)[-1]

    encoded = {m: x.max(0) for m, x in aligned.items()}
    encoded["fusion"] = np.concatenate([summary(m) for m in MODALITIES])
    scores = {}
    for view, x in encoded.items():
        for name in ("first", "second"):
            x = np.maximum(restated.linear(f"heads.{view}.{name}", x), 0)
        scores[view] = restated.linear(f"heads.{view}.score", x)[0]
    return scores


@torch.no_grad()
@pytest.mark.parametrize("positions", ["everywhere", "text_enhanced"])
def test_scores_are_the_paper_restated(
    positions: str, spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    """LSTMs, convolutions, both kinds of cross-modal encoder and heads: sample by sample, without
    padding."""
    batch = make_utterances(3)
    model = build(spec, positions=positions).eval()
    restated = Restated(model)
    output = model(batch)
    frames, _ = model.inputs(batch)
    frames["text"] = model.text(frames["text"], batch.mask["text"])[0]
    for row in range(3):
        aligned = {}
        for m in MODALITIES:
            x = frames[m][row][batch.mask[m][row]].double().numpy()
            states = x if m == "text" else restated.lstm(f"lstm.{m}", x)
            aligned[m] = restated.convolve(f"first.{m}", states)
        wanted = restated_scores(model, spec, aligned, positions == "everywhere")
        found = {m: float(score[row]) for m, score in output.views.items()}
        assert found | {"fusion": float(output.score[row])} == pytest.approx(wanted, abs=2e-5)


def test_unimodal_heads_learn_generated_labels_within_the_label_range(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    """Half of the range, not 3, on labels in [-1, 1]."""
    batch = make_utterances()
    batch = replace(batch, label=batch.label / 3)
    model = build(replace(spec, label_range=(-1.0, 1.0))).train()
    first = model.losses(model(batch), batch)
    assert first["audio"] == first["vision"] == first["text"] == 0
    for epoch in range(3):
        model.begin_epoch(epoch)
        remember(model, batch)
    losses = model.losses(model(batch), batch)
    assert all(losses[m] > 0 for m in MODALITIES)
    assert model.memory is not None
    assert model.memory.limit == 1
    assert model.report()["audio_label_drift"] > 0


def test_classes_have_no_unimodal_labels(spec: DataSpec, make_utterances: MakeUtterances) -> None:
    batch = replace(make_utterances(), label=torch.arange(8) % 3)
    model = build(replace(spec, num_classes=3)).train()
    output = model(batch)
    losses = model.losses(output, batch)
    assert output.score.shape == (8, 3)
    assert set(losses) == {"task"}
    assert model.remarks()
    assert not model.memory_bank_rows(output, batch)
    assert not build(spec).remarks()


def test_rates_are_by_modality(spec: DataSpec) -> None:
    named = build(spec).param_groups()
    assert set(named) == {"audio", "vision", "main"}
    assert len(named["audio"]) == 5  # four of the LSTM, one of the convolution
