"""What a run's page says of its training: scores, what was trained on what, curves, the model's own
numbers."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Sequence
from typing import Any

from core.metrics.declared import METRICS, headline_metrics, metric_of
from launch.config import ConfigError, leaves, load_recipe, recipe_functions, to_dict
from launch.reports.pages.charts import Chart, Series, line_chart
from launch.reports.pages.page import Cell, Section, Table
from launch.reports.run_log import spoken_duration
from launch.reports.run_record import RunRecord, is_score

# of an epoch's event, what is neither a loss, a score nor the model's own
OF_THE_LOOP = {
    "kind",
    "step",
    "time",
    "epoch",
    "samples_per_second",
    "data_wait",
    "seconds",
    "steps",
    "skipped_samples",
    "memory_gb",
    "gpu_memory_gb",
}
SMALL_LOSS = 0.02  # of the largest: smaller ones could not be seen beside it
NEVER_SHOWN = {"run_dir", "recipe", "data"}  # among changed settings: they stand elsewhere


def scores_section(record: RunRecord) -> Section:
    """Scores of the splits above what constant answers would have got."""
    if not record.scores:
        return Section("Scores", "The run is not finished: there are no final scores yet.")
    names = [name for name in next(iter(record.scores.values())) if name in METRICS]
    rows: list[list[Cell | str]] = []
    for split in sorted(record.scores):  # test before valid
        rows.append([split, *_texts(names, record.scores[split])])
        for answer, scores in record.constant.items():
            of, _, constant = answer.partition("/")
            if of == split:
                rows.append([f"{split}, always {constant}", *_texts(names, scores)])
    header = ["split", *[_headed(name) for name in names]]
    text = (
        f"The best epoch by validation {record.select}; the test split was evaluated once, after "
        "that. Rows with 'always' are what one answer for every sample would score: what a model "
        "has to beat."
    )
    facts = [("from", "scores.json, facts.json")]
    known = known_score(record.recipe)
    if known:
        facts.append(("said of the recipe", known))
    return Section("Scores", text, [Table("Scores by split", header, rows)], facts=facts)


def known_score(recipe: str) -> str:
    """What the recipe's own docstring says of its published or measured scores."""
    function = recipe_functions().get(recipe)
    said = " ".join((inspect.getdoc(function) or "").split()) if function else ""
    for sentence in said.split(". "):
        if "MAE" in sentence or "Hits@1" in sentence:
            return sentence.rstrip(".") + "."
    return ""


def _headed(name: str) -> str:
    return f"{name} {'↑' if metric_of(name).higher_is_better else '↓'}"


def _texts(names: Sequence[str], scores: dict[str, float]) -> list[str]:
    return [metric_of(name).text(scores[name]) if name in scores else "" for name in names]


def about_section(record: RunRecord, samples: dict[str, int], parameters: int | None) -> Section:
    """What was trained on what, with which settings, where and at what cost."""
    machine = record.provenance.get("machine") or {}
    packages = record.provenance.get("packages") or {}
    seconds = [float(event.get("seconds", 0)) for event in record.epochs]
    facts = [
        ("model", str(record.settings.get("model"))),
        ("data", f"{record.data.get('dataset', '')} {record.settings.get('data', '')}".strip()),
        ("seed", str(record.settings.get("seed"))),
        ("global batch", str(record.settings.get("batch_size"))),
    ]
    if parameters is not None:
        facts.append(("parameters", f"{parameters:,}"))
    facts += [(f"{split} samples", f"{count:,}") for split, count in samples.items()]
    if seconds:
        facts.append(("epochs", f"{len(seconds)} of at most {record.settings.get('epochs')}"))
        facts.append(("training took", spoken_duration(sum(seconds))))
        facts.append(("an epoch took", spoken_duration(sum(seconds) / len(seconds))))
        waits = [event.get("data_wait", 0) * event.get("seconds", 0) for event in record.epochs]
        facts.append(("waiting for data", f"{sum(waits) / max(sum(seconds), 1e-9):.1%}"))
        facts.append(("memory at the end", f"{record.epochs[-1].get('memory_gb', 0):.2f} GB"))
    devices = machine.get("devices") or [machine.get("processor", "")]
    facts.append(("hardware", f"{machine.get('processes', 1)} × {devices[0]}"))
    facts.append(("PyTorch", str(packages.get("torch", ""))))
    commit = (record.provenance.get("git") or {}).get("commit", "")
    if commit:
        facts.append(("code", str(commit)[:12]))
    changed = changed_settings(record)
    rows = [[name, now, usual] for name, now, usual in changed]
    tables = []
    if rows:
        header = ["setting", "here", "in the recipe"]
        tables.append(Table("Settings that differ from the recipe", header, rows, header))
    text = "" if rows else "All settings are those of the recipe."
    return Section("The run", text, tables, facts=facts)


