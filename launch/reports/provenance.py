"""Where a result came from: versions, machine and the state of the code."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from core import distributed
from core.environment.credentials import redact

PACKAGES = (
    "torch",
    "deepspeed",
    "transformers",
    "webdataset",
    "ray",
    "numpy",
    "safetensors",
    "triton",
    "numba",
)


def provenance() -> dict[str, Any]:
    """Plain JSON, saved with every run and every benchmark."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "machine": {
            "platform": platform.platform(),
            "processor": _processor(),
            "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "processes": distributed.world_size(),
            "threads": torch.get_num_threads(),
        },
        "git": _git(),
        "command": [redact(word) for word in sys.argv],
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    for line in lines:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _git() -> dict[str, Any] | None:
    """The commit of the code and how many of its files were changed since; None where there is no
    git."""
    try:
        commit = _run_git("rev-parse", "HEAD").strip()
        changed = _run_git("status", "--porcelain", "--untracked-files=no").splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed_files": len(changed)}


def _run_git(*words: str) -> str:
    folder = Path(__file__).parent
    done = subprocess.run(
        ["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout
