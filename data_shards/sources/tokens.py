"""Text as token ids: through a local ``transformers`` tokenizer, or as they stand in a file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from core.encoders.pretrained import Source, load_tokenizer
from core.file_access.regular_files import check_regular_files_in
from core.files import sha256_of_bytes
from data_shards.shards.manifest import DataError
from data_shards.sources.raw_dataset import Options, as_string

LONGEST = 100_000  # a tokenizer that knows no limit of its own says some 10^30
SPECIAL_TOKENS = ("pad", "cls", "sep", "unk", "mask", "bos", "eos")

# What becomes of a data set's text. none: there is nothing to choose.
TextKind = Literal["tokens", "tokenize", "features", "none"]


class Tokenizer:
    """A ``transformers`` tokenizer from a folder; nothing is fetched."""

    def __init__(self, path: str, max_tokens: int | None = None):
        if not Path(path).is_dir():
            raise DataError(
                f"--tokenizer {path}: no such folder; "
                "give the folder of a saved transformers tokenizer"
            )
        check_regular_files_in(path)
        try:
            self.tokenizer = load_tokenizer(Source(path, "--tokenizer "))
        except ValueError as error:
            raise DataError(str(error)) from None
        limit = self.tokenizer.model_max_length
        self.max_tokens = max_tokens or (limit if limit < LONGEST else None)
        special = {}
        for name in SPECIAL_TOKENS:
            number = getattr(self.tokenizer, f"{name}_token_id")
            if number is not None:
                special[name] = number
        self.facts: dict[str, Any] = {
            "name": Path(path).resolve().name,
            "vocab_size": len(self.tokenizer),
            "sha256": _digest(self.tokenizer.get_vocab()),
            "special": special,
        }

    def encode(self, text: str, repairs: Counter[str]) -> np.ndarray:
        """Token ids of one text with the special tokens around them, (T,) int32."""
        ids = self.tokenizer.encode(text, verbose=False)
        if self.max_tokens is not None and len(ids) > self.max_tokens:
            repairs[f"texts cut to {self.max_tokens} tokens"] += 1
            ids = self.tokenizer.encode(text, truncation=True, max_length=self.max_tokens)
        return np.asarray(ids, dtype="<i4")


def is_vocabulary_of(tokenizer: Tokenizer, facts: Mapping[str, Any]) -> bool:
    """Whether a tokenizer gives the token ids that Manifest.tokenizer describes.

    Vocabularies are compared by checksum; of the ids of a published BERT only their number and the
    special tokens are known.
    """
    here = tokenizer.facts
    stated = facts.get("sha256")
    if stated is None:
        special = facts.get("special", {})
        same_special = all(here["special"].get(name) == special[name] for name in special)
        return bool(special) and same_special and here["vocab_size"] == facts.get("vocab_size")
    vocabulary = tokenizer.tokenizer.get_vocab()
    words = sorted(vocabulary, key=lambda word: vocabulary[word])
    return stated in (here["sha256"], _digest(words))


def _digest(vocabulary: Any) -> str:
    return sha256_of_bytes(json.dumps(vocabulary, sort_keys=True).encode("utf-8"))


def words_of(vocabulary: Any, where: str) -> list[str]:
    """The words by id of a vocabulary: a list or array of them, or a dict from word to id."""
    if isinstance(vocabulary, dict):
        ids = sorted(vocabulary.values(), key=str)
        if sorted(map(str, range(len(vocabulary)))) != list(map(str, ids)):
            raise DataError(f"{where}: a dict must give each word its own id, from 0 on")
        vocabulary = sorted(vocabulary, key=lambda word: int(vocabulary[word]))
    is_array = isinstance(vocabulary, np.ndarray) and vocabulary.ndim == 1
    if not is_array and not isinstance(vocabulary, list | tuple):
        raise DataError(
            f"{where}: a {type(vocabulary).__name__}; it must be a list of words by token id, "
            "or a dict from word to id"
        )
    return [as_string(word, f"{where}: word {number}") for number, word in enumerate(vocabulary)]


def from_vocabulary(words: list[str], largest: int, where: str) -> dict[str, Any]:
    """Manifest.tokenizer for ids that index ``words``, which the raw file carries itself."""
    if largest >= len(words):
        raise DataError(f"{where}: {len(words)} words, but there is a token id {largest}")
    special = {}
    for number, word in enumerate(words):
        if word.startswith("["):  # "[PAD]"
            special[word.strip("[]").lower()] = number
    return {
        "name": "own vocabulary",
        "vocab_size": len(words),
        "sha256": _digest(words),
        "special": special,
    }


def from_bert(name: str, size: int, largest: int) -> dict[str, Any]:
    """Manifest.tokenizer for ids of BERT ``name``; only their number is known if it has fewer."""
    if largest >= size:
        return {"name": "unknown", "vocab_size": largest + 1}
    special = {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103}
    return {"name": name, "vocab_size": size, "special": special}


def chosen_text(
    options: Options, where: str, *, ids: str, raw: str, features: str, has: set[str]
) -> tuple[TextKind, Tokenizer | None]:
    """What becomes of text, and the tokenizer for it where the raw text is tokenized here.

    Args:
        ids, raw, features: what the raw file calls each kind of text.
        has: which of these it holds, among others.
    """
    needs: dict[TextKind, str] = {"tokens": ids, "tokenize": raw, "features": features}
    kind: TextKind
    if options.text != "auto":
        kind = options.text
    elif options.tokenizer:
        kind = "tokenize"
    elif ids in has:
        kind = "tokens"
    elif features in has:
        kind = "features"
    else:
        kind = "none"
    if kind != "none" and needs[kind] not in has:
        raise DataError(
            f"{where} has no {needs[kind]!r}, which --text {kind} needs; it has {sorted(has)}"
        )
    if kind == "tokenize":
        if not options.tokenizer:
            raise DataError(
                "--text tokenize needs --tokenizer DIR, the folder of a transformers tokenizer"
            )
        return kind, Tokenizer(options.tokenizer, options.max_tokens)
    if options.tokenizer:
        raise DataError(f"--tokenizer has no effect with --text {kind}; leave one of them out")
    if options.max_tokens is not None:
        raise DataError("--max-tokens has no effect without --tokenizer; leave it out")
    return kind, None
