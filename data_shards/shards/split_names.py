"""Which split a tar or a row belongs to, and which splits training cannot do without."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from data_shards.shards.manifest import DataError

SPLITS = ("train", "valid", "test")
NEEDED = ("train", "valid")  # by training: one to learn from, one to select by
# How people call the splits.
SPLIT_NAMES = {
    "train": "train",
    "valid": "valid",
    "test": "test",
    "dev": "valid",
    "val": "valid",
    "validation": "valid",
}
_PLAIN = re.compile(r"[A-Za-z0-9_-]+")
_PART = re.compile(r"(?P<name>.*?)(?P<number>\d+)-of-(?P<total>\d+)")


def split_called(name: Any) -> str | None:
    """The split that people call ``name``; None for anything else."""
    return SPLIT_NAMES.get(name.casefold()) if isinstance(name, str) else None


def missing_splits(splits: Iterable[str]) -> list[str]:
    """The splits that training needs and that are not there."""
    there = set(splits)
    return [split for split in NEEDED if split not in there]


def describe_missing(splits: Iterable[str]) -> str:
    """Which splits training would lack, and what to do, as a sentence; empty where it has all."""
    there = list(splits)
    missing = missing_splits(there)
    if not missing:
        return ""
    return (
        f"no {' and no '.join(missing)} split, and training needs it; there are samples in "
        f"{', '.join(there)} alone: give some rows or tars that split, then convert or index again"
    )


def in_order(tars: Iterable[Path]) -> list[Path]:
    """By name, with numbers by their value: train-2.tar before train-10.tar."""
    return sorted(tars, key=lambda path: (_natural(path.name), path.name))


def tars_by_split(
    tars: Sequence[Path], stated: Sequence[str], by_name: Callable[[Path], str]
) -> dict[str, list[Path]]:
    """Split -> its tars in order.

    Args:
        stated: "PATTERN=SPLIT" for the tars whose names match, or "SPLIT" for all others.
        by_name: the split of a tar about which nothing is stated.
    """
    # what is stated of some tars comes before what is stated of all others
    rules = sorted([_rule(text) for text in stated], key=lambda rule: rule[0] == "*")
    unused = {pattern for pattern, _ in rules}
    splits: dict[str, list[Path]] = {}
    for path in tars:
        match = next((rule for rule in rules if fnmatchcase(path.name, rule[0])), None)
        if match is None:
            split = by_name(path)
        else:
            unused.discard(match[0])
            split = match[1]
        splits.setdefault(split, []).append(path)
    if unused:
        raise DataError(f"--split: {sorted(unused)[0]!r} matches no tar that is left for it")
    usual = [split for split in SPLITS if split in splits]
    others = [split for split in splits if split not in SPLITS]
    return {split: splits[split] for split in (*usual, *others)}


def check_parts(tars: Iterable[Path]) -> None:
    """DataError where of ``train-00000-of-00002.tar`` and ``train-00001-of-00002.tar`` one
    lacks."""
    groups: dict[tuple[str, str, int], set[int]] = {}
    for path in tars:
        part = _PART.fullmatch(path.stem)
        if part is not None:
            group = (part["name"], part["total"], len(part["number"]))
            groups.setdefault(group, set()).add(int(part["number"]))
    for (name, total, digits), found in groups.items():
        first = 0 if 0 in found else 1
        lacking = set(range(first, first + int(total))) - found
        if lacking:
            raise DataError(
                f"{name}{min(lacking):0{digits}d}-of-{total}.tar is missing, one of {len(lacking)} "
                f"of {int(total)} parts; fetch it, or rename the tars if there are no more"
            )


def check_needed(splits: dict[str, list[Path]], folder: Path) -> None:
    """DataError where a split that training needs has no tars."""
    missing = missing_splits(splits)
    if not missing:
        return
    found = []
    for split, tars in splits.items():
        more = f" and {len(tars) - 1} more" if len(tars) > 1 else ""
        found.append(f"{split} is {tars[0].name}{more}")
    raise DataError(
        f"{folder}: no tar is of the split {missing[0]}, and training needs {' and '.join(NEEDED)} "
        f"({', '.join(found)}); rename tars, such as {missing[0]}-0.tar, or say "
        f"--split 'PATTERN={missing[0]}'; to index arrays that are only streamed, --task arrays"
    )


def split_at_start(path: Path) -> str:
    """What stands before the number in the name: things for things-000012.tar."""
    return re.sub(r"[-_.]?\d+$", "", path.stem) or "train"


def split_in_name(path: Path) -> str:
    """The split whose name is among the words of the tar's."""
    words = re.split(r"[^a-z]+", path.stem.casefold())
    named = {split for split in map(split_called, words) if split is not None}
    if len(named) == 1:
        return named.pop()
    names = f"the splits {' and '.join(sorted(named))}" if named else "no split"
    raise DataError(
        f"{path}: its name names {names}; rename it, such as train-0.tar or val-0.tar, or say "
        f"--split '{path.stem}=train'; known are {', '.join(SPLIT_NAMES)}"
    )


def _rule(text: str) -> tuple[str, str]:
    """The pattern of whole file names, and the split that it stands for."""
    pattern, equals, name = text.rpartition("=")
    split = split_called(name) or name
    if (equals and not pattern) or not _PLAIN.fullmatch(split):
        raise DataError(
            f"--split {text!r}: expected SPLIT, or PATTERN=SPLIT such as 'b*.tar=valid'"
        )
    if not equals:
        return "*", split
    return (pattern if pattern.endswith((".tar", "*")) else f"{pattern}.tar"), split


def _natural(name: str) -> list[tuple[int, str]]:
    """What is between the digits, and the digits by value."""
    pieces = re.split(r"(\d+)", name)
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces]
