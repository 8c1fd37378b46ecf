"""Graph-MFN: golden values, that its graph is trained and saved, and the efficacies that it
reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden import TO_1E_7, fill, fill_linear, filled, wave
from small_models import small_options
from torch import Tensor, nn

from core.batch import Utterances
from core.model import DataSpec
from core.models.fusion.gated_memory import GatedMemory, two_layers
from core.models.fusion.graph_mfn import FusionGraph, GraphFusion, GraphMFN

MakeUtterances = Callable[..., Utterances]
WIDTH = {"text": 3, "audio": 2, "vision": 2}
SIZES: dict[str, Any] = {
    "text_hidden": 3,
    "audio_hidden": 2,
    "vision_hidden": 2,
    "memory": 3,
    "inner": 3,
    "proposal_hidden": 3,
    "retain_hidden": 4,
    "update_hidden": 3,
    "out_hidden": 4,
    "efficacy": "linear",
}
NODES = ["text_audio", "text_vision", "audio_vision", "text_audio_vision"]


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


def golden_fusion() -> tuple[GraphFusion, nn.Module]:
    config = GraphMFN.Config(**SIZES)
    fusion = GraphFusion(WIDTH, WIDTH, config).double().eval()
    for k, lstm in zip((0, 4, 8), fusion.lstms.values(), strict=True):
        fill(lstm.parameters(), k)
    for k, layer in zip((12, 14, 16), fusion.pairs.values(), strict=True):
        fill_linear(layer, k)
    fill(fusion.memory.propose.parameters(), 18)
    fill_gate(fusion.memory, "retain", 22)
    fill_gate(fusion.memory, "update", 26)
    for k, node in zip((40, 44, 48, 52), NODES, strict=True):
        fill(fusion.graph.nodes[node].parameters(), k, scale=0.1)
    fill(fusion.graph.readout.parameters(), 56, scale=0.1)
    fill(fusion.graph.efficacies.parameters(), 60, scale=0.1)
    predict = two_layers(10, 4, 1, 0.0).double()
    fill(predict.parameters(), 30)
    return fusion, predict


def frames() -> dict[str, Tensor]:
    return {"text": wave(0, 2, 4, 3), "audio": wave(1, 2, 4, 2), "vision": wave(2, 2, 4, 2)}


@torch.no_grad()
def test_golden_values_with_linear_efficacies_as_released() -> None:
    fusion, predict = golden_fusion()
    readouts = []
    fusion.graph.register_forward_hook(lambda *found: readouts.append(found[2][0]))
    fused, efficacies = fusion(frames(), torch.ones(2, 4, dtype=torch.bool))
    assert efficacies.shape == (2, 4, 19)
    wanted = [0.03631600, -0.07276451, -0.12528330, -0.06493489, -0.06172082, -0.13455342]
    found = efficacies[0, -1, :6]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), **TO_1E_7)
    wanted = [0.23637446, -0.11565232, -0.11246715]
    found = readouts[0][0, -1]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), **TO_1E_7)
    score = torch.tensor([[1.30237064], [1.30399651]], dtype=torch.float64)
    torch.testing.assert_close(predict(fused), score, **TO_1E_7)


def test_the_graph_is_fed_by_proper_subsets_and_read_from_everywhere() -> None:
    graph = FusionGraph(WIDTH, 5, 3, "sigmoid")
    assert list(graph.nodes) == NODES
    assert len(graph.edges) == 2 + 2 + 2 + 6 + 7
    into_all = [source for source, target in graph.edges if target == "text_audio_vision"]
    assert into_all == ["text", "audio", "vision", *NODES[:3]]
    assert [source for source, target in graph.edges if target == "readout"] == [*WIDTH, *NODES]
    _, efficacies = graph({m: torch.randn(2, 4, width) for m, width in WIDTH.items()})
    assert ((efficacies > 0) & (efficacies < 1)).all()


@pytest.mark.parametrize("modalities", [("text",), ("text", "vision")])
def test_fewer_modalities_have_a_smaller_graph(
    modalities: tuple[str, ...], spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    model = GraphMFN(small_options("graph_mfn", modalities=modalities), spec)
    assert len(model.fusion.graph.edges) == {1: 1, 2: 5}[len(modalities)]
    assert model(make_utterances()).score.isfinite().all()


def test_every_node_is_saved_and_changes_with_a_step(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    model, batch = GraphMFN(small_options("graph_mfn"), spec), make_utterances()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    of_nodes = [name for name in before if ".graph." in name]
    assert len(of_nodes) == 4 * (4 + 1) + 6
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.losses(model(batch), batch)["task"].backward()
    optimizer.step()
    for name in of_nodes:
        assert not torch.equal(model.state_dict()[name], before[name]), name


def test_mean_efficacies_of_an_epoch_are_reported(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    model, batch = GraphMFN(small_options("graph_mfn"), spec).train(), make_utterances()
    assert model.report() == {}
    output = model(batch)
    for rows in (slice(0, 3), slice(3, 8)):
        part = {name: value[rows] for name, value in model.memory_bank_rows(output, batch).items()}
        model.update_memory_bank(part)
    found = model.report()
    wanted = output.efficacies.mean(0).tolist()
    assert list(found.values()) == pytest.approx(wanted)
    assert "efficacy_text_audio_to_readout" in found
    model.begin_epoch(1)
    assert model.report() == {}
    assert model.eval().memory_bank_rows(output, batch) == {}
