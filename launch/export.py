"""A finished run as a folder that needs no DeepSpeed: ``python -m launch.export RUN --out DIR
[data=DIR]``.

The folder has the layout of a model hub; ``core.bundle.load`` reads it. It holds the best epoch.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from core import bundle, command
from core.command import Refused
from core.file_access.json_files import read_json_object
from core.file_access.targets import check_new_folder
from launch.command_line import read, settings_parser
from launch.config import Run, override
from launch.evaluate import read_run
from launch.reports.provenance import provenance
from launch.reports.report import best_model
from launch.reports.tables import score_table
from launch.tasks.build import build_task
from launch.tasks.data_record import record_of
from launch.tasks.task import Task

Scores = dict[str, dict[str, float]]  # split -> metric -> value


def export(run_dir: Path, out: Path, changes: list[str]) -> None:
    """Write the best epoch of ``run_dir`` to the new folder ``out``."""
    check_new_folder(out)
    run = override(read_run(run_dir), changes)
    task = build_task(run)
    model, progress = best_model(run, run_dir, task, torch.device("cpu"))
    scores = _scores(run_dir)
    about = {
        "recipe": run.recipe,
        "schema": _schema(task),
        "metrics": run.metrics,
        "scores": scores,
        "epoch": progress.best_epoch + 1,
        "packages": provenance()["packages"],
    }
    bundle.save(out, run.model, run.options, model, task.data, _card(run, out, task, scores), about)


def _scores(run_dir: Path) -> Scores:
    path = run_dir / "scores.json"
    if not path.exists():
        return {}
    try:
        return TypeAdapter(Scores).validate_python(read_json_object(path))
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise Refused(
            f"{path}: {key} is no score; write the file anew with the command that trained the run"
        ) from None


def _schema(task: Task) -> dict[str, Any]:
    """What the data must look like, in the words of the manifest they were trained from."""
    record = asdict(record_of(task))
    return record | {"synthetic": task.manifest.synthetic, "moments": task.manifest.moments}


def _card(run: Run, out: Path, task: Task, scores: dict[str, dict[str, float]]) -> str:
    manifest = task.manifest
    names = list(dict.fromkeys(name for values in scores.values() for name in values))
    table = score_table("split", scores, names).splitlines() if names else []
    inputs = ", ".join(
        f"{name} ({width} wide)" if width else f"{name} (token ids)"
        for name, width in task.data.features.items()
    )
    synthetic = [
        "> Trained on synthetic data: it shows the software, and says nothing about people.",
        "",
    ]
    return "\n".join(
        [
            "---",
            "library_name: concord",
            f"tags: [{task.data.task}, multimodal, {run.model}]",
            "---",
            "",
            f"# {run.model} on {manifest.name}",
            "",
            *(synthetic if manifest.synthetic else []),
            f"Trained by recipe `{run.recipe}`, seed {run.seed}; the epoch with the best validation {run.select}.",
            "",
            *table,
            "",
            f"Inputs: {inputs}. `config.json` holds the options, the scaling of the features, the range of the labels "
            "and the tokenizer; `model.safetensors` the weights.",
            "",
            "```python",
            "from core.bundle import load",
            "",
            f'model, data = load("{out.name}")',
            "```",
            "",
            "Scores are of one run. Sentiment annotations reflect their annotators; do not use the model to judge "
            "individual people.",
            "",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    def work() -> None:
        usage = "RUN --out DIR [data=DIR] [key=value ...]"
        parser = settings_parser("export", __doc__, usage)
        parser.add_argument(
            "--out", type=Path, required=True, metavar="DIR", help="the folder to make"
        )
        line = read(parser, arguments)
        out: Path = line.options.out
        export(Path(line.name("a run's directory")), out, line.changes)
        print(f'{out} holds the model; load it with: from core.bundle import load; load("{out}")')

    return command.run(work)


if __name__ == "__main__":
    sys.exit(main())
