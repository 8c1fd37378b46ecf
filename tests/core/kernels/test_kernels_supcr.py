"""The fused operator against the float64 definition: values, gradients, dispatch, numerics,
registration."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.kernels import compiled_loop
from core.kernels.supcr import cpu, dispatch, grouping
from core.kernels.supcr.op import fused_supcr, supcr_op
from core.losses.supcr import supcr

torch.set_num_threads(1)
PATHS = ["auto", "buckets", "scan", "torch"]


def unit_rows(n: int, width: int, seed: int = 0) -> Tensor:
    rows = torch.randn(n, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def definition(features: Tensor, labels: Tensor, temperature: float) -> tuple[float, Tensor]:
    features = features.detach().double().requires_grad_()
    loss = supcr(features, labels, temperature)
    loss.backward()
    return loss.item(), features.grad


def fused(
    features: Tensor, labels: Tensor, temperature: float, **options: object
) -> tuple[float, Tensor]:
    features = features.detach().requires_grad_()
    loss = fused_supcr(features, labels, temperature, **options)
    (loss * -2.5).backward()  # an upstream gradient other than one
    return loss.item(), features.grad / -2.5


def assert_same(
    found: tuple[float, Tensor], expected: tuple[float, Tensor], tolerance: float
) -> None:
    assert found[0] == pytest.approx(expected[0], rel=tolerance, abs=tolerance)
    assert (found[1].double() - expected[1]).norm() <= tolerance * (expected[1].norm() + 0.2)


label_sets = st.one_of(
    st.lists(st.integers(-3, 3), min_size=1, max_size=40),  # many ties
    st.lists(st.integers(0, 10**6), min_size=1, max_size=40, unique=True).map(
        lambda x: [float(v) for v in x]
    ),
    st.integers(1, 40).map(lambda n: [1.0] * n),
    st.lists(st.sampled_from([-0.6, -0.4, 0.0, 0.2, 1 / 3]), min_size=1, max_size=40),
    st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=20).map(lambda x: x + x),  # two views
)


@settings(max_examples=30, deadline=None)
@given(
    labels=label_sets,
    width=st.integers(1, 9),
    temperature=st.sampled_from([0.05, 0.1, 0.5, 2.0]),
    duplicate=st.booleans(),
    seed=st.integers(0, 100),
)
def test_every_path_gives_the_definition(labels, width, temperature, duplicate, seed):
    rows = unit_rows(len(labels), width, seed)
    if duplicate:
        rows[len(labels) // 2 :] = rows[0].clone()
    labels = torch.tensor(labels)
    expected = definition(rows, labels, temperature)
    for path in PATHS:
        assert_same(fused(rows, labels, temperature, path=path), expected, 1e-12)
        assert_same(fused(rows.float(), labels, temperature, path=path), expected, 1e-5)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 2e-3)]
)
@pytest.mark.parametrize("path", PATHS)
def test_types_keep_their_promised_accuracy(dtype, tolerance, path):
    rows, labels = unit_rows(140, 24).to(dtype), torch.arange(140) % 7
    loss, gradient = fused(rows, labels, 0.1, path=path)
    assert gradient.dtype == dtype
    assert_same((loss, gradient), definition(rows, labels, 0.1), tolerance)


@pytest.mark.parametrize(("height", "width"), [(128, 1024), (7, 11), (16, 16), (23, 9)])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("kind", ["few", "one per sample", "distinct"])
def test_tiles_of_any_shape_give_the_same(height, width, keep, kind, monkeypatch):
    monkeypatch.setattr(cpu, "TILE_COLUMNS", width)
    monkeypatch.setattr(
        cpu.Tiles, "height", property(lambda self: height, lambda self, value: None), raising=False
    )
    monkeypatch.setattr("core.kernels.supcr.cpu.KEEP_BELOW", 0)
    rows = unit_rows(61, 5)
    labels = {
        "few": torch.arange(61) % 6,
        "one per sample": torch.arange(61) // 2,
        "distinct": torch.arange(61),
    }[kind]
    expected = definition(rows, labels * 0.7, 0.2)
    assert_same(
        fused(rows, labels * 0.7, 0.2, path="buckets", keep_exponentials=keep), expected, 1e-12
    )


@pytest.mark.parametrize("path", PATHS)
def test_labels_whose_distances_round_to_the_same_number_are_ties(path):
    labels = torch.tensor([0.0, 1.0, 2.0**-60, 0.0, 1.0, 2.0**-60, 5.0], dtype=torch.float64)
    rows = unit_rows(7, 3)
    assert_same(fused(rows, labels, 0.1, path=path), definition(rows, labels, 0.1), 1e-12)


def test_several_chunks_and_threads_give_the_same(monkeypatch):
    rows, labels = unit_rows(150, 5), torch.arange(150) // 2 * 0.3
    expected = definition(rows, labels, 0.2)
    monkeypatch.setattr(cpu, "SCAN_ELEMENTS", 1)
    monkeypatch.setattr(cpu, "TILE_COLUMNS", 40)
    monkeypatch.setattr(compiled_loop, "FEWEST_ELEMENTS", 1)
    monkeypatch.setattr(compiled_loop, "num_threads", lambda: 3)
    monkeypatch.setattr("core.kernels.supcr.torch_chunks.CHUNK_ELEMENTS", 1000)
    torch.set_num_threads(2)
    try:
        for path in PATHS:
            assert_same(fused(rows, labels, 0.2, path=path), expected, 1e-12)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "labels", [torch.tensor([3.0]), torch.tensor([1, 1]), torch.tensor([]), torch.tensor([0.5, 2])]
)
def test_one_two_or_no_rows_give_zero_and_finite_gradients(path, labels):
    loss, gradient = fused(unit_rows(len(labels), 4), labels, 0.1, path=path)
    assert loss == pytest.approx(0, abs=1e-12)
    assert gradient.abs().sum() < 1e-10


@pytest.mark.parametrize("path", PATHS)
def test_equal_labels_give_plain_contrast(path):
    rows = unit_rows(12, 4)
    similarity = (rows @ rows.T / 0.3).fill_diagonal_(-math.inf)
    off = ~torch.eye(12, dtype=torch.bool)
    expected = (similarity.logsumexp(1, keepdim=True) - similarity)[off].mean().item()
    assert fused(rows, torch.zeros(12), 0.3, path=path)[0] == pytest.approx(expected, rel=1e-12)
    assert_same(
        fused(rows, torch.zeros(12), 0.3, path=path), definition(rows, torch.zeros(12), 0.3), 1e-12
    )


@pytest.mark.parametrize("temperature", [0.02, 0.0125, 0.005, 0.001, 0.0002])
@pytest.mark.parametrize("kind", ["few", "distinct"])
def test_low_temperatures_are_exact_in_single_precision(temperature, kind):
    """Rows on an arc, the nearer the closer their labels: what training leads to, and where
    exponentials overflow."""
    angle = torch.linspace(0, math.pi, 60, dtype=torch.float64)
    rows = torch.stack([angle.cos(), angle.sin()], 1).float()
    labels = torch.arange(60) // 6 if kind == "few" else torch.arange(60)
    loss, gradient = fused(rows, labels, temperature)
    expected = definition(rows, labels, temperature)
    assert loss == pytest.approx(expected[0], rel=1e-5)
    assert (gradient - expected[1]).norm() <= 2e-5 * expected[1].norm()


@pytest.mark.parametrize("path", ["buckets", "scan"])
def test_exponents_beyond_any_float_go_the_plain_way_even_if_another_is_asked_for(path):
    rows, labels = unit_rows(40, 5), torch.arange(40) // 4
    assert_same(fused(rows, labels, 0.0002, path=path), definition(rows, labels, 0.0002), 1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_rows_need_not_lie_side_by_side_in_memory(path):
    rows, labels = unit_rows(40, 6).T.contiguous().T, torch.arange(80)[::2] % 9
    assert not rows.is_contiguous()
    assert_same(fused(rows, labels, 0.2, path=path), definition(rows, labels, 0.2), 1e-12)


def test_rows_that_are_not_unit_are_measured_not_assumed():
    rows, labels = unit_rows(40, 6) * 30, torch.arange(40) % 4
    for path in ("auto", "torch"):
        assert_same(
            fused(rows.float(), labels, 1.0, path=path), definition(rows.float(), labels, 1.0), 1e-4
        )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_is_named(bad):
    rows = unit_rows(20, 4)
    rows[13, 2] = bad
    with pytest.raises(ValueError, match=r"row 13 are not finite \(1 such rows of 20\)"):
        fused_supcr(rows, torch.arange(20), 0.1)


def test_labels_that_are_not_finite_or_not_one_per_row_are_refused():
    with pytest.raises(ValueError, match="label of row 2 is nan"):
        fused_supcr(unit_rows(3, 2), torch.tensor([1.0, 2.0, math.nan]), 0.1)
    with pytest.raises(ValueError, match=r"below 2\*\*53, got 18014398509481984"):
        fused_supcr(unit_rows(3, 2), torch.tensor([1, 2, 2**54]), 0.1)
    with pytest.raises(ValueError, match=r"got \(3, 2\) and \(3, 1\)"):
        fused_supcr(unit_rows(3, 2), torch.zeros(3, 1), 0.1)
    with pytest.raises(ValueError, match="no path 'bucket'; choose from: auto, buckets,"):
        fused_supcr(unit_rows(3, 2), torch.zeros(3), 0.1, path="bucket")


def test_gradients_by_features_and_temperature_pass_gradcheck():
    rows, labels = unit_rows(9, 3).requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 2, 3, 3, 9])
    temperature = torch.tensor([0.4], dtype=torch.float64, requires_grad=True)
    for path in PATHS:
        assert torch.autograd.gradcheck(
            lambda x, t, p=path: fused_supcr(x, labels, t, path=p), (rows, temperature)
        )


def test_the_operator_is_registered_rightly():
    # test_aot_dispatch_dynamic differentiates every output, and the gradient's derivative is
    # refused on purpose
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    labels = torch.tensor([0, 1, 1, 4, 2, 0])
    for rows in (unit_rows(6, 3).requires_grad_(), unit_rows(6, 3).float()):
        torch.library.opcheck(supcr_op, (rows, labels, 0.3), test_utils=tests)
        torch.library.opcheck(supcr_op, (rows, labels, 0.3, False), test_utils=tests)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("dynamic", [False, True])
def test_it_compiles_into_one_graph(dynamic):
    rows, labels = unit_rows(30, 5).requires_grad_(), torch.arange(30) % 4

    def step(x: Tensor) -> Tensor:
        return fused_supcr(torch.nn.functional.normalize(x * 2, dim=1), labels, 0.2) * 3

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    expected, found = step(rows), compiled(rows)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    (of_expected,), (of_found,) = (
        torch.autograd.grad(expected, rows),
        torch.autograd.grad(found, rows),
    )
    torch.testing.assert_close(of_found, of_expected, rtol=1e-12, atol=1e-15)


def test_a_second_derivative_is_refused():
    rows = unit_rows(8, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(
        fused_supcr(rows, torch.arange(8), 0.2), rows, create_graph=True
    )
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.square().sum().backward()


def test_autocast_computes_in_single_precision():
    rows = unit_rows(40, 8).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = fused_supcr(rows, torch.arange(40) % 5, 0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(definition(rows, torch.arange(40) % 5, 0.1)[0], rel=1e-5)


def test_no_gradient_is_computed_where_none_is_wanted():
    rows, labels = unit_rows(30, 5), torch.arange(30) % 4
    loss, gradient = supcr_op(rows, labels, 0.2, False)
    assert gradient.numel() == 0
    assert loss.item() == pytest.approx(definition(rows, labels, 0.2)[0], rel=1e-12)
    with torch.no_grad():
        assert not fused_supcr(rows.requires_grad_(), labels, 0.2).requires_grad


def test_the_way_is_chosen_by_labels_and_range():
    rows = unit_rows(4, 3).float()
    few, many = dispatch.MOST_BUCKETS, dispatch.MOST_BUCKETS + 1
    assert dispatch.choose_path(rows, 20.0, 4 * few, few) == "buckets"
    assert dispatch.choose_path(rows, 20.0, 4 * few - 1, few) == "scan"
    assert dispatch.choose_path(rows, 20.0, 4 * many, many) == "scan"
    assert dispatch.choose_path(rows, 200.0, 4 * few, few) == "torch"
    assert grouping.working_type(rows, 200.0, 1000) == torch.float64
    assert dispatch.choose_path(rows.double(), 200.0, 4 * few, few) == "buckets"


class OnGPU:
    """What the choice of a path looks at, of rows on a GPU that need not be there."""

    is_cuda = True
    device = torch.device("cuda")

    def __init__(self, n: int = 0, dtype: torch.dtype = torch.float32):
        self.n, self.dtype = n, dtype

    def __len__(self) -> int:
        return self.n


def test_the_way_on_a_gpu_is_chosen_by_rows_labels_and_range(monkeypatch):
    monkeypatch.setattr(dispatch, "triton_available", lambda: True)
    assert dispatch.takes_whole("auto", OnGPU(dispatch.FEW_ROWS))
    assert dispatch.takes_whole("auto", OnGPU(5, torch.bfloat16))
    assert not dispatch.takes_whole("auto", OnGPU(dispatch.FEW_ROWS + 1))
    assert not dispatch.takes_whole("auto", OnGPU(5, torch.float64))
    assert not dispatch.takes_whole("triton_scan", OnGPU(5))
    rows, fewest = OnGPU(), dispatch.FEWEST_ROWS_PER_LABEL_ON_GPU
    assert dispatch.choose_path(rows, 20.0, 30 * fewest, 30) == "triton"
    assert dispatch.choose_path(rows, 20.0, 30 * fewest - 1, 30) == "triton_scan"
    assert dispatch.choose_path(rows, 20.0, 10**6, dispatch.MOST_BUCKETS + 1) == "triton_scan"
    assert dispatch.choose_path(rows, 200.0, 10**6, 30) == "triton"
    assert dispatch.choose_path(rows, 200.0, 10**6, 30, alone=False) == "triton_scan"
    assert dispatch.choose_path(rows, 20.0, 10**6, 30, well_separated=False) == "triton_scan"
    assert dispatch.choose_path(OnGPU(dtype=torch.float64), 20.0, 10**6, 30) == "torch"
    monkeypatch.setattr(dispatch, "triton_available", lambda: False)
    assert dispatch.choose_path(rows, 20.0, 10**6, 30) == "torch"
    assert not dispatch.takes_whole("auto", OnGPU(5))


def test_missing_triton_is_said_once(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "triton", None)
    dispatch.triton_available.cache_clear()
    try:
        with pytest.warns(UserWarning, match="pip install triton"):
            assert not dispatch.triton_available()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not dispatch.triton_available()
    finally:
        dispatch.triton_available.cache_clear()
