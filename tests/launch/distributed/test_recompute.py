"""Layers computed again in the backward: less is kept, and the gradients are the same."""

from __future__ import annotations

import torch
from torch import nn

from core.dropout import SampleDropout, sample_masks
from core.recompute import recompute_layers


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.drop = (
            nn.Linear(4, 64),
            nn.Linear(64, 4),
            SampleDropout(0.5, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.drop(self.first(x).relu()))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(layer(x))
        return x


def kept(model: nn.Module, x: torch.Tensor) -> tuple[int, list[torch.Tensor]]:
    """Elements that the forward keeps for the backward, and the gradients, with dropout of step
    5."""
    elements = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal elements
        elements += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        with sample_masks(1, 5, torch.arange(len(x))):
            loss = model(x).square().sum() + model(x).sum()
    loss.backward()  # outside of the masks' block, as under an engine
    return elements, [
        parameter.grad for parameter in model.parameters() if parameter.grad is not None
    ]


def test_layers_computed_again_keep_less_and_give_the_same_gradients():
    torch.manual_seed(0)
    plain = Stack()
    again = Stack()
    again.load_state_dict(plain.state_dict())
    assert recompute_layers(again) == ["layers.0", "layers.1", "layers.2"]
    assert again.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(32, 4)
    most, expected = kept(plain, x)
    least, found = kept(again, x)
    assert least < most / 3
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def test_layers_with_batch_norm_stay():
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))])
    assert recompute_layers(model) == []
