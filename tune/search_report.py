"""What a search leaves behind: ``best.json``, ``trials.csv``, ``confirm.json`` and ``report.md`` with its pictures."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from launch.config import Run
from tune import search_plots
from tune.journal import Journal, Record
from tune.overrides import compact, short
from tune.settings import Search

SHOWN = 10  # trials in the table of the best
PLACES = {"data", "run_dir"}  # of this machine, not of the configuration


def write_text(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def best_changes(search: Search, record: Record) -> dict[str, Any]:
    """What makes the recipe the configuration of this trial; ``launch/train.py`` takes it as ``@best.json``."""
    return {
        key: value for key, value in search.changes.items() if key not in PLACES
    } | record.changes


def write_best(search: Search, record: Record) -> None:
    write_text(
        search.folder / "best.json", json.dumps(best_changes(search, record), indent=1) + "\n"
    )


def table(search: Search, journal: Journal) -> pd.DataFrame:
    """One row per trial, in the order in which they began."""
    rows = []
    for record in journal.trials():
        row: dict[str, Any] = {
            "trial": record.number,
            "state": record.state,
            "epochs": len(record.history),
            "best_epoch": record.best_epoch if record.history else None,
            **{
                f"valid_{name}": value
                for name, value in (record.scores if record.history else {}).items()
            },
            **record.changes,
            "seconds": round(record.ended - record.started, 1) if record.ended else None,
            "starts": record.starts,
            "reason": record.reason,
        }
        rows.append(row)
    return pd.DataFrame(rows)


def spread(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation (of a sample); the latter is 0 for one value."""
    array = np.asarray(values, dtype=np.float64)
    return {"mean": float(array.mean()), "std": float(array.std(ddof=1)) if len(array) > 1 else 0.0}


def write_confirmed(search: Search, journal: Journal) -> None:
    """Scores by seed with mean and spread; test only where it has been evaluated."""
    write_text(
        search.folder / "confirm.json", json.dumps(confirmed(search, journal), indent=1) + "\n"
    )


def confirmed(search: Search, journal: Journal) -> dict[str, Any]:
    usable = [record for record in journal.trials() if record.usable]
    names = score_names(search, usable)
    seeds = {
        str(record.changes["seed"]): {
            "valid": {name: record.scores[name] for name in names},
            "test": record.test,
            "best_epoch": record.best_epoch,
        }
        for record in usable
    }
    body: dict[str, Any] = {"seeds": seeds, "valid": {}, "test": {}}
    for name in names:
        body["valid"][name] = spread([record.scores[name] for record in usable])
    if usable and all(record.test for record in usable):
        for name in usable[0].test:
            body["test"][name] = spread([record.test[name] for record in usable])
    return body


def score_names(search: Search, records: list[Record]) -> list[str]:
    """The validation scores among what an epoch reports: what is selected by first, no losses, no timing."""
    if not records:
        return []
    timing = ("loss", "samples_per_second", "data_wait", "seconds", "health")
    names = [name for name in records[0].scores if not name.startswith(timing)]
    first = search.run().select
    return [first, *(name for name in names if name != first)]


def write_report(search: Search, journal: Journal, confirmation: Journal) -> None:
    """Tables, pictures and ``report.md``, whatever there is by now."""
    frame = table(search, journal)
    folder = search.folder
    partial = folder / "trials.partial"
    frame.to_csv(partial, index=False)
    os.replace(partial, folder / "trials.csv")
    pictures = search_plots.draw_all(search, journal) if journal.ranking() else []
    write_text(
        folder / "report.md", "\n".join(_lines(search, journal, confirmation, pictures)) + "\n"
    )


