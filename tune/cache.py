"""DeepSpeed compiles an operator on its first run on a CPU. Many trials at once must find that done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch.utils.cpp_extension import get_default_build_root

from launch.config import ConfigError
from tune.processes import environment

START = (
    "from launch.engine import init_processes, shutdown_processes; from tune.child import die_with_parent; "
    "die_with_parent(); init_processes(); shutdown_processes()"
)


def built() -> bool:
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    return torch.cuda.is_available() or any(root.rglob("deepspeed_shm_comm*.so"))


def build() -> None:
    """Have one process compile what every process of every trial loads; nothing to do when it is there.

    Raises:
        ConfigError: it does not compile here; the message has the compiler's last line.
    """
    if built():
        return
    print("compiling an operator of DeepSpeed, once (two minutes)", flush=True)
    done = subprocess.run(
        [sys.executable, "-c", START], env=environment(threads=1), capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no output"]
        raise ConfigError(f"DeepSpeed does not start on this machine: {said[-1]}")
