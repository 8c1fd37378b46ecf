"""What every sentiment model is judged by: the absolute error of a score, or the cross-entropy of a class."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def task_loss(score: Tensor, label: Tensor, squared: bool = False) -> Tensor:
    """(B,) float32 loss of each sample; ``score`` is (B,) for regression, (B, classes) logits for classification."""
    if score.ndim == 2:
        return F.cross_entropy(score.float(), label.long(), reduction="none")
    error = score.float() - label
    return error**2 if squared else error.abs()
