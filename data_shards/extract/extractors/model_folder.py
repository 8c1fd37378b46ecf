"""The folder of a ``transformers`` model that an extractor uses: where it is and what identifies it.

Nothing is fetched here: features that cannot be made again are no use. What is loaded from a folder
is loaded by ``core/encoders/pretrained.py``, which runs no code from it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from core.command import Refused
from core.encoders.pretrained import Source, hide_progress
from core.file_access.regular_files import check_regular_files_in
from core.files import sha256_of_file
from data_shards.extract.recipe import Option

# What decides about an encoder's numbers, and of a recogniser also about its words.
_DECISIVE = (
    "config.json",
    "preprocessor_config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
)


def model_source(modality: str, name: str, options: Mapping[str, Option]) -> Source:
    """The folder that an extractor was given; Refused where there is none."""
    source = Source(str(options["path"]), f"--{modality} {name}:")
    if source.folder is None:
        raise Refused(
            f"{source}: no such folder; give the folder of a saved transformers model, with its "
            "config.json, model.safetensors and preprocessor_config.json"
        )
    check_regular_files_in(source.folder)
    hide_progress()
    return source


def checksum_of_model(folder: Path) -> str:
    """SHA-256 of the checksums of all files that decide about what a model answers."""
    names = [name for name in _DECISIVE if (folder / name).is_file()]
    names += sorted(path.name for path in folder.glob("*.safetensors"))
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name} {sha256_of_file(folder / name)}\n".encode())
    return digest.hexdigest()


def library_version(own: str) -> str:
    """The version of an extractor: its own, and that of the library that computes."""
    return f"{own} transformers {version('transformers')}"
