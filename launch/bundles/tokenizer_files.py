"""The tokenizer that made a model's token ids: found again, compared, and put into its bundle."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.command import Refused
from data_shards.sources.tokens import Tokenizer, is_vocabulary_of

FOLDER = "tokenizer"  # in a bundle
# What loads with the library's own code; a tokenizer's folder may hold the model too.
NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
)
_PLACES = ("name_or_path", "vocab_file", "tokenizer_file")  # paths of the machine that saved it


def find_tokenizer(
    facts: Mapping[str, Any] | None, given: Path | None, options: Any = None
) -> Path | None:
    """The folder of the tokenizer with the vocabulary of ``facts``; None where none is known.

    Args:
        facts: what the manifest says of it; None: the data hold no token ids.
        given: the folder that the user names; it must fit.
        options: of the model: a pretrained text encoder's folder often holds its tokenizer too.

    Raises:
        Refused: the given one has another vocabulary, or does not belong there.
    """
    if facts is None:
        if given is not None:
            raise Refused(
                f"--tokenizer {given} has no effect: the model reads no token ids; leave it out"
            )
        return None
    if given is not None:
        _refuse_other_vocabulary(given, facts)
        return given
    source = getattr(getattr(options, "text", None), "source", "")
    folder = Path(source) if source else None
    if folder is None or not any((folder / name).is_file() for name in NAMES[:2]):
        return None
    try:
        tokenizer = Tokenizer(str(folder))
    except Refused:
        return None  # what else lies there is the encoder's affair
    return folder if is_vocabulary_of(tokenizer, facts) else None


def _refuse_other_vocabulary(folder: Path, facts: Mapping[str, Any]) -> None:
    tokenizer = Tokenizer(str(folder))
    if is_vocabulary_of(tokenizer, facts):
        return
    here = tokenizer.facts
    rows = [("", "the model's data", str(folder))]
    for key in ("name", "vocab_size", "sha256", "special"):
        rows.append((key, str(facts.get(key, "unknown"))[:60], str(here.get(key))[:60]))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    table = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        table.append("  ".join(cells).rstrip())
    raise Refused(
        f"--tokenizer {folder} has another vocabulary than the data that the model was trained "
        "on; give the one that converted them",
        table,
    )


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Name in a bundle -> content, as the library itself saves it, without paths of this machine."""
    contents: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory(prefix="concord-") as scratch:
        Tokenizer(str(folder)).tokenizer.save_pretrained(scratch)
        for path in sorted(Path(scratch).iterdir()):
            if path.name in NAMES:
                contents[f"{FOLDER}/{path.name}"] = _without_places(path)
    return contents


def _without_places(path: Path) -> bytes:
    body = path.read_bytes()
    if path.name != "tokenizer_config.json":
        return body
    settings = json.loads(body)
    kept = {key: value for key, value in settings.items() if key not in _PLACES}
    return (json.dumps(kept, indent=1, ensure_ascii=False) + "\n").encode("utf-8")
