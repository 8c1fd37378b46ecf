"""What can be scored, and how it is taken: shards, a table, clips, or sentences.

Each kind gives its samples in one fixed order, in parts that all ranks take together, so that a
stopped command can go on behind the last row that it wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from core import distributed
from core.batch import Utterances
from core.command import Refused
from core.file_access.regular_files import read_regular_text
from data_shards.extract.windows import Windows
from data_shards.reading.sampler import even_split
from data_shards.shards.manifest import MANIFEST
from launch.predicting.samples import NewSample, SampleMaker
from launch.predicting.trained import TrainedModel

TABLES = (".csv", ".jsonl", ".ndjson", ".parquet")


@dataclass(frozen=True)
class Part:
    """The samples of one part that this rank has; there may be none."""

    places: list[int]  # of each sample in the whole input
    ids: list[str]
    batch: Utterances | None
    notes: list[tuple[str, ...]]  # of each sample, in words


class Input(Protocol):
    """Something to score."""

    total: int | None  # samples; None where that is not known beforehand
    identity: dict[str, Any]  # plain JSON that changes with the samples
    notes: list[str]  # what is to be said of the whole input

    def parts(self, start: int, size: int) -> Iterator[Part]:
        """This rank's share of all parts from the one that holds sample ``start``. A part has
        ``size`` samples over all ranks; every rank gets as many parts."""
        ...


@dataclass(frozen=True)
class Item:
    """A sample that is made when its turn comes."""

    id: str
    make: Callable[[], NewSample]


class ItemInput:
    """Samples that are made one by one. Implements ``Input``.

    Args:
        items: gives them anew, in the same order, each time it is called.
    """

    def __init__(
        self,
        maker: SampleMaker,
        items: Callable[[], Iterator[Item]],
        identity: dict[str, Any],
        total: int | None = None,
        notes: Sequence[str] = (),
    ):
        self.maker = maker
        self.items = items
        self.identity = identity
        self.total = total
        self.notes = list(notes)

    def parts(self, start: int, size: int) -> Iterator[Part]:
        """See ``Input``."""
        waiting: list[tuple[int, Item]] = []
        for place, item in enumerate(self.items()):
            if place < start:
                continue
            waiting.append((place, item))
            if len(waiting) == size:
                yield self._part(waiting)
                waiting = []
        if waiting:
            yield self._part(waiting)

    def _part(self, items: list[tuple[int, Item]]) -> Part:
        share = even_split(len(items), distributed.world_size())[distributed.rank()]
        mine = items[share]
        samples = [item.make() for _, item in mine]
        return Part(
            places=[place for place, _ in mine],
            ids=[sample.id for sample in samples],
            batch=self.maker.batch(samples) if samples else None,
            notes=[sample.notes for sample in samples],
        )


def open_input(
    trained: TrainedModel,
    source: str | None,
    *,
    sentences: Sequence[str] = (),
    split: str | None = None,
    windows: Windows | None = None,
    folders: Mapping[str, str] | None = None,
) -> Input:
    """The input that ``source`` names, or the sentences.

    Raises:
        Refused: it is of no known kind, or the model cannot read that kind.
    """
    from launch.predicting.shard_input import ShardInput
    from launch.predicting.table_input import table_input

    maker = SampleMaker(trained)
    if source is None:
        return sentence_input(maker, list(sentences), "--text")
    path = Path(source)
    is_table = path.suffix.lower() in TABLES
    is_shards = "://" in source or (path / MANIFEST).is_file()
    if split is not None and not (is_shards or is_table):
        raise Refused(f"--split {split}: {source} has no splits; leave it out")
    if is_shards:
        if windows is not None:
            raise Refused(f"--windows: {source} holds no clips; leave it out")
        return ShardInput(trained, source, split)
    if not path.exists():
        raise Refused(f"{source} does not exist; give a clip, a folder, a table, a .txt or shards")
    if is_table:
        return table_input(maker, path, split=split, windows=windows, folders=folders)
    if path.suffix.lower() == ".txt":
        return sentence_input(maker, _lines(path), str(path))
    if path.suffix.lower() in (".pkl", ".pickle"):
        raise Refused(
            f"{source}: convert the file first: concord convert {source} --out shards/new; then "
            "predict on that folder"
        )
    from launch.predicting.clip_input import clip_input  # needs the packages of clips

    return clip_input(maker, path, windows=windows, folders=folders)


def sentence_input(maker: SampleMaker, sentences: list[str], where: str) -> ItemInput:
    """Sentences, numbered from 1."""
    problem = maker.why_no_words()
    if problem:
        raise Refused(problem)

    def items() -> Iterator[Item]:
        for number, sentence in enumerate(sentences, 1):
            yield Item(str(number), _sentence_maker(maker, str(number), sentence, where))

    return ItemInput(maker, items, {"sentences": sentences}, len(sentences))


def _sentence_maker(
    maker: SampleMaker, name: str, sentence: str, where: str
) -> Callable[[], NewSample]:
    def make() -> NewSample:
        if not sentence.strip():
            return NewSample(name, notes=("an empty line",))
        ids, notes = maker.encode(sentence, f"{where}, {name}")
        return NewSample(name, {maker.text_field or "text": ids}, notes, sentence)

    return make


def _lines(path: Path) -> list[str]:
    lines = read_regular_text(path).splitlines()
    if not any(line.strip() for line in lines):
        raise Refused(f"{path} holds no sentence; write one in each line")
    return lines
