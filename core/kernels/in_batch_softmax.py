"""In-batch softmaxes in linear memory: logarithms of sums and divergences over strips of rows, recomputed backwards.

Row i is compared with every column but itself: p_ik = exp(<r_i, r_k> - lse_i). As products are symmetric, a row's whole
gradient, as anchor and as candidate of others, needs of each other row k only two numbers: the upstream gradient of its
result and its lse. Ranks therefore exchange those, and no gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STRIP_ELEMENTS = 2**22


@dataclass(frozen=True)
class Rows:
    """Anchors, and the columns they are compared with."""

    anchors: Tensor  # (m, D)
    own: Tensor  # (m,) int64, the column that each anchor is
    columns: Tensor  # (n, D)

    def strips(self) -> range:
        return range(0, len(self.anchors), self.height)

    @property
    def height(self) -> int:
        return max(1, STRIP_ELEMENTS // max(1, len(self.columns)))

    def products(self, begin: int) -> Tensor:
        """(h, n) products of a strip, -inf where an anchor meets itself."""
        strip = self.anchors[begin : begin + self.height] @ self.columns.T
        return strip.scatter_(1, self.own[begin : begin + self.height, None], float("-inf"))


def log_sums(rows: Rows) -> Tensor:
    """lse, (m,): log of the sum of exp(<r_i, r_k>) over all columns k but i; -inf where there is no other."""
    parts = [rows.products(begin).logsumexp(1) for begin in rows.strips()]
    return torch.cat(parts) if parts else rows.anchors.new_zeros(0)


def divergences(view: Rows, joint: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """KL(joint || view) of each anchor's softmax, (m,), and the ``log_sums`` of view and joint."""
    parts = [(view.anchors.new_zeros(0),) * 3]
    for begin in view.strips():
        of_view, of_joint = view.products(begin), joint.products(begin)  # (h, n)
        sum_view, sum_joint = of_view.logsumexp(1), of_joint.logsumexp(1)
        log_joint = of_joint.sub_(sum_joint[:, None])
        difference = of_view.sub_(sum_view[:, None]).neg_().add_(log_joint)
        difference.scatter_(1, view.own[begin : begin + view.height, None], 0.0)
        parts.append(((log_joint.exp_() * difference).sum(1), sum_view, sum_joint))
    kl, sums_view, sums_joint = (torch.cat(part) for part in zip(*parts, strict=True))
    return kl, sums_view, sums_joint


@dataclass(frozen=True)
class Upstream:
    """Of every column: the gradient of its result, and the ``log_sums`` that make its softmax."""

    gradient: Tensor  # (n,)
    of_view: Tensor  # (n,)
    of_joint: Tensor | None = None  # (n,)


def gradient(view: Rows, upstream: Upstream, joint: Rows | None = None) -> Tensor:
    """Gradient of the anchors, (m, D), of ``log_sums``, or of ``divergences`` (which move the view only).

    It is the sum over k of [g_i p_ik + g_k p_ki] r_k, with p - q in the place of p for divergences from q.
    """
    parts = [view.anchors.new_zeros(0, view.anchors.shape[1])]
    for begin in view.strips():
        here = view.own[begin : begin + view.height]
        weights = _both_ways(view.products(begin), here, upstream.gradient, upstream.of_view)
        if joint is not None and upstream.of_joint is not None:
            weights -= _both_ways(joint.products(begin), here, upstream.gradient, upstream.of_joint)
        parts.append(weights @ view.columns)
    return torch.cat(parts)


def _both_ways(products: Tensor, own: Tensor, gradient: Tensor, log_sum: Tensor) -> Tensor:
    """(h, n): g_i exp(s_ik - lse_i) + g_k exp(s_ik - lse_k)."""
    as_anchor = (products - log_sum[own, None]).exp_().mul_(gradient[own, None])
    as_candidate = products.sub_(log_sum).exp_().mul_(gradient)
    return as_anchor.add_(as_candidate).scatter_(1, own[:, None], 0.0)
