"""What lies in a shard folder: samples, shards, and the manifest that vouches for them.

A shard folder holds ``manifest.json``, one or more tar files per split (``train-000000.tar``, ...; plain WebDataset)
and beside each tar its index. The manifest is written last: a folder without one is not a data set.
"""

from __future__ import annotations

import hashlib
import json
import re
import types
from collections.abc import Callable, Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from core.command import Refused

FORMAT = "concord-shards"
VERSION = 1
MANIFEST = "manifest.json"


class DataError(Refused):
    """Data that cannot be used: the message says what is wrong, where, and what to do next."""


@dataclass(frozen=True)
class Field:
    """An array that samples carry under this name, as ``<key>.<name>.npy``."""

    dtype: str  # NumPy name: "int32", "float32"
    shape: tuple[int | None, ...]  # None marks the time axis; at most one


@dataclass(frozen=True)
class Sample:
    """One sample on its way into a shard. An array that a sample lacks is simply not there."""

    id: str  # as the source names it: "video$_$clip"
    arrays: dict[
        str, np.ndarray
    ]  # field name -> array at its true length, C-contiguous, little-endian
    text: str | None = None  # transcript, stored as <key>.txt
    extra: dict[str, Any] = field(
        default_factory=dict
    )  # plain JSON, stored with the id as <key>.json


@dataclass(frozen=True)
class Shard:
    """One tar file as the manifest knows it."""

    name: str  # "train-000000.tar"
    samples: int
    bytes: int
    sha256: str
    index_sha256: str  # of "train-000000.idx", the index beside the tar


@dataclass(frozen=True)
class Labels:
    """What the labels mean."""

    kind: str = "regression"  # or "classes"
    low: float = -3.0
    high: float = 3.0
    resolution: float | None = None  # annotated in multiples of this (1/5, 1/3); None: any float
    names: tuple[str, ...] = ()  # class names, for "classes"


@dataclass(frozen=True)
class Manifest:
    """Everything about a shard folder that is known without opening a shard."""

    name: str
    task: str  # "sentiment" or "alignment"
    fields: dict[str, Field]
    splits: dict[str, tuple[Shard, ...]]
    labels: Labels = Labels()
    synthetic: bool = False
    source: dict[str, Any] = field(
        default_factory=dict
    )  # file name, bytes, sha256, and the options of the conversion
    tokenizer: dict[str, Any] | None = (
        None  # name, vocab_size, sha256 of the vocabulary, special ids
    )
    moments: dict[str, tuple[list[float], list[float]]] = field(
        default_factory=dict
    )  # field -> mean, std of train frames
    max_length: dict[str, int] = field(default_factory=dict)  # field -> longest in any split
    repairs: dict[str, int] = field(
        default_factory=dict
    )  # what was mended on the way in, and how often
    extras: dict[str, Any] = field(
        default_factory=dict
    )  # further files of the folder: name -> sha256, and task facts

    def samples(self, split: str) -> int:
        return sum(shard.samples for shard in self.splits[split])

    def to_json(self) -> str:
        body = {"format": FORMAT, "version": VERSION, **asdict(self)}
        body["checksum"] = _checksum(body)
        return json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str, where: str) -> Manifest:
        """Parse and check; anything missing or of the wrong kind is a DataError that names ``where``."""
        try:
            body = json.loads(text, object_pairs_hook=_no_repeats, parse_constant=_no_constants)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{where} is not JSON ({error}); convert the data again, or restore the file"
            ) from error
        if not isinstance(body, dict) or (body.pop("format", None), body.pop("version", None)) != (
            FORMAT,
            VERSION,
        ):
            raise DataError(
                f"{where} is no manifest of {FORMAT!r}, version {VERSION}; convert the data again"
            )
        if body.pop("checksum", None) != _checksum({"format": FORMAT, "version": VERSION, **body}):
            raise DataError(
                f"{where} was changed after it was written; convert the data again, or restore the file"
            )
        try:
            manifest: Manifest = _decoder(Manifest)(body)
        except _Misfit as misfit:
            raise DataError(": ".join([where, *reversed(misfit.path), str(misfit)])) from misfit
        _check(manifest, where)
        return manifest


_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@-]*\.tar")  # never a folder, never hidden
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
NUMBERS = frozenset(
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128".split()
)  # what an array may hold; never objects, records or text


def _checksum(body: dict[str, Any]) -> str:
    """SHA-256 of a manifest's content, however laid out: nothing else guards a label range against a flipped bit."""
    text = json.dumps(
        body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} stands there twice")
    return body


def _no_constants(name: str) -> None:
    raise ValueError(f"{name} is not a number")


class _Misfit(Exception):
    """A value of the wrong kind: what was expected, and the path to it, innermost name first."""

    def __init__(self, what: str, *path: str):
        super().__init__(what)
        self.path = list(path)


