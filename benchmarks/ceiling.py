"""What the generated data still tell when half of the words or frames are missing: ``python
benchmarks/ceiling.py``.

A linear regression reads what the generator itself put in: the value of the words that are left, by
its lexicon, and the mean of the frames that are left along its patterns. Prints the Corr on the
demo's test clips, mean ± standard deviation over five draws of what is missing. No model that must
learn lexicon and patterns from the same clips can be expected to do better.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from data_shards.synthetic import ADJECTIVES, AUDIO, DEGREES, VISION, make  # noqa: E402

PATTERNS = 7  # the seed of the generator's patterns, whatever the seed of the clips
KNOWN_DEGREES = [value for degree, value in DEGREES.items() if degree]


def said(words: list[str], left: np.ndarray) -> float:
    """What the words that are left say: the mean over clauses, "the TOPIC was [DEGREE]
    ADJECTIVE"."""
    starts = [place for place, word in enumerate(words) if word == "the"]
    values = []
    for start, following in zip(starts, [*starts[1:], len(words) + 1], strict=True):
        *degree, adjective = range(
            start + 3, following - 1
        )  # an "and" stands before the next clause
        factor = 1.0
        if degree:
            factor = DEGREES[words[degree[0]]] if left[degree[0]] else float(np.mean(KNOWN_DEGREES))
        values.append(factor * ADJECTIVES[words[adjective]] if left[adjective] else 0.0)
    return float(np.mean(values))


def told(part: dict[str, Any], words: float, frames: float, rng: np.random.Generator) -> np.ndarray:
    """(N, 4) what words, voice and face say, and 1; ``words`` and ``frames`` are the rates of what
    is missing."""
    shared = np.random.default_rng(PATTERNS)
    patterns = [shared.normal(size=width) / np.sqrt(width) for _, width in (AUDIO, VISION)]
    rows = []
    for i, text in enumerate(part["raw_text"]):
        row = [said(text.split(), rng.random(len(text.split())) >= words)]
        for name, pattern in zip(("audio", "vision"), patterns, strict=True):
            length = part[f"{name}_lengths"][i]
            left = np.nan_to_num(part[name][i][:length], neginf=0)[rng.random(length) >= frames]
            row.append(float((left @ pattern).mean()) if len(left) else 0.0)
        rows.append([*row, 1.0])
    return np.array(rows)


def main() -> None:
    content = make()
    for words, frames in ((0.0, 0.0), (0.0, 0.5), (0.5, 0.0), (0.5, 0.5)):
        found = []
        for seed in range(5):
            rng = np.random.default_rng(seed)
            train, test = (told(content[split], words, frames, rng) for split in ("train", "test"))
            weights = np.linalg.lstsq(train, content["train"]["regression_labels"])[0]
            found.append(np.corrcoef(test @ weights, content["test"]["regression_labels"])[0, 1])
        print(
            f"words missing {words:.0%}, frames {frames:.0%}: Corr {np.mean(found):.3f} ± {np.std(found):.3f}"
        )


if __name__ == "__main__":
    main()
