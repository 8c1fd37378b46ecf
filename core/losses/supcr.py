"""SupCR: supervised contrastive regression, which orders embeddings as their labels are ordered.

Zha et al., "Rank-N-Contrast" (NeurIPS 2023, arXiv:2210.01189), with cosine similarity as in HSCL
(MMM 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from core import distributed
from core.kernels.supcr.op import fused_supcr
from core.losses.gather_rows import (
    check_rows,
    drop_padding_rows,
    gather_for_global_loss,
    select_rows,
    sizes_of_sets_if_finite,
)
from core.losses.in_batch import is_itself
from core.losses.labels import on_grid
from core.losses.supcr_ranks import supcr_across_ranks
from core.losses.supcr_sets import supcr_of_sets
from core.losses.temperature import check_temperature
from core.rows import at_least_float32, unit_rows

Denominator = Literal["ik", "jk"]


class SupCR(nn.Module):
    """SupCR over the rows of all ranks.

    Differs from the published code of HSCL in one thing: that code's denominator compares the
    candidates k with j instead of the anchor i, and lets k be j itself. ``denominator="jk"``
    restates it, for comparison only.

    Args:
        resolution: step of the labels' grid (0.2 for MOSI, 1/3 for MOSEI), so that ties are exact;
            see ``on_grid``.
        normalize: scale rows to length one. Rows of zeros stay zeros.
        fused: compute it in linear memory (``core.kernels``); otherwise by the definition.
        ring: let ranks pass rows on instead of gathering them all; for batches too large for one
            rank.
    """

    def __init__(
        self,
        temperature: float,
        *,
        resolution: float | None = None,
        denominator: Denominator = "ik",
        normalize: bool = True,
        fused: bool = True,
        ring: bool = False,
    ):
        super().__init__()
        check_temperature("SupCR", temperature)
        if resolution is not None and not resolution > 0:
            raise ValueError(f"SupCR needs a positive resolution or None, got {resolution}")
        if denominator not in ("ik", "jk"):
            raise ValueError(f"SupCR denominator must be 'ik' or 'jk', got {denominator!r}")
        self.temperature = temperature
        self.resolution = resolution
        self.denominator = denominator
        self.normalize = normalize
        self.fused = fused and denominator == "ik"
        self.ring = ring

    def forward(self, features: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        """This rank's (B, D) rows and (B,) labels to the scalar loss of all ranks' rows, the same
        on every rank.

        It is a loss of a set: two views are two stacks of rows with the labels repeated. Ranks may
            hold different
        numbers of rows, or none. Rows of weight 0 take no part. Fewer than two rows give zero.
        Gradients are right after averaging over ranks.

        Raises:
            RowError: for a row that takes part and is not finite; on every rank.
        """
        check_rows("SupCR", features, labels)
        (rows,), sizes = select_rows(weight, features, normalize=self.normalize)
        (labels,) = drop_padding_rows(weight, labels)
        labels = on_grid(distributed.gather_rows(labels, sizes), self.resolution)
        if not self.fused:
            rows = gather_for_global_loss(rows, sizes)
            return supcr(rows, labels, self.temperature, denominator=self.denominator)
        if distributed.world_size() > 1:
            return supcr_across_ranks(rows, labels, sizes, self.temperature, ring=self.ring)
        return fused_supcr(rows, labels, self.temperature)

    def of_sets(self, sets: Sequence[tuple[Tensor, Tensor, Tensor | None]]) -> tuple[Tensor, ...]:
        """The loss of each of several sets, as ``forward`` gives it, with one exchange between
        ranks for all.

        Args:
            sets: features, labels and weight of each.
        """
        is_alone = distributed.world_size() == 1
        if is_alone or not self.fused or self.ring:
            return tuple([self(*one) for one in sets])
        rows, labels, weights = [], [], []
        for features, label, weight in sets:
            check_rows("SupCR", features, label)
            rows.append(drop_padding_rows(weight, features)[0])
            labels.append(drop_padding_rows(weight, label)[0])
            weights.append(weight)
        sizes = sizes_of_sets_if_finite(weights, [[part] for part in rows])
        scale = unit_rows if self.normalize else at_least_float32
        scaled = [scale(part) for part in rows]
        return supcr_of_sets(scaled, labels, sizes, self.temperature, self.resolution)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, resolution={self.resolution}, denominator={self.denominator!r}"


def supcr(
    features: Tensor, labels: Tensor, temperature: float, *, denominator: Denominator = "ik"
) -> Tensor:
    """The definition of SupCR, in O(n^3) memory: everything faster is tested against it.

    For anchor i and every other j: minus the log of the share of exp(s_ij) in the sum of exp(s_ik)
    over all k (but i) whose label is at least as far from i's as j's is. Mean over i and j.

    Args:
        features: (n, D) rows, taken as they are; s is their dot product over the temperature.
        labels: (n,) numbers or (n, K) vectors, compared in float64 by the sum of absolute
            differences.
        denominator: "jk" for the formula of HSCL's published code, see ``SupCR``.
    """
    n = len(features)
    if n < 2:
        return features.sum() * 0.0
    similarity = features @ features.T / temperature  # (n, n)
    column = labels.reshape(n, -1).double()
    difference = column[:, None] - column[None]
    distance = difference.abs().sum(-1)  # (n, n)
    self_pair = is_itself(features)
    at_least_as_far = distance[:, None, :] >= distance[:, :, None]  # (n, n, n): i, j, k
    is_candidate = at_least_as_far & ~self_pair[:, None, :]
    compared = similarity[:, None, :] if denominator == "ik" else similarity[None]  # s_ik or s_jk
    candidates = compared.expand(n, n, n)
    candidates = candidates.masked_fill(~is_candidate, float("-inf"))
    log_denominator = candidates.logsumexp(-1)  # (n, n)
    return (log_denominator - similarity)[~self_pair].mean()
