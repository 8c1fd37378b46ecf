"""Names of settings and their values: dotted, shortened, rounded."""

from __future__ import annotations

import json
from typing import Any


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= leaves(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def short(key: str) -> str:
    """``options.alpha`` as ``alpha``, ``optim.groups.main.lr`` as ``main.lr``."""
    return key.removeprefix("options.").removeprefix("optim.groups.").removeprefix("optim.")


def compact(value: Any) -> str:
    """A value as tables and plots show it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def one_line(changes: dict[str, Any]) -> str:
    """A configuration in one line."""
    return "  ".join(f"{short(key)}={compact(value)}" for key, value in changes.items())


def arguments(changes: dict[str, Any]) -> list[str]:
    """Changes as the command line of ``launch/train.py`` takes them."""
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]
