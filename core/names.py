"""Names that a person writes: what to say where they are none, with the nearest of those that there
are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def suggest(word: str, words: Iterable[str]) -> str:
    """The end of a sentence that asks whether the nearest of ``words`` was meant; empty when none
    is near."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def unknown_names(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Those of ``names`` that are not among the ``known``, in their order, each once."""
    known = set(known)
    return [name for name in dict.fromkeys(names) if name not in known]


def refusal(setting: str, names: Iterable[str], known: Iterable[str], owner: str) -> str:
    """What is wrong with a setting's names: the first unknown one, what there is, and the nearest;
    "" if nothing.

    Args:
        owner: who has the known names, as the beginning of a clause: "the data has".
    """
    known = list(known)
    unknown = unknown_names(names, known)
    if not unknown:
        return ""
    there = ", ".join(known) or "none"
    return f"{setting} names {unknown[0]}, but {owner} {there}{suggest(unknown[0], known)}"


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= leaves(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nearest_ending(word: str, keys: Iterable[str]) -> str:
    """The dotted key that ends in ``word``; of several the main group's, then the shortest. "" if
    none does."""
    ending = [key for key in keys if key.rpartition(".")[2] == word]
    return min(ending, key=lambda key: (".main." not in key, len(key)), default="")
