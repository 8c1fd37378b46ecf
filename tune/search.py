"""Search the settings of a recipe: ``python -m tune.search hscl/mosi data=DIR trials=32``.

Every trial is a normal run of ``launch/train.py`` that never sees the test split. The best
configuration is trained again over a few seeds, and only these runs are evaluated on test, once
each.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core import command
from launch.command_line import read, settings_parser
from launch.config import recipe_names
from launch.monitor.lease import held
from tune.cluster import Capacity, cluster
from tune.journal import Journal, Record
from tune.sampling.check import TrainableCheck
from tune.sampling.domain import FORMS
from tune.sampling.suggest import Suggester
from tune.search_report import best_changes, write_best, write_confirmed, write_report
from tune.settings import Search, load_search, read_search, same_search, write_search

USAGE = """usage: python -m tune.search RECIPE data=DIR [key=value ...]
       python -m tune.search --resume DIR

trials=32  search=optuna|random|grid|pbt  scheduler=asha|none  confirm=5 (seeds)  run_dir=DIR
processes=1 (of a trial)  cpus=1 gpus=1 (of a process)  concurrent=0 (trials at a time; 0: as many as fit)
grace=1 reduction=3 (asha)  interval=0 (pbt, epochs)  retries=2 (of killed trials)
address=auto (a Ray cluster)  storage=URI (for checkpoints, where machines share no folder)

space.KEY=DOMAIN  search this setting of the recipe too; space=none: nothing but these
                  {forms}
key=value         this setting holds for every trial (epochs=10), and is not searched

recipes: {recipes}"""


def run_trials(
    search: Search,
    part: str,
    next_point: Callable[[int, list[Record]], dict[str, Any] | None],
    journal: Journal,
    capacity: Capacity,
    count: int,
) -> bool:
    """Bring ``part`` of a search to ``count`` ended trials; False when it was interrupted."""
    from tune.tuner import run

    if not journal.unfinished() and len(journal.records) >= count:
        return True
    journal.write("session")
    run(search, part, next_point, journal, capacity, count)
    return not journal.unfinished()


def find(search: Search, journal: Journal, capacity: Capacity, suggester: Suggester) -> bool:
    """The search itself; False when it was interrupted."""
    count = min(search.trials, len(suggester.grid) or search.trials)
    return run_trials(search, "trials", suggester.point, journal, capacity, count)


def confirm(search: Search, changes: dict[str, Any], journal: Journal, capacity: Capacity) -> bool:
    """Train the best configuration over seeds, then evaluate test; False when interrupted."""
    first = search.run().seed

    def seeded(number: int, _: list[Record]) -> dict[str, Any]:
        return {**changes, "seed": first + number - 1}

    if not run_trials(search, "confirm", seeded, journal, capacity, search.confirm):
        return False
    write_confirmed(search, journal)  # validation is on the disk before test is touched
    if journal.untested():
        from tune.tuner import evaluate

        evaluate(search, "confirm", journal, capacity)
        write_confirmed(search, journal)
    return not journal.untested()


def search_for(search: Search) -> int:
    """Run or go on with a search; the exit code."""
    check = TrainableCheck(search)
    suggester = Suggester(search, check)
    for line in check.space(suggester):
        print(f"left out of the grid: {line}")
    started = time.monotonic()
    with (
        held(search.folder),
        Journal(search.folder / "journal.jsonl") as journal,
        Journal(search.folder / "confirm.jsonl") as confirmation,
        cluster(search) as capacity,
    ):
        print_plan(search, journal, capacity)
        if not find(search, journal, capacity, suggester):
            return interrupted(search)
        ranking = journal.ranking()
        if ranking:
            write_best(search, ranking[0])
        write_report(search, journal, confirmation)
        if not ranking:
            print(
                f"error: no trial came to a normal end; see {search.folder / 'report.md'}",
                file=sys.stderr,
            )
            return command.CANNOT_GO_ON
        if search.confirm:
            print(f"confirming trial {ranking[0].number} over {search.confirm} seeds", flush=True)
            if not confirm(search, best_changes(search, ranking[0]), confirmation, capacity):
                return interrupted(search)
            write_report(search, journal, confirmation)
    print(f"report: {search.folder / 'report.md'} ({time.monotonic() - started:.0f} s)")
    data = search.run().data
    print(
        f"train it: deepspeed launch/train.py {search.recipe} data={data} "
        f"@{search.folder / 'best.json'}"
    )
    return 0


def print_plan(search: Search, journal: Journal, capacity: Capacity) -> None:
    ended = len(journal.records) - len(journal.unfinished())
    print(
        f"searching {search.recipe} with {search.search}, {search.trials} trials, "
        f"{capacity.concurrent} at a time"
    )
    for key, domain in search.domains().items():
        print(f"  {key:<32} {domain}")
    if ended:
        print(f"{ended} trials have ended before and are not repeated")
    print(f"pictures while it runs: tensorboard --logdir {search.folder}", flush=True)


def interrupted(search: Search) -> int:
    print(f"stopped; go on with: python -m tune.search --resume {search.folder}", file=sys.stderr)
    return command.INTERRUPTED


def parse(arguments: list[str]) -> Search:
    """A new search in its own folder, or the one that ``resume=DIR`` names."""
    parser = settings_parser("search", "", "RECIPE data=DIR [key=value ...]")
    parser.add_argument("--resume", action="append", default=[], metavar="DIR")
    line = read(parser, arguments, also_settings=["resume"])
    folders, others = line.options.resume, [*line.names, *line.changes]
    if not folders:
        search = read_search(others)
        write_search(search)
        return search
    search = load_search(Path(folders[-1]))
    if others:
        same_search(search, others)
    return search


def main(arguments: list[str] | None = None) -> int:
    """The exit code; ``core.command`` lists them."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or "-h" in words or "--help" in words:
        print(USAGE.format(recipes=", ".join(recipe_names()), forms=FORMS))
        return command.DONE if words else command.REFUSED
    return command.run(
        lambda: search_for(parse(words)),
        when_stopped="go on with: python -m tune.search --resume DIR",
        refused=(command.Refused, OSError),
    )


if __name__ == "__main__":
    sys.exit(main())
