"""Sound that comes in pieces of any length, as pieces of a wanted length; so that a model sees a
clip of any length in the same memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_shards.extract.extractors.protocol import SOUND_RATE

LOUDNESS_STEP = SOUND_RATE // 100  # samples whose loudness is looked at together
PAUSE_STEPS = 11  # of them: what a pause has at least


def fixed_pieces(
    sound: Iterator[np.ndarray], core: int, context: int = 0
) -> Iterator[tuple[np.ndarray, int, bool]]:
    """Pieces of ``core`` samples, the last one shorter, with up to ``context`` more on both sides.

    Args:
        context: at most ``core``.

    Yields:
        Samples (n,) float32; how many of them stand before the core; and whether it is the last.
    """
    held = np.zeros(0, np.float32)
    before = 0  # samples of held that belong to the core before
    for block in blocks(sound, core // 4 + 1):
        held = np.concatenate([held, block])
        # one sample more than is handed over tells that another piece follows
        while len(held) > before + core + context:
            yield held[: before + core + context], before, False
            held = held[before + core - context :]
            before = context
    while len(held) > before + core:
        yield held[: before + core + context], before, False
        held = held[before + core - context :]
        before = context
    if len(held) > before:
        yield held, before, True


def blocks(sound: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same sound in pieces of ``size`` samples or more: decoders hand over very short ones."""
    waiting: list[np.ndarray] = []
    length = 0
    for piece in sound:
        waiting.append(piece)
        length += len(piece)
        if length >= size:
            yield np.concatenate(waiting)
            waiting, length = [], 0
    if waiting:
        yield np.concatenate(waiting)


def cut_at_pauses(sound: Iterator[np.ndarray], longest: int, shortest: int) -> Iterator[np.ndarray]:
    """Pieces of ``shortest`` to ``longest`` samples, each cut where it is quietest between; the
    last one may be shorter."""
    held = np.zeros(0, np.float32)
    for block in blocks(sound, shortest // 4 + 1):
        held = np.concatenate([held, block])
        while len(held) > longest:
            cut = quietest(held, shortest, longest)
            yield held[:cut]
            held = held[cut:]
    if len(held):
        yield held


def quietest(samples: np.ndarray, first: int, after_last: int) -> int:
    """The middle of the quietest hundredth of a second from ``first`` to ``after_last``, the
    earliest one of several."""
    energy = energy_of(samples[first:after_last])
    return first + round((quietest_step(energy) + 0.5) * LOUDNESS_STEP)


def energy_of(samples: np.ndarray) -> np.ndarray:
    """The energy (S,) of every hundredth of a second; what is left at the end is not looked at."""
    steps = len(samples) // LOUDNESS_STEP
    whole = samples[: steps * LOUDNESS_STEP].astype(np.float64).reshape(steps, LOUDNESS_STEP)
    return np.square(whole).sum(axis=1)


def quietest_step(energy: np.ndarray) -> int:
    """The number of the quietest step; its neighbours count as well, since pauses are longer."""
    around = min(len(energy), PAUSE_STEPS)
    sums = np.convolve(energy, np.ones(around), mode="valid")
    return int(np.argmin(sums)) + around // 2
