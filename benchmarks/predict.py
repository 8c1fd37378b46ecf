"""Seconds that ``concord predict`` takes for extracted utterances, the whole command counted.

    python benchmarks/predict.py [samples=1000] [model=hscl] [repeats=3] [folder=DIR]

The model has its demo's size and untrained weights, which take as long as trained ones. It is given
the same made-up utterances as shards and as a table with an array file for each modality, by the
command in a process of its own with one thread: importing, loading, reading and writing are all in
the seconds. The least of the repeats is what the command takes; the machine may be busy with other
things in the rest. Results go into ``benchmarks/results/``.
"""

from __future__ import annotations

import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import made_by, read_words, refuse_others, run_command  # noqa: E402
from core import bundle  # noqa: E402
from core.models import MODELS  # noqa: E402
from data_shards.convert import main as convert  # noqa: E402
from data_shards.stream import Stream  # noqa: E402
from data_shards.synthetic import main as synthetic  # noqa: E402
from launch.config import load_recipe, override  # noqa: E402
from launch.tasks.build import build_task  # noqa: E402
from launch.tasks.data_record import record_of  # noqa: E402

RESULTS = ROOT / "benchmarks/results/predict.json"
DEFAULTS = {"samples": "1000", "model": "hscl", "repeats": "3", "folder": ""}


def make_bundle(name: str, shards: Path, folder: Path) -> None:
    """The demo's model with the weights that it begins with."""
    run = override(load_recipe(f"{name}/demo"), [f"data={shards}"])
    task = build_task(run)
    model = MODELS[name](run.options, task.data)
    about = {"recipe": run.recipe, "schema": asdict(record_of(task))}
    bundle.save(folder, name, run.options, model, task.data, "# untrained\n", about)


def make_table(shards: Path, folder: Path) -> Path:
    """All samples of the shards as ``concord extract`` leaves them: a table and array files."""
    folder.mkdir()
    with (folder / "clips.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "tokens", "audio", "vision"])
        for split in ("train", "valid", "test"):
            stream = Stream(shards, split, global_batch=1, shuffle=False)
            for (part,) in stream.epoch(0):
                name = f"{split}{int(part.index[0])}"
                text = part.arrays["text"][0].numpy()
                ids = text[0] if text.ndim == 2 else text
                row = [name, json.dumps(ids[: int(part.lengths["text"][0])].tolist())]
                for modality in ("audio", "vision"):
                    frames = part.arrays[modality][0, : int(part.lengths[modality][0])]
                    np.save(folder / f"{name}-{modality}.npy", frames.numpy())
                    row.append(f"{name}-{modality}.npy" if len(frames) else "")
                writer.writerow(row)
            stream.close()
    return folder / "clips.csv"


def timed(model: Path, given: Path, out: Path) -> dict[str, float]:
    """Wall and CPU seconds of the command."""
    words = [sys.executable, "-m", "launch.predict", str(model), str(given), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(words, cwd=ROOT, env=environment, check=True, capture_output=True)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": round(wall, 2), "cpu": round(cpu, 2)}


def measure(own: dict[str, str], folder: Path) -> dict[str, Any]:
    raw, shards = folder / "made_up.pkl", folder / "shards"
    assert not synthetic([str(raw), "--samples", own["samples"]])
    assert not convert([str(raw), "--out", str(shards)])
    make_bundle(own["model"], shards, folder / "bundle")
    inputs = {"shards": shards, "table": make_table(shards, folder / "table")}
    results: dict[str, Any] = {}
    for name, given in inputs.items():
        times = []
        for repeat in range(int(own["repeats"])):
            times.append(timed(folder / "bundle", given, folder / f"{name}{repeat}.csv"))
        results[name] = min(times, key=lambda seconds: seconds["cpu"])
        print(f"{own['samples']} utterances as {name}: {results[name]}")
    return results


def main() -> int:
    def work() -> None:
        own, others = read_words(DEFAULTS)
        refuse_others(others, DEFAULTS)
        with tempfile.TemporaryDirectory(dir=own["folder"] or None) as folder:
            seconds = measure(own, Path(folder))
        kept = {"settings": {k: v for k, v in own.items() if k != "folder"}, "seconds": seconds}
        RESULTS.write_text(json.dumps(kept | {"made by": made_by()}, indent=1) + "\n")

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
