"""Dropout as one operator on a CPU; the GPU's kernel is in ``test_kernels_attention.py``."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from core.dropout import SampleDropout, sample_masks
from core.kernels.dropout import dropout_op, formula
from core.recompute import recompute_layers

SHAPES = [(3,), (3, 1), (2, 7), (3, 17, 5), (2, 3, 1, 5), (2, 2, 3, 5, 2), (2, 2, 1, 2, 2, 2)]
SHAPES += [(2, 1300), (0, 4), (4, 0)]
TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def states(rows: int) -> torch.Tensor:
    return formula.mix_states(torch.arange(rows) + formula.hash64(11, 3))


def by_formula(x: torch.Tensor, layer: int, p: float) -> torch.Tensor:
    position = formula.positions_of(x.shape[1:], x.device)
    state = formula.mix_states(states(len(x)) + layer)
    kept = formula.keep_bits(x.shape, state, position, formula.least_kept(p))
    return (x * kept).mul_(1 / (1 - p))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TYPES)
def test_a_cpu_gives_the_formula_and_its_gradient(shape, dtype):
    x = torch.randn(shape).to(dtype).requires_grad_()
    dropped = dropout_op.drop(x, states(len(x)), 9, 0.3)
    upstream = torch.randn(shape).to(dtype)
    (gradient,) = torch.autograd.grad(dropped, x, upstream)
    assert torch.equal(dropped, by_formula(x, 9, 0.3))
    assert torch.equal(gradient, by_formula(upstream, 9, 0.3))


def test_a_cpu_keeps_what_lies_otherwise_in_memory():
    x = torch.randn(3, 4, 5).transpose(1, 2)
    assert torch.equal(dropout_op.drop(x, states(3), 1, 0.5), by_formula(x, 1, 0.5))


def test_what_is_not_finite_stays_seen_and_all_may_be_dropped():
    x = torch.tensor([[float("inf"), float("nan"), 1.0]])
    dropped = dropout_op.drop(x, states(1), 1, 1 - 1e-9)
    assert dropped.isnan().tolist() == [[True, True, False]]
    assert torch.equal(dropout_op.drop(torch.ones(2, 3), states(2), 1, 1.0), torch.zeros(2, 3))


@pytest.mark.filterwarnings("ignore:.*deprecated.*:DeprecationWarning")
def test_the_operator_keeps_its_promises_and_has_second_derivatives():
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(dropout_op.dropout, (x, states(2), 4, 0.3))
    drop = partial(dropout_op.drop, states=states(2), layer=4, p=0.3)
    assert torch.autograd.gradcheck(drop, x)
    assert torch.autograd.gradgradcheck(drop, x)


class Collected:
    """The operators of the graphs that are compiled."""

    def __init__(self):
        self.operators: list[str] = []

    def __call__(self, module, inputs):
        self.operators += [str(n.target) for n in module.graph.nodes if n.op == "call_function"]
        return module.forward


def test_a_compiled_model_sees_one_node_and_compiles_once_for_all_steps():
    drop = SampleDropout(0.3, layer=2).train()
    collected = Collected()
    compiled_drop = torch.compile(drop, backend=collected, fullgraph=True)
    x = torch.randn(4, 6)
    for step in range(3):
        with sample_masks(5, step, torch.arange(4)):
            assert torch.equal(compiled_drop(x), drop(x))
    assert collected.operators == ["concord.dropout.default"]


def test_a_layer_that_is_computed_again_draws_the_same_bits():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(6, 6), SampleDropout(0.5, 1), nn.Linear(6, 6))
    model = nn.Module()
    model.layers = nn.ModuleList([layer])
    x = torch.randn(4, 6)
    gradients = []
    for recomputed in (False, True):
        if recomputed:
            assert recompute_layers(model) == ["layers.0"]
        with sample_masks(5, 1, torch.arange(4)):
            out = model.layers[0](x)
        gradients.append(torch.autograd.grad(out.square().sum(), list(layer.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
