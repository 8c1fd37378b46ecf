"""Scores of finished runs over rates of missing data, beside those of constant answers, in one
table and plot.

    python -m launch.robustness RUN [RUN ...] [--rates 0:1:0.1] [--protocol A|B]
    [missing.protocol=frames] [--out DIR]

Protocol B (Lian et al., NeurIPS 2024) scores one run at every rate. Protocol A (Yuan et al., ACM MM
2021) has a run for each rate, trained under it: RUN is then the folder of these runs, each scored
at the rate in its ``config.json``. Published areas are over rates from 0 to 1, of CH-SIMS from 0 to
0.5, so that is the grid when none is asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core import distributed
from core.file_access.targets import check_folder
from core.files import write_atomically
from core.metrics.declared import METRICS, headline_metrics
from core.metrics.regression import auilc
from data_shards.missing import Missing
from launch.command_line import read, settings_parser
from launch.config import ConfigError, Run, override
from launch.engine.processes import init_processes, shutdown_processes
from launch.evaluate import read_run
from launch.monitor.rank_command import run_rank
from launch.reports.plots import INK, figure, save
from launch.reports.report import best_model
from launch.reports.tables import score_table
from launch.tasks.build import build_task
from launch.tasks.task import Task


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
        leaves_something = np.array(self.rates) < 1
        means = {}
        for name, values in self.scores.items():
            means[name] = float(np.mean(np.array(values)[leaves_something]))
        return means


def parse_rates(text: str) -> list[float]:
    """``first:last:step``, last included, or a list with commas; rising, in [0, 1]."""
    try:
        if ":" in text:
            first, last, step = map(float, text.split(":"))
            count = round((last - first) / step) + 1
            rates = [round(first + number * step, 10) for number in range(count)]
        else:
            rates = [float(part) for part in text.split(",")]
    except (ValueError, ZeroDivisionError):
        raise ConfigError(
            f"rates={text!r} is neither first:last:step nor a list such as 0,0.3,0.5"
        ) from None
    rising = sorted(set(rates)) == rates
    if len(rates) < 2 or not rising or rates[0] < 0 or rates[-1] > 1:
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
    """Protocol B: the best epoch of one run at every rate; at the usual ones where ``rates`` is
    empty."""
    run = override(read_run(run_dir), changes)
    rates = rates or usual_rates(run)
    model, _ = best_model(run, run_dir, _task(run, run_dir), device)
    scores = []
    for rate in rates:
        task = build_task(at_rate(run, rate))
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


def _task(run: Run, run_dir: Path) -> Task:
    task = build_task(run)
    if task.manifest.task != "sentiment":
        raise ConfigError(
            f"{run_dir} is an alignment run; missing-feature protocols are for sentiment"
        )
    return task


def _by_metric(scores: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [one[name] for one in scores] for name in scores[0]}


def constant_answers(run: Run) -> dict[str, dict[str, float]]:
    """What constant answers score on the test labels; nothing for classes."""
    return build_task(run).constant_baselines("test")


def write(
    out: Path, curves: list[Curve], baselines: dict[str, dict[str, float]], protocol: str
) -> None:
    """``robustness.json``, ``robustness.md`` and ``robustness.png``."""
    out.mkdir(parents=True, exist_ok=True)
    body: dict[str, Any] = {
        "protocol": protocol,
        "curves": [_as_json(curve) for curve in curves],
        "floors": baselines,
    }
    write_atomically(out / "robustness.json", json.dumps(body, indent=1) + "\n")
    _draw(out / "robustness.png", curves, baselines)
    write_atomically(out / "robustness.md", _report(curves, baselines, protocol))


def _as_json(curve: Curve) -> dict[str, Any]:
    return {
        "name": curve.name,
        "rates": curve.rates,
        "scores": curve.scores,
        "auilc": curve.areas(),
        "means": curve.means(),
    }


def _report(curves: list[Curve], baselines: dict[str, dict[str, float]], protocol: str) -> str:
    lines = [f"# Scores under missing features, protocol {protocol}", ""]
    for curve in curves:
        grid = ", ".join(f"{rate:g}" for rate in curve.rates)
        width = curve.rates[-1] - curve.rates[0]
        rows = {}
        for number, rate in enumerate(curve.rates):
            rows[f"{rate:g}"] = {name: values[number] for name, values in curve.scores.items()}
        rows["AUILC"] = curve.areas()
        rows["mean below 1"] = curve.means()
        for name, scores in baselines.items():
            rows[f"always {name}"] = scores
        lines += [
            f"## {curve.name}",
            "",
            f"Rates {grid}; the area's width is {width:g}.",
            "",
            score_table("rate", rows, list(curve.scores)),
            "",
        ]
    lines += ["![Scores over missing rates](robustness.png)", ""]
    return "\n".join(lines)


def _draw(path: Path, curves: list[Curve], baselines: dict[str, dict[str, float]]) -> None:
    shown = headline_metrics(curves[0].scores)
    drawing, all_axes = figure(4.2 * len(shown), 3.8, columns=len(shown))
    all_axes = np.atleast_1d(all_axes)
    for axes, metric in zip(all_axes, shown, strict=True):
        for curve in curves:
            values = curve.scores[metric]
            axes.plot(curve.rates, values, marker="o", markersize=3, label=curve.name)
        if baselines:
            level = METRICS[metric].best(scores[metric] for scores in baselines.values())
            axes.axhline(
                level, color=INK, linewidth=0.8, linestyle="--", label="best constant answer"
            )
        axes.set(xlabel="missing rate", ylabel=metric, title=metric)
    all_axes[0].legend(frameon=False)
    save(drawing, path)


def main(arguments: list[str] | None = None) -> int:
    def work() -> None:
        line = read(_parser(), arguments, also_settings=["rates", "protocol", "out"])
        folders = [Path(name) for name in line.names]
        if not folders:
            raise ConfigError("name a run's directory, or several")
        protocol = line.options.protocol
        if protocol not in ("A", "B"):
            raise ConfigError(
                f"protocol={protocol} is neither A (a run for each rate) nor B (one run at every rate)"
            )
        rates = parse_rates(line.options.rates) if line.options.rates else []
        out = line.options.out or folders[0] / "robustness"
        check_folder(out)
        init_processes()
        compare(folders, line.changes, protocol, rates, out)
        shutdown_processes()

    return run_rank(work)


def _parser() -> argparse.ArgumentParser:
    usage = "RUN [RUN ...] [key=value ...] [--rates 0:1:0.1] [--protocol A|B] [--out DIR]"
    parser = settings_parser("robustness", __doc__, usage)
    parser.add_argument(
        "--rates",
        metavar="FIRST:LAST:STEP",
        help="of missing data, or a list such as 0,0.3,0.5 (default: 0:1:0.1, of CH-SIMS 0:0.5:0.1)",
    )
    parser.add_argument(
        "--protocol",
        type=str.upper,
        metavar="A|B",
        default="B",
        help="A: a run for each rate in each folder; B: one run at every rate",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="for table and plot (default: RUN/robustness)"
    )
    return parser


def compare(
    folders: list[Path], changes: list[str], protocol: str, rates: list[float], out: Path
) -> None:
    """Score the runs of all folders and write table and plot. Collective; rank 0 writes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    curves = []
    for folder in folders:
        if protocol == "A":
            curves.append(many_runs(folder, changes, device))
        else:
            curves.append(one_run(folder, rates, changes, device))
    for curve in curves:
        if curve.scores.keys() != curves[0].scores.keys():
            raise ConfigError(
                f"{curve.name} has other scores than {curves[0].name}; compare runs of one metrics="
            )
    first = folders[0]
    if protocol == "A":
        first = min(folders[0].glob("*/config.json")).parent
    run = override(read_run(first), changes)
    floor = constant_answers(replace(run, missing=Missing()))
    if distributed.rank() == 0:
        write(out, curves, floor, protocol)
        for curve in curves:
            areas = [f"AUILC {name} {value:.4f}" for name, value in curve.areas().items()]
            print(curve.name, *areas, sep="  ")
        print(f"table and plot: {out / 'robustness.md'}")


if __name__ == "__main__":
    sys.exit(main())
