"""The fused SupCR operator: loss and gradient together, by the fastest exact way for these rows and labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from core.kernels.supcr import cpu, dispatch, grouping, torch_chunks
from core.kernels.supcr.grouping import Anchors, Labels, by_label, distinct

PATHS = ("auto", "buckets", "scan", "torch", "triton")
KEEP_BELOW = 1024  # rows; their exponentials fit the cache, so they are always kept


def fused_supcr(
    features: Tensor,
    labels: Tensor,
    temperature: float | Tensor,
    *,
    path: str = "auto",
    keep_exponentials: bool = False,
    fast: bool = False,
) -> Tensor:
    """SupCR of (n, D) rows, taken as they are, and (n,) labels; the same as its definition, in O(n (D + U)) memory.

    The gradient is computed together with the loss where one is wanted. Second derivatives are refused.

    Args:
        temperature: a number, or a tensor of one element that gets a gradient too.
        path: "buckets" (few distinct labels), "scan" (many), "torch" (plain), "triton"; "auto" chooses. Labels so
            close that their distances round to the same number always go the plain way, and so do exponents that
            even float64 cannot hold.
        keep_exponentials: hold n * n / 2 numbers between the loss and its gradient, for a quarter less work.
        fast: on a GPU, multiply in float16 (gradient to 1e-3) instead of in split float16 (to 1e-6).

    Raises:
        RowError: for a row that is not finite, which it names.
        ValueError: for wrong shapes, labels or paths.
    """
    if path not in PATHS:
        raise ValueError(f"fused SupCR has no path {path!r}; choose from: {', '.join(PATHS)}")
    if isinstance(
        temperature, Tensor
    ):  # s = r r' / T: scaled rows carry the temperature's gradient
        features, temperature = features * temperature.to(features.dtype).rsqrt(), 1.0
    gradient = torch.is_grad_enabled() and features.requires_grad
    return supcr_op(features, labels, temperature, gradient, path, keep_exponentials, fast)[0]


@torch.library.custom_op("concord::supcr", mutates_args=())
def supcr_op(
    features: Tensor,
    labels: Tensor,
    temperature: float,
    gradient: bool = True,
    path: str = "auto",
    keep_exponentials: bool = False,
    fast: bool = False,
) -> tuple[Tensor, Tensor]:
    """The loss, (), and its gradient by the features, (n, D), empty where ``gradient`` is false."""
    check_shapes(features, labels)
    n = len(features)
    rows = features.detach()
    result = rows.new_zeros(rows.shape if gradient else (0,))
    if n < 2:
        return _loss_of(rows, 0.0), result
    exponent = grouping.largest_exponent(rows, temperature)
    rows = rows.float() if path == "triton" else rows.to(grouping.working_type(rows, exponent, n))
    table = distinct(labels)
    if not table.apart:
        path = "torch"  # the only one that expects equal distances on the same side
    elif path == "auto":
        path = dispatch.choose_path(rows, exponent, n, len(table))
    elif path in ("buckets", "scan") and not grouping.in_range(rows.dtype, exponent, n):
        path = "torch"
    if path == "triton":
        from core.kernels.supcr import triton_launch

        log_sum, total = triton_launch.loss_and_gradient(rows, table, temperature, gradient, fast)
    elif path == "torch":
        total = torch.zeros_like(rows) if gradient else None
        own = torch.arange(n, device=rows.device)
        log_sum = torch_chunks.strips(
            rows, own, rows, table.values[table.groups], temperature, total
        )
    else:
        log_sum, total = _on_cpu(rows, table, temperature, gradient, path, keep_exponentials)
    if total is not None:
        result.copy_(total.mul_(1 / (temperature * n * (n - 1))))
    pairs = n * (n - 1)
    return _loss_of(
        features, (log_sum - grouping.sum_of_products(rows) / temperature) / pairs
    ), result


def _loss_of(features: Tensor, value: Tensor | float) -> Tensor:
    return torch.as_tensor(value, device=features.device).to(grouping.loss_type(features))


@supcr_op.register_fake
def _(
    features: Tensor, labels: Tensor, temperature: float, gradient: bool = True, path: str = "auto",
    keep_exponentials: bool = False, fast: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return features.new_empty((), dtype=grouping.loss_type(features)), features.new_empty(
        features.shape if gradient else (0,)
    )


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, of_loss: Tensor | None, of_gradient: Tensor | None) -> tuple[Any, ...]:
    if of_gradient is not None:
        raise RuntimeError(
            "fused SupCR has no second derivative; use its definition, core.losses.supcr.supcr, to differentiate twice"
        )
    (gradient,) = ctx.saved_tensors
    return (None if of_loss is None else gradient * of_loss.to(gradient.dtype), *[None] * 6)


supcr_op.register_autograd(_backward, setup_context=_keep_gradient)
for _device in ("cpu", "cuda"):
    supcr_op.register_autocast(_device, torch.float32)


def _on_cpu(
    rows: Tensor, labels: Labels, temperature: float, gradient: bool, path: str, keep: bool
) -> tuple[Tensor, Tensor | None]:
    columns, order = by_label(rows, labels.groups, len(labels))
    anchors = Anchors(columns, torch.arange(len(rows)))
    total = torch.zeros_like(rows) if gradient else None
    if path == "scan":
        log_sum = cpu.scan(anchors, columns, labels, temperature, total)
    else:
        tiles = cpu.Tiles(anchors, columns, symmetric=True)
        sums = rows.new_zeros(len(labels), len(rows))
        kept: list[Tensor] | None = [] if gradient and (keep or len(rows) <= KEEP_BELOW) else None
        cpu.bucket_sums(tiles, sums, temperature, kept)
        log_sum = cpu.bucket_weights(sums, columns.starts, labels)
        if total is not None:
            cpu.bucket_gradient(tiles, sums, sums, temperature, total, kept)
    loss = rows.new_tensor(log_sum, dtype=torch.float64)
    if total is None:
        return loss, None
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return loss, total[back]


def check_shapes(features: Tensor, labels: Tensor) -> None:
    """Raises ValueError unless there are (n, D) features and (n,) labels."""
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"fused SupCR needs (n, D) features and (n,) labels, got {tuple(features.shape)} and {tuple(labels.shape)}"
        )
