"""``--windows SECONDS``: a long clip as one clip after the other, so that a score becomes a curve.

A window's id is that of its clip and its start in seconds: ``interview@40``. It has the words that
begin in it, where the times of words are known, and otherwise no transcript: that of the whole clip
would be another's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

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

# Where windows end: after their seconds; where it is quietest; where nobody speaks.
Pauses = bool | Literal["speech"]


@dataclass(frozen=True)
class Windows:
    """How clips are cut."""

    seconds: float  # the longest
    at_pauses: Pauses = False  # each ends in a pause in its second half

    def __post_init__(self) -> None:
        if not LEAST <= self.seconds < 100_000:
            raise Refused(f"--windows {self.seconds:g}: give {LEAST:g} second or more")


def windows_asked_for(seconds: float | None, pauses: bool, speech_pauses: bool) -> Windows | None:
    """What the options --windows, --pauses and --speech-pauses say; None for no windows.

    Raises:
        Refused: one of them has no effect.
    """
    if pauses and speech_pauses:
        raise Refused("--pauses and --speech-pauses are two ways of one thing; leave one out")
    if seconds is None:
        for option, is_given in (("--pauses", pauses), ("--speech-pauses", speech_pauses)):
            if is_given:
                raise Refused(f"{option} has no effect without --windows SECONDS; leave it out")
        return None
    if not speech_pauses:
        return Windows(seconds, pauses)
    from data_shards.extract.speech_pauses import open_detector  # which needs torch

    open_detector()  # refused now rather than at the first clip
    return Windows(seconds, "speech")


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
    """Seconds at which windows end; none where there is nothing to hear."""
    heard = sound(clip.file, clip.start, clip.end, limits)
    try:
        if windows.at_pauses == "speech":
            from data_shards.extract.speech_pauses import STEP, speech_in  # which needs torch

            level, samples = speech_in(heard), STEP
        else:
            level, samples = _loudness(heard), LOUDNESS_STEP
    except Missing:
        return []
    cuts = []
    begin = 0
    per_second = SOUND_RATE / samples
    longest = round(windows.seconds * per_second)
    while len(level) - begin > longest:
        first = begin + longest // 2
        begin = first + quietest_step(level[first : begin + longest])
        cuts.append(begin / per_second)
    return [cut for cut in cuts if cut < length]


def _loudness(heard: Iterator[np.ndarray]) -> np.ndarray:
    """The energy (S,) of every ``LOUDNESS_STEP`` samples of sound that comes in pieces."""
    parts = []
    held = np.zeros(0, np.float32)
    for piece in blocks(heard, 10 * SOUND_RATE):
        held = np.concatenate([held, piece])
        parts.append(energy_of(held))
        held = held[len(parts[-1]) * LOUDNESS_STEP :]
    return np.concatenate([np.zeros(0), *parts])
