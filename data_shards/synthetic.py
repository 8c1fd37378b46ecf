"""A small made-up data set in the MMSA layout: ``python -m data_shards.synthetic OUT.pkl``. It measures nothing real.

Each clip has a mood that its words, its voice and its face show only in part, each with something of its own. The
label is a mix of the three, so no modality alone can tell it, and all three together nearly can. Sentences come from
templates with sentiment words, negation and intensifiers; voice and face are sequences of varying length, in which
the signal fills a part of the frames and the rest is noise.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from core.arguments import command_parser, parse
from core.command import run
from data_shards.shards.manifest import DataError
from data_shards.sources.pickles import save_pickle

SAMPLES = 1200
SHARES = {"train": 0.6, "valid": 0.1, "test": 0.3}
AUDIO = (60, 5)  # longest sequence, features: MOSI's widths, shorter
VISION = (80, 20)
WEIGHTS = np.array([1.0, 0.8, 0.8])  # of words, voice and face in the label
AGREEMENT = 0.25  # correlation between any two of them

ADJECTIVES = {
    "terrible": -3, "awful": -3, "horrible": -3, "bad": -2, "boring": -2, "weak": -2, "dull": -1, "slow": -1,
    "strange": -1, "long": 0, "new": 0, "usual": 0, "fine": 1, "nice": 1, "decent": 1, "good": 2, "strong": 2,
    "funny": 2, "great": 3, "wonderful": 3, "brilliant": 3,
}  # fmt: skip
DEGREES = {
    "": 1.0,
    "slightly": 0.5,
    "really": 1.4,
    "not": -0.6,
}  # what a word before an adjective does to it
TOPICS = [
    "story",
    "acting",
    "music",
    "ending",
    "film",
    "dialogue",
    "cast",
    "script",
    "picture",
    "plot",
]
OPENERS = ["i think", "well", "to me", "honestly", "you know", "i guess", "for me", "so"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CLASSES = ["Negative", "Neutral", "Positive"]


def vocabulary() -> list[str]:
    words = {"the", "was", "and", *ADJECTIVES, *DEGREES, *TOPICS, *" ".join(OPENERS).split()} - {""}
    return SPECIAL + sorted(words)


def _sentence(rng: np.random.Generator) -> tuple[str, float]:
    """A sentence and what its words say, about -3 to 3."""
    clauses, values = [], []
    topics = rng.permutation(TOPICS)
    for clause in range(rng.integers(1, 3)):
        degree = str(rng.choice(list(DEGREES), p=[0.4, 0.15, 0.25, 0.2]))
        adjective = str(rng.choice(list(ADJECTIVES)))
        clauses.append(
            " ".join(["the", str(topics[clause]), "was", *([degree] if degree else []), adjective])
        )
        values.append(DEGREES[degree] * ADJECTIVES[adjective])
    return f"{rng.choice(OPENERS)} {' and '.join(clauses)}", float(np.mean(values))


def _sequence(
    rng: np.random.Generator, value: float, shape: tuple[int, int], pattern: np.ndarray
) -> np.ndarray:
    """Noise (T, D) with ``value`` along ``pattern`` (D,) in a stretch that fills about six tenths of the frames."""
    length = int(rng.integers(shape[0] // 3, shape[0] + 1))
    frames = rng.normal(0.0, 1.0, (length, shape[1]))
    start = int(rng.integers(0, length - int(0.6 * length) + 1))
    frames[start : start + int(0.6 * length)] += 1.5 * value * pattern
    return frames.astype(np.float32)


def _clip(rng: np.random.Generator, patterns: list[np.ndarray]) -> dict[str, Any]:
    mood = rng.normal()
    words, voice, face = np.sqrt(AGREEMENT) * mood + np.sqrt(1 - AGREEMENT) * rng.normal(size=3)
    drafts = [_sentence(rng) for _ in range(12)]
    text, said = min(drafts, key=lambda draft: abs(draft[1] - 1.5 * words))
    total = WEIGHTS @ np.array([said / 1.5, voice, face]) + 0.1 * rng.normal()
    scale = 1.3 / np.sqrt((WEIGHTS.sum() ** 2) * AGREEMENT + (WEIGHTS**2).sum() * (1 - AGREEMENT))
    return {
        "raw_text": text,
        "label": float(np.clip(np.round(total * scale / 0.2) * 0.2, -3, 3)),
        "audio": _sequence(rng, voice, AUDIO, patterns[0]),
        "vision": _sequence(rng, face, VISION, patterns[1]),
    }


def make(samples: int = SAMPLES, seed: int = 0) -> dict[str, Any]:
    """The contents of the file. Clips of a video stay in one split.

    Raises:
        DataError: fewer samples than every split needs for one.
    """
    if samples < 10:
        raise DataError(f"--samples {samples}: at least 10 are needed for three splits")
    shared = np.random.default_rng(7)  # what a voice or face looks like does not depend on the seed
    patterns = [shared.normal(size=width) / np.sqrt(width) for _, width in (AUDIO, VISION)]
    rng = np.random.default_rng([seed, 1])
    content: dict[str, Any] = {"synthetic": True, "vocabulary": vocabulary()}
    edges = np.round(np.cumsum([0.0, *SHARES.values()]) * samples).astype(int)
    video = 0
    for split, count in zip(SHARES, np.diff(edges), strict=True):
        clips: list[dict[str, Any]] = []
        ids: list[str] = []
        while len(clips) < count:
            for clip in range(min(int(rng.integers(6, 15)), count - len(clips))):
                ids.append(f"synthetic{video:04d}$_${clip}")
                clips.append(_clip(rng, patterns))
            video += 1
        content[split] = _part(clips, ids)
    audio = content["train"]["audio"]
    audio[:: max(1, len(audio) // 3), 0, -1] = -np.inf  # as in the files that this one imitates
    return content


def _part(clips: list[dict[str, Any]], ids: list[str]) -> dict[str, Any]:
    labels = np.array([clip["label"] for clip in clips], np.float32)
    classes = (np.sign(labels) + 1).astype(np.int64)
    return {
        "raw_text": [clip["raw_text"] for clip in clips],
        "id": ids,
        "text_bert": _token_ids([clip["raw_text"] for clip in clips]),
        "audio": _padded([clip["audio"] for clip in clips], AUDIO),
        "vision": _padded([clip["vision"] for clip in clips], VISION),
        "audio_lengths": [len(clip["audio"]) for clip in clips],
        "vision_lengths": [len(clip["vision"]) for clip in clips],
        "annotations": [CLASSES[number] for number in classes],
        "classification_labels": classes,
        "regression_labels": labels,
    }


def _token_ids(texts: list[str]) -> np.ndarray:
    """(N, 3, L): ids, mask, types, padded on the right."""
    number = {word: place for place, word in enumerate(vocabulary())}
    rows = [
        [number["[CLS]"], *(number[word] for word in text.split()), number["[SEP]"]]
        for text in texts
    ]
    packed = np.zeros(
        (len(rows), 3, 20), np.float32
    )  # float, as in the files that this one imitates
    for i, row in enumerate(rows):
        packed[i, 0, : len(row)] = row
        packed[i, 1, : len(row)] = 1
    return packed


def _padded(sequences: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    packed = np.zeros((len(sequences), *shape), np.float32)
    for i, frames in enumerate(sequences):
        packed[i, : len(frames)] = frames
    return packed


def write(path: Path, samples: int = SAMPLES, seed: int = 0) -> None:
    content = make(samples, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_pickle(content, path)


def _main(given: argparse.Namespace) -> None:
    write(given.out, given.samples, given.seed)
    folder = given.out.with_suffix("")
    print(
        f"SYNTHETIC data: {given.samples} made-up clips are in {given.out}; "
        f"convert them with: python -m data_shards.convert {given.out} --out {folder}"
    )


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("synthetic", __doc__)
    parser.add_argument("out", type=Path, metavar="OUT.pkl")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--seed", type=int, default=0)
    given = parse(parser, argv)
    return run(lambda: _main(given))


if __name__ == "__main__":
    sys.exit(main())
