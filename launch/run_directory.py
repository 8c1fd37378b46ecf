"""A run's directory: made with ``config.json`` in it, or opened when it holds the same run."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime
from pathlib import Path

import torch

from core import distributed
from launch.config import RENAMED, ConfigError, Run, from_dict, to_dict
from launch.reports.provenance import provenance

# Where a run computes, not what: the same run may go on with other values of these.
MAY_CHANGE = (
    *(
        "run_dir",
        "max_micro_batch",
        "eval_batch_size",
        "zero_stage",
        "offload",
        "recompute",
        "compile",
        "deepspeed",
    ),
    *("save_every", "keep", "check_every", "timeout"),
)


def open_run(run: Run) -> tuple[Run, Path]:
    """The run's directory, with ``config.json`` in it; a directory that is there already must hold the same run."""
    if not run.data:
        raise ConfigError(
            "no data: give the shard folder as data=DIR; make one with python -m data_shards.convert"
        )
    folder = run.run_dir or f"runs/{run.recipe.replace('/', '-')}-{_start_time()}"
    run_dir = Path(folder)
    path = run_dir / "config.json"
    tree = to_dict(run)
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))["run"]
        before = {RENAMED.get(key, key): value for key, value in before.items()}
        fixed = [key for key in tree if key in before and key not in MAY_CHANGE]
        differ = [key for key in fixed if json.loads(json.dumps(tree[key])) != before[key]]
        if differ:
            raise ConfigError(
                f"{run_dir} holds a run with another {', '.join(differ)} (see {path}); "
                "give the same values to go on with it, or another run_dir"
            )
    elif distributed.rank() == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        body = {"run": tree, "provenance": provenance()}
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)
    return from_dict({**tree, "run_dir": folder}), run_dir


def _start_time() -> str:
    """One time for all ranks: each would see its own clock."""
    now = torch.tensor([time.time()], dtype=torch.float64)
    if distributed.world_size() > 1:
        torch.distributed.broadcast(now, 0)
    return datetime.fromtimestamp(float(now)).strftime("%Y%m%d-%H%M%S")
