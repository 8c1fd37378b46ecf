"""Text as token ids: through a local ``transformers`` tokenizer, or as somebody else's tokenizer gave them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.shards.manifest import DataError
from data_shards.sources.base import Options

LONGEST = 100_000  # a tokenizer that knows no limit of its own says some 10^30


class Tokenizer:
    """A ``transformers`` tokenizer from a folder; nothing is fetched."""

    def __init__(self, path: str, max_tokens: int | None = None):
        from transformers import AutoTokenizer

        if not Path(path).is_dir():
            raise DataError(
                f"--tokenizer {path}: no such folder; give the folder of a saved transformers tokenizer"
            )
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"--tokenizer {path}: transformers cannot load it ({error})") from None
        own = self.tokenizer.model_max_length
        self.max_tokens = max_tokens or (own if own < LONGEST else None)
        special = {
            "pad": "pad",
            "cls": "cls",
            "sep": "sep",
            "unk": "unk",
            "mask": "mask",
            "bos": "bos",
            "eos": "eos",
        }
        ids = {name: getattr(self.tokenizer, f"{part}_token_id") for name, part in special.items()}
        self.facts: dict[str, Any] = {
            "name": Path(path).resolve().name,
            "vocab_size": len(self.tokenizer),
            "sha256": _digest(self.tokenizer.get_vocab()),
            "special": {name: number for name, number in ids.items() if number is not None},
        }

    def encode(self, text: str, repairs: Counter[str]) -> np.ndarray:
        """Token ids of one text with the special tokens around them, (T,) int32."""
        ids = self.tokenizer.encode(text, verbose=False)
        if self.max_tokens is not None and len(ids) > self.max_tokens:
            repairs[f"texts cut to {self.max_tokens} tokens"] += 1
            ids = self.tokenizer.encode(text, truncation=True, max_length=self.max_tokens)
        return np.asarray(ids, dtype="<i4")


def _digest(vocabulary: Any) -> str:
    return hashlib.sha256(json.dumps(vocabulary, sort_keys=True).encode("utf-8")).hexdigest()


def from_vocabulary(words: list[str], largest: int) -> dict[str, Any]:
    """Manifest.tokenizer for ids that index ``words``, which the source carries itself."""
    if largest >= len(words):
        raise DataError(
            f"the file has a vocabulary of {len(words)} words, but a token id {largest}"
        )
    special = {
        word.strip("[]").lower(): place for place, word in enumerate(words) if word.startswith("[")
    }
    return {
        "name": "own vocabulary",
        "vocab_size": len(words),
        "sha256": _digest(words),
        "special": special,
    }


def from_bert(name: str, size: int, largest: int) -> dict[str, Any]:
    """Manifest.tokenizer for ids that BERT ``name`` is said to have made; only their size is known if it cannot."""
    if largest >= size:
        return {"name": "unknown", "vocab_size": largest + 1}
    special = {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103}
    return {"name": name, "vocab_size": size, "special": special}


def text_kind(
    options: Options, where: str, *, ids: str, raw: str, features: str, has: set[str]
) -> str:
    """What becomes of text: "tokens", "tokenize", "features", or "none" where there is nothing to choose.

    Args:
        ids, raw, features: what the source calls each kind of text.
        has: what it holds.
    """
    needs = {"tokens": ids, "tokenize": raw, "features": features}
    kind = options.text
    if kind == "auto":
        if options.tokenizer:
            kind = "tokenize"
        else:
            kind = next((kind for kind in ("tokens", "features") if needs[kind] in has), "none")
    if kind != "none" and needs[kind] not in has:
        raise DataError(
            f"{where} has no {needs[kind]!r}, which --text {kind} needs; it has {sorted(has)}"
        )
    if kind == "tokenize" and not options.tokenizer:
        raise DataError(
            "--text tokenize needs --tokenizer DIR, the folder of a transformers tokenizer"
        )
    if kind != "tokenize" and options.tokenizer:
        raise DataError(f"--tokenizer has no effect with --text {kind}; leave one of them out")
    if kind != "tokenize" and options.max_tokens is not None:
        raise DataError("--max-tokens has no effect without --tokenizer; leave it out")
    return kind
