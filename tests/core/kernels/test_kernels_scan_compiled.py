"""The kernels of contrast for any labels, and of in-batch softmaxes, compiled for GPUs that need not be
there."""

from __future__ import annotations

from typing import Any

import pytest
from triton_processes import again, check_resources, compiled, starts_the_others

triton = pytest.importorskip("triton")


@starts_the_others
def test_in_a_process_of_its_own(tmp_path):
    again(__file__, "compile", tmp_path)


@pytest.mark.slow
@starts_the_others
def test_all_widths_in_a_process_of_their_own(tmp_path):
    again(__file__, "compile", tmp_path, "-m", "slow")


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