@cache
def _decoder(hint: Any) -> Callable[[Any], Any]:
    """What turns a value from JSON into one of the type ``hint``, or raises a _Misfit; made once per type."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return lambda value: value
    if is_dataclass(hint):
        return _dataclass_decoder(hint)
    if origin in (Union, types.UnionType):
        (some,) = (_decoder(kind) for kind in inner if kind is not type(None))
        return lambda value: None if value is None else some(value)
    if origin is dict:
        return lambda value: _each(_decoder(inner[1]), _of(dict, value).items())
    if origin is list or origin is tuple and inner[-1] is Ellipsis:
        return lambda value: origin(_each(_decoder(inner[0]), enumerate(_of(list, value))).values())
    if origin is tuple:
        return lambda value: tuple(_decoder(kind)(item) for kind, item in _pairs(inner, value))
    if hint is float:
        return lambda value: float(value) if type(value) is int else _of(float, value)
    return lambda value: _of(hint, value)


def _dataclass_decoder(kind: Any) -> Callable[[Any], Any]:
    hints = get_type_hints(kind)
    decoders = {item.name: _decoder(hints[item.name]) for item in fields(kind)}
    needed = {
        item.name
        for item in fields(kind)
        if item.default is MISSING and item.default_factory is MISSING
    }

    def decode(value: Any) -> Any:
        body = _of(dict, value)
        if body.keys() != decoders.keys():
            if missing := needed - body.keys():
                raise _Misfit(f"{min(missing)!r} is missing")
            if unknown := body.keys() - decoders.keys():
                raise _Misfit(f"unknown {min(unknown)!r}")
        found = {}
        for name, item in body.items():
            try:
                found[name] = decoders[name](item)
            except _Misfit as misfit:
                misfit.path.append(name)
                raise
        return kind(**found)

    return decode


def _each(decode: Callable[[Any], Any], items: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    found = {}
    for name, item in items:
        try:
            found[name] = decode(item)
        except _Misfit as misfit:
            misfit.path.append(str(name))
            raise
    return found


def _pairs(kinds: tuple[Any, ...], value: Any) -> Iterable[tuple[Any, Any]]:
    if len(_of(list, value)) != len(kinds):
        raise _Misfit(f"expected {len(kinds)} values, found {len(value)}")
    return zip(kinds, value, strict=True)


def _of(kind: type, value: Any) -> Any:
    if type(value) is kind:  # a bool is no int here
        return value
    raise _Misfit(f"expected {kind.__name__}, found {str(value)[:80]!r}")


def _check(manifest: Manifest, where: str) -> None:
    """DataError for values of the right kind that cannot be right."""
    for name, shape in ((name, item.shape) for name, item in manifest.fields.items()):
        item = manifest.fields[name]
        _require(bool(_NAME.fullmatch(name)), where, f"field {name!r} is no plain name")
        _require(
            item.dtype in NUMBERS,
            where,
            f"field {name!r} has dtype {item.dtype!r}; only numbers are stored",
        )
        _require(
            len(shape) <= 8 and shape.count(None) <= 1, where, f"field {name!r} has shape {shape}"
        )
        _require(
            all(n is None or 0 <= n < 2**40 for n in shape),
            where,
            f"field {name!r} has shape {shape}",
        )
    _require(manifest.task in ("sentiment", "alignment"), where, f"unknown task {manifest.task!r}")
    _require(
        manifest.labels.kind in ("regression", "classes"),
        where,
        f"unknown labels {manifest.labels.kind!r}",
    )
    _require(
        all(_NAME.fullmatch(split) for split in manifest.splits), where, "a split has no plain name"
    )
    shards = [shard for split in manifest.splits.values() for shard in split]
    for shard in shards:
        plain, possible = (
            _SHARD_NAME.fullmatch(shard.name),
            0 < shard.samples <= shard.bytes < 2**50,
        )
        if not (
            plain
            and possible
            and _SHA256.fullmatch(shard.sha256)
            and _SHA256.fullmatch(shard.index_sha256)
        ):
            at = f"{where}: shard {shard.name!r}"
            _require(bool(plain), at, "this is no plain file name ending in .tar")
            _require(possible, at, f"{shard.samples} samples in {shard.bytes} bytes")
            _require(
                False, at, f"{shard.sha256[:80]!r} or {shard.index_sha256[:80]!r} is no SHA-256"
            )
    repeated = _repeated(shard.name for shard in shards)
    _require(repeated is None, where, f"shard {repeated!r} is listed twice")
    for name, (mean, std) in manifest.moments.items():
        _require(
            len(mean) == len(std),
            where,
            f"moments of {name!r}: {len(mean)} means, {len(std)} deviations",
        )
    for what, counts in (("max_length", manifest.max_length), ("repairs", manifest.repairs)):
        _require(
            all(count >= 0 for count in counts.values()), where, f"a negative number in {what}"
        )


def _require(condition: bool, where: str, what: str) -> None:
    if not condition:
        raise DataError(f"{where}: {what}; convert the data again, or restore the file")


def _repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a shard folder."""
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{folder} has no {MANIFEST}, so it is no finished shard folder; "
            f"make one with: python -m data_shards.convert RAW --out {folder}"
        )
    return parse_manifest(path.read_bytes(), str(path))


def parse_manifest(body: bytes, where: str) -> Manifest:
    """The manifest in the bytes of a file."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8 ({error}); convert the data again, or restore the file"
        ) from error
    return Manifest.from_json(text, where)
