"""Few lengths instead of many: what ``compile=true`` compiles anew for each length that it meets.

Padding changes no result (but for rounding), so batches are padded to the next of two lengths per
doubling, and never beyond the longest sequence of the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor
from torch.nn import functional

from core.batch import Utterances

SHORTEST = 8
LARGEST = 1 << 62  # where the data do not say how long their sequences may be


def with_bucket_lengths(batch: Utterances, longest: Mapping[str, int]) -> Utterances:
    """The batch, each modality padded to the length of its bucket.

    Args:
        longest: modality -> frames of the longest sequence in any split, where it is known.
    """
    frames, mask, present = {}, {}, {}
    for name, values in batch.frames.items():
        size = values.shape[1]
        wanted = min(bucket_length(size), longest.get(name, LARGEST))
        missing = max(0, wanted - size)
        frames[name] = _padded(values, missing)
        mask[name] = _padded(batch.mask[name], missing)
        present[name] = _padded(batch.present[name], missing)
    return replace(batch, frames=frames, mask=mask, present=present)


def bucket_length(size: int) -> int:
    """The least of 8, 12, 16, 24, 32, 48, ... that is not below ``size``."""
    length = SHORTEST
    while length < size:
        half_more = length + length // 2
        length = half_more if size <= half_more else 2 * length
    return length


def _padded(values: Tensor, missing: int) -> Tensor:
    """(B, T, ...) with ``missing`` more frames of zeros."""
    if missing == 0:
        return values
    behind = [0, 0] * (values.ndim - 2)
    return functional.pad(values, [*behind, 0, missing])
