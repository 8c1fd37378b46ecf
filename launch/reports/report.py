"""The end of a run: the best checkpoint evaluated once, and everything about the run in one
folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from core import distributed
from core.file_access.regular_files import open_regular_file
from core.files import write_atomically
from core.metrics.declared import headline_metrics, metric_of
from core.model import DataSpec, Model
from launch.checkpoints.progress import Progress
from launch.checkpoints.store import Checkpoints, read_state
from launch.checkpoints.tensors import load_weights, refuse_other_model
from launch.config import ConfigError, Run
from launch.reports.plots import figure, save
from launch.reports.run_log import RunLog
from launch.reports.tables import score_table
from launch.run_directory import CONFIG
from launch.tasks.build import build_model, sketch_model
from launch.tasks.data_record import refuse_other_data
from launch.tasks.target_scores import of_targets, without_targets
from launch.tasks.task import EvaluationResult, Task
from launch.tasks.training_facts import write_facts


def best_model(run: Run, run_dir: Path, task: Task, device: torch.device) -> tuple[Model, Progress]:
    """The model of the best epoch, and the progress that its checkpoint was saved with.

    Raises:
        ConfigError: there is none, or the task's data are not of the kind that it was trained on.
    """
    refuse_other_data(run_dir, task, run.data)
    return best_weights(run, run_dir, task.data, device)


def best_weights(
    run: Run, run_dir: Path, data: DataSpec, device: torch.device
) -> tuple[Model, Progress]:
    """The same, where it is known that the model was trained on ``data``: no shards are needed."""
    folder, complaints = Checkpoints(run_dir, Progress()).find("best")
    if folder is None:
        raise ConfigError("; ".join([f"{run_dir} has no whole best checkpoint", *complaints]))
    state = read_state(folder)
    settings = run_dir / CONFIG
    try:
        # before any memory is taken for what the settings ask for
        shapes_only = sketch_model(run, data, len(state.shapes), str(settings))
        if shapes_only is not None:
            refuse_other_model(folder, state.shapes, shapes_only)
        model = build_model(run, data)
    except ConfigError as error:
        raise ConfigError(f"{error} (its settings are those of {settings})") from None
    load_weights(folder, state.shapes, model, state.bases)
    return model.to(device).eval(), state.progress


def finish(
    run: Run, run_dir: Path, task: Task, log: RunLog, device: torch.device
) -> dict[str, dict[str, float]]:
    """Evaluate the best epoch on validation and, this once, on test; write scores, predictions and
    the report."""
    model, progress = best_model(run, run_dir, task, device)
    scores = {"valid": task.evaluate(model, "valid", device)}
    final = EvaluationResult({})
    if "test" in task.splits():
        final = task.final(model, "test", device, run_dir)
        scores["test"] = final.scores
    if distributed.rank() == 0:
        write_scores(run_dir / "scores.json", scores)
        write_facts(run_dir, task.facts())
        epochs = read_events(run_dir)["epoch"]
        plots = [_draw_losses(run_dir, epochs), *final.plots]
        targets = task.parts()
        text = _report(run, scores, progress.best_epoch, epochs, plots, final.remarks, targets)
        write_atomically(run_dir / "report.md", text)
        for split, values in scores.items():
            log.event(split, progress.step, values)
            shown = without_targets(values, targets)
            numbers = [f"{name} {metric_of(name).text(value)}" for name, value in shown.items()]
            log.say(f"{split:>5}: {'  '.join(numbers)}")
        for remark in final.remarks:
            log.say(remark)
        log.say(f"report: {run_dir / 'report.md'}")
    return scores


def write_scores(path: Path, scores: dict[str, dict[str, float]]) -> None:
    """``{"valid": {...}, "test": {...}}``."""
    write_atomically(path, json.dumps(scores, indent=1) + "\n")


def read_events(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of ``log.jsonl`` by kind. Steps that were taken again after a resume appear once,
    as taken last.

    Raises:
        ConfigError: a line that is whole, and no event.
    """
    path = run_dir / "log.jsonl"
    events: dict[str, dict[int, dict[str, Any]]] = {}
    with open_regular_file(path) as file:
        for number, line in enumerate(file, 1):
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue  # the last line of a run that was killed while writing it
            if not _is_event(event):
                raise ConfigError(f"{path}, line {number}: no event of a run; remove the line")
            events.setdefault(event["kind"], {})[event["step"]] = event
    in_order = {}
    for kind, by_step in events.items():
        in_order[kind] = [by_step[step] for step in sorted(by_step)]
    return in_order


def _is_event(event: Any) -> bool:
    """Whether it says of what kind it is, and of which step."""
    if not isinstance(event, dict):
        return False
    return isinstance(event.get("kind"), str) and isinstance(event.get("step"), int)


def _draw_losses(run_dir: Path, epochs: list[dict[str, Any]]) -> tuple[str, str]:
    drawing, (left, right) = figure(10, 3.8, columns=2)
    numbers = [event["epoch"] + 1 for event in epochs]
    marker = "o" if len(epochs) < 3 else None  # a line of one point would not be seen
    losses = sorted(key for key in epochs[0] if key.startswith("loss_"))
    for name in losses:
        values = [event[name] for event in epochs]
        left.plot(numbers, values, label=name.removeprefix("loss_"), marker=marker)
    left.set(xlabel="epoch", ylabel="training loss", title="Losses by name")
    left.legend(frameon=False)
    for name in headline_metrics(epochs[0])[:2]:
        right.plot(numbers, [event[name] for event in epochs], label=name, marker=marker)
    right.set(xlabel="epoch", ylabel="validation score", title="Validation")
    right.legend(frameon=False)
    caption = "Training losses by name, and validation scores, by epoch."
    return caption, save(drawing, run_dir / "curves.png")


def _report(
    run: Run,
    scores: dict[str, dict[str, float]],
    best_epoch: int,
    epochs: list[dict[str, Any]],
    plots: list[tuple[str, str]],
    remarks: list[str],
    targets: Sequence[str],
) -> str:
    last = scores.get("test", scores["valid"])
    by_target = of_targets(last, targets)
    kind = {"classes": "class", "labels": "label"}.get(run.metrics, "target")
    tables = [score_table(kind, by_target), ""] if targets else []
    seconds = sum(event["seconds"] for event in epochs)
    waiting = sum(event["seconds"] * event["data_wait"] for event in epochs)
    wait = waiting / max(seconds, 1e-9)
    lines = [
        f"# {run.recipe}",
        "",
        *[f"> {remark}\n" for remark in remarks],
        f"Data `{run.data}`, seed {run.seed}, global batch {run.batch_size}. Selected by "
        f"validation {run.select} at epoch {best_epoch + 1} of {len(epochs)}; the test split was "
        "evaluated once, after that.",
        "",
        score_table("split", {name: without_targets(of, targets) for name, of in scores.items()}),
        "",
        *tables,
        f"Training took {seconds:.0f} s, {epochs[-1]['samples_per_second']:.0f} samples/s in the "
        f"last epoch, {wait:.1%} of the time waiting for data.",
        "",
        *[f"![{caption}]({name})\n\n{caption}\n" for caption, name in plots],
        "Files: `config.json` (every setting, versions, state of the code), `log.jsonl`, "
        "`tensorboard/`, `scores.json`, `predictions.csv`, `checkpoints/`.",
        "",
    ]
    return "\n".join(lines)
