"""The end of a run: the best checkpoint evaluated once, and everything about the run in one folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from core import distributed
from core.model import Model
from launch.checkpoints.progress import Progress
from launch.checkpoints.store import Checkpoints, read_state
from launch.checkpoints.tensors import load_weights
from launch.config import ConfigError, Run
from launch.reports.plots import figure, save
from launch.reports.run_log import RunLog
from launch.tasks.base import EvaluationResult, Task
from launch.tasks.build import build_model


def best_model(run: Run, run_dir: Path, task: Task, device: torch.device) -> tuple[Model, Progress]:
    """The model of the best epoch, and the progress that its checkpoint was saved with."""
    folder, complaints = Checkpoints(run_dir, Progress()).find("best")
    if folder is None:
        raise ConfigError(
            f"{run_dir} has no whole best checkpoint" + "".join(f"; {text}" for text in complaints)
        )
    model = build_model(run, task.data)
    state = read_state(folder)
    load_weights(folder, state.shapes, model)
    return model.to(device).eval(), state.progress


def finish(
    run: Run, run_dir: Path, task: Task, log: RunLog, device: torch.device
) -> dict[str, dict[str, float]]:
    """Evaluate the best epoch on validation and, this once, on test; write scores, predictions and the report."""
    model, progress = best_model(run, run_dir, task, device)
    scores = {"valid": task.evaluate(model, "valid", device)}
    final = EvaluationResult({})
    if "test" in task.splits():
        final = task.final(model, "test", device, run_dir)
        scores["test"] = final.scores
    if distributed.rank() == 0:
        write_scores(run_dir / "scores.json", scores)
        events = read_events(run_dir)
        plots = [_draw_losses(run_dir, events), *final.plots]
        text = _report(run, scores, progress.best_epoch, events, plots, final.remarks)
        (run_dir / "report.md").write_text(text, encoding="utf-8")
        for split, values in scores.items():
            log.event(split, progress.step, values)
            log.say(
                f"{split:>5}: " + "  ".join(f"{name} {value:.4f}" for name, value in values.items())
            )
        for remark in final.remarks:
            log.say(remark)
        log.say(f"report: {run_dir / 'report.md'}")
    return scores


def write_scores(path: Path, scores: dict[str, dict[str, float]]) -> None:
    """``{"valid": {...}, "test": {...}}``, replaced as a whole."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_events(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of ``log.jsonl`` by kind. Steps that were taken again after a resume appear once, as taken last."""
    events: dict[str, dict[int, dict[str, Any]]] = {}
    for line in (run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue  # the last line of a run that was killed while writing it
        events.setdefault(event["kind"], {})[event["step"]] = event
    return {kind: [by_step[step] for step in sorted(by_step)] for kind, by_step in events.items()}


def _draw_losses(run_dir: Path, events: dict[str, list[dict[str, Any]]]) -> tuple[str, str]:
    drawing, (left, right) = figure(10, 3.8, columns=2)
    epochs = [event["epoch"] + 1 for event in events["epoch"]]
    marker = "o" if len(epochs) < 3 else None
    for name in sorted(key for key in events["epoch"][0] if key.startswith("loss_")):
        left.plot(
            epochs,
            [event[name] for event in events["epoch"]],
            label=name.removeprefix("loss_"),
            marker=marker,
        )
    left.set(xlabel="epoch", ylabel="training loss", title="Losses by name")
    left.legend(frameon=False)
    named = [
        name
        for name in ("MAE", "Corr", "Accuracy", "Macro_F1", "MRR", "Hits@1")
        if name in events["epoch"][0]
    ]
    for name in named[:2]:
        right.plot(epochs, [event[name] for event in events["epoch"]], label=name, marker=marker)
    right.set(xlabel="epoch", ylabel="validation score", title="Validation")
    right.legend(frameon=False)
    return "Training losses by name, and validation scores, by epoch.", save(
        drawing, run_dir / "curves.png"
    )


def _report(
    run: Run,
    scores: dict[str, dict[str, float]],
    best_epoch: int,
    events: dict[str, list[dict[str, Any]]],
    plots: list[tuple[str, str]],
    remarks: list[str],
) -> str:
    names = list(scores["valid"])
    rows = [
        f"| {split} | "
        + " | ".join(f"{values[name]:.4f}" if name in values else "" for name in names)
        + " |"
        for split, values in scores.items()
    ]
    epochs = events["epoch"]
    seconds = sum(event["seconds"] for event in epochs)
    wait = sum(event["seconds"] * event["data_wait"] for event in epochs) / max(seconds, 1e-9)
    lines = [
        f"# {run.recipe}",
        "",
        *[f"> {remark}\n" for remark in remarks],
        f"Data `{run.data}`, seed {run.seed}, global batch {run.batch_size}. Selected by validation {run.select} at "
        f"epoch {best_epoch + 1} of {len(epochs)}; the test split was evaluated once, after that.",
        "",
        "| split | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
        *rows,
        "",
        f"Training took {seconds:.0f} s, {epochs[-1]['samples_per_second']:.0f} samples/s in the last epoch, "
        f"{wait:.1%} of the time waiting for data.",
        "",
        *[f"![{caption}]({name})\n\n{caption}\n" for caption, name in plots],
        "Files: `config.json` (every setting, versions, state of the code), `log.jsonl`, `tensorboard/`, "
        "`scores.json`, `predictions.csv`, `checkpoints/`.",
        "",
    ]
    return "\n".join(lines)
