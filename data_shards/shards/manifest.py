"""What lies in a shard folder: samples, shards, and the manifest that vouches for them.

A shard folder holds ``manifest.json``, one or more tar files per split (``train-000000.tar``, ...;
plain WebDataset) and beside each tar its index. The manifest is written last: a folder without one
is not a data set.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from core.file_access.regular_files import read_regular_file
from core.files import sha256_of_bytes, write_atomically
from data_shards.extract.recipe import ExtractionRecipe
from data_shards.media.media_kinds import Media, MediaMember
from data_shards.shards.manifest_facts import check_range, first_odd_fact, first_problem
from data_shards.shards.shard import STRICT, DataError, Shard, check_shard
from data_shards.shards.shard import refused as _refused
from data_shards.shards.shard_table import (
    MANY,
    OpenTable,
    ShardTable,
    TableFile,
    describe_table,
    open_tables,
    sample_counts,
    table_bytes,
    table_in,
)

FORMAT = "concord-shards"
VERSION = 1
MANIFEST = "manifest.json"

# What an array may hold: numbers, never objects, records or text.
NUMBERS = frozenset(
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 "
    "float16 float32 float64 complex64 complex128".split()
)
MAX_AXES = 8
MAX_EXTENT = 2**40  # of one axis

Task = Literal["sentiment", "alignment", "arrays"]  # arrays: streamed, and no recipe's data
LabelKind = Literal["regression", "classes"]

EMPTY = "samples without any modality"  # in Manifest.extras: split -> how many
LEAVE_OUT = "leave them out of training and scores with loading.empty=leave_out"

_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")

# a tuple, or a table in a file of its own
Shards = Annotated[Sequence[Shard], AfterValidator(tuple)]


@dataclass(frozen=True)
class Field:
    """An array that samples carry under this name, as ``<key>.<name>.npy``."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    dtype: str  # NumPy name: "int32", "float32"
    shape: tuple[int | None, ...]  # None marks the time axis; at most one
    # sound or pictures, as bytes (uint8 of shape (None,)) in members of their own kind
    media: Media | None = None


@dataclass(frozen=True)
class Sample:
    """One sample on its way into a shard. An array that a sample lacks is simply not there."""

    id: str  # as the raw data names it: "video$_$clip"
    arrays: dict[str, np.ndarray]  # field -> array at its true length, little-endian
    text: str | None = None  # transcript, stored as <key>.txt
    extra: dict[str, Any] = field(default_factory=dict)  # plain JSON, stored with the id
    media: dict[str, MediaMember] = field(default_factory=dict)  # of its arrays that are media


