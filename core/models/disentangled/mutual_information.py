"""What MMIM's bounds on mutual information are made of: a density of one representation given
another, the entropy of labelled groups, and contrastive predictive coding."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.rows import at_least_float32

Density = Literal["bounded", "full", "released"]
Candidates = Literal["inputs", "predictions"]


class ConditionalDensity(nn.Module):
    """The normal density of y, (B, y_width), given x, (B, x_width), with a diagonal covariance.

    It is learnt by the likelihood of pairs that are constants to it, and it judges pairs whose
    gradient then leaves it alone; so two optimisers are not needed. Both happen inside of the layers'
    forward, where a sharded weight is whole.

    Args:
        density: "bounded" keeps the logarithm of a variance within (-1, 1) by tanh; "full" does not,
            so vectors that shrink to a point are worth ever more; "released" leaves out the
            determinant besides, so a variance without bound fits best.
    """

    def __init__(self, x_width: int, y_width: int, density: Density):
        super().__init__()
        self.density = density
        self.mean = _two_layers(x_width, y_width)
        self.log_variance = _two_layers(x_width, y_width)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) log density whose gradient reaches this module alone, and (B,) the same number,
        whose gradient reaches ``x`` and ``y`` alone."""
        both_x = torch.stack([x.detach(), x])
        both_y = torch.stack([y.detach(), y])
        log_densities = self._log_density(both_x, both_y)
        fit, bound = log_densities.unbind(0)
        return fit, bound

    def _log_density(self, x: Tensor, y: Tensor) -> Tensor:
        """(2, B) of (2, B, width), up to a constant."""
        mean = at_least_float32(self.mean(x))
        log_variance = at_least_float32(self.log_variance(x))
        if self.density == "bounded":
            log_variance = log_variance.tanh()
        squared = (mean - y).square() / (2 * log_variance.exp())
        if self.density != "released":
            squared = squared + log_variance / 2
        return -squared.sum(2)


class _LearntByFirst(nn.Linear):
    """A layer on (2, B, D): the first half trains it, for the second one it is constant."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.unbind(0)
        trained = F.linear(first, self.weight, self.bias)
        constant = F.linear(second, self.weight.detach(), self.bias.detach())
        return torch.stack([trained, constant])


def _two_layers(x_width: int, y_width: int) -> nn.Sequential:
    return nn.Sequential(
        _LearntByFirst(x_width, y_width), nn.ReLU(), _LearntByFirst(y_width, y_width)
    )


class FixedCode(nn.Module):
    """tanh of a random linear map that nothing trains, (B, width) to (B, width / 4): what entropies
    are taken of. It is saved with the model."""

    def __init__(self, width: int):
        super().__init__()
        self.width = max(width // 4, 1)
        layer = nn.Linear(width, self.width)
        nn.init.xavier_normal_(layer.weight)
        self.register_buffer("weight", layer.weight.detach().clone())
        self.register_buffer("bias", layer.bias.detach().clone())

    def forward(self, y: Tensor) -> Tensor:
        return F.linear(y, self.get_buffer("weight"), self.get_buffer("bias")).tanh()


def group_entropy(rows: Tensor, group: Tensor, num_groups: int, ridge: float) -> Tensor:
    """The mean over groups of half the logarithm of the determinant of their covariance: a normal
    distribution's entropy but for a constant; float64.

    Args:
        rows: (n, D).
        group: (n,) int64, from 0; -1 for rows that are in none. Groups of fewer than two rows are
            left out, and without any other the entropy is zero.
        ridge: added to the diagonal, since few rows have a covariance of determinant 0.
    """
    entropies = []
    for number in range(num_groups):
        members = rows[group == number].double()
        if len(members) < 2:
            continue
        centred = members - members.mean(0)
        covariance = centred.T @ centred / len(members)
        covariance = covariance + ridge * torch.eye(len(covariance)).to(covariance)
        entropies.append(torch.linalg.slogdet(covariance).logabsdet / 2)
    if not entropies:
        return rows.double().sum() * 0
    return torch.stack(entropies).mean()


def predictive_coding(inputs: Tensor, predictions: Tensor, candidates: Candidates) -> Tensor:
    """CPC (van den Oord et al., 2018, arXiv:1807.03748): how badly a prediction finds its own
    input among those of all samples; a scalar, zero without rows.

    Args:
        inputs: (n, D) rows of length one.
        predictions: (n, D) rows of length one, of the same samples.
        candidates: "inputs": each prediction chooses an input; "predictions": the other way.
    """
    if not len(inputs):
        return (inputs.sum() + predictions.sum()) * 0
    similarity = predictions @ inputs.T  # (predictions, inputs)
    over = 1 if candidates == "inputs" else 0
    return -similarity.log_softmax(over).diagonal().mean()