def _lines(
    search: Search, journal: Journal, confirmation: Journal, pictures: list[tuple[str, str]]
) -> list[str]:
    run = search.run()
    trials, ranking = journal.trials(), journal.ranking()
    epochs = sum(len(record.history) for record in trials)
    lines = [
        f"# Search over {search.recipe}",
        "",
        f"Data `{run.data}`, seed {run.seed}, {len(trials)} trials by `{search.search}`, scheduler "
        f"`{search.scheduler}`, {search.processes} process(es) per trial, {epochs} epochs in all. Trials are compared "
        f"by the best validation {run.select} of any of their epochs; the search cannot see the test split.",
        "",
        "| searched | values |",
        "|---|---|",
        *[f"| `{key}` | {domain} |" for key, domain in search.domains().items()],
        "",
    ]
    if search.changes:
        held = ", ".join(
            f"`{key}={compact(value)}`"
            for key, value in search.changes.items()
            if key not in PLACES
        )
        lines += [f"Held for every trial: {held or 'nothing'}.", ""]
    if not ranking:
        lines += ["**No trial came to a normal end.**", ""]
    else:
        lines += _best_lines(search, run, ranking)
        if search.search == "pbt":
            lines += [
                "What a population finds is a schedule: `best.json` holds the last values of the best trial, and the "
                "confirmation trains with these from the start.",
                "",
            ]
    lines += _lost_lines(trials)
    if confirmation.records:
        lines += _confirmed_lines(search, confirmation)
    lines += [
        line for caption, name in pictures for line in (f"![{caption}]({name})", "", caption, "")
    ]
    lines += [
        "Files: `best.json`, `trials.csv`, `confirm.json`, `journal.jsonl` (every event), `trials/` (every run), "
        "`ray/` (for TensorBoard).",
    ]
    return lines


def _best_lines(search: Search, run: Run, ranking: list[Record]) -> list[str]:
    sign = 1.0 if run.goal == "min" else -1.0
    keys = list(search.domains())
    names = score_names(search, ranking)[1:3]
    best = ranking[0]
    lines = [
        f"Best: trial {best.number}, validation {run.select} **{sign * best.best:.4f}** in epoch {best.best_epoch}.",
        "",
        f"    deepspeed launch/train.py {search.recipe} data={run.data} @{search.folder / 'best.json'}",
        "",
        "| trial | "
        + " | ".join([run.select, *names, "epochs", "state", *map(short, keys)])
        + " |",
        "|---" * (4 + len(names) + len(keys)) + "|",
    ]
    for record in ranking[:SHOWN]:
        scores = [
            f"{sign * record.best:.4f}",
            *(f"{record.scores.get(name, float('nan')):.4f}" for name in names),
        ]
        changes = [compact(record.changes.get(key, "")) for key in keys]
        cells = [str(record.number), *scores, str(len(record.history)), record.state, *changes]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _lost_lines(trials: list[Record]) -> list[str]:
    lost = [record for record in trials if record.state in ("diverged", "failed")]
    if not lost:
        return []
    head = ["| trial | state | epochs | reason |", "|---|---|---|---|"]
    rows = [
        f"| {r.number} | {r.state} | {len(r.history)} | {r.reason.replace('|', '/')} |"
        for r in lost
    ]
    return [f"{len(lost)} trials came to no normal end and are not compared:", "", *head, *rows, ""]


def _confirmed_lines(search: Search, journal: Journal) -> list[str]:
    body = confirmed(search, journal)
    if not body["seeds"]:
        return ["The best configuration could not be trained again; see `confirm.jsonl`.", ""]
    names = list(body["valid"])
    lines = [
        f"## Best configuration over {len(body['seeds'])} seeds",
        "",
        "Mean ± standard deviation. Validation was complete before test was evaluated, once per seed.",
        "",
        "| split | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for split in ("valid", "test"):
        if body[split]:
            cells = [
                f"{body[split][n]['mean']:.4f} ± {body[split][n]['std']:.4f}"
                for n in names
                if n in body[split]
            ]
            lines.append(f"| {split} | " + " | ".join(cells) + " |")
    return [*lines, ""]
