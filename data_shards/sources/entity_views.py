"""What is known of an entity beside its neighbours, one array per view: (N, D) numbers and (N,)
presence.

Widths, counts and vocabularies follow the released code of MCLEA (relation, attribute, name views,
images); "numeric" is ours. No view looks at ids or at links. Names, attributes and numbers come by
row: 0 to N-1, one per entity.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path

import numpy as np

from core.encoders.pretrained import Source, load_model, load_tokenizer
from core.regular_files import open_regular_file
from data_shards.shards.manifest import DataError

MOST_FREQUENT = 1000  # relations, attributes
FREQUENCIES = np.geomspace(10.0, 1e5, 250)  # of waves that stand for a number: numeric_waves
MAX_COUNT = 127  # of one thing in a bag, which is int8


@dataclass(frozen=True)
class View:
    """Rows of entities that lack the view hold zeros."""

    rows: np.ndarray  # (N, D)
    present: np.ndarray  # (N,) bool

    @staticmethod
    def of(rows: np.ndarray) -> View:
        """The view that every entity has whose row is not all zero."""
        return View(rows, np.asarray(rows.any(1)))


def relation_counts(triples: np.ndarray, num_entities: int, most: int = MOST_FREQUENT) -> View:
    """(N, most) int32: in how many of (T, 3) triples (head, relation, tail) an entity takes part by
    each of the most frequent relations. A triple from an entity to itself counts twice."""
    relations, dense, counts = np.unique(triples[:, 1], return_inverse=True, return_counts=True)
    frequent = np.argsort(-counts, kind="stable")[:most]  # as numbers of ``relations``
    column_of = np.full(len(relations), -1)
    column_of[frequent] = np.arange(len(frequent))
    ends = np.concatenate([triples[:, 0], triples[:, 2]])
    columns = np.tile(column_of[dense.reshape(-1)], 2)
    # one number per cell of the table, so that bincount counts them all at once
    cells = (ends * len(frequent) + columns)[columns >= 0]
    counted = np.bincount(cells, minlength=num_entities * len(frequent)).astype("<i4")
    return View.of(counted.reshape(num_entities, len(frequent)))


def attribute_bag(
    attributes: Mapping[int, Iterable[str]], num_entities: int, most: int = MOST_FREQUENT
) -> View:
    """(N, <= most) int8: 1 where an entity has one of the attributes that most entities have."""
    distinct = {row: set(names) for row, names in attributes.items()}
    entities_with: Counter[str] = Counter()
    for names in distinct.values():
        entities_with.update(names)
    frequent = sorted(entities_with, key=lambda name: (-entities_with[name], name))[:most]
    return _bag(distinct, frequent, num_entities)


def character_bigrams(names: Mapping[int, Sequence[str]], num_entities: int) -> View:
    """(N, bigrams) int8: how often neighbouring characters occur inside an entity's name tokens."""
    bigrams: dict[int, list[str]] = {}
    for row, tokens in names.items():
        bigrams[row] = []
        for token in tokens:
            neighbours = zip(token.lower(), token.lower()[1:], strict=False)
            bigrams[row] += [first + second for first, second in neighbours]
    vocabulary = sorted(set().union(*bigrams.values()))
    return _bag(bigrams, vocabulary, num_entities)


def _bag(things: Mapping[int, Iterable[str]], vocabulary: Sequence[str], num_entities: int) -> View:
    """(N, words) int8: how often an entity has each word of the vocabulary."""
    column_of = {name: column for column, name in enumerate(vocabulary)}
    bag = np.zeros((num_entities, len(vocabulary)), np.int8)
    for row, names in things.items():
        for name, count in Counter(names).items():
            if name in column_of:
                bag[row, column_of[name]] = min(count, MAX_COUNT)
    return View.of(bag)


