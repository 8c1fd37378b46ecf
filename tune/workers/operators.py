"""The operator that DeepSpeed compiles on a CPU, and that a process locks to load it.

Trials must find it compiled, and each process gets a copy of its own: nobody waits for a lock, and
one that a killed process leaves behind hinders nobody.
``test_torch_waits_for_the_lock_of_a_process_that_is_gone`` shows that PyTorch waits for such a lock
for ever.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tune.workers.environment import environment

COMPILE = """
from launch.engine.processes import init_processes, shutdown_processes
from tune.workers.child import die_with_parent

die_with_parent()
init_processes()
shutdown_processes()
"""


def build() -> str:
    """Have one process compile what every process of every trial loads, unless it is there.

    Returns:
        The folder to copy from; empty where there are GPUs, and nothing is to be copied.

    Raises:
        ConfigError: it does not compile here; the message has the last line of the output.
    """
    # these not at the top: the actors of trials use copy(), and start faster without torch
    import torch

    from launch.config import ConfigError
    from launch.engine.operator_cache import FOLDER, own_folder

    if torch.cuda.is_available():
        return ""
    root = own_folder()
    if any(root.rglob("deepspeed_shm_comm*.so")):
        return str(root)
    print("compiling an operator of DeepSpeed, once (two minutes)", flush=True)
    compiled = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=environment(threads=1) | {FOLDER: str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    if compiled.returncode:
        lines = [line for line in compiled.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines else "no output"
        raise ConfigError(f"DeepSpeed does not start on this machine: {reason}")
    return str(root)


def copy(built: str, target: Path) -> dict[str, str]:
    """A process's own copy of the compiled operators, and the variables that make it use them."""
    if not built or not Path(built).is_dir():
        return {}
    shutil.rmtree(target, ignore_errors=True)
    # copytree keeps the files' times: ninja compiles again when they differ from its log
    shutil.copytree(built, target, ignore=shutil.ignore_patterns("lock", ".ninja_lock"))
    return {"TORCH_EXTENSIONS_DIR": str(target)}
