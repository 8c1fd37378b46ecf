"""Labels: what a score costs by its label, and decimal labels as integers, so that equal distances
compare equal."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

TOLERANCE = 1e-3  # of one grid step
SMALLEST_SHARE = 1e-6  # of what a probability lacks to 1, in the focal loss


@dataclass(frozen=True)
class LabelLoss:
    """How a label that is no score is learnt: a class, or several labels of which each sample has
    some; scores are learnt by their error, whatever this says."""

    # a label's K numbers are 1 or 0, each for a label that the sample has or lacks
    multilabel: bool = False
    # exponent of the focal loss (Lin et al., ICCV 2017, arXiv:1708.02002); 0: cross-entropy
    focal: float = 0.0


CROSS_ENTROPY = LabelLoss()


def task_loss(
    score: Tensor,
    label: Tensor,
    squared: bool = False,
    *,
    weight: Tensor | None = None,
    how: LabelLoss = CROSS_ENTROPY,
) -> Tensor:
    """What every sentiment model is judged by, (B,) float32: absolute error of a score,
    cross-entropy of a class, the mean binary cross-entropy of several labels.

    Args:
        score: (B,) for regression, (B, K) for K targets or the logits of K labels, (B, classes)
            logits for classification.
        label: (B,), or (B, K), of which each sample's mean counts.
        squared: the squared error in the place of the absolute one.
        weight: (B,), or (B, K) of K labels, by which classes and labels count; None: all alike.
    """
    if how.multilabel:
        errors = _binary_error(score.float(), label, how.focal)
        return (errors if weight is None else errors * weight).mean(1)
    if label.ndim == 2:
        errors = score.float() - label
        return (errors**2 if squared else errors.abs()).mean(1)
    if score.ndim == 2:
        surprise = F.cross_entropy(score.float(), label.long(), reduction="none")
        error = focused(surprise, how.focal)
        return error if weight is None else error * weight
    error = score.float() - label
    return error**2 if squared else error.abs()


def focused(surprise: Tensor, focal: float) -> Tensor:
    """Minus the logarithms of probabilities p, each times (1 - p) to the power of ``focal``."""
    if not focal:
        return surprise
    # kept from 0, where a power below 1 has no finite gradient
    missing = (-torch.expm1(-surprise)).clamp(min=SMALLEST_SHARE)
    return missing**focal * surprise


def _binary_error(logits: Tensor, label: Tensor, focal: float) -> Tensor:
    """(B, K) of the K labels."""
    surprise = F.binary_cross_entropy_with_logits(logits, label.float(), reduction="none")
    return focused(surprise, focal)


def unimodal_loss(score: Tensor, human: Tensor) -> Tensor:
    """Absolute error of a modality's own score by its human label, (B,) float32; 0 where a sample
    has none.

    Args:
        score: (B,) of that modality's head.
        human: (B,) of ``Utterances.unimodal_labels``, nan where there is none.
    """
    known = human.isfinite()
    target = torch.where(known, human, 0.0)  # nan would reach the gradient even where it is masked
    return torch.where(known, (score.float() - target).abs(), 0.0)


def on_grid(labels: Tensor, resolution: float | None) -> Tensor:
    """Labels as whole multiples of ``resolution``, (B,) or (B, K) int64; unchanged where there is
    no resolution.

    Scores annotated in steps of 0.2 or 1/3 have many equal distances that differ in floating point:
    0.6 - 0.4 is not 0.4 - 0.2. In SupCR each of these changes a set of candidates, and the loss by
    about one part in a thousand. Labels that do not lie on the grid stay as they are, with a
    warning, and compare exactly.

    Raises:
        ValueError: for a label that is not finite.
    """
    if not labels.is_floating_point():
        return labels
    finite = labels.isfinite()
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0, 0])
        found = float(labels[~finite][0])
        raise ValueError(f"label of row {row} is {found}; give rows without a label weight 0")
    if resolution is None:
        return labels
    steps = labels.double() / resolution
    grid = steps.round()
    off = (steps - grid).abs() > TOLERANCE
    if bool(off.any()):
        row = int(off.nonzero()[0, 0])
        found = float(labels[off][0])
        warnings.warn(
            f"{int(off.sum())} of {labels.numel()} labels are no multiples of resolution "
            f"{resolution:g} (row {row} is {found:g}); comparing labels as floats instead",
            stacklevel=2,
        )
        return labels
    return grid.to(torch.int64)
