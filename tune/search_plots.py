"""The pictures of a search: best value over time, parallel coordinates, slices, importance."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from launch.reports.plots import COLORS, INK, figure, save
from tune.domain import Choice, Domain
from tune.journal import Journal, Record
from tune.overrides import compact, short
from tune.settings import Search
from tune.suggest import distributions, to_params

FEWEST = 4  # trials below which importance means nothing
SLICES = 6  # most settings that are drawn one by one


def draw_all(search: Search, journal: Journal) -> list[tuple[str, str]]:
    """Every picture that the trials allow, as (caption, file name in the search's folder)."""
    domains = search.domains()
    records = sorted(journal.ranking(), key=lambda record: record.number)
    shares = importance(domains, records)
    pictures = [
        _history(search, records),
        _parallel(search, domains, records),
        _slices(search, domains, records, shares),
    ]
    if shares:
        pictures.append(_importance(search, shares))
    return pictures


def _score(search: Search) -> tuple[str, float]:
    run = search.run()
    return f"validation {run.select}", 1.0 if run.goal == "min" else -1.0


def _history(search: Search, records: list[Record]) -> tuple[str, str]:
    """The best value so far against the time since the start."""
    name, sign = _score(search)
    drawing, axes = figure(9, 3.8)
    start = min(record.started for record in records)
    events = sorted(
        (event["time"], event["objective"], record.number)
        for record in records
        for event in record.history.values()
    )
    minutes = np.array([(time - start) / 60 for time, _, _ in events])
    objective = np.array([value for _, value, _ in events])
    ends = np.array([[(record.ended - start) / 60, sign * record.best] for record in records])
    stopped = np.array([record.state == "stopped" for record in records])
    axes.scatter(*ends[~stopped].T, color=COLORS[0], s=22, label="trained to the end", zorder=3)
    if stopped.any():
        axes.scatter(
            *ends[stopped].T,
            facecolor="white",
            edgecolor=COLORS[0],
            s=22,
            label="stopped early",
            zorder=3,
        )
    axes.step(
        minutes,
        sign * np.minimum.accumulate(objective),
        where="post",
        color=COLORS[1],
        label="best so far",
    )
    _focus(axes.set_ylim, sign * np.array([record.best for record in records]))
    axes.set(xlabel="minutes since the start", ylabel=name, title="Best value over time")
    axes.legend(frameon=False)
    return "Each trial's best score at its end, and the best of any epoch so far.", save(
        drawing, search.folder / "history.png"
    )


def _focus(limit: Any, values: np.ndarray) -> None:
    """Leave far outliers out of the picture, which would press everything else into one line."""
    low, high = np.min(values), np.max(values)
    first, third = np.percentile(values, [25, 75])
    reach = 3 * (third - first) or 1e-3
    low, high = max(low, first - reach), min(high, third + reach)
    pad = 0.06 * (high - low) or 1e-3
    limit(low - pad, high + pad)


def position(domain: Domain, value: Any) -> float:
    """Where a value lies in its domain, from 0 to 1, on the domain's own scale."""
    if isinstance(domain, Choice):
        return domain.values.index(value) / max(1, len(domain.values) - 1)
    scale = np.log if domain.log else np.asarray
    low, high, here = (float(scale(number)) for number in (domain.low, domain.high, value))
    return min(1.0, max(0.0, (here - low) / (high - low)))


def _colors(records: list[Record]) -> list[Any]:
    """From the best, dark, to the worst, light: by rank, so that outliers do not take all the contrast."""
    from matplotlib import colormaps

    ranks = np.argsort(np.argsort([record.best for record in records]))
    return [colormaps["viridis"](0.9 * rank / max(1, len(records) - 1)) for rank in ranks]


def _parallel(search: Search, domains: dict[str, Domain], records: list[Record]) -> tuple[str, str]:
    name, sign = _score(search)
    drawing, axes = figure(max(6.0, 1.5 * len(domains) + 2), 4.2)
    best = np.array([record.best for record in records])
    last = (best - best.min()) / (np.ptp(best) or 1.0)
    places = range(len(domains) + 1)
    for record, color, end in sorted(
        zip(records, _colors(records), last, strict=True), key=lambda row: -row[2]
    ):
        heights = [position(domain, record.changes[key]) for key, domain in domains.items()]
        axes.plot(
            places, [*heights, end], color=color, linewidth=2.2 if end == 0 else 1.0, alpha=0.85
        )
    for place, domain in enumerate(domains.values()):
        ends = domain.ends()
        axes.text(place, -0.04, compact(ends[0]), ha="center", va="top", fontsize=8, color=INK)
        axes.text(place, 1.03, compact(ends[-1]), ha="center", va="bottom", fontsize=8, color=INK)
    axes.text(
        len(domains),
        -0.04,
        f"{sign * best.min():.4g}",
        ha="center",
        va="top",
        fontsize=8,
        color=INK,
    )
    axes.text(
        len(domains),
        1.03,
        f"{sign * best.max():.4g}",
        ha="center",
        va="bottom",
        fontsize=8,
        color=INK,
    )
    axes.set_xticks(list(places), [*map(short, domains), name])
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(-0.12, 1.12)
    axes.set_yticks([])
    axes.vlines(list(places), 0, 1, color=INK, linewidth=0.8)
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_title("Every trial, from the best (dark) to the worst (light)")
    return "Parallel coordinates; a range is drawn on its own scale.", save(
        drawing, search.folder / "parallel.png"
    )


def _slices(
    search: Search, domains: dict[str, Domain], records: list[Record], shares: dict[str, float]
) -> tuple[str, str]:
    """Score against each setting; of many settings, those that matter most."""
    name, sign = _score(search)
    keys = (
        sorted(domains, key=lambda key: -shares.get(key, 0.0))[:SLICES]
        if len(domains) > SLICES
        else list(domains)
    )
    drawing, axes = figure(2.6 * len(keys) + 1, 3.4, columns=len(keys))
    best = sign * np.array([record.best for record in records])
    stopped = np.array([record.state == "stopped" for record in records])
    for place, key in enumerate(keys):
        one = axes[place] if len(keys) > 1 else axes
        domain = domains[key]
        if isinstance(domain, Choice):
            here = np.array([float(domain.values.index(record.changes[key])) for record in records])
            one.set_xticks(range(len(domain.values)), [compact(value) for value in domain.values])
            one.set_xlim(-0.5, len(domain.values) - 0.5)
        else:
            here = np.array([float(record.changes[key]) for record in records])
            one.set_xscale("log" if domain.log else "linear")
            one.set_xlim(domain.low, domain.high)
        one.scatter(here[~stopped], best[~stopped], s=18, color=COLORS[0], zorder=3, clip_on=False)
        one.scatter(
            here[stopped], best[stopped], s=18, facecolor="white", edgecolor=COLORS[0], zorder=3
        )
        _focus(one.set_ylim, best)
        one.set(xlabel=short(key), ylabel=name if place == 0 else "")
    return "One setting at a time; hollow: stopped early.", save(
        drawing, search.folder / "slices.png"
    )


def importance(domains: dict[str, Domain], records: list[Record]) -> dict[str, float]:
    """How much of the scores' variance each setting explains (fANOVA, Hutter et al., ICML 2014), by optuna.

    Empty where there are too few trials, or where they all scored the same.
    """
    records = [
        r for r in records if all(domain.has(r.changes[key]) for key, domain in domains.items())
    ]
    if len(records) < FEWEST or np.ptp([record.best for record in records]) == 0:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    for record in records:
        params = to_params(domains, record.changes)
        kinds = distributions(domains)
        study.add_trial(optuna.create_trial(value=record.best, params=params, distributions=kinds))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scikit-learn's forest, when trials are few
        return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))


def _importance(search: Search, shares: dict[str, float]) -> tuple[str, str]:
    drawing, axes = figure(7, 0.5 * len(shares) + 1.4)
    ordered = sorted(shares.items(), key=lambda item: item[1])
    axes.barh(
        [short(key) for key, _ in ordered],
        [share for _, share in ordered],
        color=COLORS[0],
        height=0.6,
    )
    for place, (_, share) in enumerate(ordered):
        axes.text(share + 0.01, place, f"{share:.2f}", va="center", fontsize=9, color=INK)
    axes.set(
        xlabel="share of the variance of the score", xlim=(0, 1.08), title="Importance (fANOVA)"
    )
    return (
        "Which settings the score depends on, over all compared trials, early stopped ones included.",
        save(drawing, search.folder / "importance.png"),
    )
