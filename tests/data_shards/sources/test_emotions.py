"""Feature files of emotions: tuples of dialogues (IEMOCAP, MELD), and MulT's pairs of numbers."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards.convert import convert
from data_shards.shards.manifest import DataError, Labels, Manifest
from data_shards.sources import dialogues, emotion_labels
from data_shards.sources.raw_dataset import Options
from data_shards.stream import Stream

DIALOGUES = 24
TEST = range(20, DIALOGUES)


def of_iemocap() -> list[Any]:
    """The parts of such a file, as lists of bytes and arrays, as Python 2 left them."""
    rng = np.random.default_rng(0)
    names = [f"Ses{number:02d}" for number in range(DIALOGUES)]
    sizes = {name: 2 + number % 3 for number, name in enumerate(names)}

    def by_dialogue(make: Any) -> dict[str, list[Any]]:
        return {name: [make(name, place) for place in range(sizes[name])] for name in names}

    return [
        by_dialogue(lambda name, place: f"{name}_{place}".encode()),
        by_dialogue(lambda name, place: b"MF"[place % 2 : place % 2 + 1]),
        by_dialogue(lambda name, place: (names.index(name) + place) % 6),
        by_dialogue(lambda name, place: rng.normal(size=4)),
        by_dialogue(lambda name, place: rng.normal(size=3)),
        by_dialogue(lambda name, place: rng.normal(size=2)),
        by_dialogue(lambda name, place: f"sentence {place}"),
        {name.encode() for name in names[: TEST.start]},
        {name.encode() for name in names[TEST.start :]},
    ]


def of_meld() -> list[Any]:
    """The same with numbers for names, without video, and with sentiments."""
    ids, speakers, classes, text, sound, _, sentences, _, _ = of_iemocap()
    parts = [ids, speakers, classes, text, sound, sentences]
    renamed = [dict(enumerate(part.values())) for part in parts]
    sentiments = {name: [number % 3 for number in of] for name, of in renamed[2].items()}
    train, test = list(range(TEST.start)), list(TEST)
    return [*renamed, train, test, sentiments]


def written(folder: Path, parts: list[Any]) -> Path:
    path = folder / "features.pkl"
    path.write_bytes(pickle.dumps(tuple(parts), protocol=2))
    return path


def converted(folder: Path, parts: list[Any], **options: Any) -> Manifest:
    return convert(written(folder, parts), folder / "shards", Options(**options))


def classes_of(folder: Path, split: str) -> list[int]:
    """Of the samples of a split, in their order."""
    stream = Stream(str(folder / "shards"), split, global_batch=64, shuffle=False)
    (arrays,) = next(iter(stream.epoch(0)))
    stream.close()
    return arrays.arrays["class"].tolist()


def test_utterances_of_iemocap_become_samples_of_six_classes(tmp_path: Path) -> None:
    parts = of_iemocap()
    manifest = converted(tmp_path, parts)
    assert manifest.labels.names == dialogues.IEMOCAP
    widths = {name: field.shape for name, field in manifest.fields.items()}
    assert widths == {"text": (None, 4), "audio": (None, 3), "vision": (None, 2), "class": ()}
    test = [number for name in sorted(parts[2])[TEST.start :] for number in parts[2][name]]
    assert classes_of(tmp_path, "test") == test
    valid = [number for name in ("Ses09", "Ses19") for number in parts[2][name]]
    assert classes_of(tmp_path, "valid") == valid
    total = sum(map(len, parts[0].values()))
    assert sum(manifest.samples(split) for split in manifest.splits) == total
    assert "validation is every 10th train dialogue" in manifest.source["assumed"]


def test_four_classes_merge_excited_and_leave_out_frustrated(tmp_path: Path) -> None:
    parts = of_iemocap()
    manifest = converted(tmp_path, parts, emotions=4)
    assert manifest.labels.names == ("happy", "sad", "neutral", "angry")
    test = [number for name in sorted(parts[2])[TEST.start :] for number in parts[2][name]]
    number_of = {0: 0, 1: 1, 2: 2, 3: 3, 4: 0}
    assert classes_of(tmp_path, "test") == [number_of[n] for n in test if n in number_of]


def test_meld_has_seven_emotions_or_three_sentiments(tmp_path: Path) -> None:
    parts = of_meld()
    (tmp_path / "three").mkdir()
    assert converted(tmp_path, parts).labels.names == dialogues.MELD
    manifest = converted(tmp_path / "three", parts, emotions=3)
    assert manifest.labels.names == dialogues.SENTIMENTS
    test = [number for name in TEST for number in parts[-1][name]]
    assert classes_of(tmp_path / "three", "test") == test
    assert "vision" not in manifest.fields


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        (2, [9, 0], "dialogue 'Ses00', utterance 0: 9 is no class from 0 to 5"),
        (3, [np.zeros(4)], "dialogue 'Ses00' has 2 utterances, and 1 of its text"),
        (4, [np.zeros(3), np.zeros(5)], "has 5 features, and samples before it have 3"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_place(
    part: int, value: list[Any], message: str, tmp_path: Path
) -> None:
    parts = of_iemocap()
    parts[part]["Ses00"] = value
    with pytest.raises(DataError, match="features.pkl") as refused:
        converted(tmp_path, parts)
    assert message in str(refused.value)


def test_other_tuples_and_numbers_of_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--emotions 7 is none of 4 and 6"):
        converted(tmp_path, of_iemocap(), emotions=7)
    twice = of_iemocap()
    twice[8] = {b"Ses00"}
    with pytest.raises(DataError, match="'Ses00' is in the train and in the test split"):
        converted(tmp_path, twice)
    other = of_iemocap()
    other[4] = []
    with pytest.raises(DataError, match="a tuple of 9 parts"):
        converted(tmp_path, other)


def of_mult(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    content = {}
    for split in ("train", "valid", "test"):
        had = rng.integers(0, 2, (6, 4))
        content[split] = {
            "text": rng.normal(size=(6, 5, 8)),
            "audio": rng.normal(size=(6, 5, 74)),
            "vision": rng.normal(size=(6, 5, 35)),
            "labels": np.stack([1 - had, had], axis=2),
        }
    return content


def test_pairs_of_numbers_become_four_targets(tmp_path: Path) -> None:
    content = of_mult()
    raw = tmp_path / "iemocap_data.pkl"
    raw.write_bytes(pickle.dumps(content))
    manifest = convert(raw, tmp_path / "shards", Options(text="features"))
    assert manifest.labels == Labels(low=0, high=1, resolution=1, names=emotion_labels.EMOTIONS)
    assert manifest.name == "iemocap_data"
    assert "assumed" not in manifest.source  # MOSEI's widths, and not MOSEI
    stream = Stream(str(tmp_path / "shards"), "test", global_batch=8, shuffle=False)
    (arrays,) = next(iter(stream.epoch(0)))
    stream.close()
    expected = content["test"]["labels"].argmax(2)
    np.testing.assert_array_equal(arrays.arrays["label"].numpy(), expected)


def test_a_pair_that_says_nothing_is_refused(tmp_path: Path) -> None:
    content = of_mult()
    content["valid"]["labels"][2, 1] = 1
    raw = tmp_path / "iemocap_data.pkl"
    raw.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=r"valid, sample 2: happy is \[1.0, 1.0\]"):
        convert(raw, tmp_path / "shards", Options(text="features"))


def test_options_of_other_layouts_are_refused(tmp_path: Path) -> None:
    raw = tmp_path / "iemocap_data.pkl"
    raw.write_bytes(pickle.dumps(of_mult()))
    with pytest.raises(DataError, match="is no file of dialogues, whose classes --emotions"):
        convert(raw, tmp_path / "shards", Options(text="features", emotions=4))
    with pytest.raises(DataError, match="is no folder of OpenEA, whose links have folds"):
        converted(tmp_path, of_iemocap(), fold=1)
