"""Sound that comes in pieces of any length, as pieces of a wanted length; so that a model sees a
clip of any length in the same memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_shards.extract.extractors.protocol import SOUND_RATE

LOUDNESS_STEP = SOUND_RATE // 100  # samples whose loudness is looked at together


def fixed_pieces(
    sound: Iterator[np.ndarray], core: int, context: int = 0
) -> Iterator[tuple[np.ndarray, int, bool]]:
    """Pieces of ``core`` samples, the last one shorter, with up to ``context`` more on both sides.

    Yields:
        Samples (n,) float32; how many of them stand before the core; and whether it is the last.
    """
    held = np.zeros(0, np.float32)
    before = 0  # samples of held that belong to the piece before
    ended = False
    while not ended:
        wanted = before + core + context + 1  # one more tells that there is a next piece
        parts = [held]
        size = len(held)
        while size < wanted and not ended:
            piece = next(sound, None)
            ended = piece is None
            if piece is not None:
                parts.append(piece)
                size += len(piece)
        held = np.concatenate(parts)
        while len(held) > before + core and (ended or len(held) >= wanted):
            yield held[: before + core + context], before, False
            cut = before + core - min(context, before + core)
            held = held[cut:]
            before = min(context, before + core)
            wanted = before + core + context + 1
    if len(held) > before:
        yield held, before, True


def cut_at_pauses(
    sound: Iterator[np.ndarray], longest: int, shortest: int
) -> Iterator[np.ndarray]:
    """Pieces of ``shortest`` to ``longest`` samples, each cut where it is quietest between; the
    last one may be shorter."""
    held = np.zeros(0, np.float32)
    for piece in sound:
        held = np.concatenate([held, piece])
        while len(held) > longest:
            cut = quietest(held, shortest, longest)
            yield held[:cut]
            held = held[cut:]
    if len(held):
        yield held


def quietest(samples: np.ndarray, first: int, after_last: int) -> int:
    """The middle of the quietest hundredth of a second from ``first`` to ``after_last``, the
    earliest one of several."""
    steps = (after_last - first) // LOUDNESS_STEP
    looked_at = samples[first : first + steps * LOUDNESS_STEP].astype(np.float64)
    energy = np.square(looked_at).reshape(steps, LOUDNESS_STEP).sum(axis=1)
    # a pause is longer than one step: neighbours count as well
    smooth = np.convolve(energy, np.ones(min(steps, 11)), mode="same")
    return int(first + (np.argmin(smooth) + 0.5) * LOUDNESS_STEP)
