"""What a search finds and costs on the demo: against the recipe's default, without ASHA, and against plain runs.

    python benchmarks/search.py [work=FOLDER] [seeds=1111,1112,1113] [trials=16] [sequential=8] [only=finds,asha]

finds     16 trials over alpha, omega1, omega2 and tau by optuna with ASHA: best validation MAE against the default's
asha      the same random trials with and without ASHA, for each seed: epochs spent, and how far its best is behind
overhead  trials per hour of the search, against ``launch/train.py`` for the same configurations one after the other

Wants a quiet machine. Results go to ``benchmarks/results/search.json`` after each step, and as tables into
``docs/search.md`` (``only=table`` does just that); a step that is there is not measured again. A search that was
interrupted goes on, but how long it took is not known then, and nothing is made of it.
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

from benchmarks.results import made_by, paste  # noqa: E402
from launch.config import load_recipe  # noqa: E402
from launch.reports.tables import markdown_table  # noqa: E402
from tune.journal import Journal, Record  # noqa: E402
from tune.overrides import arguments  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "search.json"
BUSY = 2.0 * (os.cpu_count() or 1)  # load before a step
PAGE = ROOT / "docs" / "search.md"
RECIPE = "hscl/demo"
SPACE = [
    "space=none",
    *(f"space.{name}=loguniform(0.001,1.0)" for name in ("alpha", "omega1", "omega2")),
]
SPACE += ["space.tau=loguniform(0.05,2.0)"]


def shards(work: Path) -> Path:
    out = work / "shards"
    if not (out / "manifest.json").is_file():
        raw = work / "synthetic.pkl"
        for words in (
            ["data_shards.synthetic", str(raw)],
            ["data_shards.convert", str(raw), "--out", str(out)],
        ):
            subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=True)
    return out


def search(work: Path, name: str, words: list[str]) -> tuple[list[Record], float | None]:
    """The trials of one search, and its seconds from the command to the prompt; None if it was interrupted."""
    folder = work / name
    timing = folder / "timing.json"
    if not timing.is_file():
        resumed = (folder / "search.json").is_file()
        command = [RECIPE, f"data={shards(work)}", "confirm=0", *SPACE, *words]
        command += [
            f"resume={folder}" if resumed else f"run_dir={folder}"
        ]  # one with other words is refused
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", "tune.search", *command], cwd=ROOT, check=True)
        seconds = None if resumed else time.monotonic() - started
        timing.write_text(json.dumps({"words": words, "seconds": seconds}) + "\n", encoding="utf-8")
    done = json.loads(timing.read_text(encoding="utf-8"))
    if done["words"] != words:
        raise SystemExit(
            f"{folder} holds a search with {' '.join(done['words'])}; give another work=FOLDER"
        )
    with Journal(folder / "journal.jsonl") as journal:
        return journal.trials(), done["seconds"]


def plain(work: Path, record: Record, seed: int) -> float:
    """Seconds of ``launch.train`` for the configuration of a trial, from the command to the prompt."""
    folder = work / "plain" / f"{record.number:04d}"
    timing = folder / "timing.json"
    if not timing.is_file():
        shutil.rmtree(folder, ignore_errors=True)  # one that was interrupted would be too fast
        words = [
            RECIPE,
            f"data={shards(work)}",
            f"run_dir={folder}",
            f"seed={seed}",
            *arguments(record.changes),
        ]
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", "launch.train", *words], cwd=ROOT, check=True)
        timing.write_text(json.dumps(time.monotonic() - started) + "\n", encoding="utf-8")
    return json.loads(timing.read_text(encoding="utf-8"))


def best(records: list[Record]) -> float:
    return min(record.best for record in records if record.usable)


def epochs(records: list[Record]) -> int:
    return sum(len(record.history) for record in records)


def asha(work: Path, seed: int, trials: int) -> dict[str, Any]:
    """The same trials, drawn at random from the seed, with and without ASHA."""
    words = ["search=random", f"trials={trials}", f"seed={seed}"]
    without, slow = search(work, f"none-{seed}", [*words, "scheduler=none"])
    with_asha, fast = search(work, f"asha-{seed}", [*words, "scheduler=asha"])
    same = [a.changes == b.changes for a, b in zip(without, with_asha, strict=True)]
    if not all(same):
        raise ValueError(f"seed {seed}: the two searches did not try the same configurations")
    return {
        "trials": trials,
        "default_MAE": without[0].best,  # a search begins with the recipe itself
        "epochs": {"asha": epochs(with_asha), "none": epochs(without)},
        "share_of_epochs": epochs(with_asha) / epochs(without),
        "best_MAE": {"asha": best(with_asha), "none": best(without)},
        "behind": best(with_asha) / best(without) - 1.0,
        "seconds": {"asha": fast, "none": slow},
    }


def key(step: str, seed: int) -> str:
    """Name of a step in the results; the recipe's own seed goes without saying."""
    return step if seed == load_recipe(RECIPE).seed else f"{step}-{seed}"


def finds(work: Path, seed: int, trials: int) -> dict[str, Any]:
    """A search as a user starts it, against the recipe's default trained to the end."""
    own = [] if seed == load_recipe(RECIPE).seed else [f"seed={seed}"]
    found, seconds = search(work, key("finds", seed), [f"trials={trials}", *own])
    default, _ = search(work, key("default", seed), ["trials=1", "scheduler=none", *own])
    return {
        "seed": seed,
        "trials": trials,
        "seconds": seconds,
        "epochs": epochs(found),
        "default_MAE": best(default),
        "best_MAE": best(found),
        "best": min(
            (record for record in found if record.usable), key=lambda record: record.best
        ).changes,
    }


