"""Scores of finished runs over rates of missing data, beside the floors of constant answers, in one table and plot.

    python -m launch.robustness RUN [RUN ...] [rates=0:1:0.1] [protocol=A|B] [missing.protocol=frames] [out=DIR]

Protocol B (Lian et al., NeurIPS 2024) scores one run at every rate. Protocol A (Yuan et al., ACM MM 2021) has a run
for each rate, trained under it: RUN is then the folder of these runs, each scored at the rate in its ``config.json``.
Published areas are over rates from 0 to 1, of CH-SIMS from 0 to 0.5, so that is the grid when none is asked for.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core import distributed
from core.metrics.regression import auilc, constant_baselines
from data_shards.missing import Missing
from launch.config import ConfigError, Run, override
from launch.engine import init_processes, shutdown_processes
from launch.evaluate import read_run
from launch.reports.plots import INK, figure, save
from launch.reports.report import best_model
from launch.tasks.sentiment import SentimentTask
from launch.train import exit_code

USAGE = "usage: python -m launch.robustness RUN [RUN ...] [rates=0:1:0.1] [protocol=A|B] [out=DIR] [key=value ...]"


@dataclass(frozen=True)
class Curve:
    """Test scores of one model, or of one model per rate, over the rates."""

    name: str
    rates: list[float]
    scores: dict[str, list[float]]  # metric -> a value for each rate

    def areas(self) -> dict[str, float]:
        return {name: auilc(self.rates, values) for name, values in self.scores.items()}

    def means(self) -> dict[str, float]:
        """Plain means over the rates that leave something, protocol B's summary."""
        some = [place for place, rate in enumerate(self.rates) if rate < 1]
        return {
            name: float(np.mean([values[place] for place in some]))
            for name, values in self.scores.items()
        }


def parse_rates(text: str) -> list[float]:
    """``first:last:step``, last included, or a list with commas; rising, in [0, 1]."""
    try:
        if ":" in text:
            first, last, step = (float(part) for part in text.split(":"))
            rates = [
                round(first + place * step, 10) for place in range(round((last - first) / step) + 1)
            ]
        else:
            rates = [float(part) for part in text.split(",")]
    except (ValueError, ZeroDivisionError):
        raise ConfigError(
            f"rates={text!r} is neither first:last:step nor a list such as 0,0.3,0.5"
        ) from None
    if len(rates) < 2 or sorted(set(rates)) != rates or rates[0] < 0 or rates[-1] > 1:
        raise ConfigError(f"rates={text!r} must name two or more rising rates between 0 and 1")
    return rates


def at_rate(run: Run, rate: float) -> Run:
    """The run as it is scored at ``rate``; frames go missing unless its settings say otherwise."""
    protocol = "frames" if run.missing.protocol == "none" else run.missing.protocol
    return replace(run, missing=replace(run.missing, protocol=protocol, rate=rate))


def usual_rates(run: Run) -> list[float]:
    """The grid of the published areas for the run's data."""
    return parse_rates("0:0.5:0.1" if run.metrics == "sims" else "0:1:0.1")


def one_run(run_dir: Path, rates: list[float], changes: list[str], device: torch.device) -> Curve:
    """Protocol B: the best epoch of one run at every rate; at the usual ones where ``rates`` is empty."""
    run = override(read_run(run_dir), changes)
    rates = rates or usual_rates(run)
    task = _task(run, run_dir)
    model, _ = best_model(run, run_dir, task, device)
    scores = []
    for rate in rates:
        task.run = at_rate(run, rate)
        scores.append(task.evaluate(model, "test", device))
    return Curve(run_dir.name, rates, _by_metric(scores))


def many_runs(folder: Path, changes: list[str], device: torch.device) -> Curve:
    """Protocol A: each run below ``folder`` at the rate that it was trained under."""
    found: dict[float, tuple[Path, Run]] = {}
    for path in sorted(folder.glob("*/config.json")):
        run = override(read_run(path.parent), changes)
        rate = 0.0 if run.missing.protocol == "none" else run.missing.rate
        if rate in found:
            raise ConfigError(
                f"{folder} has two runs with missing.rate={rate}: {found[rate][0]} and {path.parent}"
            )
        found[rate] = (path.parent, run)
    if len(found) < 2:
        raise ConfigError(
            f"{folder} needs runs of two or more rates in it, each trained with another missing.rate"
        )
    scores = []
    for _, (run_dir, run) in sorted(found.items()):
        task = _task(run, run_dir)
        model, _ = best_model(run, run_dir, task, device)
        scores.append(task.evaluate(model, "test", device))
    return Curve(folder.name, sorted(found), _by_metric(scores))


def _task(run: Run, run_dir: Path) -> SentimentTask:
    if run.metrics == "alignment":
        raise ConfigError(
            f"{run_dir} is an alignment run; missing-feature protocols are for sentiment"
        )
    return SentimentTask(run)


