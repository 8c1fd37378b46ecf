"""Train a recipe: ``deepspeed launch/train.py hscl/mosi data=DIR key=value ...``.

Runs as one process, or as many as ``deepspeed --num_gpus N`` or ``torchrun --nproc-per-node N``
starts. The same command with the same ``run_dir`` goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys

from launch.command_line import read, settings_parser
from launch.config import Run, load_recipe, override, recipe_names, to_dict
from launch.engine.processes import init_processes, shutdown_processes
from launch.loop import train
from launch.monitor.rank_command import run_rank

DESCRIPTION = """Train a recipe; the same command with the same run_dir goes on where it stopped.

On several GPUs: deepspeed --num_gpus 8 --module launch.train RECIPE data=DIR ...
Everything in a recipe is a setting: batch_size=64 optim.groups.main.lr=1e-3 options.temperature=0.2
@FILE stands for the settings in a file: a JSON object, such as --show prints, or lines of key=value."""


def arguments_parser(command: str, description: str) -> argparse.ArgumentParser:
    """The options of the commands that train a recipe."""
    parser = settings_parser(
        command, description, "RECIPE data=DIR [key=value ...] [@FILE] [options]"
    )
    # its own help: with a recipe it explains every setting
    parser.add_argument("--show", action="store_true", help="print all settings as JSON, and end")
    parser.add_argument(
        "--list", action="store_true", help="print the names of all recipes, and end"
    )
    if command == "train":
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="take a few steps, say what the run would cost, and write nothing",
        )
    return parser


def parse(
    arguments: list[str] | None, command: str = "train", description: str = DESCRIPTION
) -> Run:
    """The run that a command line asks for; ``--help``, ``--list`` and ``--show`` answer and
    leave."""
    words = sys.argv[1:] if arguments is None else arguments
    parser = arguments_parser(command, description)
    asks_for_help = "-h" in words or "--help" in words
    if asks_for_help:
        words = [word for word in words if word not in ("-h", "--help")] or ["--list"]
    line = read(parser, words)
    if asks_for_help and not line.names:
        parser.print_help()
        raise SystemExit(0)
    if line.options.list:
        print("\n".join(recipe_names()))
        raise SystemExit(0)
    run = override(load_recipe(line.name("a recipe")), line.changes)
    if asks_for_help:
        from launch.config_help import print_help

        print_help(run, parser.prog)
        raise SystemExit(0)
    if line.options.show:
        print(json.dumps(to_dict(run), indent=1))
        raise SystemExit(0)
    return run


def main(arguments: list[str] | None = None) -> int:
    """The exit code; ``core.command`` lists them."""

    def work() -> None:
        words = sys.argv[1:] if arguments is None else arguments
        run = parse(words)
        init_processes(run.timeout)
        if "--dry-run" in words:
            from launch.reports.dry_run import dry_run

            dry_run(run)
        else:
            train(run)
        shutdown_processes()

    return run_rank(work)


if __name__ == "__main__":
    sys.exit(main())
