"""TFR-Net: its encoder, gate and losses restated, SimAM, golden values, and what must not leak."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from contracts import losses_of
from restated import Restated
from tfr_nets import SMALL, build, counted, damaged

from core.batch import Utterances
from core.encoders.cross_attention import Encoder
from core.encoders.text import TextConfig
from core.model import DataSpec
from core.models.tfr_net import TFRNet
from core.models.tfr_net_layers import Gate, simam

MakeUtterances = Callable[..., Utterances]
Array = np.ndarray


@torch.no_grad()
def test_what_is_fused_and_rebuilt_is_the_spec_restated(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    """Convolution, self and cross encoders, rebuilding over the feature axis: sample by sample,
    without padding."""
    batch = damaged(make_utterances(3))
    model = build(spec)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    seen: dict[str, torch.Tensor] = {}
    for m, gate in model.gate.items():
        gate.register_forward_pre_hook(lambda module, inputs, m=m: seen.__setitem__(m, inputs[0]))
    output = model.train()(batch)
    restated = Restated(model)
    frames, _ = model.inputs(batch)
    frames["text"] = model.text(frames["text"], batch.mask["text"])[0]
    for row in range(3):
        length = {m: int(mask[row].sum()) for m, mask in batch.mask.items()}
        aligned = {}
        for m, x in frames.items():
            kernel = restated.weights[f"first.{m}.weight"]  # (d, D, k)
            half = kernel.shape[2] // 2
            raw = np.pad(x[row, : length[m]].double().numpy(), ((half, half), (0, 0)))
            windows = np.stack(
                [raw[k : k + length[m]] for k in range(kernel.shape[2])]
            )  # (k, T, D)
            aligned[m] = np.einsum("ktc,dck->td", windows, kernel)
        for m, x in aligned.items():
            views = [restated.encode(f"own.{m}.", x, None, 2, 2, True, 0)]
            for n, other in aligned.items():
                if n != m:
                    offset = abs(spec.max_length[n] - spec.max_length[m])
                    views.append(restated.encode(f"cross.{m}_{n}.", x, other, 2, 1, True, offset))
            enhanced = np.concatenate(views, 1)
            np.testing.assert_allclose(seen[m][row, : length[m]], enhanced, rtol=1e-3, atol=1e-4)
            assert not seen[m][row, length[m] :].any()
            courses = np.zeros((enhanced.shape[1], spec.max_length[m]))
            courses[:, : length[m]] = enhanced.T
            mixed = restated.encode(f"rebuild.{m}.", courses, None, 1, 2, False, 0).T
            wanted = restated.linear(f"restore.{m}", mixed)[: length[m]]
            np.testing.assert_allclose(
                output.rebuilt[m][row, : length[m]], wanted, rtol=1e-3, atol=1e-3
            )


@torch.no_grad()
def test_the_gate_is_the_spec_restated() -> None:
    torch.manual_seed(0)
    gate = Gate(7, 4, SMALL.gru_layers, SMALL.fusion_dropout).eval()
    x, mask = torch.randn(2, 6, 7), torch.arange(6) < torch.tensor([[6], [4]])
    x = x * mask[..., None]
    weights = {name: value.double().numpy() for name, value in gate.state_dict().items()}

    def sigmoid(v: Array) -> Array:
        return 1 / (1 + np.exp(-v))

    def gru(sequence: Array, suffix: str) -> Array:
        hidden, states = np.zeros(4), []
        at = "states.gru."
        for frame in sequence:
            given = (
                weights[f"{at}weight_ih_l0{suffix}"] @ frame + weights[f"{at}bias_ih_l0{suffix}"]
            )
            kept = (
                weights[f"{at}weight_hh_l0{suffix}"] @ hidden + weights[f"{at}bias_hh_l0{suffix}"]
            )
            reset, update = sigmoid(given[:4] + kept[:4]), sigmoid(given[4:8] + kept[4:8])
            new = np.tanh(given[8:] + reset * kept[8:])
            hidden = (1 - update) * new + update * hidden
            states.append(hidden)
        return np.stack(states)

    for row in range(2):
        sequence = x[row][mask[row]].double().numpy()
        states = np.concatenate([gru(sequence, ""), gru(sequence[::-1], "_reverse")[::-1]], 1)
        wide = np.pad(states, ((1, 1), (0, 0)))
        kernel = weights["gate.weight"][0]  # (2h, 3)
        opened = sigmoid(
            sum(wide[k : k + len(states)] @ kernel[:, k] for k in range(3))
            + weights["gate.bias"][0]
        )
        joined = np.concatenate([sequence, np.tanh(states) * opened[:, None]], 1)
        wanted = np.tanh(joined @ weights["out.weight"].T + weights["out.bias"]).max(0)
        np.testing.assert_allclose(gate(x, mask)[row], wanted, rtol=1e-4, atol=1e-5)


def test_the_target_of_text_gets_no_gradient_unless_asked(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = damaged(make_utterances(4))
    for detach in (True, False):
        target = build(spec, detach=detach).train()(batch).target["text"]
        assert target.requires_grad != detach


def test_nothing_leaks_between_samples(spec: DataSpec, make_utterances: MakeUtterances) -> None:
    """Rebuilt frames of one sample do not depend on another: attention runs over features, not over
    the batch."""
    batch = damaged(make_utterances(4))
    model = build(spec)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train()
    changed = batch.frames["audio"].clone()
    changed[0] *= 3
    before, after = model(batch), model(replace(batch, frames=batch.frames | {"audio": changed}))
    for m in before.rebuilt:
        torch.testing.assert_close(after.rebuilt[m][1:], before.rebuilt[m][1:])
        assert not torch.allclose(after.rebuilt[m][0], before.rebuilt[m][0])


def test_text_is_encoded_once_where_none_of_it_is_dropped(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances(3)
    model = build(spec).train()
    calls: list[int] = []
    model.text.register_forward_hook(lambda *_: calls.append(1))
    model(batch)
    assert len(calls) == 1
    model(damaged(batch))
    assert len(calls) == 3
    model.eval()(damaged(batch))
    assert len(calls) == 4


def test_published_size_is_reached(spec: DataSpec) -> None:
    """For MOSI, unaligned, with a batch norm: 14.5 M parameters in the encoders, 0.26 M in the
    fusion."""
    mosi = replace(
        spec,
        features={"text": 768, "audio": 5, "vision": 20},
        max_length={"text": 50, "audio": 375, "vision": 500},
        moments={},
    )
    model = TFRNet(TFRNet.Config(text=TextConfig(source="given"), norm="batch"), mosi)
    sizes = {
        name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()
    }
    fusion = sizes["gate"] + sizes["classify"]
    assert round(fusion / 1e6, 2) == 0.26
    assert round((sum(sizes.values()) - fusion - sizes["restore"]) / 1e6, 1) == 14.5


@pytest.mark.parametrize(
    "changes",
    [
        {"simam": "conv"},
        {"simam": "enhanced"},
        {"lambdas": (0.0, 0.0, 0.0)},
        {"lambdas": (1.0, 0.0, 1.0)},
        {"modalities": ("text", "audio")},
        {"modalities": ("vision",)},
        {"norm": "batch"},
        {"causal": False},
        {"cmd": 5.0},
        {"cmd": 5.0, "detach": False},
        {"place_dropped": False},
        {"rebuild_heads": 5},
        {"text": TextConfig(width=16, layers=1, heads=2, frozen=True)},
    ],
)
def test_switches_leave_no_idle_parameter(
    changes: dict[str, Any], spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    model = build(spec, **changes).train()
    model.begin_epoch(1)
    batch = damaged(make_utterances(4))
    losses = losses_of(model, [batch])
    torch.stack([value.reshape(()) for value in losses.values()]).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("source", ["small", "given"])
def test_text_features_are_rebuilt_too(
    source: str, spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    data = replace(spec, features=spec.features | {"text": 16})
    model = build(data, text=TextConfig(source=source, width=16, layers=1, heads=2)).train()
    model.begin_epoch(1)
    batch = counted(model, damaged(make_utterances(4, text=16)))
    output = model(batch)
    losses = model.losses(output, batch)
    assert losses["rebuild_text"] > 0
    assert output.rebuilt["text"].shape == output.target["text"].shape
    assert int(output.lost["text"].sum()) == int(batch.loss_denominators["text"])


def test_simam_is_its_closed_form_and_keeps_to_the_mask() -> None:
    golden = [0.733100, 1.362887, 1.932674, 2.499616, 3.124521, 3.865349, 4.770103, 5.864800]
    x = torch.arange(1.0, 9.0)[None, :, None]
    np.testing.assert_allclose(
        simam(x, torch.ones(1, 8, dtype=torch.bool)).flatten(), golden, atol=2e-6
    )
    padded = torch.cat([x, torch.full((1, 3, 1), 50.0)], 1)
    mask = torch.arange(11)[None] < 8
    np.testing.assert_allclose(simam(padded, mask).flatten(), [*golden, 0, 0, 0], atol=2e-6)
    constant = torch.full((1, 5, 2), 2.0)
    torch.testing.assert_close(
        simam(constant, torch.ones(1, 5, dtype=torch.bool)), constant * 0.6224593
    )
    single = simam(constant[:, :1], torch.ones(1, 1, dtype=torch.bool))
    torch.testing.assert_close(single, constant[:, :1] * 0.6224593)
    assert not simam(constant, torch.zeros(1, 5, dtype=torch.bool)).any()


def test_what_reads_sound_or_video_can_have_rates_of_its_own(spec: DataSpec) -> None:
    model = build(spec, own_rates=True)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {group: {names[id(p)] for p in ps} for group, ps in model.param_groups().items()}
    assert set(found) == {"audio", "vision", "main"}  # a small text encoder learns with the rest
    assert sorted(name for group in found.values() for name in group) == sorted(names.values())
    readers = {
        group: {".".join(name.split(".")[:2]) for name in found[group]}
        for group in ("audio", "vision")
    }
    for m, n in (("audio", "vision"), ("vision", "audio")):
        crossed = {f"cross.{m}_text", f"cross.{m}_{n}", f"cross.text_{m}"}
        assert readers[m] == crossed | {
            f"{part}.{m}" for part in ("first", "own", "gate", "rebuild", "restore")
        }
    assert set(build(spec).param_groups()) == {"main"}


def test_wrong_settings_are_refused(spec: DataSpec) -> None:
    with pytest.raises(ValueError, match="simam\\n.*should be 'none', 'conv' or 'enhanced'"):
        build(spec, simam="all")
    with pytest.raises(ValueError, match="needs DataSpec.max_length of audio"):
        build(replace(spec, max_length={"text": 5, "vision": 5}))


def test_an_encoder_of_odd_width_has_positions() -> None:
    assert Encoder(5, 1, 1, 0.0, SMALL)(
        torch.zeros(2, 3, 5), torch.ones(2, 3, dtype=torch.bool)
    ).shape == (2, 3, 5)