def _by_metric(scores: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [one[name] for one in scores] for name in scores[0]}


def constant_answers(run: Run) -> dict[str, dict[str, float]]:
    """What constant answers score on the test labels; nothing for classes."""
    if run.metrics == "classes":
        return {}
    labels = np.concatenate(
        [part.arrays["label"].numpy() for (part,) in SentimentTask(run).part_arrays("test")]
    )
    return constant_baselines(labels, run.metrics)


def write(
    out: Path, curves: list[Curve], floor: dict[str, dict[str, float]], protocol: str
) -> None:
    """``robustness.json``, ``robustness.md`` and ``robustness.png``."""
    out.mkdir(parents=True, exist_ok=True)
    body: dict[str, Any] = {
        "protocol": protocol,
        "curves": [
            {
                "name": c.name,
                "rates": c.rates,
                "scores": c.scores,
                "auilc": c.areas(),
                "means": c.means(),
            }
            for c in curves
        ],
        "floors": floor,
    }
    (out / "robustness.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    metrics = list(curves[0].scores)
    lines = [f"# Scores under missing features, protocol {protocol}", ""]
    for curve in curves:
        grid = ", ".join(f"{rate:g}" for rate in curve.rates)
        lines += [
            f"## {curve.name}",
            "",
            f"Rates {grid}; the area's width is {curve.rates[-1] - curve.rates[0]:g}.",
            "",
        ]
        lines += ["| rate | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
        for place, rate in enumerate(curve.rates):
            lines.append(
                f"| {rate:g} | "
                + " | ".join(f"{curve.scores[name][place]:.4f}" for name in metrics)
                + " |"
            )
        rows = {"AUILC": curve.areas(), "mean below 1": curve.means()}
        rows |= {f"always {name}": values for name, values in floor.items()}
        for name, values in rows.items():
            lines.append(
                f"| {name} | " + " | ".join(f"{values[metric]:.4f}" for metric in metrics) + " |"
            )
        lines.append("")
    lines += ["![Scores over missing rates](robustness.png)", ""]
    _draw(out / "robustness.png", curves, floor)
    (out / "robustness.md").write_text("\n".join(lines), encoding="utf-8")


def _draw(path: Path, curves: list[Curve], floor: dict[str, dict[str, float]]) -> None:
    wanted = ("MAE", "Corr", "Has0_acc_2", "Mult_acc_2", "CCC", "Accuracy", "Macro_F1")
    shown = [name for name in wanted if name in curves[0].scores][:3]
    drawing, axes = figure(4.2 * len(shown), 3.8, columns=len(shown))
    for one, metric in zip(np.atleast_1d(axes), shown, strict=True):
        for curve in curves:
            one.plot(curve.rates, curve.scores[metric], marker="o", markersize=3, label=curve.name)
        best = [values[metric] for values in floor.values()]
        if best:
            level = min(best) if metric == "MAE" else max(best)
            one.axhline(
                level, color=INK, linewidth=0.8, linestyle="--", label="best constant answer"
            )
        one.set(xlabel="missing rate", ylabel=metric, title=metric)
    np.atleast_1d(axes)[0].legend(frameon=False)
    save(drawing, path)


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if words else 2

    def work() -> None:
        folders = [Path(word) for word in words if "=" not in word]
        given = dict(word.split("=", 1) for word in words if "=" in word)
        rates = parse_rates(given.pop("rates")) if "rates" in given else []
        protocol = given.pop("protocol", "B").upper()
        out = Path(given.pop("out", "")) if "out" in given else folders[0] / "robustness"
        if protocol not in ("A", "B"):
            raise ConfigError(
                f"protocol={protocol} is neither A (a run for each rate) nor B (one run at every rate)"
            )
        changes = [f"{key}={value}" for key, value in given.items()]
        init_processes()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        curves = [
            many_runs(folder, changes, device)
            if protocol == "A"
            else one_run(folder, rates, changes, device)
            for folder in folders
        ]
        for curve in curves:
            if curve.scores.keys() != curves[0].scores.keys():
                raise ConfigError(
                    f"{curve.name} has other scores than {curves[0].name}; compare runs of one metrics="
                )
        first = (
            folders[0]
            if protocol == "B"
            else next(path.parent for path in sorted(folders[0].glob("*/config.json")))
        )
        floor = constant_answers(replace(override(read_run(first), changes), missing=Missing()))
        if distributed.rank() == 0:
            write(out, curves, floor, protocol)
            for curve in curves:
                print(
                    curve.name,
                    *(f"AUILC {name} {value:.4f}" for name, value in curve.areas().items()),
                    sep="  ",
                )
            print(f"table and plot: {out / 'robustness.md'}")
        shutdown_processes()

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
