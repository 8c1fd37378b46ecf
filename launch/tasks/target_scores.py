"""Scores of several targets at once: of each under its name, and their mean, by which the best epoch
is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from core.metrics.regression import collapsed, constant_baselines, scores

Scores = dict[str, float]


def target_scores(
    prediction: np.ndarray, label: np.ndarray, style: str, targets: Sequence[str]
) -> Scores:
    """Metric -> mean over the targets, and ``TARGET/metric`` -> value.

    Args:
        prediction: (N,), or (N, K) for K targets; ``label`` alike.
        targets: K names; empty where a label is one number, whose scores are given then.
    """
    if not targets:
        return scores(prediction, label, style)
    by_target = {}
    for number, target in enumerate(targets):
        by_target[target] = scores(prediction[:, number], label[:, number], style)
    found = _mean(list(by_target.values()))
    for target, values in by_target.items():
        found |= {f"{target}/{name}": value for name, value in values.items()}
    return found


def target_baselines(label: np.ndarray, style: str, targets: Sequence[str]) -> dict[str, Scores]:
    """Name of a constant answer -> what it scores, in the mean over the targets."""
    if not targets:
        return constant_baselines(label, style)
    by_target = [constant_baselines(column, style) for column in label.T]
    return {name: _mean([found[name] for found in by_target]) for name in by_target[0]}


def target_collapses(
    prediction: np.ndarray, label: np.ndarray, style: str, targets: Sequence[str]
) -> list[str]:
    """A warning for each target that gets nearly the same answer for every sample."""
    if not targets:
        warning = collapsed(prediction, label, style)
        return [warning] if warning else []
    warnings = []
    for number, target in enumerate(targets):
        warning = collapsed(prediction[:, number], label[:, number], style)
        if warning:
            warnings.append(f"{target}: {warning}")
    return warnings


def without_targets(values: Mapping[str, float], targets: Sequence[str]) -> Scores:
    """The scores that are not of a single target."""
    return {name: value for name, value in values.items() if name.split("/")[0] not in targets}


def of_targets(values: Mapping[str, float], targets: Sequence[str]) -> dict[str, Scores]:
    """Target -> its scores by metric."""
    found: dict[str, Scores] = {target: {} for target in targets}
    for name, value in values.items():
        target, _, metric = name.partition("/")
        if target in found and metric:
            found[target][metric] = value
    return found


def _mean(found: Sequence[Scores]) -> Scores:
    return {name: float(np.mean([values[name] for values in found])) for name in found[0]}
