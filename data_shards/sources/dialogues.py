"""Pickles of dialogues: the feature files of IEMOCAP and MELD that work on emotions in conversation
shares (DialogueRNN's, MMGCN's and those of their successors).

A file is one tuple, whose parts are dicts by dialogue, of one entry per utterance:

    ids, speakers, classes, text, sound[, video], sentences, train dialogues, test dialogues[, sentiment]

MELD's files end with a dict of sentiments, which IEMOCAP's lack. Features are one vector per
utterance. There is no validation split: of the train dialogues, in the order of their names, every
tenth becomes one, as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.shards.label_statistics import named_classes
from data_shards.shards.manifest import DataError, Field, Sample
from data_shards.sources.raw_dataset import (
    Options,
    RawDataset,
    as_frames,
    as_string,
    check_width,
    file_facts,
    finite,
)

# The classes by their numbers in the files.
IEMOCAP = ("happy", "sad", "neutral", "angry", "excited", "frustrated")
MELD = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
SENTIMENTS = ("neutral", "positive", "negative")  # of MELD, the same
# IEMOCAP's four: excited counts as happy, and frustrated utterances are left out.
FOUR = {"happy": "happy", "sad": "sad", "neutral": "neutral", "angry": "angry", "excited": "happy"}
EVERY = 10  # of the train dialogues one is for validation
FEATURES = ("text", "audio", "vision")
RIGHT_SIZES = (9, 10)  # of the tuple


@dataclass(frozen=True)
class Dialogues:
    """The parts of a file, by what they are."""

    where: str
    classes: Mapping[Any, Sequence[Any]]
    features: dict[str, Mapping[Any, Sequence[Any]]]  # modality -> by dialogue
    ids: Mapping[Any, Sequence[Any]]
    sentences: Mapping[Any, Sequence[Any]]
    speakers: Mapping[Any, Sequence[Any]]
    split_of: dict[Any, str]  # dialogue -> its split
    names: tuple[str, ...]  # of the classes, by number in the file
    kept: dict[str, str]  # class in the file -> class that is learnt


@dataclass(frozen=True)
class Row:
    """An utterance."""

    dialogue: Any
    place: int


def is_dialogues(loaded: Any) -> bool:
    """Whether a pickle's contents look like such a tuple."""
    return isinstance(loaded, tuple) and len(loaded) in RIGHT_SIZES and isinstance(loaded[0], dict)


def read(raw: Path, loaded: tuple[Any, ...], options: Options) -> RawDataset:
    """The file as classes by utterance.

    Raises:
        DataError: parts that do not fit together, or a number that is no class.
    """
    found = _parts(raw, loaded, options)
    counts: Counter[str] = Counter()
    for split, _ in _rows(found):
        counts[split] += 1
    widths = {m: _width(found, m) for m in found.features}
    fields = {m: Field("float32", (None, width)) for m, width in widths.items() if width}
    fields["class"] = Field("int64", ())
    learnt = tuple(dict.fromkeys(found.kept.values()))
    facts = file_facts(raw)
    facts |= {
        "layout": "dialogues",
        "assumed": f"validation is every {EVERY}th train dialogue, in the order of their names; "
        f"classes are {', '.join(learnt)}",
    }
    return RawDataset(
        name=options.name or raw.stem,
        task="sentiment",
        fields=fields,
        labels=named_classes(learnt),
        counts={split: counts[split] for split in ("train", "valid", "test") if counts[split]},
        rows=partial(_rows, found),
        sample=partial(_sample, found, fields, learnt),
        facts=facts,
    )


def _parts(raw: Path, loaded: tuple[Any, ...], options: Options) -> Dialogues:
    """The tuple's parts told from each other: dicts up to the two lists of dialogues."""
    by_dialogue = [part for part in loaded if isinstance(part, dict)]
    lists = [part for part in loaded if not isinstance(part, dict)]
    first_list = next((i for i, part in enumerate(loaded) if not isinstance(part, dict)), -1)
    after = loaded[first_list + 2 :]
    if len(lists) != 2 or first_list not in (6, 7) or len(after) > 1:
        raise DataError(
            f"{raw}: a tuple of {len(loaded)} parts, of which {len(by_dialogue)} are dicts; the "
            "layouts of dialogues that are read are in docs/data.md"
        )
    names, classes, kept = _emotions(raw, loaded, after, options)
    features = dict(zip(FEATURES, loaded[3 : first_list - 1], strict=False))
    found = Dialogues(
        where=str(raw),
        classes=classes,
        features=features,
        ids=loaded[0],
        speakers=loaded[1],
        sentences=loaded[first_list - 1],
        split_of=_splits(raw, lists[0], lists[1]),
        names=names,
        kept=kept,
    )
    _refuse_unequal(found)
    return found


