"""The kernels of in-batch softmaxes, run by Triton's interpreter."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from triton_processes import again, interpreted, starts_the_others

triton = pytest.importorskip("triton")
torch.set_num_threads(1)

NOT_A_NUMBER = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the interpreter


@starts_the_others
def test_in_a_process_of_its_own(tmp_path):
    again(__file__, "interpret", tmp_path)


def unit_rows(n: int, width: int) -> Tensor:
    torch.manual_seed(n + width)
    return torch.nn.functional.normalize(torch.randn(n, width, dtype=torch.float64), dim=1)


def softmax_losses(view: Tensor, joint: Tensor, weight: Tensor) -> dict[str, Any]:
    """Name -> a weighted sum of one result of the module by rows, and its gradient, (n, D)."""
    from core.kernels.in_batch_softmax import Comparison, Upstream, divergences, gradient, log_sums

    n = len(view)
    everything = torch.arange(n)
    of_view = Comparison(view, everything, view)
    of_joint = Comparison(joint, everything, joint)
    sums = log_sums(of_view)
    divergence, view_sums, joint_sums = divergences(of_view, of_joint)
    some = torch.arange(n)[1::2]
    anchors = Comparison(view[some], some, view)
    return {
        "log sums": sums,
        "gradient of log sums": gradient(of_view, Upstream(weight, sums)),
        "divergence": divergence,
        "log sums of both": torch.stack([view_sums, joint_sums]),
        "gradient of divergence": gradient(
            of_view, Upstream(weight, view_sums, joint_sums), of_joint
        ),
        "log sums of some": log_sums(anchors),
        "gradient of some": gradient(anchors, Upstream(weight, sums)),
    }


@interpreted
@pytest.mark.parametrize(
    ("n", "width", "joint_width", "sharp"), [(2, 3, 5, 1), (35, 20, 9, 30), (19, 130, 16, 3)]
)
def test_softmax_kernels_give_what_torch_gives(n, width, joint_width, sharp, monkeypatch):
    from core.kernels import in_batch_softmax
    from core.kernels.in_batch import softmax_launch

    view = unit_rows(n, width) * math.sqrt(sharp)
    joint = unit_rows(n, joint_width) * math.sqrt(sharp)
    weight = torch.rand(n, dtype=torch.float64) * 1e-6
    weight[0] = 0
    expected = softmax_losses(view, joint, weight)
    monkeypatch.setattr(in_batch_softmax, "runs_kernel", lambda columns: True)
    monkeypatch.setattr(softmax_launch, "RANGE_COLUMNS", 32)  # two launches for 35 columns
    found = softmax_losses(view.float(), joint.float(), weight.float())
    again = softmax_losses(view.float(), joint.float(), weight.float())
    for name, tensor in found.items():
        error = (tensor - expected[name]).norm()
        limit = 2e-6 * (1 + 0.1 * sharp) if "divergence" in name else 2e-6
        scale = max(expected[name].norm().item(), 1e-12 if "gradient" in name else 0.1)
        assert error <= limit * scale, name
        assert torch.equal(tensor, again[name]), name


@interpreted
def test_losses_have_gradients_by_rows_and_temperature_through_the_kernels(monkeypatch):
    from core.kernels import in_batch_softmax
    from core.losses.info_nce import ICL
    from core.losses.inter_modal import IAL
    from core.losses.supcon import SupCon

    rows = unit_rows(22, 6)
    weight = torch.ones(11)
    weight[3] = 0
    losses = {
        "icl": lambda x, module: module(x[:11], x[11:], weight),
        "ial": lambda x, module: module((x[:11, :4], x[11:, :4]), (x[:11], x[11:]), weight),
        "supcon": lambda x, module: module(x[:11], torch.arange(11) % 3, weight),
    }
    modules = {
        "icl": ICL(0.2, learnable=True),
        "ial": IAL(0.3, learnable=True),
        "supcon": SupCon(0.2, learnable=True),
    }
    for name, module in modules.items():
        values = []
        for dtype in (torch.float64, torch.float32):
            kernel = dtype == torch.float32
            monkeypatch.setattr(in_batch_softmax, "runs_kernel", lambda _, k=kernel: k)
            x = rows.to(dtype, copy=True).requires_grad_()
            module = module.to(dtype)
            module.zero_grad()
            loss = losses[name](x, module)
            loss.backward()
            (of_temperature,) = (parameter.grad.double() for parameter in module.parameters())
            values.append((loss.double().detach(), x.grad.double(), of_temperature.clone()))
        for found, expected in zip(values[1], values[0], strict=True):
            torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-6)


@interpreted
@NOT_A_NUMBER
def test_rows_that_are_not_finite_show_in_the_softmax(monkeypatch):
    from core.kernels import in_batch_softmax

    monkeypatch.setattr(in_batch_softmax, "runs_kernel", lambda columns: True)
    rows = unit_rows(9, 4).float()
    rows[5, 1] = math.nan
    everything = torch.arange(9)
    found = in_batch_softmax.log_sums(in_batch_softmax.Comparison(rows, everything, rows))
    assert found.isnan().all()
    alone = in_batch_softmax.Comparison(rows[:1], everything[:1], rows[:1])
    assert in_batch_softmax.log_sums(alone).item() == -math.inf
    nothing = in_batch_softmax.Comparison(rows[:0], everything[:0], rows)
    assert in_batch_softmax.log_sums(nothing).shape == (0,)
