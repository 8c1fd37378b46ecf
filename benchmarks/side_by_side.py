"""Processes side by side on the cores of one machine, against one of them alone. Wants a quiet
machine.

    python benchmarks/side_by_side.py data=SHARDS [recipe=hscl/demo] [epochs=6] [repeats=3]
    [search=yes]

For OMP_NUM_THREADS unset, 1 and 2, in turn within each repeat: one process alone, two independent
runs at once, and two ranks of one run; then a search of 3 trials of 3 epochs, two at once, against
the same trials one after the other. Speeds are samples per second after the first epoch, medians
over epochs; results are ratios, medians over repeats:

    at once    the slower of two runs at once / one alone                       must be at least 0.9
    ranks      two ranks / one process                                          1.3
    search     trials one after the other / the search, in wall seconds         1.6
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.results import made_by  # noqa: E402
from core.environment.threads import CHOSEN, COUNT, available_cores  # noqa: E402
from launch.reports.tables import markdown_table  # noqa: E402

RESULTS = ROOT / "benchmarks/results/side_by_side.json"
THREADS = ("unset", "1", "2")
LEAST = {"at once": 0.9, "ranks": 1.3, "search": 1.6}
QUIET = 0.5  # load per core before it begins, above which nothing is measured
TRIALS, TRIAL_EPOCHS = 3, 3


def environment(threads: str) -> dict[str, str]:
    """This process's, with what it has decided for itself taken out."""
    own = {key: value for key, value in os.environ.items() if key not in (COUNT, CHOSEN)}
    own["PYTHONPATH"] = str(ROOT)
    own["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return own if threads == "unset" else own | {COUNT: threads}


def start(words: list[str], run_dir: Path, threads: str, ranks: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m"]
    if ranks > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    command += ["launch.train", *words, f"run_dir={run_dir}"]
    return subprocess.Popen(command, cwd=ROOT, env=environment(threads), stdout=subprocess.DEVNULL)


def speeds(words: list[str], threads: str, *, runs: int = 1, ranks: int = 1) -> list[float]:
    """Samples per second of each of several runs that are started together."""
    with tempfile.TemporaryDirectory() as folder:
        folders = [Path(folder) / str(number) for number in range(runs)]
        started = [start(words, run_dir, threads, ranks) for run_dir in folders]
        for process in started:
            if process.wait():
                raise SystemExit(f"a run ended with code {process.returncode}")
        return [speed_of(run_dir) for run_dir in folders]


def speed_of(run_dir: Path) -> float:
    """The median over epochs after the first, in which loops are compiled and memory is taken."""
    lines = (run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines()
    epochs = [event for event in map(json.loads, lines) if event["kind"] == "epoch"]
    return statistics.median(event["samples_per_second"] for event in epochs[1:])


def measure(words: list[str], threads: str) -> dict[str, float]:
    """The ratios of one repeat."""
    (alone,) = speeds(words, threads)
    together = speeds(words, threads, runs=2)
    (ranks,) = speeds(words, threads, ranks=2)
    return {"at once": min(together) / alone, "ranks": ranks / alone}


def search_ratio(recipe: str, data: str) -> float:
    """Wall seconds of three searches of one trial each, by those of one search of three."""
    whole = search_seconds(recipe, data, TRIALS)
    one_by_one = sum(search_seconds(recipe, data, 1) for _ in range(TRIALS))
    return one_by_one / whole


def search_seconds(recipe: str, data: str, trials: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        words = [recipe, f"data={data}", f"epochs={TRIAL_EPOCHS}", f"trials={trials}"]
        words += ["scheduler=none", "search=random", "confirm=0", f"run_dir={folder}/search"]
        begin = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "tune.search", *words],
            cwd=ROOT,
            env=environment("unset"),
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return time.perf_counter() - begin


def table(ratios: dict[str, dict[str, list[float]]]) -> str:
    rows = []
    for threads, found in ratios.items():
        for name, values in found.items():
            spread = f"{min(values):.2f} to {max(values):.2f}"
            median = statistics.median(values)
            holds = "yes" if median >= LEAST[name] else "no"
            rows.append([threads, name, f"{median:.2f}", spread, LEAST[name], holds])
    return markdown_table(["threads", "ratio", "median", "range", "least", "holds"], rows)


def main() -> int:
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    data, recipe = given["data"], given.get("recipe", "hscl/demo")
    epochs, repeats = int(given.get("epochs", 6)), int(given.get("repeats", 3))
    load = os.getloadavg()[0] / available_cores()
    if load > QUIET and given.get("busy") != "yes":
        raise SystemExit(f"the machine is busy: load {load:.1f} per core; busy=yes only rehearses")
    words = [recipe, f"data={data}", f"epochs={epochs}", "patience=0"]
    ratios: dict[str, dict[str, list[float]]] = {threads: {} for threads in THREADS}
    for _ in range(repeats):
        for threads in THREADS:
            for name, ratio in measure(words, threads).items():
                ratios[threads].setdefault(name, []).append(ratio)
        if given.get("search", "yes") == "yes":
            ratios["unset"].setdefault("search", []).append(search_ratio(recipe, data))
    text = table(ratios)
    print(text)
    body: dict[str, Any] = {"recipe": recipe, "epochs": epochs, "cores": available_cores()}
    body |= {"load_before": load, "ratios": ratios, "least": LEAST}
    body |= {"table": text.splitlines(), **made_by()}
    if load <= QUIET:
        RESULTS.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    failed = " no |" in text
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
