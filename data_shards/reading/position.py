"""How far a stream has come in an epoch, and whether a saved position is one of this stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from data_shards.reading.sampler import Sampler
from data_shards.shards.manifest import DataError

# Parts of an identity that stand there only where they are not as they always were.
SOMETIMES = {"groups", "left_out"}


class Position(NamedTuple):
    """How far an epoch has been consumed."""

    epoch: int
    samples: int


def position_in(
    state: Mapping[str, Any], identity: Mapping[str, Any], sampler: Sampler
) -> Position:
    """The position that a saved state holds.

    Args:
        state: ``Position`` and an identity, as plain JSON. It may come from a file, and so hold
            anything.
        identity: what a position depends on; another value of any of these gives another order.

    Raises:
        DataError: the state belongs to another order of samples, or is none.
    """
    needed = {*Position._fields, *identity} - SOMETIMES
    if not needed <= state.keys() <= needed | SOMETIMES:
        raise DataError(
            f"this is no state of a stream: it has {sorted(state)}, not "
            f"{sorted((*Position._fields, *identity))}"
        )
    changed = []
    for name in sorted((state.keys() | identity.keys()) - {*Position._fields}):
        saved, wanted = state.get(name), identity.get(name)
        if saved != wanted:
            changed.append(f"{name} was {saved!r} and is {wanted!r}")
    if changed:
        raise DataError(
            f"the saved position is one in another order of samples: {'; '.join(changed)}; "
            f"use the same data and settings, or start the epoch anew without the state"
        )
    return _checked(Position(state["epoch"], state["samples"]), sampler)


def _checked(position: Position, sampler: Sampler) -> Position:
    """DataError unless this is the first sample of a step, or the end of an epoch."""
    epoch, samples = position
    total, size = sampler.total, sampler.global_batch
    are_integers = type(epoch) is int and type(samples) is int
    if not are_integers or epoch < 0 or not 0 <= samples <= total:
        raise DataError(f"no such position: epoch {epoch!r}, sample {samples!r} of {total}")
    if samples % size and samples != total:
        raise DataError(f"no such position: sample {samples} is inside a global batch of {size}")
    return position
