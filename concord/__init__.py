"""Concord from Python: train, load, stream. Each name is imported when it is first used.

import concord

scores = concord.train("hscl/demo", data="demo/shards", epochs=3)
model, data = concord.load("runs/hscl-demo-20260101-120000")  # a run, or a folder made by concord
export stream = concord.Stream("demo/shards", "train", global_batch=64, rank=0, ranks=1, seed=1)
loss = concord.losses.SupCR()
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concord import losses
    from concord.notebook import TrainingFailed, load, train
    from data_shards.stream import Stream

__version__ = "0.2.0"
__all__ = ["Stream", "TrainingFailed", "__version__", "load", "losses", "train"]

HOMES = {
    "Stream": "data_shards.stream",
    "TrainingFailed": "concord.notebook",
    "load": "concord.notebook",
    "train": "concord.notebook",
}


def __getattr__(name: str) -> Any:
    if name == "losses":
        return import_module("concord.losses")
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module 'concord' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
