"""The kernels of contrast for any labels, and of in-batch softmaxes: run by Triton's interpreter, and
compiled for GPUs that need not be there."""

from __future__ import annotations

import math
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton_processes import again, check_resources, compiled, interpreted, starts_the_others

triton = pytest.importorskip("triton")
torch.set_num_threads(1)


@starts_the_others
@pytest.mark.parametrize("purpose", ["interpret", "compile"])
def test_in_a_process_of_its_own(purpose, tmp_path):
    again(__file__, purpose, tmp_path)


@pytest.mark.slow
@starts_the_others
def test_all_shapes_in_processes_of_their_own(tmp_path):
    again(__file__, "compile", tmp_path, "-m", "slow")
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


# --- in-batch softmaxes


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


# --- compiled

FLOATS = (
    "exponent_scale similarity_share largest_exponent gradient_scale loss_scale shrink label_limit"
)
TYPES = dict.fromkeys(FLOATS.split(), "fp32")
for kind, names in {
    "*fp16": "high low joint_high joint_low",
    "*fp64": "labels values losses",
    "*i32": "first last order places anchor_of self_column",
    "*fp32": "features lengths exponents denominators weights longest gradient loss parts "
    "joint_lengths log_sums joint_log_sums divergences upstream greatest_upstream",
}.items():
    TYPES |= dict.fromkeys(names.split(), kind)


def check(kernel: Any, tiles: Any, target: int, **constants: Any) -> None:
    """Fails if a kernel spills, with those of the constants that it takes."""
    constants |= {"BLOCK_M": tiles.rows, "BLOCK_N": tiles.columns}
    taken = {name: value for name, value in constants.items() if name in kernel.arg_names}
    check_resources(kernel, TYPES, taken, target, tiles.warps, tiles.stages)


def check_scan(target: int, width: int, exact: bool) -> None:
    from core.kernels.supcr import scan_gradients as gradients
    from core.kernels.supcr import scan_kernels as kernels
    from core.kernels.supcr import scan_launch as launches

    shape = {
        "BLOCK_D": launches.block_width(width),
        "WIDTH": width,
        "EXACT": exact,
        "BLOCK_OUT": launches.output_width(width),
    }
    check(kernels.prepare_kernel, launches.PREPARE, target, **shape)
    check(kernels.exponents_kernel, launches.EXPONENTS, target, **shape)
    check(gradients.whole_gradient_kernel, launches.WHOLE_GRADIENT, target, **shape)
    check(gradients.anchor_gradient_kernel, launches.ANCHOR_GRADIENT, target, **shape)
    check(gradients.candidate_gradient_kernel, launches.CANDIDATE_GRADIENT, target, **shape)


def check_rows(target: int, width: int, exact: bool, whole: bool) -> None:
    from core.kernels.supcr import scan_kernels as kernels
    from core.kernels.supcr import scan_launch as launches

    tiles = launches.WHOLE_SCAN if whole else launches.STRIP_SCAN
    shape = {"WIDTH": width, "EXACT": exact, "WHOLE": whole}
    shape |= {"BLOCK_D": launches.block_width(width)}
    check(kernels.scan_kernel, tiles, target, **shape)


def check_softmax(target: int, width: int, joint: bool) -> None:
    from core.kernels.in_batch import softmax_kernels as kernels
    from core.kernels.in_batch import softmax_launch as launches
    from core.kernels.supcr.scan_launch import block_width, output_width

    widest = launches.JOINT_BLOCK_WIDTH if joint else width
    block = min(block_width(width), widest)
    shape = {
        "BLOCK_D": block,
        "JOINT_BLOCK_D": block,
        "WIDTH": width,
        "JOINT_WIDTH": width,
        "JOINT": joint,
        "BLOCK_OUT": output_width(width),
    }
    sums = launches.JOINT_SUMS if joint else launches.SUMS
    gradient = launches.JOINT_GRADIENT if joint else launches.GRADIENT
    check(kernels.softmax_sums_kernel, sums, target, **shape)
    check(kernels.softmax_gradient_kernel, gradient, target, **shape)


@compiled
@pytest.mark.parametrize("target", [80, 90])
def test_kernels_compile_for_gpus_without_spills(target):
    check_scan(target, 128, exact=True)
    if target == 90:
        check_softmax(target, 128, joint=True)


@compiled
def test_the_scan_compiles_for_a_gpu_without_spills():
    check_rows(90, 128, exact=True, whole=True)


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("target", [80, 90])
@pytest.mark.parametrize("width", [16, 64, 128, 1152])
def test_all_widths_and_modes_compile_without_spills(target, width):
    for exact in (True, False):
        check_scan(target, width, exact)
        check_rows(target, width, exact, whole=True)
    check_rows(target, width, True, whole=False)
    for joint in (False, True):
        check_softmax(target, width, joint)
