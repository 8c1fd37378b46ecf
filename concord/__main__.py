"""The command ``concord``: one subcommand per job. A job's module is imported when the job is asked
for."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module

from concord import __version__
from core.command import DONE, REFUSED, report_error, run

COMMANDS = {
    "extract": ("data_shards.extract.__main__", "clips to features, and the recipe for new clips"),
    "convert": ("data_shards.convert", "raw data to a shard folder"),
    "inspect": ("data_shards.inspect", "what is in a shard folder"),
    "verify": ("data_shards.verify", "sizes and checksums of a shard folder"),
    "index": ("data_shards.index", "index tars that something else wrote"),
    "codebook": ("data_shards.codebook", "centres of the frames, which CENet needs"),
    "encode": ("data_shards.media.encode_shards", "sound and pictures to an encoder's frames"),
    "synthetic": ("data_shards.synthetic", "generate a small data set"),
    "recipes": ("concord.__main__", "all recipes, with their scores"),
    "train": ("launch.train", "train a recipe"),
    "evaluate": ("launch.evaluate", "score a finished run again"),
    "predict": ("launch.predict", "score clips, tables or sentences with a trained model"),
    "serve": ("launch.serving.serve", "a page for trying a model, on this machine"),
    "export": ("launch.export", "a finished run as a folder for a model hub"),
    "align": ("launch.align", "the pairs of entities that a run predicts"),
    "robustness": ("launch.robustness", "scores over rates of missing data"),
    "distill": ("launch.distill", "a teacher on complete data, then its student"),
    "search": ("tune.search", "search the settings of a recipe"),
}
SCORE = re.compile(r"Test \S+ \d(?:[^.;:]|\.\d)*")  # up to the end of the clause


def main(arguments: list[str] | None = None) -> int:
    """The exit code; ``core.command`` lists them."""
    words = sys.argv[1:] if arguments is None else arguments
    name, *rest = words or ["--help"]
    if name in ("-h", "--help"):
        print(overview())
        return DONE if words else REFUSED
    if name == "--version":
        print(__version__)
        return DONE
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(COMMANDS)}"
        report_error(f"no command {name!r}; {hint}")
        return REFUSED
    return run(lambda: _job(name)(rest))


def _job(name: str) -> Callable[[list[str]], int]:
    if name == "recipes":
        return lambda words: recipes()
    return import_module(COMMANDS[name][0]).main


def overview() -> str:
    lines = ["usage: concord COMMAND [words and options]", ""]
    lines += [f"  {name:<12}{purpose}" for name, (_, purpose) in COMMANDS.items()]
    lines += [
        "",
        "concord COMMAND --help says more; concord train RECIPE --help explains every setting.",
        "On several GPUs: deepspeed --num_gpus 8 --module launch.train RECIPE data=DIR ...",
    ]
    return "\n".join(lines)


def recipes() -> int:
    """Print each recipe with the first line of its docstring, and its score where there is one."""
    from launch.config import recipe_functions

    for name, function in recipe_functions().items():
        first, _, rest = (inspect.getdoc(function) or "").partition("\n")
        print(f"{name}\n    {first}")
        score = SCORE.search(" ".join(rest.split()))
        if score:
            print(f"    {score.group()}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
