"""The plots of a search: best value over time, parallel coordinates, slices, importance.

The importance is drawn by optuna. Of the others, optuna's have trial numbers in place of time, do
not tell trials that were stopped early from the rest, and let one outlier press all other trials
into a line; the test ``test_an_outlier_does_not_press_the_other_trials_into_a_line`` has that plot
beside this one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.study import Study

from launch.reports.plots import COLORS, INK, figure, save
from tune.journal import Journal, Record
from tune.sampling.domain import Choice, Domain, compact, short
from tune.sampling.suggest import distributions, to_params
from tune.settings import Search

FEWEST = 4  # trials below which importance means nothing
SLICES = 6  # most settings that are drawn one by one


class Plot(NamedTuple):
    caption: str
    file: str  # name in the search's folder


class Score(NamedTuple):
    """The score that a search is about, as axes show it."""

    label: str
    sign: float  # what an objective is multiplied with

    def of(self, records: list[Record]) -> np.ndarray:
        """Each trial's best score."""
        return self.sign * objectives(records)


def objectives(records: list[Record]) -> np.ndarray:
    """The lowest objective of each trial."""
    return np.array([record.best for record in records])


def draw_all(search: Search, journal: Journal) -> list[Plot]:
    """Every plot that the trials allow."""
    domains = search.domains()
    records = sorted(journal.ranking(), key=lambda record: record.number)
    score = Score(f"validation {search.run().select}", search.sign)
    shares = importance(domains, records)
    plots = [
        _history(search, score, records),
        _parallel(search, score, domains, records),
        _slices(search, score, _most_important(domains, shares), records),
    ]
    if shares:
        plots.append(_importance(search, domains, records))
    return plots


# best value over time ------------------------------------------------------------------------


def _history(search: Search, score: Score, records: list[Record]) -> Plot:
    """The best score so far against the time since the start, and where each trial ended."""
    drawing, axes = figure(9, 3.8)
    start = min(record.started for record in records)
    ended = np.array([record.ended for record in records])
    _scatter_trials(axes, (ended - start) / 60, score, records)
    minutes, best = _best_so_far(records, start)
    axes.step(minutes, score.sign * best, where="post", color=COLORS[1], label="best so far")
    leave_out_outliers(axes.set_ylim, score.of(records))
    axes.set(xlabel="minutes since the start", ylabel=score.label, title="Best value over time")
    axes.legend(frameon=False)
    caption = "Each trial's best score at its end, and the best of any epoch so far."
    return Plot(caption, save(drawing, search.folder / "history.png"))


def _best_so_far(records: list[Record], start: float) -> tuple[np.ndarray, np.ndarray]:
    """Minutes since the start at which epochs ended, and the lowest objective of any until then."""
    events = []
    for record in records:
        events += [(event["time"], event["objective"]) for event in record.history.values()]
    times, objectives = np.array(sorted(events)).T
    return (times - start) / 60, np.minimum.accumulate(objectives)


def _scatter_trials(axes: Any, x: np.ndarray, score: Score, records: list[Record]) -> None:
    """A point for each trial; hollow, if it was stopped early."""
    y = score.of(records)
    stopped = np.array([record.state == "stopped" for record in records])
    style = {"s": 20, "edgecolor": COLORS[0], "zorder": 3}
    axes.scatter(x[~stopped], y[~stopped], color=COLORS[0], label="trained to the end", **style)
    if stopped.any():
        axes.scatter(x[stopped], y[stopped], facecolor="white", label="stopped early", **style)


def leave_out_outliers(set_limits: Callable[..., Any], values: np.ndarray) -> None:
    """Limit an axis to where most values are: outliers would press the others into a line."""
    low, high = np.min(values), np.max(values)
    first, third = np.percentile(values, [25, 75])
    reach = 3 * (third - first) or 1e-3
    low, high = max(low, first - reach), min(high, third + reach)
    pad = 0.06 * (high - low) or 1e-3
    set_limits(low - pad, high + pad)


# parallel coordinates ------------------------------------------------------------------------


def position(domain: Domain, value: Any) -> float:
    """Where a value lies in its domain, from 0 to 1, on the domain's own scale."""
    if isinstance(domain, Choice):
        return domain.values.index(value) / max(1, len(domain.values) - 1)
    numbers = np.array([domain.low, domain.high, value], dtype=np.float64)
    low, high, at = np.log(numbers) if domain.log else numbers
    return float(np.clip((at - low) / (high - low), 0.0, 1.0))


def _parallel(
    search: Search, score: Score, domains: dict[str, Domain], records: list[Record]
) -> Plot:
    """A line for each trial over an axis for each setting and the score, best at the bottom."""
    drawing, axes = figure(max(6.0, 1.5 * len(domains) + 2), 4.2)
    best = objectives(records)
    order = np.argsort(-best, kind="stable")  # the best is drawn last, over the others
    heights = (best - best.min()) / (np.ptp(best) or 1.0)
    colors = _colors_by_rank(best)
    columns = range(len(domains) + 1)
    for index in order:
        changes = records[index].changes
        line = [position(domain, changes[key]) for key, domain in domains.items()]
        line.append(heights[index])
        width = 2.2 if heights[index] == 0 else 1.0
        axes.plot(columns, line, color=colors[index], linewidth=width, alpha=0.85)
    for column, domain in enumerate(domains.values()):
        ends = domain.ends()
        _name_ends(axes, column, compact(ends[0]), compact(ends[-1]))
    lowest, highest = score.sign * best.min(), score.sign * best.max()
    _name_ends(axes, len(domains), f"{lowest:.4g}", f"{highest:.4g}")
    axes.set_xticks(list(columns), [*map(short, domains), score.label])
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(-0.12, 1.12)
    axes.set_yticks([])
    axes.vlines(list(columns), 0, 1, color=INK, linewidth=0.8)
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_title("Every trial, from the best (dark) to the worst (light)")
    caption = "Parallel coordinates; a range is drawn on its own scale."
    return Plot(caption, save(drawing, search.folder / "parallel.png"))


