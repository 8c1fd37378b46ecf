"""Recurrent layers as one operator: what torch's own layers give, in a graph without a break."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from core.kernels.recurrence import recur, recurrence

LAYERS: dict[str, Callable[[], nn.LSTM | nn.GRU]] = {
    "LSTM": lambda: nn.LSTM(3, 4, batch_first=True),
    "two LSTMs": lambda: nn.LSTM(3, 4, 2, batch_first=True),
    "LSTM both ways": lambda: nn.LSTM(3, 4, batch_first=True, bidirectional=True),
    "GRUs both ways": lambda: nn.GRU(3, 4, 2, batch_first=True, bidirectional=True),
}
Recur = Callable[..., tuple[Tensor, Tensor]]


def as_operator(layer: nn.LSTM | nn.GRU, frames: Tensor, length: Tensor | None) -> tuple:
    weights = [weight for group in layer.all_weights for weight in group]
    sizes = (layer.mode, layer.hidden_size, layer.num_layers, layer.bidirectional)
    return recurrence(frames, length, weights, *sizes)


def results(
    run: Recur, layer: nn.LSTM | nn.GRU, frames: Tensor, length: Tensor | None
) -> list[Tensor]:
    """States, ends, and the gradients of frames and weights."""
    layer.zero_grad()
    leaf = frames.clone().requires_grad_()
    states, ends = run(layer, leaf, length)
    (states.square().sum() + ends.sin().sum()).backward()
    gradients = []
    for tensor in (leaf, *layer.parameters()):
        assert tensor.grad is not None
        gradients.append(tensor.grad)
    return [states.detach(), ends.detach(), *gradients]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("packed", [False, True])
def test_the_operator_gives_what_the_layer_gives(kind: str, packed: bool):
    torch.manual_seed(0)
    layer, frames = LAYERS[kind](), torch.randn(5, 6, 3)
    length = torch.tensor([6, 1, 3, 4, 2]) if packed else None
    expected = results(recur, layer, frames, length)
    found = results(as_operator, layer, frames, length)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_graph_sees_one_node_each_way():
    torch.manual_seed(0)
    layer, frames = LAYERS["GRUs both ways"](), torch.randn(5, 6, 3)
    length = torch.tensor([6, 1, 3, 4, 2])
    expected = results(recur, layer, frames, length)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(recur, backend="aot_eager", fullgraph=True)
        found = results(compiled, layer, frames, length)
    torch._dynamo.reset()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
