"""What a search leaves: ``best.json``, ``trials.csv``, ``confirm.json`` and ``report.md``."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from core.files import write_atomically
from core.metrics.declared import METRICS
from launch.config import Run
from launch.reports.tables import markdown_table
from tune import search_plots
from tune.journal import Journal, Record
from tune.sampling.domain import compact, short
from tune.search_plots import Plot
from tune.settings import Search

SHOWN = 10  # trials in the table of the best
OF_THIS_MACHINE = {"data", "run_dir"}  # settings that are no part of a configuration


def best_changes(search: Search, record: Record) -> dict[str, Any]:
    """What makes the recipe the configuration of this trial; the content of ``best.json``."""
    return shared_changes(search) | record.changes


def shared_changes(search: Search) -> dict[str, Any]:
    """What holds for every trial, without what belongs to this machine."""
    return {key: value for key, value in search.changes.items() if key not in OF_THIS_MACHINE}


def write_best(search: Search, record: Record) -> None:
    text = json.dumps(best_changes(search, record), indent=1)
    write_atomically(search.folder / "best.json", text + "\n")


def table(search: Search, journal: Journal) -> pd.DataFrame:
    """One row per trial, in the order in which they began."""
    rows = []
    for record in journal.trials():
        trained = bool(record.history)
        row: dict[str, Any] = {
            "trial": record.number,
            "state": record.state,
            "epochs": len(record.history),
            "best_epoch": record.best_epoch if trained else None,
        }
        if trained:
            row |= {f"valid_{name}": value for name, value in record.scores.items()}
        row |= record.changes
        row["seconds"] = round(record.ended - record.started, 1) if record.ended else None
        row["starts"] = record.starts
        row["reason"] = record.reason
        rows.append(row)
    return pd.DataFrame(rows)


def score_names(search: Search, records: list[Record]) -> list[str]:
    """The validation scores among what an epoch reports, the one that is selected by first."""
    if not records:
        return []
    names = [name for name in records[0].scores if name.rsplit("/", 1)[-1] in METRICS]
    selected = search.run().select
    return [selected, *(name for name in names if name != selected)]


# the confirmation ----------------------------------------------------------------------------


def write_confirmed(search: Search, journal: Journal) -> None:
    """Scores by seed with mean and spread; test only where it has been evaluated."""
    text = json.dumps(confirmed(search, journal), indent=1)
    write_atomically(search.folder / "confirm.json", text + "\n")


def confirmed(search: Search, journal: Journal) -> dict[str, Any]:
    """What ``confirm.json`` holds."""
    usable = [record for record in journal.trials() if record.usable]
    names = score_names(search, usable)
    body: dict[str, Any] = {"seeds": {}, "valid": {}, "test": {}}
    for record in usable:
        body["seeds"][str(record.changes["seed"])] = {
            "valid": {name: record.scores[name] for name in names},
            "test": record.test,
            "best_epoch": record.best_epoch,
        }
    for name in names:
        body["valid"][name] = spread([record.scores[name] for record in usable])
    if usable and all(record.test for record in usable):
        for name in usable[0].test:
            body["test"][name] = spread([record.test[name] for record in usable])
    return body


def spread(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation (of a sample); the latter is 0 for one value."""
    array = np.asarray(values, dtype=np.float64)
    deviation = float(array.std(ddof=1)) if len(array) > 1 else 0.0
    return {"mean": float(array.mean()), "std": deviation}


# report.md -----------------------------------------------------------------------------------


def write_report(search: Search, journal: Journal, confirmation: Journal) -> None:
    """Tables, plots and ``report.md``, whatever there is by now."""
    write_atomically(search.folder / "trials.csv", table(search, journal).to_csv(index=False))
    plots = search_plots.draw_all(search, journal) if journal.ranking() else []
    sections = _sections(search, journal, confirmation, plots)
    write_atomically(search.folder / "report.md", "\n\n".join(sections) + "\n")


