"""Scores of the sentiment models on one data set over several seeds, as a table in docs/results.md.

    python benchmarks/results.py mosi_utterance data=shards/mosi seeds=1111,1112,1113
    options.text.source=PATH

Runs every model that has a recipe of that name, and the text alone; each run is an ordinary
``launch.train``, so a run that is finished is not run again, and one that was stopped goes on. The
table goes between the markers of docs/results.md of that name, and with versions and machine into
``benchmarks/results/``. ``models=hscl,baseline`` runs only those. Rows of the last results for
which there is no folder here stay as they are; ``again=yes`` forgets them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import made_by, paste, read_words, run_command  # noqa: E402
from launch.config import recipe_names  # noqa: E402
from launch.reports.tables import markdown_table  # noqa: E402

TITLES = {
    "mosi_utterance": "CMU-MOSI at utterance level: 62 train videos, and of the 31 that no extractor was trained on "
    "10 for validation and 21 for test (`examples/mosi_utterance.py`)"
}
Rows = dict[str, list[dict[str, float]]]  # row of the table -> test scores by seed
SHOWN = ("MAE", "Corr", "Has0_acc_2", "Non0_acc_2", "Mult_acc_7")


def variants(name: str, models: list[str]) -> list[tuple[str, str, list[str]]]:
    """(row, recipe, changes): the text alone under the optimisation of the first models, then all
    recipes."""
    found = [recipe.split("/")[0] for recipe in recipe_names() if recipe.endswith(f"/{name}")]
    found = [model for model in found if not models or model in models]
    alone = [model for model in ("baseline", "hscl") if model in found]
    rows = [
        (f"{model}, text alone", f"{model}/{name}", ["options.modalities=text"]) for model in alone
    ]
    return rows + [(model, f"{model}/{name}", []) for model in found]


def run(recipe: str, run_dir: Path, changes: list[str]) -> dict[str, float]:
    """Test scores of one finished run."""
    scores = run_dir / "scores.json"
    if not scores.is_file():
        subprocess.run(
            [sys.executable, "-m", "launch.train", recipe, f"run_dir={run_dir}", *changes],
            cwd=ROOT,
            check=True,
        )
    return json.loads(scores.read_text(encoding="utf-8"))["test"]


def last_results(path: Path) -> tuple[Rows, dict[str, Any]]:
    """The file's rows, and of each its seeds and the state of the code."""
    if not path.is_file():
        return {}, {}
    before = json.loads(path.read_text(encoding="utf-8"))
    return before["runs"], before["rows"]


def table(rows: Rows, names: Sequence[str] = SHOWN) -> str:
    """Mean and spread over seeds of those scores that every run has."""
    everyone = [scores for runs in rows.values() for scores in runs]
    shown = [name for name in names if all(name in scores for scores in everyone)]
    body = []
    for row, runs in rows.items():
        cells = [mean_and_spread([scores[name] for scores in runs]) for name in shown]
        body.append([row, len(runs), *cells])
    return markdown_table(["model", "seeds", *shown], body)


def mean_and_spread(values: list[float]) -> str:
    """Mean over seeds, and the standard deviation where there are several."""
    mean = f"{np.mean(values):.3f}"
    return f"{mean} ± {np.std(values):.3f}" if len(values) > 1 else mean


def main() -> None:
    name, *words = sys.argv[1:]
    defaults = {
        "seeds": "1111,1112,1113",
        "models": "",
        "runs": f"runs/results-{name}",
        "again": "",
    }
    own, changes = read_words(defaults, words)
    seeds = [int(seed) for seed in own["seeds"].split(",")]
    models = [model for model in own["models"].split(",") if model]
    folder = Path(own["runs"])
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    rows, about = ({}, {}) if own["again"] else last_results(path)
    here = made_by()
    saved: dict[str, Any] = {"data": name, **here}
    for row, recipe, own_changes in variants(name, models):
        place = folder / row.replace(", ", "-").replace(" ", "-")
        if row in rows and not place.exists():
            continue
        rows[row] = [
            run(recipe, place / str(seed), [*changes, *own_changes, f"seed={seed}"])
            for seed in seeds
        ]
        about[row] = {"seeds": seeds, "git": here["git"]}
        saved |= {"rows": about, "runs": rows}
        path.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
    order = [row for row, _, _ in variants(name, [])]
    rows = {row: rows[row] for row in order if row in rows}
    several = any(len(runs) > 1 for runs in rows.values())
    what = "mean ± standard deviation over seeds" if several else "one seed"
    said = f"{TITLES.get(name, name)}; {what}:\n\n{table(rows)}"
    paste(said, name, ROOT / "docs" / "results.md")
    print(said)


if __name__ == "__main__":
    sys.exit(run_command(main))