def changed_settings(record: RunRecord) -> list[tuple[str, str, str]]:
    """(name, value here, value in the recipe) where they differ; nothing for an unknown recipe."""
    try:
        usual = json.loads(json.dumps(leaves(to_dict(load_recipe(record.recipe)))))
    except ConfigError:
        return []
    found = []
    for name, value in record.flat_settings.items():
        if name not in NEVER_SHOWN and name in usual and usual[name] != value:
            found.append((name, json.dumps(value), json.dumps(usual[name])))
    return found


def curves_section(record: RunRecord) -> Section:
    """Losses and validation scores, each on axes of its own, with the selected epoch marked."""
    if not record.epochs:
        return Section("Curves")
    mark = _mark(record)
    charts = _loss_charts(record, mark)
    names = [name for name in record.epochs[-1] if is_score(name)]
    shown = list(dict.fromkeys([record.select, *headline_metrics(names)]))
    for name in [name for name in shown if name in names]:
        series = [Series(name, _numbers(record), _values(record, name))]
        level = None
        constant = _best_constant(record, name)
        if constant is not None:
            level = (constant, "best constant answer")
        title = f"Validation {_headed(name)}"
        if name == record.select:
            title += ", selects"
        charts.append(line_chart(title, series, "epoch", name, mark=mark, level=level))
    warnings = [str(event.get("text")) for event in record.events.get("warning", [])]
    notes = [f"Warning of the run: {text}" for text in dict.fromkeys(warnings)]
    return Section("Curves", "", charts=charts, notes=[*notes, "From log.jsonl."])


def _loss_charts(record: RunRecord, mark: tuple[float, str] | None) -> list[Chart]:
    """All losses in one drawing, on a logarithmic axis where small ones would not be seen."""
    losses = [name for name in record.epochs[-1] if _is_loss(name, record)]
    series = []
    for name in sorted(losses):
        series.append(Series(name.removeprefix("loss_"), _numbers(record), _values(record, name)))
    if not series:
        return []
    highest = [max((value for value in one.y if math.isfinite(value)), default=0) for one in series]
    smallest = min((value for value in highest if value > 0), default=1)
    is_wide = smallest < SMALL_LOSS * max(highest) and all(
        value >= 0 or math.isnan(value) for one in series for value in one.y
    )
    note = "Logarithmic, so that small losses are seen." if is_wide else ""
    chart = line_chart(
        "Training losses", series, "epoch", "loss", mark=mark, logarithmic=is_wide, note=note
    )
    return [chart]


def _is_loss(name: str, record: RunRecord) -> bool:
    """MEAformer reports weights of losses under names that begin alike."""
    return name.startswith("loss_") and not name.startswith("loss_weight_")


def model_section(record: RunRecord) -> Section:
    """What the model says of itself after each epoch: gates, entropies, weights of views."""
    if not record.epochs:
        return Section("Inside the model")
    own = [
        name
        for name, value in record.epochs[-1].items()
        if name not in OF_THE_LOOP
        and not is_score(name)
        and not _is_loss(name, record)
        and isinstance(value, int | float)
    ]
    families: dict[str, list[str]] = {}
    for name in own:
        families.setdefault(_family(name, own), []).append(name)
    charts = []
    for family, names in families.items():
        series = [Series(_spoken(name), _numbers(record), _values(record, name)) for name in names]
        charts.append(line_chart(_spoken(family), series, "epoch", mark=_mark(record)))
    text = "What the model reports of itself after each epoch." if charts else ""
    return Section("Inside the model", text, charts=charts, notes=["From log.jsonl."])


def _family(name: str, names: list[str]) -> str:
    """What several numbers have in common, at the end of their names or at the beginning."""
    words = name.split("_")
    for ending in ("_".join(words[1:]), "_".join(words[2:])):
        if ending and sum(other.endswith(f"_{ending}") for other in names) > 1:
            return ending
    for beginning in ("_".join(words[:-1]), words[0]):
        if beginning and sum(other.startswith(f"{beginning}_") for other in names) > 1:
            return beginning
    return name


def _spoken(name: str) -> str:
    return name.replace("_", " ")


def _numbers(record: RunRecord) -> list[float]:
    """Epochs as people count them."""
    return [float(event["epoch"] + 1) for event in record.epochs]


def _values(record: RunRecord, name: str) -> list[float]:
    return [_number(event.get(name)) for event in record.epochs]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _mark(record: RunRecord) -> tuple[float, str] | None:
    best = record.best_epoch
    return None if best is None else (best + 1.0, f"selected: {best + 1}")


def _best_constant(record: RunRecord, name: str) -> float | None:
    values = [
        scores[name]
        for answer, scores in record.constant.items()
        if answer.startswith("valid/") and name in scores
    ]
    return metric_of(name).best(values) if values else None
