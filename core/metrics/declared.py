"""Every metric of the project, declared once: its name, which direction is better, and how it is
shown.

What computes the values is beside this file: ``regression``, ``classification`` and ``ranking``. A
score's name may begin with prefixes that say what was scored, as in ``csls/r2l/Hits@1``;
``metric_of`` finds the metric behind them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

MetricStyle = Literal["mosi", "sims", "phq", "mmmo", "classes", "labels", "alignment"]


@dataclass(frozen=True)
class Metric:
    """One number that scores predictions."""

    name: str
    higher_is_better: bool
    description: str  # in a few words, for help and axes
    headline: bool = False  # worth a place where there is room for three
    format: str = ".4f"

    def text(self, value: float) -> str:
        """The value as it is printed."""
        return format(value, self.format)

    def best(self, values: Iterable[float]) -> float:
        """The best of some values of this metric."""
        return max(values) if self.higher_is_better else min(values)


# In the order of importance, which is the order in which headlines are shown.
_DECLARED = (
    Metric("MAE", False, "mean absolute error", headline=True),
    Metric("Corr", True, "Pearson correlation", headline=True),
    Metric("Has0_acc_2", True, "accuracy of negative against the rest", headline=True),
    Metric("Mult_acc_2", True, "accuracy of two classes", headline=True),
    Metric("CCC", True, "concordance correlation", headline=True),
    Metric("Accuracy", True, "share of right classes", headline=True),
    Metric("Macro_F1", True, "mean F1 of the classes", headline=True),
    Metric("Hits@1", True, "share of partners ranked first", headline=True),
    Metric("MRR", True, "mean reciprocal rank", headline=True),
    Metric("RMSE", False, "root mean squared error"),
    Metric("Mult_acc_7", True, "accuracy of seven classes"),
    Metric("Mult_acc_5", True, "accuracy of five classes"),
    Metric("Mult_acc_3", True, "accuracy of three classes"),
    Metric("Has0_F1", True, "F1 of negative against the rest"),
    Metric("Non0_acc_2", True, "accuracy of negative against positive"),
    Metric("Non0_F1", True, "F1 of negative against positive"),
    Metric("F1_score", True, "F1 of two classes"),
    Metric("Weighted_F1", True, "F1 weighted by class size"),
    Metric("Unweighted_acc", True, "mean share of right answers in each class"),
    Metric("Weighted_acc", True, "mean accuracy of having and lacking a label"),
    Metric("Micro_F1", True, "F1 over all labels together"),
    Metric("Subset_acc", True, "share of samples with all labels right"),
    Metric("Hamming", False, "share of wrong answers over all labels"),
    Metric("F1", True, "F1 of one class or label"),
    Metric("Recall", True, "share of a class's samples that are found"),
    Metric("Hits@10", True, "share of partners among the first ten"),
    Metric("Hits@50", True, "share of partners among the first fifty"),
    Metric("MR", False, "mean rank"),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _DECLARED}

# Style -> the metrics that its tables print, in their order.
_STYLES: dict[str, tuple[str, ...]] = {
    "mosi": (
        "MAE",
        "Corr",
        "Mult_acc_7",
        "Mult_acc_5",
        "Has0_acc_2",
        "Has0_F1",
        "Non0_acc_2",
        "Non0_F1",
    ),
    "sims": ("MAE", "Corr", "Mult_acc_2", "Mult_acc_3", "Mult_acc_5", "F1_score"),
    "phq": ("MAE", "RMSE", "CCC", "Corr"),
    "mmmo": ("MAE", "RMSE", "Corr", "Mult_acc_5"),
    "classes": ("Accuracy", "Unweighted_acc", "Macro_F1", "Weighted_F1"),
    "labels": (
        "Macro_F1",
        "Micro_F1",
        "Weighted_F1",
        "Weighted_acc",
        "Subset_acc",
        "Hamming",
    ),
    "alignment": ("Hits@1", "Hits@10", "Hits@50", "MR", "MRR"),
}


def shown_metrics(style: str) -> list[str]:
    """Names of the metrics of a style, in the order of its tables.

    Raises:
        ValueError: no such style.
    """
    if style not in _STYLES:
        known = ", ".join(get_args(MetricStyle))
        raise ValueError(f"unknown metric style {style!r}; there are: {known}")
    return list(_STYLES[style])


def headline_metrics(names: Iterable[str]) -> list[str]:
    """Those of ``names`` to show where there is little room: at most three, the most important
    first.

    Only plain names count: a score with a prefix is a variant of one that is there without it.
    """
    available = set(names)
    headlines = [name for name, metric in METRICS.items() if metric.headline and name in available]
    return headlines[:3]


def metric_of(score: str) -> Metric:
    """The metric behind a score's name, whatever prefixes it has.

    Raises:
        KeyError: no metric has this name.
    """
    return METRICS[score.rsplit("/", 1)[-1]]


def score_text(score: str, value: float) -> str:
    """Name and value as they are printed: ``MAE 0.7132``."""
    return f"{score} {metric_of(score).text(value)}"
