"""DeepSpeed compiles an operator on its first run on a CPU, and every process locks it while it loads it.

Trials must find it compiled, and each process gets a copy of its own: nobody waits for a lock, and one that a killed
process leaves behind hinders nobody.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tune.workers.environment import environment

START = (
    "from launch.engine.processes import init_processes, shutdown_processes; "
    "from tune.workers.child import die_with_parent; "
    "die_with_parent(); init_processes(); shutdown_processes()"
)


def build() -> str:
    """Have one process compile what every process of every trial loads, unless it is there.

    Returns:
        The folder to copy from; empty where there are GPUs, and nothing is to be copied.

    Raises:
        ConfigError: it does not compile here; the message has the last line that was said.
    """
    import torch  # these not at the top: the actors of trials use copy(), and start faster without torch
    from torch.utils.cpp_extension import get_default_build_root

    from launch.config import ConfigError

    if torch.cuda.is_available():
        return ""
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    if any(root.rglob("deepspeed_shm_comm*.so")):
        return str(root)
    print("compiling an operator of DeepSpeed, once (two minutes)", flush=True)
    done = subprocess.run(
        [sys.executable, "-c", START],
        env=environment(threads=1),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no output"]
        raise ConfigError(f"DeepSpeed does not start on this machine: {said[-1]}")
    return str(root)


def copy(source: str, target: Path) -> dict[str, str]:
    """A process's own copy of the compiled operators, and the environment that makes it use them."""
    if not source or not Path(source).is_dir():
        return {}
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(
        source, target, ignore=shutil.ignore_patterns("lock", ".ninja_lock")
    )  # keeps the times of files
    return {"TORCH_EXTENSIONS_DIR": str(target)}