def _colors_by_rank(best: np.ndarray) -> list[Any]:
    """From the best, dark, to the worst, light: by rank, so that outliers keep no contrast."""
    from matplotlib import colormaps

    ranks = np.argsort(np.argsort(best))
    return [colormaps["viridis"](0.9 * rank / max(1, len(best) - 1)) for rank in ranks]


def _name_ends(axes: Any, column: int, low: str, high: str) -> None:
    """Write the values at the two ends of a vertical axis."""
    style = {"ha": "center", "fontsize": 8, "color": INK}
    axes.text(column, -0.04, low, va="top", **style)
    axes.text(column, 1.03, high, va="bottom", **style)


# slices --------------------------------------------------------------------------------------


def _most_important(domains: dict[str, Domain], shares: dict[str, float]) -> dict[str, Domain]:
    """All settings, or those that matter most where there are many."""
    if len(domains) <= SLICES:
        return domains
    keys = sorted(domains, key=lambda key: -shares.get(key, 0.0))
    return {key: domains[key] for key in keys[:SLICES]}


def _slices(
    search: Search, score: Score, domains: dict[str, Domain], records: list[Record]
) -> Plot:
    """Score against each setting."""
    drawing, axes = figure(2.6 * len(domains) + 1, 3.4, columns=len(domains))
    panels = np.atleast_1d(axes)
    for panel, (key, domain) in zip(panels, domains.items(), strict=True):
        values = [record.changes[key] for record in records]
        if isinstance(domain, Choice):
            values = list(map(domain.values.index, values))
            panel.set_xticks(range(len(domain.values)), list(map(compact, domain.values)))
            panel.set_xlim(-0.5, len(domain.values) - 0.5)
        else:
            panel.set_xscale("log" if domain.log else "linear")
            panel.set_xlim(domain.low, domain.high)
        _scatter_trials(panel, np.array(values, dtype=np.float64), score, records)
        leave_out_outliers(panel.set_ylim, score.of(records))
        panel.set_xlabel(short(key))
    panels[0].set_ylabel(score.label)
    caption = "One setting at a time; hollow: stopped early."
    return Plot(caption, save(drawing, search.folder / "slices.png"))


# importance ----------------------------------------------------------------------------------


def importance(domains: dict[str, Domain], records: list[Record]) -> dict[str, float]:
    """How much of the scores' variance each setting explains (fANOVA, Hutter et al., ICML 2014).

    Empty where there are too few trials, or where they all scored the same.
    """
    known = _inside(domains, records)
    if len(known) < FEWEST or np.ptp(objectives(known)) == 0:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scikit-learn's forest, when trials are few
        return get_param_importances(as_study(domains, known), evaluator=_evaluator())


def as_study(domains: dict[str, Domain], records: list[Record]) -> Study:
    """The trials as a study of optuna."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds = distributions(domains)
    study = optuna.create_study()
    for record in records:
        params = to_params(domains, record.changes)
        study.add_trial(optuna.create_trial(value=record.best, params=params, distributions=kinds))
    return study


def _inside(domains: dict[str, Domain], records: list[Record]) -> list[Record]:
    """Trials whose values are all in the space; Ray's population may take a trial out of it."""
    inside = []
    for record in records:
        if all(domain.contains(record.changes[key]) for key, domain in domains.items()):
            inside.append(record)
    return inside


def _evaluator() -> FanovaImportanceEvaluator:
    return FanovaImportanceEvaluator(seed=0)


def _importance(search: Search, domains: dict[str, Domain], records: list[Record]) -> Plot:
    import matplotlib
    from matplotlib import pyplot
    from optuna.visualization.matplotlib import plot_param_importances

    study = as_study(domains, _inside(domains, records))
    # optuna sets a style for the whole process, and says that its plots are experimental
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = plot_param_importances(study, evaluator=_evaluator())
    names = [short(label.get_text()) for label in axes.get_yticklabels()]
    axes.set_yticks(axes.get_yticks(), names)
    axes.set_title("Importance (fANOVA)", loc="left")  # optuna's own title stands there
    axes.set(xlabel="share of the variance of the score", ylabel="")
    axes.set_facecolor("white")
    axes.get_legend().remove()
    drawing = axes.figure
    drawing.set_size_inches(7, 0.5 * len(domains) + 1.4)
    drawing.set_layout_engine("constrained")
    file = save(drawing, search.folder / "importance.png")
    pyplot.close(drawing)
    return Plot(
        "Which settings the score depends on, "
        "over all compared trials, early stopped ones included.",
        file,
    )
