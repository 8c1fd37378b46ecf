"""MFN: golden values, an oracle in NumPy step by step, and its clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from golden import TO_1E_7, fill, filled, wave
from small_models import small_options
from torch import Tensor, nn

from core.batch import Utterances
from core.model import DataSpec
from core.models.fusion.gated_memory import GatedMemory, two_layers
from core.models.fusion.mfn import MFN, MemoryFusion, SteppedLSTM

MakeUtterances = Callable[..., Utterances]
WIDTH = {"text": 3, "audio": 2, "vision": 2}
HIDDEN = {"text": 3, "audio": 2, "vision": 2}
SIZES: dict[str, Any] = {
    "text_hidden": 3,
    "audio_hidden": 2,
    "vision_hidden": 2,
    "memory": 3,
    "attention_hidden": 4,
    "proposal_hidden": 3,
    "retain_hidden": 4,
    "update_hidden": 3,
    "out_hidden": 4,
}
EVERYTHING = torch.ones(2, 4, dtype=torch.bool)


def frames() -> dict[str, Tensor]:
    return {"text": wave(0, 2, 4, 3), "audio": wave(1, 2, 4, 2), "vision": wave(2, 2, 4, 2)}


@torch.no_grad()
def fill_lstm(lstm: SteppedLSTM, k: int) -> None:
    """In torch's order: weights of input and state, then their biases."""
    lstm.input.weight.copy_(filled(k, lstm.input.weight.shape))
    lstm.state_weight.copy_(filled(k + 1, lstm.state_weight.shape))
    lstm.input.bias.copy_(filled(k + 2, lstm.input.bias.shape))
    lstm.state_bias.copy_(filled(k + 3, lstm.state_bias.shape))


@torch.no_grad()
def fill_gate(memory: GatedMemory, gate: str, k: int) -> None:
    """One layer on step and memory side by side, whose columns are split here, and one behind."""
    of_memory = memory.get_parameter(f"{gate}_memory")
    shown = memory.get_submodule(f"{gate}_shown")
    hidden, width = shown.weight.shape
    whole = filled(k, (hidden, width + of_memory.shape[1]))
    shown.weight.copy_(whole[:, :width])
    of_memory.copy_(whole[:, width:])
    shown.bias.copy_(filled(k + 1, (hidden,)))
    for number, name in enumerate((f"{gate}_out", f"{gate}_bias"), k + 2):
        parameter = memory.get_parameter(name)
        parameter.copy_(filled(number, parameter.shape))


def golden_fusion() -> tuple[MemoryFusion, nn.Module]:
    fusion = MemoryFusion(WIDTH, HIDDEN, MFN.Config(**SIZES)).double().eval()
    for k, lstm in zip((0, 4, 8), fusion.lstms.values(), strict=True):
        fill_lstm(lstm, k)
    fill(fusion.attend.parameters(), 12)
    fill(fusion.memory.propose.parameters(), 16)
    fill_gate(fusion.memory, "retain", 20)
    fill_gate(fusion.memory, "update", 24)
    predict = two_layers(10, 4, 1, 0.0).double()
    fill(predict.parameters(), 28)
    return fusion, predict


@torch.no_grad()
def test_golden_values() -> None:
    fusion, predict = golden_fusion()
    fused = fusion(frames(), EVERYTHING)
    wanted = [0.07380872, -0.09774282, 0.27299431, -0.12481402, 0.10340467, 0.13849699]
    wanted += [0.14768803, 0.45671796, 0.33407236, 0.22393637]
    torch.testing.assert_close(fused[0], torch.tensor(wanted, dtype=torch.float64), **TO_1E_7)
    score = torch.tensor([[0.32787999], [0.37299503]], dtype=torch.float64)
    torch.testing.assert_close(predict(fused), score, **TO_1E_7)


@torch.no_grad()
def test_golden_values_with_true_lengths() -> None:
    fusion, predict = golden_fusion()
    clock = torch.arange(4) < torch.tensor([4, 2])[:, None]
    score = predict(fusion(frames(), clock))
    wanted = torch.tensor([[0.32787999], [0.35787737]], dtype=torch.float64)
    torch.testing.assert_close(score, wanted, **TO_1E_7)


