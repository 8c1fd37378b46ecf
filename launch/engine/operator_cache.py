"""Where the operator that DeepSpeed compiles is kept: apart for each Python environment.

An operator that another environment has made is compiled again, for two minutes, by every process
that finds it; and two environments that share a folder do so in turn.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FOLDER = "TORCH_EXTENSIONS_DIR"
MAKERS = ("torch", "deepspeed", "ninja")  # ninja reads only records of its own version


def use_own_folder() -> Path:
    """Lead torch and DeepSpeed to this environment's folder, and give it."""
    folder = own_folder()
    os.environ[FOLDER] = str(folder)
    return folder


def own_folder() -> Path:
    """The folder that the user names, unless another environment's operators are in it; else
    torch's own. A folder that may serve several environments gets one for each in it."""
    from torch.utils.cpp_extension import get_default_build_root  # slow to import

    named = os.environ.get(FOLDER)
    if named and not _belongs_to_others(Path(named)):
        return Path(named)
    root = Path(named or get_default_build_root())
    return root / environment_key()


def is_compiled() -> bool:
    """Whether this environment's folder holds a compiled operator."""
    return any(own_folder().glob("*/*.so"))


def environment_key() -> str:
    """Short name of this environment: where it is, and the versions of what compiles."""
    parts = [sys.prefix, platform.python_version()]
    for package in MAKERS:
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            parts.append(f"no {package}")
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return f"python-{platform.python_version()}-{digest[:12]}"


def _belongs_to_others(folder: Path) -> bool:
    """Whether an operator in it was compiled against another environment's torch."""
    import torch

    own = str(Path(torch.__file__).parent)
    for recipe in folder.glob("*/build.ninja"):
        if own not in recipe.read_text(encoding="utf-8", errors="replace"):
            return True
    return False
