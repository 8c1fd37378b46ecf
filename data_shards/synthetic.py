"""A small made-up data set in the MMSA layout: ``python -m data_shards.synthetic OUT.pkl``. It
measures nothing real.

Each clip has a mood that its words, its voice and its face show only in part, each with something
of its own. The label is a mix of the three, so no modality alone can tell it, and all three
together nearly can; what each says alone is a label of that modality. Sentences come from templates
with sentiment words, negation and intensifiers; voice and face are sequences of varying length, in
which the signal fills a part of the frames and the rest is noise.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.arguments import command_parser, parse
from core.command import run
from core.file_access.targets import check_file, check_new_folder
from core.files import write_atomically
from data_shards.shards.manifest import DataError
from data_shards.sources.pickles import save_pickle

SAMPLES = 1200
SHARES = {"train": 0.6, "valid": 0.1, "test": 0.3}
LONGEST_TEXT = 20  # tokens
AUDIO = (60, 5)  # longest sequence, features: MOSI's widths, shorter
VISION = (80, 20)
BYTES = 4 * (LONGEST_TEXT * 3 + AUDIO[0] * AUDIO[1] + VISION[0] * VISION[1])  # of a sample
WEIGHTS = np.array([1.0, 0.8, 0.8])  # of words, voice and face in the label
AGREEMENT = 0.25  # correlation between any two of them

ADJECTIVES = {
    "terrible": -3, "awful": -3, "horrible": -3, "bad": -2, "boring": -2, "weak": -2, "dull": -1, "slow": -1,
    "strange": -1, "long": 0, "new": 0, "usual": 0, "fine": 1, "nice": 1, "decent": 1, "good": 2, "strong": 2,
    "funny": 2, "great": 3, "wonderful": 3, "brilliant": 3,
}  # fmt: skip
# What a word before an adjective does to it.
DEGREES = {"": 1.0, "slightly": 0.5, "really": 1.4, "not": -0.6}
TOPICS = [
    "story", "acting", "music", "ending", "film", "dialogue", "cast", "script", "picture", "plot",
]  # fmt: skip
OPENERS = ["i think", "well", "to me", "honestly", "you know", "i guess", "for me", "so"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CLASSES = ["Negative", "Neutral", "Positive"]


def vocabulary() -> list[str]:
    """The words of all sentences by token id, special tokens first."""
    words = {"the", "was", "and", *ADJECTIVES, *DEGREES, *TOPICS}
    for opener in OPENERS:
        words.update(opener.split())
    return SPECIAL + sorted(words - {""})


def _sentence(rng: np.random.Generator) -> tuple[str, float]:
    """A sentence and what its words say, about -3 to 3."""
    clauses, values = [], []
    topics = rng.permutation(TOPICS)
    for clause in range(rng.integers(1, 3)):
        degree = str(rng.choice(list(DEGREES), p=[0.4, 0.15, 0.25, 0.2]))
        adjective = str(rng.choice(list(ADJECTIVES)))
        described = f"{degree} {adjective}".strip()
        clauses.append(f"the {topics[clause]} was {described}")
        values.append(DEGREES[degree] * ADJECTIVES[adjective])
    opener = rng.choice(OPENERS)
    return f"{opener} {' and '.join(clauses)}", float(np.mean(values))


def _sequence(
    rng: np.random.Generator, value: float, shape: tuple[int, int], pattern: np.ndarray
) -> np.ndarray:
    """Noise (T, D) with ``value`` along ``pattern`` (D,) in about six tenths of the frames."""
    longest, width = shape
    length = int(rng.integers(longest // 3, longest + 1))
    frames = rng.normal(0.0, 1.0, (length, width))
    stretch = int(0.6 * length)
    start = int(rng.integers(0, length - stretch + 1))
    frames[start : start + stretch] += 1.5 * value * pattern
    return frames.astype(np.float32)


class Utterance(NamedTuple):
    """What a made-up clip says, in words, by voice and by face."""

    text: str
    label: float
    words_label: float  # what each modality alone would be rated
    voice_label: float
    face_label: float
    voice: float
    face: float


def utterance(rng: np.random.Generator) -> Utterance:
    """One clip's words, its label, and what its voice and its face say, about -3 to 3 each."""
    mood = rng.normal()
    shared, apart = np.sqrt(AGREEMENT), np.sqrt(1 - AGREEMENT)
    words, voice, face = shared * mood + apart * rng.normal(size=3)
    # of twelve sentences, the one that says about what the words should say
    drafts = [_sentence(rng) for _ in range(12)]
    text, sentence_value = min(drafts, key=lambda draft: abs(draft[1] - 1.5 * words))
    total = WEIGHTS @ np.array([sentence_value / 1.5, voice, face]) + 0.1 * rng.normal()
    variance = (WEIGHTS.sum() ** 2) * AGREEMENT + (WEIGHTS**2).sum() * (1 - AGREEMENT)
    scale = 1.3 / np.sqrt(variance)
    return Utterance(
        text,
        label=_rating(total * scale),
        words_label=_rating(1.3 * sentence_value / 1.5),
        voice_label=_rating(1.3 * voice),
        face_label=_rating(1.3 * face),
        voice=voice,
        face=face,
    )


