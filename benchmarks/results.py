"""Scores of the sentiment models on one data set over several seeds, as a table in the README.

    python benchmarks/results.py mosi_utterance data=shards/mosi seeds=1111,1112,1113 options.text.source=PATH

Runs every model that has a recipe of that name, and the text alone; each run is an ordinary ``launch.train``, so a run
that is finished is not run again, and one that was stopped goes on. The table goes between the README's markers of
that name, and with versions and machine into ``benchmarks/results/``. ``models=hscl,baseline`` runs only those.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from launch.config import recipe_names  # noqa: E402
from launch.provenance import provenance  # noqa: E402

TITLES = {
    "mosi_utterance": "CMU-MOSI at utterance level, split of the bc-LSTM authors (`split_bclstm`), test videos unseen"
}
SHOWN = ("MAE", "Corr", "Has0_acc_2", "Non0_acc_2", "Mult_acc_7")


def variants(name: str, models: list[str]) -> list[tuple[str, str, list[str]]]:
    """(row, recipe, changes): the text alone under the optimisation of the first models, then all recipes."""
    found = [recipe.split("/")[0] for recipe in recipe_names() if recipe.endswith(f"/{name}")]
    found = [model for model in found if not models or model in models]
    alone = [model for model in ("baseline", "hscl") if model in found]
    rows = [(f"{model}, text alone", f"{model}/{name}", ["options.modalities=text"]) for model in alone]
    return rows + [(model, f"{model}/{name}", []) for model in found]


def run(recipe: str, run_dir: Path, changes: list[str]) -> dict[str, float]:
    """Test scores of one finished run."""
    scores = run_dir / "scores.json"
    if not scores.is_file():
        subprocess.run(
            [sys.executable, "-m", "launch.train", recipe, f"run_dir={run_dir}", *changes], cwd=ROOT, check=True
        )
    return json.loads(scores.read_text(encoding="utf-8"))["test"]


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    names = [name for name in SHOWN if all(name in one for runs in rows.values() for one in runs)]
    lines = ["| model | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row, runs in rows.items():
        cells = []
        for name in names:
            values = np.array([one[name] for one in runs])
            cells.append(f"{values.mean():.3f} ± {values.std():.3f}")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def paste(text: str, marker: str, path: Path) -> None:
    """Replace what stands between the two marker lines."""
    begin, end = f"<!-- results: {marker} -->", "<!-- end of results -->"
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    if not found:
        raise SystemExit(f"{path} has no line {begin}")
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def main() -> None:
    name, *words = sys.argv[1:]
    own = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    seeds = [int(seed) for seed in own.pop("seeds", "1111,1112,1113").split(",")]
    models = [model for model in own.pop("models", "").split(",") if model]
    folder = Path(own.pop("runs", f"runs/results-{name}"))
    changes = [f"{key}={value}" for key, value in own.items()]
    rows: dict[str, list[dict[str, float]]] = {}
    # folders of this machine are nobody's business
    said_command = [word for word in sys.argv[1:] if "/" not in word]
    saved: dict[str, Any] = {"data": name, "seeds": seeds, **provenance(), "command": said_command}
    for row, recipe, own_changes in variants(name, models):
        place = folder / row.replace(", ", "-").replace(" ", "-")
        rows[row] = [run(recipe, place / str(seed), [*changes, *own_changes, f"seed={seed}"]) for seed in seeds]
        saved["runs"] = rows
        path = ROOT / "benchmarks" / "results" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
    said = f"{TITLES.get(name, name)}; {len(seeds)} seeds, mean ± standard deviation:\n\n{table(rows)}"
    paste(said, name, ROOT / "README.md")
    print(said)


if __name__ == "__main__":
    main()
