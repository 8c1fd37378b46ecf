"""Labels: what a score costs by its label, and decimal labels as integers, so that equal distances
compare equal."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

TOLERANCE = 1e-3  # of one grid step


def task_loss(score: Tensor, label: Tensor, squared: bool = False) -> Tensor:
    """What every sentiment model is judged by, (B,) float32: absolute error of a score,
    cross-entropy of a class.

    Args:
        score: (B,) for regression, (B, K) for K targets, (B, classes) logits for classification.
        label: (B,), or (B, K), of which each sample's mean counts.
        squared: the squared error in the place of the absolute one.
    """
    if label.ndim == 2:
        errors = score.float() - label
        return (errors**2 if squared else errors.abs()).mean(1)
    if score.ndim == 2:
        return F.cross_entropy(score.float(), label.long(), reduction="none")
    error = score.float() - label
    return error**2 if squared else error.abs()


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
    """Labels as whole multiples of ``resolution``, (B,) int64; unchanged where there is no
    resolution.

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
        row = int((~finite).nonzero()[0])
        raise ValueError(
            f"label of row {row} is {float(labels[row])}; give rows without a label weight 0"
        )
    if resolution is None:
        return labels
    steps = labels.double() / resolution  # (B,)
    grid = steps.round()
    off = (steps - grid).abs() > TOLERANCE
    if bool(off.any()):
        row = int(off.nonzero()[0])
        warnings.warn(
            f"{int(off.sum())} of {len(labels)} labels are no multiples of resolution {resolution:g} "
            f"(row {row} is {float(labels[row]):g}); comparing labels as floats instead",
            stacklevel=2,
        )
        return labels
    return grid.to(torch.int64)
