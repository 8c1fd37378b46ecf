"""Training and loading from a notebook or script. Training runs in processes of its own, which end
with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from core.command import DONE
from core.model import DataSpec, Model
from launch.command_line import as_changes
from launch.config import load_recipe, override


class TrainingFailed(RuntimeError):
    """Training ended before its end; ``exit_code`` is one of ``core.command``."""

    def __init__(self, exit_code: int, message: str):
        super().__init__(f"exit code {exit_code}: {message}")
        self.exit_code = exit_code


def train(
    recipe: str, *changes: str, processes: int = 1, **settings: Any
) -> dict[str, dict[str, float]]:
    """Train a recipe and return its scores, ``{"valid": {"MAE": ...}, "test": ...}``.

    An interrupted call, made again with the same ``run_dir``, goes on where it stopped.

    Args:
        changes: dotted settings as on the command line, ``"optim.groups.main.lr=1e-3"``.
        processes: on this machine, one per GPU.
        settings: settings without a dot, ``epochs=3``.

    Raises:
        ConfigError: a recipe, key or value that does not exist.
        TrainingFailed: with what the training said last.
    """
    words = [*changes, *as_changes(settings)]
    run = override(load_recipe(recipe), words)  # refuses here what it would refuse there
    # other users can list the words of a process; credentials go through its environment
    if run.data:
        words = [word for word in words if not word.startswith("data=")] + [f"data={run.data}"]
    run_dir = run.run_dir
    if not run_dir:
        run_dir = f"runs/{recipe.replace('/', '-')}-{datetime.now():%Y%m%d-%H%M%S}"
        words.append(f"run_dir={run_dir}")
    exit_code, last_line = run_processes([recipe, *words], processes)
    if exit_code != DONE:
        raise TrainingFailed(exit_code, last_line)
    scores: dict[str, dict[str, float]] = json.loads(
        (Path(run_dir) / "scores.json").read_text(encoding="utf-8")
    )
    return scores


def run_processes(words: Sequence[str], processes: int) -> tuple[int, str]:
    """Run ``launch.train`` with these words, showing what it says; its exit code and its last line.

    An interruption of this process asks the training to save and stop, and waits for that.
    """
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    command += ["launch.train", *words]
    last_line = ""
    with subprocess.Popen(
        command, env=_environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                print(line, end="")
                last_line = line.strip() or last_line
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
    return process.returncode, last_line


# What a launcher says to its processes: a training started from one of them is a job of its own.
FROM_A_LAUNCHER = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)


def _environment() -> dict[str, str]:
    """This process's, with this project on the path, and this Python's programs (ninja among
    them) first."""
    environment = {key: value for key, value in os.environ.items() if key not in FROM_A_LAUNCHER}
    project = str(Path(__file__).parents[1])
    programs = str(Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join([programs, environment.get("PATH", "")])
    before = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join([project, before]) if before else project
    return environment


def load(source: str | Path) -> tuple[Model, DataSpec]:
    """The model of a finished run (its best epoch), of an exported folder, or of a name on a model
    hub (``"org/name"``), and what it knows of its data. The shards may be gone.

    Raises:
        ConfigError, ValueError: there is none, or it cannot be read.
    """
    from launch.predicting.trained import is_run_directory, local_folder, open_run

    folder = local_folder(str(source))
    if not is_run_directory(folder):
        from core import bundle

        return bundle.load(folder)
    opened = open_run(folder)
    return opened.model, opened.spec.data
