"""What a search finds and costs on the demo: against the default, without ASHA, and plain runs.

    python benchmarks/search.py [work=FOLDER] [seeds=1111,1112,1113] [trials=16] [sequential=8]
                                [only=finds,asha]

finds     16 trials over alpha, omega1, omega2 and tau by optuna with ASHA:
          best validation MAE against the default's
asha      the same random trials with and without ASHA, for each seed:
          epochs spent, and how far its best is behind
overhead  trials per hour of the search, against ``launch/train.py`` for the same configurations
          one after the other

Wants a quiet machine. Results go to ``benchmarks/results/search.json`` after each step, and as
tables into ``docs/search.md`` (``only=table`` does just that); a step that is there is not measured
again. A search that was interrupted goes on, but how long it took is not known then, and nothing is
made of it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import made_by, paste, read_words, refuse_others, run_command  # noqa: E402
from core.files import write_atomically  # noqa: E402
from launch.command_line import as_changes  # noqa: E402
from launch.config import load_recipe  # noqa: E402
from launch.reports.tables import markdown_table  # noqa: E402
from tune.journal import Journal, Record  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "search.json"
BUSY = 2.0 * (os.cpu_count() or 1)  # load before a step
PAGE = ROOT / "docs" / "search.md"
RECIPE = "hscl/demo"
DEFAULT_SEED = load_recipe(RECIPE).seed
SPACE = [
    "space=none",
    *(f"space.{name}=loguniform(0.001,1.0)" for name in ("alpha", "omega1", "omega2")),
]
SPACE += ["space.tau=loguniform(0.05,2.0)"]


def shards(work: Path) -> Path:
    out = work / "shards"
    if not (out / "manifest.json").is_file():
        raw = work / "synthetic.pkl"
        run_module("data_shards.synthetic", str(raw))
        run_module("data_shards.convert", str(raw), "--out", str(out))
    return out


def run_module(module: str, *words: str) -> float:
    """Seconds from the command to the prompt."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", module, *words], cwd=ROOT, check=True)
    return time.monotonic() - started


def search(work: Path, name: str, words: list[str]) -> tuple[list[Record], float | None]:
    """The trials of one search, and its seconds in all; None if it was interrupted."""
    folder = work / name
    timing = folder / "timing.json"
    if not timing.is_file():
        resumed = (folder / "search.json").is_file()
        # a search that goes on with other words is refused
        where = f"resume={folder}" if resumed else f"run_dir={folder}"
        data = f"data={shards(work)}"
        seconds = run_module("tune.search", RECIPE, data, "confirm=0", *SPACE, *words, where)
        body = {"words": words, "seconds": None if resumed else seconds}
        timing.write_text(json.dumps(body) + "\n", encoding="utf-8")
    timed = json.loads(timing.read_text(encoding="utf-8"))
    if timed["words"] != words:
        raise SystemExit(
            f"{folder} holds a search with {' '.join(timed['words'])}; give another work=FOLDER"
        )
    with Journal(folder / "journal.jsonl") as journal:
        return journal.trials(), timed["seconds"]


def plain(work: Path, record: Record, seed: int) -> float:
    """Seconds of ``launch.train`` for the configuration of a trial."""
    folder = work / "plain" / f"{record.number:04d}"
    timing = folder / "timing.json"
    if not timing.is_file():
        shutil.rmtree(folder, ignore_errors=True)  # one that was interrupted would be too fast
        settings = [f"data={shards(work)}", f"run_dir={folder}", f"seed={seed}"]
        settings += as_changes(record.changes)
        seconds = run_module("launch.train", RECIPE, *settings)
        timing.write_text(json.dumps(seconds) + "\n", encoding="utf-8")
    return json.loads(timing.read_text(encoding="utf-8"))


def best(records: list[Record]) -> Record:
    usable = [record for record in records if record.usable]
    return min(usable, key=lambda record: record.best)


def epochs(records: list[Record]) -> int:
    return sum(len(record.history) for record in records)


# steps -----------------------------------------------------------------------------------------


def key(step: str, seed: int) -> str:
    """Name of a step in the results; the recipe's own seed goes without saying."""
    return step if seed == DEFAULT_SEED else f"{step}-{seed}"