@dataclass(frozen=True)
class Labels:
    """What the labels mean."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    kind: LabelKind = "regression"
    low: float = -3.0
    high: float = 3.0
    resolution: float | None = None  # annotated in multiples of this (1/5, 1/3); None: any float
    # of classes their names; of scores the targets where a label is a vector, one number for each
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_range(self.low, self.high, self.resolution)


@dataclass(frozen=True)
class Manifest:
    """Everything about a shard folder that is known without opening a shard."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str
    task: Task
    fields: dict[str, Field]
    splits: dict[str, Shards]
    labels: Labels = Labels()
    synthetic: bool = False
    # of the raw data: file name, bytes, sha256, and the options of the conversion
    source: dict[str, Any] = field(default_factory=dict)
    # name, vocab_size, sha256 of the vocabulary, special ids
    tokenizer: dict[str, Any] | None = None
    # field -> mean and standard deviation of its train frames, per feature
    moments: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    # field -> longest in any split
    max_length: dict[str, int] = field(default_factory=dict)
    # what was mended on the way in, and how often
    repairs: dict[str, int] = field(default_factory=dict)
    # further files of the folder: name -> sha256, and facts that only one task needs
    extras: dict[str, Any] = field(default_factory=dict)
    # how the features were made from clips, where ``concord extract`` made them
    extraction: ExtractionRecipe | None = None

    def samples(self, split: str) -> int:
        """How many samples a split has."""
        return int(sample_counts(self.splits[split]).sum())

    def empty(self) -> dict[str, int]:
        """Split -> samples without any modality, of the splits that have some; as counted when
        converted."""
        return dict(self.extras.get(EMPTY, {}))

    def to_json(self) -> str:
        """The text of ``manifest.json``, with a checksum of all that it says. Very many shards are
        in tables, for which it vouches."""
        tables = {split: asdict(table) for split, table in self.tables().items()}
        listed = replace(self, splits={}) if tables else self
        body = {"format": FORMAT, "version": VERSION, **asdict(listed)}
        if tables:
            body["tables"] = tables
        if self.extraction is None:
            del body["extraction"]  # so that manifests of other data stay as they were
        body["fields"] = plain_fields(self.fields)
        body["checksum"] = _checksum(body)
        text = json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            around = text[max(0, error.start - 20) : error.end + 20]
            raise DataError(f"{around!r} is no text: it holds half of a character") from None
        return text

    def tables(self) -> dict[str, TableFile]:
        """Split -> the file of its shards, where they are too many for ``manifest.json``."""
        has_tables = any(isinstance(shards, ShardTable) for shards in self.splits.values())
        is_short = sum(map(len, self.splits.values())) <= MANY
        if not has_tables and (is_short or not all(self.splits.values())):
            return {}
        return {split: describe_table(split, shards) for split, shards in self.splits.items()}

    @staticmethod
    def from_json(text: str, where: str, open_table: OpenTable | None = None) -> Manifest:
        """Parse and check; a DataError names ``where`` if anything is missing or wrong.

        Args:
            open_table: where the tables are that a manifest of very many shards has.
        """
        try:
            body = json.loads(
                text,
                object_pairs_hook=refuse_repeated_keys,
                parse_constant=refuse_constant,
                parse_float=finite_float,
            )
        except (ValueError, RecursionError) as error:
            raise _refused(f"{where} is not JSON ({error})") from error
        if not isinstance(body, dict):
            body = {}
        if (body.pop("format", None), body.pop("version", None)) != (FORMAT, VERSION):
            raise DataError(
                f"{where} is no manifest of {FORMAT!r}, version {VERSION}; convert the data again"
            )
        checksum = body.pop("checksum", None)
        if checksum != _checksum({"format": FORMAT, "version": VERSION, **body}):
            raise _refused(f"{where} was changed after it was written")
        tables = body.pop("tables", None)
        try:
            # pydantic reads JSON here, not Python values: only there may a list stand for a tuple
            manifest = _adapter().validate_json(json.dumps(body))
        except ValidationError as error:
            raise DataError(f"{where}: {first_problem(error)}") from error
        if tables is not None:
            manifest = replace(manifest, splits={**open_tables(tables, where, open_table)})
        _check_fields(manifest, where)
        _check_shards(manifest, where)
        _check_counts(manifest, where)
        _check_facts(manifest, where)
        return manifest


def plain_fields(fields: Mapping[str, Field]) -> dict[str, dict[str, Any]]:
    """Fields as plain JSON; those that are no media say nothing of it, as they always have."""
    plain = {name: asdict(described) for name, described in fields.items()}
    for described in plain.values():
        if described["media"] is None:
            del described["media"]
    return plain


def describe_empty(manifest: Manifest, empty: Mapping[str, int]) -> str:
    """How many samples have no modality at all, as a clause.

    Args:
        empty: split -> how many.
    """
    samples = sum(manifest.samples(split) for split in empty)
    parts = ", ".join(f"{count} in {split}" for split, count in empty.items())
    return (
        f"{sum(empty.values())} of {samples} samples have none of the modalities ({parts}), so a "
        "model knows nothing of them"
    )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a shard folder."""
    path = folder / MANIFEST
    try:
        body = read_regular_file(path)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{folder} has no {MANIFEST}, so it is no finished shard folder; "
            f"make one with: python -m data_shards.convert RAW --out {folder}"
        ) from None
    return parse_manifest(body, str(path), partial(table_in, folder))


def check_manifest_text(manifest: Manifest, text: str, where: str) -> None:
    """DataError where ``text``, which is ``manifest.to_json()``, could not be read again."""
    if not manifest.tables():
        Manifest.from_json(text, where)
        return
    _check_shards(manifest, where)
    few = replace(manifest, splits={})
    Manifest.from_json(few.to_json(), where)


def write_manifest(folder: Path, manifest: Manifest, text: str) -> None:
    """Write ``text``, which is ``manifest.to_json()``, and before it the tables it vouches for."""
    for split, table in manifest.tables().items():
        shards = manifest.splits[split]
        if not isinstance(shards, ShardTable):
            write_atomically(folder / table.file, table_bytes(shards))
    write_atomically(folder / MANIFEST, text)


def parse_manifest(body: bytes, where: str, open_table: OpenTable | None = None) -> Manifest:
    """The manifest in the bytes of a file; see ``Manifest.from_json``."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refused(f"{where} is not UTF-8 ({error})") from error
    return Manifest.from_json(text, where, open_table)


