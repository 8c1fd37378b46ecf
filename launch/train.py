"""Train a recipe: ``deepspeed launch/train.py hscl/mosi data=DIR key=value ...``.

Runs as one process, or as many as ``deepspeed --num_gpus N`` or ``torchrun --nproc-per-node N`` starts. The same
command with the same ``run_dir`` goes on where it stopped.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from core import distributed
from data_shards.shards.manifest import DataError
from launch.checkpoints.progress import Progress
from launch.checkpoints.store import Checkpoints, SaveError, read_state
from launch.checkpoints.tensors import load_generators, load_moments, load_weights
from launch.config import (
    RENAMED,
    ConfigError,
    Run,
    from_dict,
    load_recipe,
    override,
    recipe_names,
    to_dict,
)
from launch.engine import init_processes, load_grad_scaler, shutdown_processes, start
from launch.loop import fit
from launch.monitor import watchdog
from launch.monitor.preemption import PREEMPTED, Preempted, Stop
from launch.reports import report
from launch.reports.provenance import provenance
from launch.reports.run_log import RunLog
from launch.step import TrainingStopped
from launch.tasks.base import Task
from launch.tasks.build import build_model, build_task

USAGE = """usage: deepspeed launch/train.py RECIPE data=DIR [key=value ...]

recipes: {recipes}
keys:    everything in the recipe, dotted (batch_size=64 optim.groups.main.lr=1e-3 options.temperature=0.2);
         a JSON file with such keys: @FILE; all keys of a recipe: python -m launch.train RECIPE --show"""


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


def parse(arguments: list[str]) -> Run:
    """The run that the command line asks for. ``--local_rank`` is what launchers add; it is not needed."""
    words = [word for word in arguments if not word.startswith(("--local_rank", "--local-rank"))]
    if not words or words[0] in ("-h", "--help"):
        print(USAGE.format(recipes=", ".join(recipe_names())))
        raise SystemExit(0 if words else 2)
    run = load_recipe(words[0])
    changes = expand(words[1:])
    show = "--show" in changes
    run = override(run, [change for change in changes if change != "--show"])
    if show:
        print(json.dumps(to_dict(run), indent=1))
        raise SystemExit(0)
    return run


def expand(words: Sequence[str]) -> list[str]:
    """``key=value`` words, with each ``@FILE`` replaced by the changes that the JSON file holds."""
    return [
        change
        for word in words
        for change in (_from_file(word[1:]) if word.startswith("@") else [word])
    ]


def _from_file(path: str) -> list[str]:
    try:
        changes = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"@{path}: {error}") from None
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


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


@dataclass(frozen=True)
class TrainingSession:
    """A run that is ready to go on; nothing has been trained by this process yet."""

    run: Run
    run_dir: Path
    task: Task
    log: RunLog
    progress: Progress
    stop: Stop
    engine: Any
    epochs: Iterator[dict[str, float]]  # trains; validation scores of each epoch


@contextmanager
def prepare(run: Run, *, quiet: bool = False) -> Iterator[TrainingSession]:
    """Open or make the run's directory, and everything that training needs. The test split is not in reach."""
    stop = Stop().listen()
    run, run_dir = open_run(run)
    torch.manual_seed(run.seed)
    task = build_task(run)
    model = build_model(run, task.data)
    checkpoints = Checkpoints(run_dir, Progress(), run.keep)
    with RunLog(run_dir, quiet=quiet) as log:
        engine = resume(run, model, task, checkpoints, log)
        epochs = fit(engine, task, run, run_dir, log, checkpoints, stop)
        yield TrainingSession(run, run_dir, task, log, checkpoints.progress, stop, engine, epochs)


def train(run: Run, *, quiet: bool = False) -> dict[str, dict[str, float]]:
    """Train, then evaluate the best checkpoint once on validation and test, and write the report."""
    with prepare(run, quiet=quiet) as it:
        for scores in it.epochs:
            it.log.say(_line(scores, it.run))
        it.stop.nothing_to_save = True  # from here on a signal ends this process at once
        return report.finish(it.run, it.run_dir, it.task, it.log, it.engine.device)


def resume(run: Run, model: Any, task: Any, checkpoints: Checkpoints, log: RunLog) -> Any:
    """The engine, at the newest whole checkpoint if there is one."""
    folder, complaints = checkpoints.find("last")
    for complaint in complaints:
        log.say(complaint)
    if folder is None:
        if complaints:
            raise ConfigError(
                "no checkpoint of this run is whole; use another run_dir to start again"
            )
        return start(model, run)
    state = read_state(folder)
    load_weights(folder, state.shapes, model)
    engine = start(model, run)
    load_moments(folder, state.adam_step, engine, model)
    load_grad_scaler(engine, state.loss_scale)
    task.load_state_dict(state.task)
    vars(checkpoints.progress).update(vars(state.progress))
    load_generators(folder, state.ranks, (run.seed, state.progress.step))
    checkpoints.newest = folder.name
    log.say(
        f"going on at epoch {state.progress.epoch + 1}, step {state.progress.step}, from {folder}"
    )
    if state.progress.best_epoch >= 0:
        _, complaints = checkpoints.find("best")
        for complaint in complaints:
            log.say(f"{complaint}; the best of the epochs to come takes its place")
            checkpoints.progress.best, checkpoints.progress.best_epoch = math.inf, -1
    return engine


def _line(scores: dict[str, float], run: Run) -> str:
    """One epoch in one line: the loss, what selection goes by, and how fast it went."""
    loss = sum(value for name, value in scores.items() if name.startswith("loss_"))
    others = [
        name for name in ("MAE", "Corr", "Accuracy", "Macro_F1", "Hits@1", "MRR") if name in scores
    ]
    shown = list(dict.fromkeys([run.select, *others]))[:3]
    numbers = "  ".join(f"{name} {scores[name]:.4f}" for name in shown if name in scores)
    return (
        f"epoch {int(scores['epoch']) + 1}/{run.epochs}  loss {loss:.4f}  valid {numbers}  "
        f"{scores['samples_per_second']:.0f} samples/s, {scores['data_wait']:.1%} waiting for data"
    )


def main(arguments: list[str] | None = None) -> int:
    """The exit code: see ``exit_code``."""

    def work() -> None:
        run = parse(sys.argv[1:] if arguments is None else arguments)
        init_processes(run.timeout)
        train(run)
        shutdown_processes()

    return exit_code(work)


def exit_code(work: Callable[[], None]) -> int:
    """Do the work of one rank: 0 done, 2 refused, 3 not finite or ranks differ, 4 no room for a checkpoint, 75 stopped
    on request with everything saved; 76, given by ``launch.monitor.watchdog``, when another rank is gone."""
    try:
        work()
        return 0
    except Preempted as left:
        watchdog.leave()
        if left.stuck:  # the thread that waits for data would keep the interpreter from ending
            sys.stderr.flush()
            os._exit(PREEMPTED)
        return PREEMPTED
    except (ConfigError, DataError, OSError) as error:
        return _complain(error, 2)
    except TrainingStopped as error:
        return _complain(error, 3)
    except SaveError as error:
        return _complain(error, 4)
    except RuntimeError as error:
        watchdog.wait_for_verdict(error)
        watchdog.leave(str(error))
        raise


def _complain(error: Exception, code: int) -> int:
    if distributed.rank() == 0:
        print(f"error: {error}", file=sys.stderr)
    watchdog.leave(str(error))
    return code


if __name__ == "__main__":
    sys.exit(main())
