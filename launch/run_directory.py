"""A run's directory: made with ``config.json`` in it, or opened when it holds the same run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from core import distributed
from core.command import Refused
from core.encoders.inputs import MODALITIES
from core.file_access.json_files import read_json_object
from core.files import write_atomically
from launch.config import RENAMED, ConfigError, Run, from_dict, to_dict
from launch.reports.provenance import provenance

CONFIG = "config.json"  # of a run directory: the settings, and what they ran with
_WITHOUT_RECORD = "copy the file from a backup, or start again with another run_dir"

# Where a run computes, not what: the same run may go on with other values of these.
MAY_CHANGE = {
    "run_dir",
    "max_micro_batch",
    "eval_batch_size",
    "zero_stage",
    "offload",
    "threads",
    "connections",
    "ranges",
    "recompute",
    "compile",
    "cuda_graphs",
    "deepspeed",
    "save_every",
    "log_every",
    "keep",
    "check_every",
    "timeout",
}


def find_run(run: Run) -> tuple[Run, Path]:
    """The run with its data and directory filled in. Nothing is written yet: ``record_run`` does.

    Raises:
        ConfigError: no data, or the directory holds another run.
    """
    if not run.data:
        raise ConfigError(
            "no data: give the shard folder as data=DIR; make one with python -m data_shards.convert"
        )
    folder = run.run_dir or f"runs/{run.recipe.replace('/', '-')}-{_start_time()}"
    run = replace(run, run_dir=folder, data=absolute(run.data))
    path = Path(folder) / CONFIG
    recorded = recorded_settings(Path(folder)) if path.exists() else None
    differ = [] if recorded is None else _differences(run, recorded, path)
    if differ:
        raise ConfigError(
            f"{folder} holds a run with another {', '.join(differ)} (see {path}); "
            "give the same values to go on with it, or another run_dir"
        )
    return run, Path(folder)


@contextmanager
def naming_settings(run_dir: Path) -> Iterator[None]:
    """Have a refusal of what a run's settings ask for, or of what its model answers, name their
    file."""
    try:
        yield
    except Refused as error:
        is_about_settings = isinstance(error, ConfigError) or type(error) is Refused
        if not is_about_settings or str(run_dir) in str(error):
            raise
        raise ConfigError(f"{run_dir / CONFIG}: {error}", error.table) from None


def recorded_settings(run_dir: Path) -> dict[str, Any]:
    """The settings of the run in a directory, by their present names, as ``config.json`` has them.

    Raises:
        ConfigError: the directory holds no run, or the file is no such record.
    """
    path = run_dir / CONFIG
    try:
        content = read_json_object(path)
    except FileNotFoundError:
        raise ConfigError(f"{run_dir} is no run directory: it has no {CONFIG}") from None
    except Refused as error:
        raise ConfigError(f"{error}; {_WITHOUT_RECORD}") from None
    settings = content.get("run")
    if not isinstance(settings, dict):
        raise ConfigError(
            f"{path} is no record of a run: it has no object called 'run'; {_WITHOUT_RECORD}"
        )
    settings = {RENAMED.get(key, key): value for key, value in settings.items()}
    if not isinstance(settings.get("data"), str):
        raise ConfigError(f"{path} is no record of a run: its data= is no name; {_WITHOUT_RECORD}")
    return settings


def record_run(run: Run, run_dir: Path) -> None:
    """Write ``config.json``, once everything stands: a start that fails leaves no run that the next
    must match."""
    path = run_dir / CONFIG
    if distributed.rank() == 0 and not path.is_file():
        body = {"run": to_dict(run), "provenance": provenance()}
        write_atomically(path, json.dumps(body, indent=1) + "\n")


def absolute(data: str) -> str:
    """A local folder as an absolute path, so that the run may be evaluated from anywhere; a URL as
    it is."""
    return data if "://" in data else str(Path(data).absolute())


def recorded_run(settings: dict[str, Any], path: Path) -> Run:
    """The run of recorded settings, those that came later at their defaults; ConfigError, with the
    file that they are from, where they are none."""
    try:
        return from_dict(settings)
    except ConfigError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None


def _differences(run: Run, recorded: dict[str, Any], path: Path) -> list[str]:
    """Names of the settings in which a run differs from the one in ``path``, where they must
    not."""
    before = _comparable(recorded_run(recorded, path))
    now = _comparable(run)
    must_match = [key for key in now if key in recorded and key not in MAY_CHANGE]
    return [key for key in must_match if now[key] != before[key]]


def _comparable(run: Run) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(json.dumps(to_dict(run)))
    settings["data"] = absolute(settings["data"])  # earlier versions kept it as it was written
    if settings["missing"]["modalities"] == list(MODALITIES):
        settings["missing"]["modalities"] = []  # how earlier versions said all of them
    return settings


def _start_time() -> str:
    """One time for all ranks: each would see its own clock."""
    now = torch.tensor([time.time()], dtype=torch.float64)
    if distributed.world_size() > 1:
        torch.distributed.broadcast(now, 0)
    return datetime.fromtimestamp(float(now)).strftime("%Y%m%d-%H%M%S")