def _clip(rng: np.random.Generator, patterns: list[np.ndarray]) -> dict[str, Any]:
    said = utterance(rng)
    return {
        "raw_text": said.text,
        "label": said.label,
        "label_T": said.words_label,
        "label_A": said.voice_label,
        "label_V": said.face_label,
        "audio": _sequence(rng, said.voice, AUDIO, patterns[0]),
        "vision": _sequence(rng, said.face, VISION, patterns[1]),
    }


def _rating(value: float) -> float:
    """The value as people would rate it: in steps of 0.2, from -3 to 3."""
    return float(np.clip(np.round(value / 0.2) * 0.2, -3, 3))


def make(samples: int = SAMPLES, seed: int = 0) -> dict[str, Any]:
    """The contents of the file. Clips of a video stay in one split.

    Raises:
        DataError: fewer samples than every split needs for one.
    """
    if samples < 10:
        raise DataError(f"--samples {samples}: at least 10 are needed for three splits")
    # what a voice or face looks like does not depend on the seed
    shared = np.random.default_rng(7)
    patterns = []
    for _, width in (AUDIO, VISION):
        patterns.append(shared.normal(size=width) / np.sqrt(width))
    rng = np.random.default_rng([seed, 1])
    content: dict[str, Any] = {"synthetic": True, "vocabulary": vocabulary()}
    shares = np.cumsum([0.0, *SHARES.values()])
    edges = np.round(shares * samples).astype(int)
    video = 0
    for split, count in zip(SHARES, np.diff(edges), strict=True):
        clips: list[dict[str, Any]] = []
        ids: list[str] = []
        while len(clips) < count:
            clips_of_video = min(int(rng.integers(6, 15)), count - len(clips))
            for clip in range(clips_of_video):
                ids.append(f"synthetic{video:04d}$_${clip}")
                clips.append(_clip(rng, patterns))
            video += 1
        content[split] = _part(clips, ids)
    audio = content["train"]["audio"]
    audio[:: max(1, len(audio) // 3), 0, -1] = -np.inf  # as in the files that this one imitates
    return content


def _part(clips: list[dict[str, Any]], ids: list[str]) -> dict[str, Any]:
    columns: dict[str, list[Any]] = {}
    for name in clips[0]:
        columns[name] = [clip[name] for clip in clips]
    labels = np.array(columns["label"], np.float32)
    unimodal = {letter: np.array(columns[f"label_{letter}"], np.float32) for letter in "TAV"}
    classes = (np.sign(labels) + 1).astype(np.int64)
    return {
        "raw_text": columns["raw_text"],
        "id": ids,
        "text_bert": _token_ids(columns["raw_text"]),
        "audio": _padded(columns["audio"], AUDIO),
        "vision": _padded(columns["vision"], VISION),
        "audio_lengths": list(map(len, columns["audio"])),
        "vision_lengths": list(map(len, columns["vision"])),
        "annotations": [CLASSES[number] for number in classes],
        "classification_labels": classes,
        "regression_labels": labels,
        **{f"regression_labels_{letter}": unimodal[letter] for letter in unimodal},
    }


def _token_ids(texts: list[str]) -> np.ndarray:
    """(N, 3, L): ids, mask, types, padded on the right."""
    number_of = {word: number for number, word in enumerate(vocabulary())}
    # float, as in the files that this one imitates
    padded = np.zeros((len(texts), 3, LONGEST_TEXT), np.float32)
    for i, text in enumerate(texts):
        words = ["[CLS]", *text.split(), "[SEP]"]
        padded[i, 0, : len(words)] = [number_of[word] for word in words]
        padded[i, 1, : len(words)] = 1
    return padded


def _padded(sequences: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    padded = np.zeros((len(sequences), *shape), np.float32)
    for i, frames in enumerate(sequences):
        padded[i, : len(frames)] = frames
    return padded


def write(path: Path, samples: int = SAMPLES, seed: int = 0) -> None:
    """Write the file, in a folder that is made if need be."""
    check_file(path, samples * BYTES, make_folder=True)
    content = make(samples, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_pickle(content, path)


def write_tokenizer(folder: Path) -> None:
    """A transformers tokenizer of the made-up words, in a new folder: it gives new sentences the
    token ids that they have in the data set."""
    check_new_folder(folder)
    folder.mkdir(parents=True)
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": LONGEST_TEXT,
    }
    write_atomically(folder / "vocab.txt", "\n".join(vocabulary()) + "\n")
    write_atomically(folder / "tokenizer_config.json", json.dumps(settings, indent=1) + "\n")


def _main(arguments: argparse.Namespace) -> None:
    write(arguments.out, arguments.samples, arguments.seed)
    if arguments.tokenizer is not None:
        write_tokenizer(arguments.tokenizer)
    folder = arguments.out.with_suffix("")
    print(
        f"SYNTHETIC data: {arguments.samples} made-up clips are in {arguments.out}; "
        f"convert them with: python -m data_shards.convert {arguments.out} --out {folder}"
    )


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("synthetic", __doc__)
    parser.add_argument("out", type=Path, metavar="OUT.pkl")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="also make the tokenizer of its sentences"
    )
    arguments = parse(parser, argv)
    return run(lambda: _main(arguments))


if __name__ == "__main__":
    sys.exit(main())