def overhead(work: Path, seed: int, trials: int, count: int) -> dict[str, Any]:
    """Trials per hour: a search with ``concurrent`` as it comes, and plain runs one after the other."""
    name = f"none-{seed}"
    records, seconds = search(
        work, name, ["search=random", f"trials={trials}", f"seed={seed}", "scheduler=none"]
    )
    if seconds is None:
        raise SystemExit(
            f"{work / name} was interrupted, so how long it takes is not known; remove it"
        )
    alone = 3600 * count / sum(plain(work, record, seed) for record in records[:count])
    searched = 3600 * len(records) / seconds
    share = epochs(records[:count]) / count / (epochs(records) / len(records))
    return {
        "trials_per_hour": {"search": searched, "one_after_the_other": alone},
        "ratio": searched / alone,
        "ratio_at_equal_epochs": searched
        / (alone * share),  # the plain runs are the first of the search's trials
        "plain_runs": count,
    }


# tables --------------------------------------------------------------------------------------------------------------


def told(seconds: float | None, load: float = 0.0) -> str:
    """A time as it may be shown: not when others had the machine too, beyond what is left of the step before."""
    if seconds is None:
        return "interrupted"
    return "machine busy" if load > BUSY else f"{seconds:.0f}"


def finds_table(steps: dict[str, Any]) -> str:
    """Best MAE of searches as a user starts them, by seed, and the mean of the seeds."""
    chosen = [step for name, step in steps.items() if name.partition("-")[0] == "finds"]
    if not chosen:
        return ""
    rows = [
        [
            str(step.get("seed", load_recipe(RECIPE).seed)),
            f"{step['default_MAE']:.4f}",
            f"{step['best_MAE']:.4f}",
            f"{step['best_MAE'] / step['default_MAE'] - 1:+.1%}",
            str(step["epochs"]),
            told(step["seconds"], step["load_before"]),
        ]
        for step in chosen
    ]
    if len(rows) > 1:
        better = mean(step["best_MAE"] / step["default_MAE"] - 1 for step in chosen)
        both = [
            f"{mean(step[name] for step in chosen):.4f}" for name in ("default_MAE", "best_MAE")
        ]
        rows.append(
            ["mean", *both, f"{better:+.1%}", f"{mean(step['epochs'] for step in chosen):.0f}", ""]
        )
    said = f"{chosen[0]['trials']} trials by optuna with ASHA, as a search begins when nothing is said about it:"
    head = [
        "seed",
        "the recipe's MAE",
        "best MAE",
        "against the recipe",
        "epochs in all",
        "seconds",
    ]
    return f"{said}\n\n{markdown_table(head, rows)}"


def asha_table(steps: dict[str, Any]) -> str:
    """The same random trials with and without ASHA, by seed, and the mean of the seeds."""
    chosen = {
        name.partition("-")[2]: step for name, step in steps.items() if name.startswith("asha-")
    }
    if not chosen:
        return ""
    rows = []
    for seed, step in chosen.items():
        found = f"{step['best_MAE']['none']:.4f} / {step['best_MAE']['asha']:.4f}"
        spent = f"{step['epochs']['none']} / {step['epochs']['asha']}"
        seconds = " / ".join(
            told(step["seconds"][kind], step["load_before"]) for kind in ("none", "asha")
        )
        default = f"{step['default_MAE']:.4f}" if "default_MAE" in step else ""
        rows.append(
            [
                seed,
                default,
                found,
                f"{step['behind']:.1%}",
                spent,
                f"{step['share_of_epochs']:.0%}",
                seconds,
            ]
        )
    if len(chosen) > 1:
        best_values = [
            f"{mean(step['best_MAE'][kind] for step in chosen.values()):.4f}"
            for kind in ("none", "asha")
        ]
        behind = f"{mean(step['behind'] for step in chosen.values()):.1%}"
        share = f"{mean(step['share_of_epochs'] for step in chosen.values()):.0%}"
        rows.append(["mean", "", " / ".join(best_values), behind, "", share, ""])
    said = f"The same {next(iter(chosen.values()))['trials']} random trials without ASHA / with it:"
    head = ["seed", "the recipe's MAE", "best MAE", "behind", "epochs in all", "share", "seconds"]
    return f"{said}\n\n{markdown_table(head, rows)}"


def overhead_text(steps: dict[str, Any]) -> str:
    if "overhead" not in steps:
        return ""
    step = steps["overhead"]
    searched, alone = (
        step["trials_per_hour"]["search"],
        step["trials_per_hour"]["one_after_the_other"],
    )
    return (
        f"Trials per hour: {searched:.0f} in a search, {alone:.0f} by `launch/train.py` one after the other "
        f"({step['ratio']:.2f} times as many; {step['ratio_at_equal_epochs']:.2f} for equal numbers of epochs)."
    )


def report(body: dict[str, Any]) -> str:
    """What stands between the markers of the page."""
    steps = body["steps"]
    parts = [finds_table(steps), asha_table(steps), overhead_text(steps)]
    head = f"Measured on the demo with {body['cores']} cores, by validation MAE (`benchmarks/search.py`)."
    return "\n\n".join([head, *(part for part in parts if part)])


# results -------------------------------------------------------------------------------------------------------------


def results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {"steps": {}}


def write(steps: dict[str, Any]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    body = {"recipe": RECIPE, "cores": os.cpu_count(), "provenance": made_by(), "steps": steps}
    unfinished = RESULTS.with_suffix(".partial")
    unfinished.write_text(json.dumps(body, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(unfinished, RESULTS)


def main() -> None:
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    work = Path(given.get("work", "searches/benchmark")).absolute()
    seeds = [int(seed) for seed in given.get("seeds", "1111,1112,1113").split(",")]
    trials, count = int(given.get("trials", "16")), int(given.get("sequential", "8"))
    only = given.get("only", "finds,asha,overhead").split(",")
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
    main()
