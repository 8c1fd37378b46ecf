"""``--align words``: one frame for each word, the mean of the frames while it is spoken.

So that models which expect words, sound and pictures on one time axis can be trained on clips.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_shards.extract.extractors.protocol import Word


def mean_by_word(frames: np.ndarray, frame_rate: float, words: Sequence[Word]) -> np.ndarray:
    """Frames (T, D) as (W, D) float32, one for each word.

    Frame t stands for the time from t / rate to (t + 1) / rate; a word has those whose middle it
    spans. A word shorter than that has the frame at its middle, and one beyond the last frame has
    the last.
    """
    rows = []
    for word in words:
        first = int(np.ceil(word.start * frame_rate - 0.5))
        after_last = int(np.ceil(word.end * frame_rate - 0.5))
        if after_last <= first:
            first = int((word.start + word.end) / 2 * frame_rate)
            after_last = first + 1
        first = min(max(first, 0), len(frames) - 1)
        after_last = min(max(after_last, first + 1), len(frames))
        rows.append(frames[first:after_last].mean(axis=0, dtype=np.float64))
    return np.asarray(rows, dtype=np.float32)
