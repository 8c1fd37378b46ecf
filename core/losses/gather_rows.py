"""Rows of all ranks for the losses that look at a whole batch, with gradients that are right after
averaging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from core import distributed
from core.kernels.supcr.grouping import RowError
from core.rows import at_least_float32, unit_rows


def gather_for_global_loss(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Rows of all ranks, (sum of sizes, ...), for a loss that every rank then computes whole.

    Such a loss has the same gradient by the gathered rows on every rank. Keeping the local rows'
    part, times the number of ranks, makes the mean over ranks (DDP, DeepSpeed) the gradient of one
    process; a learnt temperature needs no factor, because it gets the whole gradient on every rank.
    """
    if distributed.world_size() == 1:
        return rows
    return _Gather.apply(rows, sizes)


class _Gather(torch.autograd.Function):
    """All ranks' rows; backward hands each rank the gradient of its local rows, times the number of
    ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.local = local_slice(sizes)
        return distributed.gather_rows(rows, sizes)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        gradient = upstream[0][ctx.local] * distributed.world_size()
        return forbid_double_backward(gradient, *ctx.saved_tensors, *upstream), None


def gather_by_name(
    rows: Mapping[str, Tensor], facts: Mapping[str, Tensor], weight: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rows of all ranks by name, for losses that every rank then computes whole, in one message.

    Args:
        rows: name -> (B, D), each with its own D; ranks may hold different numbers of samples.
        facts: name -> (B,), numbers or bools about the same samples, without gradient.
        weight: (B,) samples of weight 0 are left out.

    Returns:
        The rows, (n, D), and the facts, (n,) as the rows' type: a bool is 0 or 1.

    Raises:
        RowError: on every rank, if a row that takes part is not finite on any rank.
    """
    columns = torch.stack([fact[weight > 0] for fact in facts.values()], dim=1)
    kept, sizes = select_rows(weight, *rows.values(), normalize=False)
    widths = [part.shape[1] for part in kept]
    joined = torch.cat([*kept, columns.to(kept[0].dtype)], dim=1)
    parts = gather_for_global_loss(joined, sizes).split([*widths, len(facts)], dim=1)
    by_name = dict(zip(rows, parts, strict=False))
    return by_name, dict(zip(facts, parts[-1].detach().unbind(1), strict=True))


def local_slice(sizes: Sequence[int]) -> slice:
    """Where this rank's rows are among those of all ranks."""
    rank = distributed.rank()
    begin = sum(sizes[:rank])
    return slice(begin, begin + sizes[rank])


def forbid_double_backward(gradient: Tensor, *inputs: Tensor) -> Tensor:
    """What a backward returns that cannot be differentiated again by ``inputs``, those of forward
    and upstream."""
    return _DifferentiableOnce.apply(gradient.detach(), *inputs)


class _DifferentiableOnce(torch.autograd.Function):
    """A gradient as it is; its own derivative is refused.

    torch's ``once_differentiable`` would not do: where the upstream gradient is a constant, the
    gradient it gives counts as constant too, and a second derivative leaves it out without a word.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *inputs: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        raise RuntimeError(
            "contrastive losses have no second derivative in linear memory or over several ranks; "
            "use their definition in one process (fused=False) to differentiate twice"
        )


def select_rows(
    weight: Tensor | None, *sides: Tensor, normalize: bool = True
) -> tuple[list[Tensor], list[int]]:
    """The rows of each side that take part in a loss over all ranks, and how many of them each rank
    has.

    Args:
        weight: (B,), 0 for rows that take no part; None where all do.
        sides: (B, D) rows each, of the same samples.
        normalize: scale rows to length one; otherwise they are only brought to float32 at least.

    Raises:
        RowError: on every rank, if a row that takes part is not finite on any rank.
    """
    kept = drop_padding_rows(weight, *sides)
    sizes = sizes_if_finite(weight, *kept)
    scale = unit_rows if normalize else at_least_float32
    return [scale(side) for side in kept], sizes


def drop_padding_rows(weight: Tensor | None, *rows: Tensor) -> tuple[Tensor, ...]:
    """The rows whose weight is not zero; every other row only fills an otherwise empty batch."""
    if weight is None:
        return rows
    keep = weight > 0
    return tuple(part[keep] for part in rows)


def sizes_if_finite(weight: Tensor | None, *rows: Tensor) -> list[int]:
    """How many rows each rank has of those that take part, where ``rows`` are what
    ``drop_padding_rows`` left.

    A rank with a bad row must not leave the others waiting in their next collective. So all learn
    of it in the one that exchanges the sizes: a report is a number of rows, or a negative code of
    the first bad row.

    Raises:
        RowError: on every rank, if a row of any rank is not finite. Rows are counted with those of
            weight 0.
    """
    (sizes,) = sizes_of_sets_if_finite([weight], [rows])
    return sizes


def sizes_of_sets_if_finite(
    weights: Sequence[Tensor | None], sets: Sequence[Sequence[Tensor]]
) -> list[list[int]]:
    """``sizes_if_finite`` of several sets of rows, in one exchange."""
    reports = []
    for weight, rows in zip(weights, sets, strict=True):
        finite = [part.detach().isfinite().all(1) for part in rows]
        bad = ~torch.stack(finite).all(0)  # (B,)
        report = len(bad)
        if bool(bad.any()):
            first = int(bad.nonzero()[0])
            report = _encode_bad_row(_row_in_batch(weight, first))
        reports.append(report)
    of_ranks = distributed.gather_numbers(reports, sets[0][0].device)
    for rank, of_sets in enumerate(of_ranks):
        for report in of_sets:
            bad_row = _decode_bad_row(report)
            if bad_row is not None:
                of_rank = f"of rank {rank} " if len(of_ranks) > 1 else ""
                raise RowError(bad_row, f"{of_rank}are not finite")
    return [list(sizes) for sizes in zip(*of_ranks, strict=True)]


def _row_in_batch(weight: Tensor | None, kept_row: int) -> int:
    """The index in the whole batch of a row that is counted among those of positive weight."""
    if weight is None:
        return kept_row
    return int((weight > 0).nonzero()[kept_row])


def _encode_bad_row(row: int) -> int:
    """A report that no number of rows can be: -1 for row 0, -2 for row 1, ..."""
    return -1 - row


def _decode_bad_row(report: int) -> int | None:
    """The row that ``_encode_bad_row`` reports; None for a report of how many rows there are."""
    return -1 - report if report < 0 else None


def check_rows(name: str, features: Tensor, labels: Tensor | None = None) -> None:
    """Refuse anything but (B, D) rows, with one label each where labels are given.

    Raises:
        ValueError: naming the shape found.
    """
    if features.ndim != 2:
        raise ValueError(f"{name} needs features of shape (B, D), got {tuple(features.shape)}")
    if labels is not None and labels.shape != features.shape[:1]:
        raise ValueError(
            f"{name} needs one label per row, got labels {tuple(labels.shape)} for features {tuple(features.shape)}; "
            "flatten them with labels.reshape(-1)"
        )
