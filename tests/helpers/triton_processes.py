"""Tests of Triton kernels in processes of their own: interpreted, or compiled for GPUs that need not
be there.

Triton decides when it is first imported whether it interprets, and one process cannot do both. So a
test file runs itself again, where the variable below says what for.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

PURPOSE = os.environ.get("KERNEL_TEST", "")
interpreted = pytest.mark.skipif(PURPOSE != "interpret", reason="run in a process of its own")
compiled = pytest.mark.skipif(PURPOSE != "compile", reason="run in a process of its own")
starts_the_others = pytest.mark.skipif(PURPOSE != "", reason="starts the others")
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes a program may have


def again(file: str, purpose: str, tmp_path: Path, *arguments: str) -> None:
    """Run the tests of ``file`` that are for this purpose."""
    environment = os.environ | {
        "KERNEL_TEST": purpose,
        "TRITON_INTERPRET": str(int(purpose == "interpret")),
        "TRITON_CACHE_DIR": str(tmp_path),
        "TRITON_DEFAULT_FP_FUSION": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file, *arguments]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout


def resources(
    kernel: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    target: int,
    warps: int,
    stages: int,
) -> tuple[int, dict[str, int]]:
    """Shared memory, and registers and bytes of spilled ones per thread, of a kernel compiled
    without a GPU.

    Args:
        types: of arguments that are not 32-bit integers; "*" before that of what a pointer points
            to.
        target: compute capability, 80 or 90.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {}
    aligned = {}
    for number, name in enumerate(kernel.arg_names):
        signature[name] = "constexpr" if name in constants else types.get(name, "i32")
        if signature[name].startswith("*"):
            aligned[(number,)] = [["tt.divisibility", 16]]
    source = ASTSource(
        kernel,
        signature,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs=aligned,
    )
    result = triton.compile(
        source,
        target=GPUTarget("cuda", target, 32),
        options={"num_warps": warps, "num_stages": stages},
    )
    binary = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
    binary.write_bytes(result.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(binary)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"(REG|STACK|LOCAL):(\d+)", listing)
    return result.metadata.shared, {key: int(number) for key, number in found}


def check_resources(
    kernel: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    target: int,
    warps: int,
    stages: int,
    most_spilled: int = 0,
) -> None:
    """Fails unless the kernel fits the target and spills no more bytes of registers per thread than
    ``most_spilled``."""
    shared, usage = resources(kernel, types, constants, target, warps, stages)
    assert shared <= SHARED_LIMIT[target], constants
    assert usage["STACK"] <= most_spilled, (constants, usage)
    assert usage["LOCAL"] == 0, (constants, usage)
    assert 0 < usage["REG"] <= 255
