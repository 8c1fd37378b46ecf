"""In-batch softmaxes in linear memory: logarithms of sums and divergences over chunks of rows,
recomputed backwards; on a GPU tile by tile, by the kernels of ``core.kernels.in_batch``.

Row i is compared with every column but itself: p_ik = exp(<r_i, r_k> - lse_i). As products are
symmetric, a row's whole gradient, as anchor and as candidate of others, needs of each other row k
only two numbers: the upstream gradient of its result and its lse. Ranks therefore exchange those,
and no gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from core.kernels.supcr.dispatch import triton_available

CHUNK_ELEMENTS = 2**22  # of the (h, n) products of one chunk of h rows


@dataclass(frozen=True)
class Comparison:
    """Anchors, and the columns they are compared with."""

    anchors: Tensor  # (m, D)
    self_column: Tensor  # (m,) int64, the column that each anchor is
    columns: Tensor  # (n, D)

    def chunks(self) -> Iterator[slice]:
        """The anchors by as many at a time as memory is meant for."""
        height = max(1, CHUNK_ELEMENTS // max(1, len(self.columns)))
        for begin in range(0, len(self.anchors), height):
            yield slice(begin, begin + height)

    def products(self, chunk: slice) -> Tensor:
        """(h, n) products of a chunk, -inf where an anchor meets itself."""
        products = self.anchors[chunk] @ self.columns.T
        return products.scatter_(1, self.self_column[chunk, None], float("-inf"))


def log_sums(rows: Comparison) -> Tensor:
    """lse, (m,): log of the sum of exp(<r_i, r_k>) over all columns k but i; -inf where there is no
    other."""
    if runs_kernel(rows.columns):
        # Imported only here and below: Triton is there on machines with a GPU only.
        from core.kernels.in_batch import softmax_launch

        return softmax_launch.softmax_sums(rows.columns, rows.self_column)[0]
    result = rows.anchors.new_empty(len(rows.anchors))
    for chunk in rows.chunks():
        result[chunk] = rows.products(chunk).logsumexp(1)
    return result


def divergences(view: Comparison, joint: Comparison) -> tuple[Tensor, Tensor, Tensor]:
    """KL(joint || view) of each anchor's softmax, (m,), and the ``log_sums`` of view and joint."""
    if runs_kernel(view.columns):
        from core.kernels.in_batch import softmax_launch

        sums, of_joint_sums, found = softmax_launch.softmax_sums(
            view.columns, view.self_column, joint.columns
        )
        return found, sums, of_joint_sums
    divergence = view.anchors.new_empty(len(view.anchors))
    view_sums = torch.empty_like(divergence)
    joint_sums = torch.empty_like(divergence)
    for chunk in view.chunks():
        of_view = view.products(chunk)  # (h, n)
        of_joint = joint.products(chunk)  # (h, n)
        view_sums[chunk] = of_view.logsumexp(1)
        joint_sums[chunk] = of_joint.logsumexp(1)
        log_joint = of_joint.sub_(joint_sums[chunk, None])
        log_view = of_view.sub_(view_sums[chunk, None])
        log_ratio = log_view.neg_().add_(log_joint)
        log_ratio.scatter_(1, view.self_column[chunk, None], 0.0)  # -inf less -inf
        divergence[chunk] = (log_joint.exp_() * log_ratio).sum(1)
    return divergence, view_sums, joint_sums


def runs_kernel(columns: Tensor) -> bool:
    """Whether the GPU kernels compute this: they take float32."""
    return columns.is_cuda and columns.dtype == torch.float32 and triton_available()


@dataclass(frozen=True)
class Upstream:
    """Of every column: the gradient of its result, and the ``log_sums`` that make its softmax."""

    gradient: Tensor  # (n,)
    log_sums: Tensor  # (n,)
    joint_log_sums: Tensor | None = None  # (n,)


def gradient(view: Comparison, upstream: Upstream, joint: Comparison | None = None) -> Tensor:
    """Gradient of the anchors, (m, D), of ``log_sums``, or of ``divergences`` (which move the view
    only).

    It is the sum over k of [g_i p_ik + g_k p_ki] r_k, with p - q in the place of p for divergences
    from q.
    """
    if runs_kernel(view.columns):
        from core.kernels.in_batch import softmax_launch

        return softmax_launch.softmax_gradient(
            view.columns,
            view.self_column,
            upstream.gradient,
            upstream.log_sums,
            None if joint is None else joint.columns,
            upstream.joint_log_sums,
        )
    result = torch.empty_like(view.anchors)
    for chunk in view.chunks():
        itself = view.self_column[chunk]
        weights = _pair_weights(view.products(chunk), itself, upstream.gradient, upstream.log_sums)
        if joint is not None and upstream.joint_log_sums is not None:
            weights -= _pair_weights(
                joint.products(chunk), itself, upstream.gradient, upstream.joint_log_sums
            )
        result[chunk] = weights @ view.columns
    return result


def _pair_weights(
    products: Tensor, self_column: Tensor, gradient: Tensor, log_sums: Tensor
) -> Tensor:
    """(h, n): g_i exp(s_ik - lse_i) + g_k exp(s_ik - lse_k), 0 where an anchor meets itself."""
    anchor_sums = log_sums[self_column, None]
    as_anchor = (products - anchor_sums).exp_().mul_(gradient[self_column, None])
    as_candidate = products.sub_(log_sums).exp_().mul_(gradient)
    return as_anchor.add_(as_candidate).scatter_(1, self_column[:, None], 0.0)