@torch.no_grad()
def test_the_lstm_is_torchs() -> None:
    ours, torchs = SteppedLSTM(3, 4), nn.LSTM(3, 4, batch_first=True)
    torchs.weight_ih_l0.copy_(ours.input.weight)
    torchs.weight_hh_l0.copy_(ours.state_weight)
    torchs.bias_ih_l0.copy_(ours.input.bias)
    torchs.bias_hh_l0.copy_(ours.state_bias)
    x = torch.randn(2, 5, 3)
    states, cells = ours(x)
    wanted, (_, last_cell) = torchs(x)
    torch.testing.assert_close(states, wanted)
    torch.testing.assert_close(cells[:, -1], last_cell[0])


@torch.no_grad()
def test_dropout_in_the_gates_is_another_one_at_every_step() -> None:
    config = MFN.Config(**SIZES | {"retain_hidden": 1, "memory": 1}, retain_dropout=0.5)
    memory = GatedMemory(3, 2, 0.0, config)
    dropped = []
    memory.retain_dropout.register_forward_hook(lambda *found: dropped.append(found[2]))
    memory(torch.randn(4, 30, 3), torch.ones(4, 30, dtype=torch.bool))
    (kept,) = dropped
    assert kept.shape == (4, 30, 1)
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert (kept[:, 1:] != kept[:, :-1]).any(1).all()
    memory.eval()(torch.randn(4, 30, 3), torch.ones(4, 30, dtype=torch.bool))
    assert dropped[1].unique().tolist() == [1.0]


@pytest.mark.parametrize("module", ["lstm", "memory"])
def test_loops_call_no_module(module: str) -> None:
    """Ranks that share parameters gather them at each call, and have different numbers of steps."""
    made: nn.Module = SteppedLSTM(3, 4)
    if module == "memory":
        made = GatedMemory(3, 2, 0.0, MFN.Config(**SIZES))
    calls = []
    for part in made.modules():
        part.register_forward_hook(lambda *_: calls.append(1))
    counts = []
    for steps in (2, 9):
        calls.clear()
        inputs: tuple[Tensor, ...] = (torch.randn(2, steps, 3),)
        if module == "memory":
            inputs += (torch.ones(2, steps, dtype=torch.bool),)
        made(*inputs)
        counts.append(len(calls))
    assert counts[0] == counts[1]


@torch.no_grad()
def test_the_memory_does_not_move_behind_the_last_word(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    """A sentence scores alike alone and beside a longer one."""
    model = MFN(small_options("mfn"), spec).eval()
    batch = make_utterances()
    alone = [model(batch.map(lambda x, row=row: x[row : row + 1])).score for row in range(8)]
    torch.testing.assert_close(torch.cat(alone), model(batch).score)


@torch.no_grad()
def test_mean_frames_as_released_are_the_same_at_every_step(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances()
    model = MFN(small_options("mfn", mean_frames=True), spec).eval()
    frames, clock = model.clocked(*model.inputs(batch))
    sums = model.inputs(batch)[0]["audio"].sum(1)
    for row, length in enumerate(clock.sum(1).tolist()):
        wanted = (sums[row] / 15).expand(length, -1)
        torch.testing.assert_close(frames["audio"][row, :length], wanted)
    plain = MFN(small_options("mfn"), spec).eval()
    plain.load_state_dict(model.state_dict())
    assert not torch.allclose(plain(batch).score, model(batch).score)


def test_classes_and_fewer_modalities(spec: DataSpec, make_utterances: MakeUtterances) -> None:
    options = small_options("mfn", modalities=("text", "vision"))
    model = MFN(options, replace(spec, num_classes=4)).eval()
    batch = replace(make_utterances(), label=torch.arange(8.0) % 4)
    output = model(batch)
    assert output.score.shape == (8, 4)
    assert model.losses(output, batch)["task"].isfinite()
