"""Run directories that nobody trained: what tests of pages and tables need."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from core.metrics.regression import constant_baselines, scores
from launch.config import load_recipe, override, to_dict


def made_up_run(
    folder: Path, *changes: str, recipe: str = "hscl/demo", off: float = 0.0, epochs: int = 3
) -> Path:
    """A run directory as a training leaves it, without the training.

    Args:
        off: what its answers are off by.
    """
    folder.mkdir(parents=True)
    words = ["data=/data", *changes, f"run_dir={folder}"]
    settings = to_dict(override(load_recipe(recipe), words))
    body = {"run": settings, "provenance": {"machine": {"processor": "one"}, "packages": {}}}
    (folder / "config.json").write_text(json.dumps(body))
    rng = np.random.default_rng(0)
    label = np.round(rng.uniform(-3, 3, 80), 1)
    prediction = label * 0.5 + rng.normal(0, 0.5, 80) + off
    table = pd.DataFrame({"id": [f"clip{n}" for n in range(80)], "label": label})
    table["prediction"] = prediction
    table["error"] = prediction - label
    table["text"] = ['it was <b>good</b> & "fine"'] * 80
    table.to_csv(folder / "predictions.csv", index=False)
    found = scores(prediction, label, "mosi")
    (folder / "scores.json").write_text(json.dumps({"valid": found, "test": found}))
    constant = constant_baselines(label, "mosi")
    (folder / "facts.json").write_text(json.dumps({"bounds": {}, "constant": {"test": constant}}))
    lines = []
    for epoch in range(epochs):
        event = {"kind": "epoch", "step": 10 * epoch, "time": 1.0, "epoch": epoch, "seconds": 2.0}
        event |= {"samples_per_second": 50.0, "data_wait": 0.1, "steps": 10.0, "memory_gb": 0.5}
        event |= {"loss_task": 1.0 / (epoch + 1), "loss_unimodal": 0.001, "gate_a": 0.1 * epoch}
        event |= {**found, "MAE": found["MAE"] + abs(epoch - 1)}
        lines.append(json.dumps(event))
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "report.md").write_text("# report\n")
    return folder
