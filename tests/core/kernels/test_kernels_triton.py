"""The Triton kernels of SupCR: run by Triton's interpreter, and compiled for GPUs that need not be
there."""

from __future__ import annotations

import pytest
import torch
from triton_processes import again, check_resources, compiled, interpreted, starts_the_others

triton = pytest.importorskip("triton")
torch.set_num_threads(1)

POINTERS = {"values": "*fp64"} | dict.fromkeys(["row_high", "row_low", "high", "low"], "*fp16")
POINTERS |= dict.fromkeys(["sums", "losses", "row_weights", "column_weights", "gradient"], "*fp32")
POINTERS |= dict.fromkeys(
    [
        "self_column",
        "starts",
        "tile_begin",
        "tile_end",
        "tile_label",
        "splits",
        "row_groups",
        "groups",
        "counts",
    ],
    "*i32",
)


@starts_the_others
@pytest.mark.parametrize("purpose", ["interpret", "compile"])
def test_in_a_process_of_its_own(purpose, tmp_path):
    again(__file__, purpose, tmp_path)


@pytest.mark.slow
@starts_the_others
def test_all_shapes_compile_in_a_process_of_their_own(tmp_path):
    again(__file__, "compile", tmp_path, "-m", "slow")


def labels_of(kind: str, n: int) -> torch.Tensor:
    return {
        "few": lambda: torch.randint(0, 5, (n,)),
        "tenths": lambda: torch.randn(n).mul(10).round().long(),
        "distinct": lambda: torch.randn(n),
        "equal": lambda: torch.zeros(n),
    }[kind]()


@interpreted
@pytest.mark.parametrize(
    ("n", "width", "kind", "temperature", "fast"),
    [
        (2, 3, "distinct", 0.1, False),
        (67, 20, "few", 0.1, False),
        (67, 20, "tenths", 0.1, False),
        (41, 16, "distinct", 0.1, False),
        (50, 16, "equal", 0.1, False),
        (67, 20, "few", 0.005, False),
        (41, 20, "tenths", 0.005, False),
        (67, 32, "few", 0.1, True),
        (67, 32, "tenths", 0.1, True),
        (35, 200, "few", 0.1, False),
        (35, 300, "few", 0.1, True),
    ],
)
def test_kernels_give_the_definition(n, width, kind, temperature, fast):
    from core.kernels.supcr.op import fused_supcr
    from core.losses.supcr import supcr

    torch.manual_seed(n)
    features = torch.nn.functional.normalize(
        torch.randn(n, width, dtype=torch.float64), dim=1
    ).requires_grad_()
    labels = labels_of(kind, n)
    expected = supcr(features, labels, temperature)
    expected.backward()
    single = features.detach().float().requires_grad_()
    loss = fused_supcr(single, labels, temperature, path="triton", fast=fast)
    (loss * 3).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=2e-5 if fast else 1e-6, abs=1e-6)
    error = (single.grad.double() / 3 - features.grad).norm()
    assert error <= (2e-3 if fast else 1e-5) * features.grad.norm() + 2e-6


@interpreted
def test_work_may_be_divided_over_columns_and_is_the_same_every_time(monkeypatch):
    from core.kernels.supcr import triton_launch
    from core.kernels.supcr.op import supcr_op

    rows = torch.nn.functional.normalize(torch.randn(150, 16), dim=1)
    labels = torch.randint(0, 4, (150,))
    whole = supcr_op(rows, labels, 0.1, True, "triton")
    monkeypatch.setattr(triton_launch, "processors", lambda device: 7)
    divided = supcr_op(rows, labels, 0.1, True, "triton")
    torch.testing.assert_close(divided, whole, rtol=1e-5, atol=1e-9)
    again = supcr_op(rows, labels, 0.1, True, "triton")
    assert all(torch.equal(a, b) for a, b in zip(again, divided, strict=True))


@interpreted
def test_kernels_serve_ranks_that_own_some_of_the_rows():
    from core.kernels.supcr import triton_launch
    from core.kernels.supcr.grouping import Anchors, sort_by_label, tabulate_labels
    from core.kernels.supcr.op import supcr_op

    rows = torch.nn.functional.normalize(torch.randn(60, 16), dim=1)
    labels = torch.randint(0, 6, (60,))
    table = tabulate_labels(labels)
    loss, gradient = supcr_op(rows.double(), labels, 0.1)
    columns, order = sort_by_label(rows, table.groups, len(table))
    log_sum, weights, parts = 0.0, torch.empty(len(table), 60), []
    for mine in (torch.arange(0, 60, 3), torch.arange(1, 60, 3), torch.arange(2, 60, 3)):
        anchors, _ = sort_by_label(rows[order[mine]], table.groups[order[mine]], len(table))
        sums = triton_launch.bucket_sums(Anchors(anchors, mine), columns, len(table), 0.1)
        log_sum += triton_launch.bucket_weights(sums, anchors, table).item()
        weights[:, mine] = sums
        parts.append((Anchors(anchors, mine), sums))
    found = torch.empty_like(rows)
    for of_rank, sums in parts:
        found[order[of_rank.self_column]] = triton_launch.bucket_gradient(
            of_rank, columns, sums, weights, 0.1
        )
    similarity = rows.double() @ rows.double().T / 0.1
    expected = log_sum - (similarity.sum() - similarity.trace()).item()
    assert expected / (60 * 59) == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(found.double() / (0.1 * 60 * 59), gradient, rtol=1e-4, atol=1e-8)


def check(kernel, constants: dict, target: int, warps: int, stages: int) -> None:
    types = POINTERS | {"scale": "fp32", "shrink": "fp32"}
    check_resources(kernel, types, constants, target, warps, stages)


def check_width(target: int, width: int, fast: bool, log: bool, labels: int) -> None:
    from core.kernels.supcr import triton_kernels as kernels
    from core.kernels.supcr import triton_launch as launches

    operand = launches.Operand.of(torch.zeros(1, width), exact=not fast)
    common = {"BLOCK_D": operand.block_width, "WIDTH": operand.width}
    common |= {"EXACT": not fast, "LOG": log}
    columns = launches.TILE_COLUMNS if labels == 1 else launches.FEW_COLUMNS
    for choice in launches._configurations():
        rows = {"BLOCK_M": choice.kwargs["BLOCK_M"]}
        shape = target, choice.num_warps, choice.num_stages
        check(kernels.sums_kernel, common | rows | {"LABELS": labels, "BLOCK_N": columns}, *shape)
        gradient = (
            common
            | rows
            | {"BLOCK_OUT": operand.output_width, "BLOCK_N": launches.GRADIENT_COLUMNS}
        )
        check(kernels.gradient_kernel, gradient, *shape)


@compiled
@pytest.mark.parametrize("target", [80, 90])
@pytest.mark.parametrize("fast", [False, True])
def test_kernels_compile_for_gpus_without_spills(target, fast):
    from core.kernels.supcr import triton_kernels as kernels

    check_width(target, 128, fast, log=False, labels=1)
    check(kernels.accumulate_kernel, {"LOG": False, "BLOCK_M": 64}, target, warps=2, stages=1)


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("target", [80, 90])
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(
    ("width", "log", "labels"), [(256, False, 1), (1024, False, 1), (128, True, 1), (128, True, 16)]
)
def test_wide_rows_logarithms_and_many_labels_compile_without_spills(
    target, fast, width, log, labels
):
    from core.kernels.supcr import triton_kernels as kernels

    check_width(target, width, fast, log, labels)
    check(kernels.accumulate_kernel, {"LOG": log, "BLOCK_M": 64}, target, warps=2, stages=1)
