"""What a search finds and costs on the demo: against the recipe's default, without ASHA, and against plain runs.

    python benchmarks/search.py [work=FOLDER] [seeds=1111,1112,1113] [trials=16] [sequential=8] [only=finds,asha]

finds     16 trials over alpha, omega1, omega2 and tau by optuna with ASHA: best validation MAE against the default's
asha      the same random trials with and without ASHA, for each seed: epochs spent, and how far its best is behind
overhead  trials per hour of the search, against ``launch/train.py`` for the same configurations one after the other

Wants a quiet machine. Results go to ``benchmarks/results/search.json`` after each step; a step that is there is not
measured again, and a search that was interrupted goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from launch.provenance import provenance  # noqa: E402
from tune.journal import Journal, Record  # noqa: E402
from tune.words import arguments  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "search.json"
RECIPE = "hscl/demo"
SPACE = ["space=none", *(f"space.{name}=loguniform(0.001,1.0)" for name in ("alpha", "omega1", "omega2"))]
SPACE += ["space.tau=loguniform(0.05,2.0)"]


def shards(work: Path) -> Path:
    out = work / "shards"
    if not (out / "manifest.json").is_file():
        raw = work / "synthetic.pkl"
        for words in (["data_shards.synthetic", str(raw)], ["data_shards.convert", str(raw), "--out", str(out)]):
            subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=True)
    return out


def search(work: Path, name: str, words: list[str]) -> tuple[list[Record], float]:
    """The trials of one search, and its seconds from the command to the prompt; interrupted ones go on, untimed."""
    folder = work / name
    with_data = [RECIPE, f"data={shards(work)}", f"run_dir={folder}", "confirm=0", *SPACE, *words]
    resumed = (folder / "search.json").is_file()
    command = [f"resume={folder}"] if resumed else with_data
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "tune.search", *command], cwd=ROOT, check=True)
    seconds = float("nan") if resumed else time.monotonic() - started
    with Journal(folder / "journal.jsonl") as journal:
        return journal.trials(), seconds


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
        "epochs": {"asha": epochs(with_asha), "none": epochs(without)},
        "share_of_epochs": epochs(with_asha) / epochs(without),
        "best_MAE": {"asha": best(with_asha), "none": best(without)},
        "behind": best(with_asha) / best(without) - 1.0,
        "seconds": {"asha": fast, "none": slow},
    }


def finds(work: Path, trials: int) -> dict[str, Any]:
    """A search as a user starts it, against the recipe's default trained to the end."""
    found, seconds = search(work, "finds", [f"trials={trials}"])
    default, _ = search(work, "default", ["trials=1", "scheduler=none"])  # a search begins with the recipe itself
    return {
        "trials": trials,
        "seconds": seconds,
        "epochs": epochs(found),
        "default_MAE": best(default),
        "best_MAE": best(found),
        "best": min((record for record in found if record.usable), key=lambda record: record.best).changes,
    }


def overhead(work: Path, seed: int, trials: int, count: int) -> dict[str, Any]:
    """Trials per hour: a search with ``concurrent`` as it comes, and plain runs one after the other."""
    words = ["search=random", f"trials={trials}", f"seed={seed}", "scheduler=none"]
    records, seconds = search(work, f"none-{seed}", words)
    known = read().get(f"asha-{seed}")
    seconds = known["seconds"]["none"] if known and seconds != seconds else seconds
    plain = {}
    for record in records[:count]:
        folder = work / "plain" / f"{record.number:04d}"
        started = time.monotonic()
        words = [RECIPE, f"data={shards(work)}", f"run_dir={folder}", f"seed={seed}", *arguments(record.changes)]
        subprocess.run([sys.executable, "-m", "launch.train", *words], cwd=ROOT, check=True)
        plain[record.number] = time.monotonic() - started
    searched, alone = 3600 * len(records) / seconds, 3600 * count / sum(plain.values())
    share = epochs(records[:count]) / count / (epochs(records) / len(records))
    return {
        "trials_per_hour": {"search": searched, "one_after_the_other": alone},
        "ratio": searched / alone,
        "ratio_at_equal_epochs": searched / (alone * share),  # the plain runs are the first of the search's trials
        "plain_runs": count,
    }


def read() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8"))["steps"] if RESULTS.is_file() else {}


def write(steps: dict[str, Any]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    body = {"recipe": RECIPE, "cores": os.cpu_count(), "provenance": provenance(), "steps": steps}
    unfinished = RESULTS.with_suffix(".partial")
    unfinished.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, RESULTS)


def main() -> None:
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    work = Path(given.get("work", "searches/benchmark")).absolute()
    seeds = [int(seed) for seed in given.get("seeds", "1111,1112,1113").split(",")]
    trials, count = int(given.get("trials", "16")), int(given.get("sequential", "8"))
    only = given.get("only", "finds,asha,overhead").split(",")
    steps: dict[str, Callable[[], dict[str, Any]]] = {}
    if "finds" in only:
        steps["finds"] = partial(finds, work, trials)
    if "asha" in only:
        steps |= {f"asha-{seed}": partial(asha, work, seed, trials) for seed in seeds}
    if "overhead" in only:
        steps["overhead"] = partial(overhead, work, seeds[0], trials, count)
    for name, measure in steps.items():
        if name in read():
            continue
        load = os.getloadavg()[0]
        result = measure()
        write(read() | {name: {**result, "load_before": round(load, 1)}})
        print(json.dumps({name: result}, indent=1), flush=True)


if __name__ == "__main__":
    main()
