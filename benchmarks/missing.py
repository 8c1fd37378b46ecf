"""What rebuilding (TFR-Net) and the teacher (TATE) are worth when half of the data is missing, on
the generated data.

    python benchmarks/missing.py data=demo/shards [models=tfr_net,tate] [seeds=1111,1112,1113]
    [rate=0.5] [runs=DIR]
        [fresh=DIR]

Each model's ``demo`` recipe is trained and tested at the rate, with and without: the network, the
data, the masks and the order of samples are the same. The epoch is the one of the best Corr on
validation, for Corr is what is compared; the MAE of 120 clips moves with an offset that all of them
share, and once chose the second epoch of 15. A run that is finished is not run again, and one that
was stopped goes on. The table goes into ``docs/sentiment.md``, all scores with versions and machine
into ``benchmarks/results/``.

The 360 test clips of the demo tell a Corr to about 0.02. ``fresh`` is a folder of more clips that
were generated and converted with another seed (``python -m data_shards.synthetic fresh.pkl
--samples 8000 --seed 1``); the finished runs are scored on its test split, too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import made_by, paste, read_words, run_command  # noqa: E402
from benchmarks.results import table  # noqa: E402
from launch.distill import distill  # noqa: E402
from launch.engine.processes import init_processes, shutdown_processes  # noqa: E402
from launch.evaluate import evaluate  # noqa: E402
from launch.loop import train  # noqa: E402
from launch.train import parse  # noqa: E402

RESULTS = ROOT / "benchmarks/results/missing.json"
TITLE = """with and without rebuilding (TFR-Net, frames missing) and
teacher (TATE, whole modalities missing); test scores, mean ± standard deviation over seeds, and those of more clips
that were generated with another seed:"""
VARIANTS = {  # model -> row -> what is changed
    "tfr_net": {"with": [], "without": ["options.lambdas=0,0,0"]},
    "tate": {
        "with": [],
        "without its teacher": [],
        "without teacher and decoder": ["options.backward=0"],
    },
}


SHOWN = ("MAE", "Corr", "Has0_acc_2", "MAE, fresh clips", "Corr, fresh clips")


def run(model: str, row: str, words: list[str], run_dir: Path) -> dict[str, float]:
    """Test scores at the rate."""
    if not (run_dir / "scores.json").is_file():
        settings = parse([f"{model}/demo", *words, f"run_dir={run_dir}"])
        distill(settings) if model == "tate" and row == "with" else train(settings, quiet=True)
    return json.loads((run_dir / "scores.json").read_text(encoding="utf-8"))["test"]


def main() -> None:
    defaults = {
        "models": ",".join(VARIANTS),
        "seeds": "1111,1112,1113",
        "fresh": "",
        "rate": "0.5",
        "runs": "runs/missing",
    }
    own, changes = read_words(defaults)
    models, seeds = own["models"].split(","), own["seeds"].split(",")
    fresh, rate, folder = own["fresh"], own["rate"], Path(own["runs"])
    changes += [f"missing.rate={rate}", "select=Corr", "goal=max"]
    saved: dict[str, Any] = (
        json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {"runs": {}}
    )
    init_processes()
    for seed in seeds:
        for model in models:
            for row, own in VARIANTS[model].items():
                run_dir = folder / model / row / seed
                scores = run(model, row, [*changes, *own, f"seed={seed}"], run_dir)
                if fresh:
                    again = evaluate(run_dir, [f"data={fresh}"], "test")
                    scores |= {f"{name}, fresh clips": again[name] for name in ("MAE", "Corr")}
                saved["runs"].setdefault(f"{model}, {row}", {})[seed] = scores
                saved |= {**made_by(), "rate": float(rate)}
                RESULTS.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
    shutdown_processes()
    said = table({name: list(runs.values()) for name, runs in saved["runs"].items()}, SHOWN)
    said = (
        f"The `demo` recipes on the generated data at a missing rate of {rate}, {TITLE}\n\n{said}"
    )
    paste(said, "missing", ROOT / "docs/sentiment.md")
    print(said)


if __name__ == "__main__":
    sys.exit(run_command(main))
