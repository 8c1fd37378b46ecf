"""The kernels of contrast for any labels, run by Triton's interpreter."""

from __future__ import annotations

import math
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton_processes import again, interpreted, starts_the_others

triton = pytest.importorskip("triton")
torch.set_num_threads(1)


@starts_the_others
def test_in_a_process_of_its_own(tmp_path):
    again(__file__, "interpret", tmp_path)


@pytest.mark.slow
@starts_the_others
def test_all_shapes_in_a_process_of_their_own(tmp_path):
    again(__file__, "interpret", tmp_path, "-m", "slow")


def unit_rows(n: int, width: int) -> Tensor:
    torch.manual_seed(n + width)
    return torch.nn.functional.normalize(torch.randn(n, width, dtype=torch.float64), dim=1)


def labels_of(kind: str, n: int) -> Tensor:
    return {
        "few": lambda: torch.randint(0, 5, (n,)),
        "distinct": lambda: torch.randn(n),
        "views": lambda: torch.randn(n // 2 + 1).repeat(2)[:n],
        "equal": lambda: torch.zeros(n),
        # distances of the first and the third from the last are rounded to the same number
        "all but equal": lambda: torch.tensor([0.0, 1.0, 2.0**-60, 5.0]).double()[
            torch.randint(0, 4, (n,))
        ],
    }[kind]()


def in_small_strips(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """16 rows of the matrix at a time, its gradient in parts of 32 columns."""
    from core.kernels.supcr import scan_launch

    monkeypatch.setattr(scan_launch, "STRIP_ELEMENTS", 16 * n)
    monkeypatch.setattr(scan_launch, "COLUMNS_PER_SPLIT", 32)
    monkeypatch.setattr(scan_launch, "STRIP_SCAN", scan_launch.Tiles(rows=4, columns=64, warps=4))
    monkeypatch.setattr(scan_launch, "WHOLE_SCAN", scan_launch.Tiles(rows=16, columns=32, warps=4))


def assert_definition(
    features: Tensor, labels: Tensor, temperature: float, path: str, fast: bool = False
) -> Tensor:
    """Fails unless loss and gradient are those of the definition; gives the gradient."""
    from core.kernels.supcr.op import fused_supcr
    from core.losses.supcr import supcr

    wide = features.detach().double().clone().requires_grad_()
    expected = supcr(wide, labels, temperature)
    expected.backward()
    features = features.detach().clone().requires_grad_()
    loss = fused_supcr(features, labels, temperature, path=path, fast=fast)
    (loss * 3).backward()
    assert features.grad.dtype == features.dtype
    half = {torch.float16: 2e-3, torch.bfloat16: 5e-3}.get(features.dtype, 0.0)
    log = temperature < 0.013  # above 100 in the exponent float32 has fewer digits left
    tolerance = half or (2e-3 if fast else 1e-5 if log else 2e-6)
    assert loss.item() == pytest.approx(expected.item(), rel=2e-4 if fast else 1e-6, abs=1e-6)
    error = (features.grad.double() / 3 - wide.grad).norm()
    assert error <= tolerance * wide.grad.norm() + 2e-6
    return features.grad


CASES = [
    (2, 3, "distinct", 0.1),
    (3, 5, "equal", 0.05),
    (37, 20, "few", 0.05),
    (33, 16, "distinct", 0.1),
    (29, 7, "views", 0.1),
    (29, 16, "all but equal", 0.1),
    (23, 20, "views", 0.005),
    (17, 150, "few", 0.1),
]


@interpreted
@pytest.mark.parametrize(("n", "width", "kind", "temperature"), CASES)
def test_few_rows_give_the_definition(n, width, kind, temperature):
    assert_definition(unit_rows(n, width).float(), labels_of(kind, n), temperature, "triton_whole")


@interpreted
@pytest.mark.parametrize(("n", "width", "kind", "temperature"), [*CASES[2:4], *CASES[5:7]])
def test_strips_give_the_definition(n, width, kind, temperature, monkeypatch):
    in_small_strips(monkeypatch, n)
    assert_definition(unit_rows(n, width).float(), labels_of(kind, n), temperature, "triton_scan")


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("path", ["triton_whole", "triton_scan"])
@pytest.mark.parametrize("n", [15, 16, 17, 31, 65, 130])
@pytest.mark.parametrize("kind", ["few", "distinct", "views", "equal", "all but equal"])
def test_every_odd_size_gives_the_definition(n, kind, path, monkeypatch):
    in_small_strips(monkeypatch, n)
    for width in (1, 33, 129):
        assert_definition(unit_rows(n, width).float(), labels_of(kind, n), 0.07, path)


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("path", ["triton_whole", "triton_scan", "triton"])
def test_wide_rows_give_the_definition(path, monkeypatch):
    in_small_strips(monkeypatch, 18)
    assert_definition(unit_rows(18, 1025).float(), labels_of("few", 18), 0.1, path)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_in_and_goes_out(dtype):
    assert_definition(unit_rows(19, 8).to(dtype), labels_of("few", 19), 0.1, "triton_whole")


@interpreted
def test_float64_and_rows_of_very_different_lengths_come_in():
    rows = unit_rows(19, 8)
    assert_definition(rows, labels_of("distinct", 19), 0.1, "triton_whole", fast=True)
    scales = torch.logspace(-30, 0.5, 19, dtype=torch.float64)[:, None]
    assert_definition((rows * scales).float(), labels_of("distinct", 19), 0.5, "triton_whole")
    assert_definition(torch.zeros(5, 4), labels_of("distinct", 5), 0.5, "triton_whole")


@interpreted
def test_the_bits_are_the_same_every_time(monkeypatch):
    from core.kernels.supcr.op import supcr_op

    in_small_strips(monkeypatch, 35)
    rows, labels = unit_rows(35, 12).float(), labels_of("views", 35)
    for path in ("triton_whole", "triton_scan"):
        first, second = (supcr_op(rows, labels, 0.1, True, path) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@interpreted
def test_no_gradient_is_computed_where_none_is_wanted(monkeypatch):
    from core.kernels.supcr.op import supcr_op

    in_small_strips(monkeypatch, 21)
    rows, labels = unit_rows(21, 12).float(), labels_of("views", 21)
    for path in ("triton_whole", "triton_scan"):
        loss, gradient = supcr_op(rows, labels, 0.1, False, path)
        assert gradient.numel() == 0
        expected = supcr_op(rows.double(), labels, 0.1, False)[0]
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


NOT_A_NUMBER = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the interpreter


@interpreted
@NOT_A_NUMBER
@pytest.mark.parametrize(("where", "bad"), [("row", math.nan), ("label", -math.inf)])
def test_what_is_not_finite_shows_in_everything_and_is_named_on_demand(where, bad, monkeypatch):
    from core.kernels.supcr.op import name_what_is_not_finite, supcr_op

    in_small_strips(monkeypatch, 18)
    rows, labels = unit_rows(18, 6).float(), torch.randn(18)
    (rows[13] if where == "row" else labels)[4] = bad
    loss, gradient = supcr_op(rows, labels, 0.1, True, "triton_whole")
    assert loss.isnan()
    assert gradient.isnan().all()
    with pytest.raises(ValueError, match="row 13 are not finite" if where == "row" else "row 4 is"):
        name_what_is_not_finite(rows, labels, 0.1)


@interpreted
@NOT_A_NUMBER
def test_integers_that_float64_cannot_hold_make_no_loss():
    from core.kernels.supcr.op import supcr_op

    labels = torch.arange(6)
    labels[3] = 2**53
    assert supcr_op(unit_rows(6, 4).float(), labels, 0.1, False, "triton_whole")[0].isnan()


class Operators(TorchDispatchMode):
    """The names of torch's operators that are neither views nor empty memory, and of the kernels
    launched; what the interpreter does inside of a kernel does not count."""

    FREE = ("empty", "new_empty", "empty_like", "select", "view", "detach", "unbind", "slice")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *modules: Any) -> None:
        super().__init__()
        self.names: list[str] = []
        self.launched: list[str] = []
        self.is_inside = False
        for module in modules:
            for name in [name for name in vars(module) if name.endswith("_kernel")]:
                monkeypatch.setattr(module, name, Counted(self, name, getattr(module, name)))

    def __torch_dispatch__(self, function: Any, types: Any, inputs: Any = (), options: Any = None):
        name = function.overloadpacket.__name__
        if name not in self.FREE and not self.is_inside:
            self.names.append(name)
        return function(*inputs, **(options or {}))


class Counted:
    """A kernel whose launches are counted."""

    def __init__(self, operators: Operators, name: str, kernel: Any):
        self.operators, self.name, self.kernel = operators, name, kernel

    def __getitem__(self, grid: Any) -> Any:
        def launch(**arguments: Any) -> None:
            self.operators.launched.append(self.name)
            self.operators.is_inside = True
            self.kernel[grid](**arguments)
            self.operators.is_inside = False

        return launch


@interpreted
def test_the_log_says_once_what_is_compiled(caplog):
    from core.kernels.supcr import scan_launch

    scan_launch.announce.cache_clear()
    with caplog.at_level("INFO", logger=scan_launch.__name__):
        for width in (16, 16, 32):
            scan_launch.announce("SupCR", width)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert "16 features, exact: the first call compiles" in lines[0]


@interpreted
@pytest.mark.parametrize("labels", [torch.arange(20) // 2, torch.randn(20)])
def test_few_rows_are_three_launches_and_wait_for_nothing(labels, monkeypatch):
    """An operator of torch would be a launch too; one that reads a number, a wait."""
    from core.kernels.supcr import scan_gradients, scan_kernels, scan_launch

    rows = unit_rows(20, 8).float()
    with Operators(monkeypatch, scan_gradients, scan_kernels) as asked:
        loss, gradient = scan_launch.whole_loss_and_gradient(rows, labels, 0.1, True, True)
    assert asked.launched == ["prepare_kernel", "scan_kernel", "whole_gradient_kernel"]
    assert asked.names == []
    assert loss.isfinite()
    assert gradient.isfinite().all()


class Silent:
    """A kernel that does nothing."""

    def __getitem__(self, grid: Any) -> Any:
        return lambda **arguments: None


class Memory(TorchDispatchMode):
    """The most bytes that tensors held at once, of those that were made meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, inputs: Any = (), options: Any = None):
        found = function(*inputs, **(options or {}))
        is_new = isinstance(found, Tensor) and not function.is_view
        if is_new and not any(found is each for each in inputs):
            size = found.untyped_storage().nbytes()
            self.held += size
            self.most = max(self.most, self.held)
            weakref.finalize(found, self.forget, size)
        return found

    def forget(self, size: int) -> None:
        self.held -= size


@interpreted
def test_strips_take_less_than_200_megabytes_for_any_labels(monkeypatch):
    """At n = 65,536 and D = 128, the gradient included. Nothing is computed: the kernels keep
    still."""
    from core.kernels.supcr import scan_gradients, scan_kernels, scan_launch

    for module in (scan_gradients, scan_kernels):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Silent())
    prepare = scan_launch.Prepared.of

    def prepare_in_order(rows: Tensor, labels: Tensor) -> Any:
        prepared = prepare(rows, labels)
        prepared.order.copy_(torch.arange(len(rows)))
        return prepared

    monkeypatch.setattr(scan_launch.Prepared, "of", prepare_in_order)
    rows, labels = torch.zeros(65536, 128), torch.zeros(65536)
    with Memory() as memory:
        scan_launch.loss_and_gradient(rows, labels, 0.1, True, True)
    strip = 3 * 4 * scan_launch.STRIP_ELEMENTS
    assert strip < memory.most <= 200e6


@interpreted
def test_strips_serve_ranks_that_own_some_of_the_rows(monkeypatch):
    from core.kernels.supcr.dispatch import whole_rows
    from core.kernels.supcr.grouping import tabulate_labels

    n = 37
    in_small_strips(monkeypatch, n)
    rows, labels = unit_rows(n, 16).float(), torch.randn(n)
    table = tabulate_labels(labels)
    everything = torch.arange(n)
    expected = whole_rows(rows.double(), everything, rows.double(), table, 0.1, "torch")
    parts = []
    for mine in (everything[:10], everything[10:31], everything[31:], everything[:0]):
        parts.append(whole_rows(rows[mine], mine, rows, table, 0.1, "triton_scan"))
    log_sum = sum(part[0] for part in parts)
    gradient = sum(part[1] for part in parts)
    torch.testing.assert_close(log_sum.double(), expected[0].double(), rtol=1e-6, atol=0)
    error = (gradient - expected[1]).norm()
    assert error <= 2e-6 * expected[1].norm()