@cache
def _adapter() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)


def _checksum(body: dict[str, Any]) -> str:
    """SHA-256 of what a manifest says, however laid out: it guards against a flipped bit."""
    text = json.dumps(
        body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return sha256_of_bytes(text.encode("utf-8", "surrogatepass"))


def refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For ``json.loads``, which would keep the last of two equal keys without a word."""
    repeated = _repeated([key for key, _ in pairs])
    if repeated is not None:
        raise ValueError(f"{repeated!r} stands there twice")
    return dict(pairs)


def refuse_constant(name: str) -> None:
    """For ``json.loads``, which reads NaN and Infinity, and they are not JSON."""
    raise ValueError(f"{name} is not a number")


def finite_float(digits: str) -> float:
    """For ``json.loads``, which makes infinity of 1e999."""
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:40]} is too large a number")
    return number


def is_plain_name(name: str) -> bool:
    """Whether a field or split may be called so: ASCII letters, digits, _ and -, dots between."""
    return _NAME.fullmatch(name) is not None


def _check_fields(manifest: Manifest, where: str) -> None:
    """DataError unless every field has a plain name, a dtype of numbers and a possible shape."""
    for name, described in manifest.fields.items():
        if not is_plain_name(name):
            raise _refused(f"{where}: field {name!r} is no plain name")
        if described.dtype not in NUMBERS:
            raise _refused(
                f"{where}: field {name!r} has dtype {described.dtype!r}; only numbers are stored"
            )
        shape = described.shape
        has_few_axes = len(shape) <= MAX_AXES and shape.count(None) <= 1
        fits = all(extent is None or 0 <= extent < MAX_EXTENT for extent in shape)
        if not (has_few_axes and fits):
            raise _refused(f"{where}: field {name!r} has shape {shape}")
        media = described.media
        if media is not None:
            is_bytes = described.dtype == "uint8" and shape == (None,)
            problem = media.problem if is_bytes else "media that are no bytes"
            if problem:
                raise _refused(f"{where}: field {name!r}: {problem}")


def _check_shards(manifest: Manifest, where: str) -> None:
    """DataError unless names are plain and differ, and sizes and checksums are possible."""
    names = []
    for split, shards in manifest.splits.items():
        if not is_plain_name(split):
            raise _refused(f"{where}: split {split!r} has no plain name")
        if isinstance(shards, ShardTable):
            continue  # checked when it was opened
        for shard in shards:
            check_shard(shard, f"{where}: shard {shard.name!r}")
            names.append(shard.name)
    repeated = _repeated(names)
    if repeated is not None:
        raise _refused(f"{where}: shard {repeated!r} is listed twice")


def _check_counts(manifest: Manifest, where: str) -> None:
    """DataError unless means and deviations belong together and no number of things is negative."""
    for name, (mean, std) in manifest.moments.items():
        if len(mean) != len(std):
            raise _refused(
                f"{where}: moments of {name!r}: {len(mean)} means, {len(std)} deviations"
            )
    empty = manifest.extras.get(EMPTY, {})
    if not isinstance(empty, dict) or not all(type(count) is int for count in empty.values()):
        raise _refused(f"{where}: extras: {EMPTY} are counts by split, found {str(empty)[:80]}")
    if not empty.keys() <= manifest.splits.keys():
        raise _refused(f"{where}: extras: {EMPTY} of splits that are not there")
    for name, counts in (("max_length", manifest.max_length), ("repairs", manifest.repairs)):
        if min(counts.values(), default=0) < 0:
            raise _refused(f"{where}: a negative number in {name}")


def _check_facts(manifest: Manifest, where: str) -> None:
    """DataError unless what is read of tokenizer, source and extras is of its declared kind."""
    tokenizer = manifest.tokenizer or {}
    facts = {"tokenizer": tokenizer, "source": manifest.source, "extras": manifest.extras}
    odd = first_odd_fact(facts)
    if odd is not None:
        part, error = odd
        raise _refused(f"{where}: {part}: {first_problem(error)}")
    unknown, size = tokenizer.get("special", {}).get("unk"), tokenizer.get("vocab_size", 0)
    if unknown is not None and size and unknown >= size:
        raise _refused(f"{where}: tokenizer: special: unk is {unknown}, outside its {size} tokens")


def _repeated(names: list[str]) -> str | None:
    """The first name that stands there more than once."""
    if len(set(names)) == len(names):
        return None
    counts = Counter(names)
    return next(name for name in names if counts[name] > 1)
