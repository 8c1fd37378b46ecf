"""``--windows SECONDS``: a long clip as one clip after the other, so that a score becomes a curve.

A window's id is that of its clip and its start in seconds: ``interview@40``. It has the words that
begin in it, where the times of words are known, and otherwise no transcript: that of the whole clip
would be another's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from core.command import Refused
from data_shards.extract.clip import ClipSource
from data_shards.extract.extractors.pieces import (
    LOUDNESS_STEP,
    blocks,
    energy_of,
    quietest_step,
)
from data_shards.extract.extractors.protocol import SOUND_RATE, Missing, Word
from data_shards.extract.media import LIMITS, Limits, Unreadable, clip_seconds, sound

LEAST = 1.0  # seconds; a shorter last window is joined to the one before
STEPS = SOUND_RATE // LOUDNESS_STEP  # in a second


@dataclass(frozen=True)
class Windows:
    """How clips are cut."""

    seconds: float  # the longest
    at_pauses: bool = False  # each ends where it is quietest in its second half

    def __post_init__(self) -> None:
        if not LEAST <= self.seconds < 100_000:
            raise Refused(f"--windows {self.seconds:g}: give {LEAST:g} second or more")


def windows_of(clip: ClipSource, windows: Windows, limits: Limits = LIMITS) -> list[ClipSource]:
    """The windows of a clip; the clip alone where it cannot be read, which is told later."""
    try:
        length = clip_seconds(clip.file, clip.start, clip.end, limits)
        cuts = _pauses(clip, length, windows, limits) if windows.at_pauses else []
    except Unreadable:
        return [clip]
    if not cuts:
        cuts = [float(cut) for cut in np.arange(windows.seconds, length, windows.seconds)]
    if cuts and length - cuts[-1] < LEAST:
        cuts.pop()
    edges = [0.0, *cuts, length]
    parts = []
    for first, after_last in zip(edges[:-1], edges[1:], strict=True):
        parts.append(_part(clip, first, after_last, after_last == length))
    return parts


def _part(clip: ClipSource, first: float, after_last: float, is_last: bool) -> ClipSource:
    words = []
    for word in clip.words:
        if first <= word.start and (word.start < after_last or is_last):
            words.append(Word(word.text, word.start - first, word.end - first))
    return replace(
        clip,
        id=f"{clip.id}@{round(first, 2):g}",
        start=clip.start + first,
        end=clip.end if is_last else clip.start + after_last,
        transcript=" ".join(word.text for word in words),
        words=tuple(words),
    )


def _pauses(clip: ClipSource, length: float, windows: Windows, limits: Limits) -> list[float]:
    """Seconds at which windows end, in hundredths; none where there is nothing to hear."""
    parts = []
    held = np.zeros(0, np.float32)
    try:
        for piece in blocks(sound(clip.file, clip.start, clip.end, limits), 10 * SOUND_RATE):
            held = np.concatenate([held, piece])
            parts.append(energy_of(held))
            held = held[len(parts[-1]) * LOUDNESS_STEP :]
    except Missing:
        return []
    energy = np.concatenate([np.zeros(0), *parts])
    cuts = []
    begin = 0
    longest = round(windows.seconds * STEPS)
    while len(energy) - begin > longest:
        first = begin + longest // 2
        begin = first + quietest_step(energy[first : begin + longest])
        cuts.append(begin / STEPS)
    return [cut for cut in cuts if cut < length]