def finds(work: Path, seed: int, trials: int) -> dict[str, Any]:
    """A search as a user starts it, against the recipe's default trained to the end."""
    seeded = [] if seed == DEFAULT_SEED else [f"seed={seed}"]
    found, seconds = search(work, key("finds", seed), [f"trials={trials}", *seeded])
    default, _ = search(work, key("default", seed), ["trials=1", "scheduler=none", *seeded])
    return {
        "seed": seed,
        "trials": trials,
        "seconds": seconds,
        "epochs": epochs(found),
        "default_MAE": best(default).best,
        "best_MAE": best(found).best,
        "best": best(found).changes,
    }


def asha(work: Path, seed: int, trials: int) -> dict[str, Any]:
    """The same trials, drawn at random from the seed, with and without ASHA."""
    words = ["search=random", f"trials={trials}", f"seed={seed}"]
    without, slow = search(work, f"none-{seed}", [*words, "scheduler=none"])
    with_asha, fast = search(work, f"asha-{seed}", [*words, "scheduler=asha"])
    for one, other in zip(without, with_asha, strict=True):
        if one.changes != other.changes:
            raise ValueError(f"seed {seed}: the two searches did not try the same configurations")
    best_MAE = {"asha": best(with_asha).best, "none": best(without).best}
    return {
        "trials": trials,
        "default_MAE": without[0].best,  # a search begins with the recipe itself
        "epochs": {"asha": epochs(with_asha), "none": epochs(without)},
        "share_of_epochs": epochs(with_asha) / epochs(without),
        "best_MAE": best_MAE,
        "behind": best_MAE["asha"] / best_MAE["none"] - 1.0,
        "seconds": {"asha": fast, "none": slow},
    }


def overhead(work: Path, seed: int, trials: int, count: int) -> dict[str, Any]:
    """Trials per hour: a search as it comes, and plain runs one after the other."""
    name = f"none-{seed}"
    words = ["search=random", f"trials={trials}", f"seed={seed}", "scheduler=none"]
    records, seconds = search(work, name, words)
    if seconds is None:
        raise SystemExit(
            f"{work / name} was interrupted, so how long it takes is not known; remove it"
        )
    first = records[:count]
    one_by_one = 3600 * count / sum(plain(work, record, seed) for record in first)
    searched = 3600 * len(records) / seconds
    # the plain runs are the first of the search's trials, which may be longer than the others
    relative_length = (epochs(first) / count) / (epochs(records) / len(records))
    return {
        "trials_per_hour": {"search": searched, "one_after_the_other": one_by_one},
        "ratio": searched / one_by_one,
        "ratio_at_equal_epochs": searched / (one_by_one * relative_length),
        "plain_runs": count,
    }


# tables ----------------------------------------------------------------------------------------


def duration(seconds: float | None, load: float) -> str:
    """A time as it may be shown: not when others had the machine too."""
    if seconds is None:
        return "interrupted"
    return "machine busy" if load > BUSY else f"{seconds:.0f}"


def finds_table(steps: dict[str, Any]) -> str:
    """Best MAE of searches as a user starts them, by seed, and the mean of the seeds."""
    chosen = [step for name, step in steps.items() if name.partition("-")[0] == "finds"]
    if not chosen:
        return ""
    rows = []
    for step in chosen:
        default, found = step["default_MAE"], step["best_MAE"]
        seconds = duration(step["seconds"], step["load_before"])
        scores = [f"{default:.4f}", f"{found:.4f}", f"{found / default - 1:+.1%}"]
        rows.append([str(step.get("seed", DEFAULT_SEED)), *scores, str(step["epochs"]), seconds])
    if len(rows) > 1:
        default = mean(step["default_MAE"] for step in chosen)
        found = mean(step["best_MAE"] for step in chosen)
        better = mean(step["best_MAE"] / step["default_MAE"] - 1 for step in chosen)
        scores = [f"{default:.4f}", f"{found:.4f}", f"{better:+.1%}"]
        rows.append(["mean", *scores, f"{mean(step['epochs'] for step in chosen):.0f}", ""])
    title = (
        f"{chosen[0]['trials']} trials by optuna with ASHA, "
        "as a search begins when nothing is said about it:"
    )
    head = ["seed", "the recipe's MAE", "best MAE", "against the recipe", "epochs in all"]
    return f"{title}\n\n{markdown_table([*head, 'seconds'], rows)}"


