"""Train a recipe: ``deepspeed launch/train.py hscl/mosi data=DIR key=value ...``.

Runs as one process, or as many as ``deepspeed --num_gpus N`` or ``torchrun --nproc-per-node N`` starts. The same
command with the same ``run_dir`` goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from core import distributed
from data_shards.shards.manifest import DataError
from launch.checkpoints.store import SaveError
from launch.config import ConfigError, Run, load_recipe, override, recipe_names, to_dict
from launch.engine import init_processes, shutdown_processes
from launch.monitor import watchdog
from launch.monitor.preemption import PREEMPTED, Preempted
from launch.session import train
from launch.step import TrainingStopped

USAGE = """usage: deepspeed launch/train.py RECIPE data=DIR [key=value ...]

recipes: {recipes}
keys:    everything in the recipe, dotted (batch_size=64 optim.groups.main.lr=1e-3 options.temperature=0.2);
         a JSON file with such keys: @FILE; all keys of a recipe: python -m launch.train RECIPE --show"""


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