def _emotions(
    raw: Path, loaded: tuple[Any, ...], after: tuple[Any, ...], options: Options
) -> tuple[tuple[str, ...], Any, dict[str, str]]:
    """Names of the classes in the file, the part that holds them, and those that are learnt."""
    wanted = options.emotions
    dataset = "MELD" if after else "IEMOCAP"
    known = (3, 7) if after else (4, 6)
    if wanted is not None and wanted not in known:
        raise DataError(
            f"{raw} has the parts of a file of {dataset}; --emotions {wanted} is none of "
            f"{known[0]} and {known[1]}"
        )
    if wanted == 3:
        return SENTIMENTS, after[0], {name: name for name in SENTIMENTS}
    names = MELD if after else IEMOCAP
    kept = FOUR if wanted == 4 else {name: name for name in names}
    return names, loaded[2], kept


def _splits(raw: Path, train: Any, test: Any) -> dict[Any, str]:
    """Dialogue -> split."""
    split_of: dict[Any, str] = {}
    for number, dialogue in enumerate(sorted(map(_name, train), key=_by_name)):
        split_of[dialogue] = "valid" if number % EVERY == EVERY - 1 else "train"
    for dialogue in sorted(map(_name, test), key=_by_name):
        if dialogue in split_of:
            raise DataError(f"{raw}: dialogue {dialogue!r} is in the train and in the test split")
        split_of[dialogue] = "test"
    return split_of


def _name(dialogue: Any) -> Any:
    """As the keys of the dicts are: text that Python 2 wrote is bytes in a list."""
    return dialogue.decode("utf-8", "replace") if isinstance(dialogue, bytes) else dialogue


def _by_name(dialogue: Any) -> tuple[int, Any]:
    """Numbers in their order, then names."""
    is_number = isinstance(dialogue, int | np.integer)
    return (0, int(dialogue)) if is_number else (1, str(dialogue))


def _refuse_unequal(found: Dialogues) -> None:
    """DataError unless every part has each dialogue, with as many utterances."""
    parts = {"ids": found.ids, "classes": found.classes, "sentences": found.sentences}
    for name, part in (parts | found.features).items():
        for dialogue in found.split_of:
            if dialogue not in part:
                raise DataError(f"{found.where}: dialogue {dialogue!r} has no {name}")
            size, expected = len(part[dialogue]), len(found.ids[dialogue])
            if size != expected:
                raise DataError(
                    f"{found.where}: dialogue {dialogue!r} has {expected} utterances, and {size} "
                    f"of its {name}"
                )


def _class_of(found: Dialogues, row: Row) -> str | None:
    """The class that is learnt of an utterance; None where it is left out."""
    value = found.classes[row.dialogue][row.place]
    number = int(value) if isinstance(value, int | np.integer) else -1
    if not 0 <= number < len(found.names):
        raise DataError(
            f"{found.where}: dialogue {row.dialogue!r}, utterance {row.place}: {value!r} is no "
            f"class from 0 to {len(found.names) - 1}"
        )
    return found.kept.get(found.names[number])


def _rows(found: Dialogues) -> Iterator[tuple[str, Row]]:
    for split in ("train", "valid", "test"):
        for dialogue, its_split in found.split_of.items():
            if its_split != split:
                continue
            for place in range(len(found.ids[dialogue])):
                row = Row(dialogue, place)
                if _class_of(found, row) is not None:
                    yield split, row


def _width(found: Dialogues, modality: str) -> int:
    """Of the first utterance that has the modality."""
    part = found.features[modality]
    for dialogue in found.split_of:
        for value in part[dialogue]:
            width = as_frames(value, f"{found.where}: {modality} of {dialogue!r}").shape[1]
            if width:
                return int(width)
    return 0


def _sample(
    found: Dialogues,
    fields: dict[str, Field],
    learnt: tuple[str, ...],
    row: Row,
    repairs: Counter[str],
) -> Sample:
    dialogue, place = row.dialogue, row.place
    where = f"{found.where}: dialogue {dialogue!r}, utterance {place}"
    arrays: dict[str, np.ndarray] = {}
    for modality in FEATURES:
        if modality in fields:
            frames = as_frames(found.features[modality][dialogue][place], f"{where}: {modality}")
            check_width(frames, fields[modality], f"{where}: {modality}")
            if len(frames):
                arrays[modality] = finite(frames, modality, repairs)
    name = _class_of(found, row)
    assert name is not None  # such rows are not listed
    arrays["class"] = np.array(learnt.index(name), "<i8")
    extra = {"video": str(dialogue)}
    if dialogue in found.speakers and place < len(found.speakers[dialogue]):
        extra["speaker"] = _speaker(found.speakers[dialogue][place], where)
    utterance = as_string(found.ids[dialogue][place], f"{where}: id")
    text = as_string(found.sentences[dialogue][place], f"{where}: sentence")
    return Sample(f"{dialogue}$_${utterance}", arrays, text, extra)


def _speaker(value: Any, where: str) -> str:
    """A name, or the place of the one in MELD's rows of zeros."""
    if isinstance(value, list | tuple | np.ndarray):
        return str(int(np.argmax(np.asarray(value, float))))
    return as_string(value, f"{where}: speaker")