def asha_table(steps: dict[str, Any]) -> str:
    """The same random trials with and without ASHA, by seed, and the mean of the seeds."""
    chosen = {}
    for name, step in steps.items():
        kind, _, seed = name.partition("-")
        if kind == "asha":
            chosen[seed] = step
    if not chosen:
        return ""
    rows = []
    for seed, step in chosen.items():
        default = f"{step['default_MAE']:.4f}" if "default_MAE" in step else ""
        found, spent, load = step["best_MAE"], step["epochs"], step["load_before"]
        seconds = [duration(step["seconds"][kind], load) for kind in ("none", "asha")]
        rows.append(
            [
                seed,
                default,
                f"{found['none']:.4f} / {found['asha']:.4f}",
                f"{step['behind']:.1%}",
                f"{spent['none']} / {spent['asha']}",
                f"{step['share_of_epochs']:.0%}",
                " / ".join(seconds),
            ]
        )
    if len(rows) > 1:
        without = mean(step["best_MAE"]["none"] for step in chosen.values())
        with_asha = mean(step["best_MAE"]["asha"] for step in chosen.values())
        behind = mean(step["behind"] for step in chosen.values())
        share = mean(step["share_of_epochs"] for step in chosen.values())
        found = f"{without:.4f} / {with_asha:.4f}"
        rows.append(["mean", "", found, f"{behind:.1%}", "", f"{share:.0%}", ""])
    trials = next(iter(chosen.values()))["trials"]
    title = f"The same {trials} random trials without ASHA / with it:"
    head = ["seed", "the recipe's MAE", "best MAE", "behind", "epochs in all", "share", "seconds"]
    return f"{title}\n\n{markdown_table(head, rows)}"


def overhead_text(steps: dict[str, Any]) -> str:
    if "overhead" not in steps:
        return ""
    step = steps["overhead"]
    speed = step["trials_per_hour"]
    return (
        f"Trials per hour: {speed['search']:.0f} in a search, "
        f"{speed['one_after_the_other']:.0f} by `launch/train.py` one after the other "
        f"({step['ratio']:.2f} times as many; "
        f"{step['ratio_at_equal_epochs']:.2f} for equal numbers of epochs)."
    )


def report(body: dict[str, Any]) -> str:
    """What stands between the markers of the page."""
    steps = body["steps"]
    head = (
        f"Measured on the demo with {body['cores']} cores, by validation MAE "
        "(`benchmarks/search.py`)."
    )
    parts = [head, finds_table(steps), asha_table(steps), overhead_text(steps)]
    return "\n\n".join(part for part in parts if part)


# results ---------------------------------------------------------------------------------------


def results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {"steps": {}}


def write(steps: dict[str, Any]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    body = {"recipe": RECIPE, "cores": os.cpu_count(), "provenance": made_by(), "steps": steps}
    write_atomically(RESULTS, json.dumps(body, indent=1, allow_nan=False) + "\n")


def main() -> None:
    defaults = {
        "work": "searches/benchmark",
        "seeds": "1111,1112,1113",
        "trials": "16",
        "sequential": "8",
        "only": "finds,asha,overhead",
    }
    options, others = read_words(defaults)
    refuse_others(others, defaults)
    work = Path(options["work"]).absolute()
    seeds = [int(seed) for seed in options["seeds"].split(",")]
    trials, count = int(options["trials"]), int(options["sequential"])
    only = options["only"].split(",")
    steps: dict[str, Callable[[], dict[str, Any]]] = {}
    if "finds" in only:
        steps |= {key("finds", seed): partial(finds, work, seed, trials) for seed in seeds}
    if "asha" in only:
        steps |= {f"asha-{seed}": partial(asha, work, seed, trials) for seed in seeds}
    if "overhead" in only:
        steps["overhead"] = partial(overhead, work, seeds[0], trials, count)
    for name, measure in steps.items():
        known = results()["steps"]
        if name in known:
            continue
        load = os.getloadavg()[0]
        result = measure()
        write(known | {name: {**result, "load_before": round(load, 1)}})
        print(json.dumps({name: result}, indent=1), flush=True)
    if results()["steps"]:
        paste(report(results()), "search", PAGE)


if __name__ == "__main__":
    sys.exit(run_command(main))