def _sections(
    search: Search, journal: Journal, confirmation: Journal, plots: list[Plot]
) -> list[str]:
    """The paragraphs, tables and plots of the report."""
    run = search.run()
    sections = _head_sections(search, run, journal.trials())
    ranking = journal.ranking()
    if ranking:
        sections += _best_sections(search, run, ranking)
    else:
        sections.append("**No trial came to a normal end.**")
    sections += _lost_sections(journal.trials())
    if confirmation.records:
        sections += _confirmed_sections(search, confirmation)
    for plot in plots:
        sections += [f"![{plot.caption}]({plot.file})", plot.caption]
    sections.append(
        "Files: `best.json`, `trials.csv`, `confirm.json`, `journal.jsonl` (every event), "
        "`trials/` (every run), `ray/` (for TensorBoard)."
    )
    return sections


def _head_sections(search: Search, run: Run, trials: list[Record]) -> list[str]:
    epochs = sum(len(record.history) for record in trials)
    sections = [
        f"# Search over {search.recipe}",
        f"Data `{run.data}`, seed {run.seed}, {len(trials)} trials by `{search.search}`, "
        f"scheduler `{search.scheduler}`, {search.processes} process(es) per trial, {epochs} "
        f"epochs in all. Trials are compared by the best validation {run.select} of any of their "
        "epochs; the search cannot see the test split.",
        markdown_table(
            ["searched", "values"],
            [[f"`{key}`", str(domain)] for key, domain in search.domains().items()],
        ),
    ]
    if search.changes:
        shared = [f"`{key}={compact(value)}`" for key, value in shared_changes(search).items()]
        sections.append(f"The same for every trial: {', '.join(shared) or 'nothing'}.")
    return sections


def _best_sections(search: Search, run: Run, ranking: list[Record]) -> list[str]:
    best = ranking[0]
    sections = [
        f"Best: trial {best.number}, validation {run.select} "
        f"**{search.sign * best.best:.4f}** in epoch {best.best_epoch}.",
        f"    deepspeed launch/train.py {search.recipe} data={run.data} "
        f"@{search.folder / 'best.json'}",
        _ranking_table(search, ranking),
    ]
    if search.search == "pbt":
        sections.append(
            "What a population finds is a schedule: `best.json` holds the last values of the best "
            "trial, and the confirmation trains with these from the start."
        )
    return sections


def _ranking_table(search: Search, ranking: list[Record]) -> str:
    keys = list(search.domains())
    selected, *others = score_names(search, ranking)[:3]
    head = ["trial", selected, *others, "epochs", "state", *map(short, keys)]
    rows = []
    for record in ranking[:SHOWN]:
        row = [str(record.number), f"{search.sign * record.best:.4f}"]
        row += [f"{record.scores.get(name, float('nan')):.4f}" for name in others]
        row += [str(len(record.history)), record.state]
        row += [compact(record.changes.get(key, "")) for key in keys]
        rows.append(row)
    return markdown_table(head, rows)


def _lost_sections(trials: list[Record]) -> list[str]:
    rows = []
    for record in trials:
        if record.state in ("diverged", "failed"):
            reason = record.reason.replace("|", "/")  # which would end the cell
            rows.append([str(record.number), record.state, str(len(record.history)), reason])
    if not rows:
        return []
    return [
        f"{len(rows)} trials came to no normal end and are not compared:",
        markdown_table(["trial", "state", "epochs", "reason"], rows),
    ]


def _confirmed_sections(search: Search, journal: Journal) -> list[str]:
    body = confirmed(search, journal)
    if not body["seeds"]:
        return ["The best configuration could not be trained again; see `confirm.jsonl`."]
    names = list(body["valid"])
    rows = []
    for split in ("valid", "test"):
        scores = body[split]
        if scores:
            rows.append([split, *(_mean_and_spread(scores.get(name)) for name in names)])
    return [
        f"## Best configuration over {len(body['seeds'])} seeds",
        "Mean ± standard deviation. Validation was complete before test was evaluated, "
        "once per seed.",
        markdown_table(["split", *names], rows),
    ]


def _mean_and_spread(score: dict[str, float] | None) -> str:
    return f"{score['mean']:.4f} ± {score['std']:.4f}" if score else ""