def word_vectors(names: Mapping[int, Sequence[str]], num_entities: int, path: Path) -> View:
    """(N, D) float32: the mean vector of an entity's name tokens, from a text file of GloVe's
    format (``word number number ...`` a line). Entities without a known word lack the view."""
    wanted = {token.lower() for tokens in names.values() for token in tokens}
    vectors: dict[str, np.ndarray] = {}
    width = 0
    for where, word, values in _word_lines(path):
        width = width or len(values)
        if not values or len(values) != width:
            raise DataError(f"{where}: {len(values)} numbers for {word!r:.80}, {width} before")
        if word in vectors:
            raise DataError(f"{where}: {word!r:.80} has a vector already; remove one of them")
        if word in wanted:
            vectors[word] = _vector(values, f"{where}: the vector of {word!r:.80}")
    means = np.zeros((num_entities, width), "<f4")
    for row, tokens in names.items():
        known = [vectors[token.lower()] for token in tokens if token.lower() in vectors]
        if known:
            means[row] = np.mean(known, axis=0)
    return View.of(means)


def _word_lines(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    """(place, word, numbers as text) of each line."""
    try:
        with TextIOWrapper(open_regular_file(path), encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                word, *values = line.rstrip().split(" ")
                if number == 1 and len(values) == 1:
                    continue  # word2vec's text format begins with the two sizes
                yield f"{path}, line {number}", word, values
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from None


def _vector(values: list[str], where: str) -> np.ndarray:
    """Numbers as float32."""
    try:
        with np.errstate(over="ignore"):  # refused below
            vector = np.array(values, np.float32)
    except ValueError as error:
        raise DataError(f"{where} is not of numbers ({error})") from None
    if not np.isfinite(vector).all():
        raise DataError(f"{where} is not finite")
    return vector


def encoded_names(
    names: Mapping[int, Sequence[str]], num_entities: int, encoder_name: str, batch_size: int = 256
) -> View:
    """(N, D) float32: the mean of an encoder's last states over a name, without padding."""
    import torch

    source = Source(encoder_name, "--text-encoder ")
    try:
        tokenizer = load_tokenizer(source)
        encoder = load_model(source).eval()
    except ValueError as error:
        raise DataError(str(error)) from None
    joined = {row: " ".join(tokens) for row, tokens in names.items() if tokens}
    rows = sorted(joined, key=lambda row: len(joined[row]))  # names of like length, little padding
    means = np.zeros((num_entities, encoder.config.hidden_size), "<f4")
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        inputs = tokenizer(
            [joined[row] for row in batch], padding=True, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            states = encoder(**inputs).last_hidden_state  # (batch, T, D)
        mask = inputs["attention_mask"].unsqueeze(-1)
        mean = (states * mask).sum(1) / mask.sum(1)
        means[batch] = mean.numpy()
    return View.of(means)


def numeric_waves(literals: Mapping[int, Sequence[float]], num_entities: int) -> View:
    """(N, 500) float32: the sum over an entity's numbers of cos and sin of their signed logarithm
    at many frequencies.

    The cosine of two such rows is high when they share nearly equal numbers, whatever their
    attributes are called; names of attributes seldom agree between two graphs, and a change of unit
    only shifts phases. Random Fourier features (Rahimi and Recht, NeurIPS 2007) with frequencies in
    a geometric row instead of random ones: 10 tells orders of magnitude apart, 100,000 the days of
    a century.
    """
    waves = np.zeros((num_entities, 2 * len(FREQUENCIES)), "<f4")
    present = np.zeros(num_entities, bool)
    for row, values in literals.items():
        numbers = np.asarray(values, np.float64)
        logarithms = np.sign(numbers) * np.log1p(np.abs(numbers))
        phase = np.outer(logarithms, FREQUENCIES)  # (literals, K)
        cosines, sines = np.cos(phase).sum(0), np.sin(phase).sum(0)
        waves[row] = np.concatenate([cosines, sines])
        present[row] = len(numbers) > 0
    return View(waves, present)


_DATE = re.compile(r"(-?\d{1,6})-(\d{1,2})(?:-(\d{1,2}))?(?:T.*)?")


def number_of(text: str) -> float | None:
    """The number in a literal, plain or a date as years with a fraction; None without one."""
    if "_" in text:  # which float() would skip
        return None
    try:
        value = float(text)
    except ValueError:
        date = _DATE.fullmatch(text)
        if not date:
            return None
        year, month, day = (int(part) if part else 1 for part in date.groups())
        value = year + (month - 1) / 12 + (day - 1) / 365
    return value if np.isfinite(value) else None
