"""The fused SupCR operator: loss and gradient together, by the fastest exact way for these rows and
labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from core.kernels.supcr import dispatch
from core.kernels.supcr.grouping import (
    largest_exponent,
    loss_type,
    sum_of_products,
    tabulate_labels,
    working_type,
)


def fused_supcr(
    features: Tensor,
    labels: Tensor,
    temperature: float | Tensor,
    *,
    path: str = "auto",
    keep_exponentials: bool = False,
    fast: bool = False,
) -> Tensor:
    """SupCR of (n, D) rows, taken as they are, and (n,) labels; the same as its definition, in O(n
    (D + U)) memory.

    The gradient is computed together with the loss where one is wanted. Second derivatives are
    refused.

    Args:
        temperature: a number, or a tensor of one element that gets a gradient too.
        path: "buckets" (few distinct labels), "scan" (many), "torch" (plain), "triton"; "auto"
            chooses. Labels so close that their distances round to the same number always go the
            plain way, and so do exponents that even float64 cannot hold; but "triton_scan" (many
            labels on a GPU) and "triton_whole" (few rows on a GPU) take both.
        keep_exponentials: hold n * n / 2 numbers between the loss and its gradient, for a quarter
            less work.
        fast: on a GPU, multiply in float16 (gradient to 1e-3) instead of in split float16 (to
            1e-6).

    Raises:
        RowError: for a row that is not finite, which it names.
        ValueError: for wrong shapes, labels or paths.
        Few rows on a GPU wait for nothing, so there such a row, or a label that is not finite,
        makes the loss and its gradient not a number; ``name_what_is_not_finite`` says which.
    """
    if path not in dispatch.PATHS:
        choices = ", ".join(dispatch.PATHS)
        raise ValueError(f"fused SupCR has no path {path!r}; choose from: {choices}")
    if isinstance(temperature, Tensor):
        # s = r r' / T: rows scaled by T ** -0.5 carry the temperature's gradient.
        features = features * temperature.to(features.dtype).rsqrt()
        temperature = 1.0
    wants_gradient = torch.is_grad_enabled() and features.requires_grad
    loss, _ = supcr_op(features, labels, temperature, wants_gradient, path, keep_exponentials, fast)
    return loss


@torch.library.custom_op("concord::supcr", mutates_args=())
def supcr_op(
    features: Tensor,
    labels: Tensor,
    temperature: float,
    wants_gradient: bool = True,
    path: str = "auto",
    keep_exponentials: bool = False,
    fast: bool = False,
) -> tuple[Tensor, Tensor]:
    """The loss, (), and its gradient by the features, (n, D), empty where none is wanted."""
    check_shapes(features, labels)
    n = len(features)
    num_pairs = n * (n - 1)
    if num_pairs > 0 and dispatch.takes_whole(path, features):
        return _whole(features, labels, temperature, wants_gradient, fast)
    gradient = features.new_zeros(features.shape if wants_gradient else (0,))
    if num_pairs == 0:
        return features.new_zeros((), dtype=loss_type(features)), gradient
    rows = features.detach()
    exponent = largest_exponent(rows, temperature)
    on_kernels = path.startswith("triton")
    dtype = torch.float32 if on_kernels else working_type(rows, exponent, n)
    rows = rows.to(dtype)
    table = tabulate_labels(labels)
    log_sum, scaled_gradient = dispatch.loss_and_gradient(
        dispatch.resolve_path(path, rows, exponent, table),
        rows,
        table,
        temperature,
        wants_gradient=wants_gradient,
        keep_exponentials=keep_exponentials,
        fast=fast,
    )
    if scaled_gradient is not None:
        gradient.copy_(scaled_gradient.mul_(1 / (temperature * n * (n - 1))))
    loss = (log_sum - sum_of_products(rows) / temperature) / num_pairs
    return loss.to(loss_type(features)), gradient


def _whole(
    features: Tensor, labels: Tensor, temperature: float, wants_gradient: bool, fast: bool
) -> tuple[Tensor, Tensor]:
    """What the operator gives for few rows on a GPU."""
    loss, gradient = dispatch.whole_loss_and_gradient(
        features.detach(), labels, temperature, wants_gradient=wants_gradient, fast=fast
    )
    loss = loss.to(loss_type(features))
    if gradient is None:
        return loss, features.new_empty((0,))
    return loss, gradient.to(features.dtype)


@supcr_op.register_fake
def _(
    features: Tensor,
    labels: Tensor,
    temperature: float,
    wants_gradient: bool = True,
    path: str = "auto",
    keep_exponentials: bool = False,
    fast: bool = False,
) -> tuple[Tensor, Tensor]:
    loss = features.new_empty((), dtype=loss_type(features))
    return loss, features.new_empty(features.shape if wants_gradient else (0,))


def _save_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, of_loss: Tensor | None, of_gradient: Tensor | None) -> tuple[Any, ...]:
    if of_gradient is not None:
        raise RuntimeError(
            "fused SupCR has no second derivative; use its definition, core.losses.supcr.supcr, to differentiate twice"
        )
    (gradient,) = ctx.saved_tensors
    of_features = None if of_loss is None else gradient * of_loss.to(gradient.dtype)
    return of_features, None, None, None, None, None, None


supcr_op.register_autograd(_backward, setup_context=_save_gradient)
for _device in ("cpu", "cuda"):
    supcr_op.register_autocast(_device, torch.float32)


def name_what_is_not_finite(features: Tensor, labels: Tensor, temperature: float) -> None:
    """For a loss that is not finite: looks for the row or label that made it so.

    Raises:
        RowError: for a row of features that is not finite, which it names.
        ValueError: for a label that is not finite, naming its row.
    """
    largest_exponent(features.detach(), temperature)
    tabulate_labels(labels)


def check_shapes(features: Tensor, labels: Tensor) -> None:
    """Raises ValueError unless there are (n, D) features and (n,) labels."""
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"fused SupCR needs (n, D) features and (n,) labels, "
            f"got {tuple(features.shape)} and {tuple(labels.shape)}"
        )
