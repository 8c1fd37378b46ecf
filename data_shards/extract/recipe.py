"""How features were made from clips, so that new clips can be treated in the same way.

The recipe lies beside the table that ``concord extract`` writes, as ``extraction.json``, and in the
manifest of the shards that the table is converted to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from core.command import Refused
from core.file_access.regular_files import read_regular_text

RECIPE_FILE = "extraction.json"  # beside the table

Align = Literal["none", "words"]  # words: a frame is the mean over one word
Option = str | int | float | bool

_STRICT = ConfigDict(strict=True, extra="forbid")


@dataclass(frozen=True)
class ExtractorRecord:
    """One extractor with all that decides about its numbers."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    modality: str  # "text", "audio", "vision": the field of the shards
    name: str  # as the registry lists it: "egemaps", "face68", "hf", "whisper", "given"
    version: str  # of this project's code and of the library that computes
    options: dict[str, Option] = field(default_factory=dict)  # every one, defaults too
    width: int = 0  # features of a frame; 0: text, which a tokenizer turns into tokens
    frame_rate: float = 0.0  # frames in a second, before --align; 0: text
    licence: str = ""
    checksum: str = ""  # SHA-256 of the model's files; empty where there are none


@dataclass(frozen=True)
class ExtractionRecipe:
    """All extractors of a data set, at most one for each modality."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    extractors: tuple[ExtractorRecord, ...]
    align: Align = "none"

    def record(self, modality: str) -> ExtractorRecord | None:
        """The extractor of a modality."""
        for record in self.extractors:
            if record.modality == modality:
                return record
        return None

    def renamed(self, names: Mapping[str, str]) -> ExtractionRecipe:
        """The recipe with modalities under new names, as ``convert --rename`` gives them."""
        records = []
        for record in self.extractors:
            records.append(replace(record, modality=names.get(record.modality, record.modality)))
        return replace(self, extractors=tuple(records))

    def to_json(self) -> str:
        """The text of ``extraction.json``."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str, where: str) -> ExtractionRecipe:
        """Parse and check; Refused names ``where`` if anything is missing or wrong."""
        try:
            recipe = _adapter().validate_json(text)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            place = ".".join(map(str, problem["loc"])) or "the file"
            raise Refused(
                f"{where}: {place}: {problem['msg']}; extract the clips again, or restore the file"
            ) from None
        modalities = [record.modality for record in recipe.extractors]
        if len(set(modalities)) < len(modalities):
            raise Refused(f"{where}: two extractors of one modality, {sorted(modalities)}")
        return recipe


@cache
def _adapter() -> TypeAdapter[ExtractionRecipe]:
    return TypeAdapter(ExtractionRecipe)


def read_recipe(folder: Path) -> ExtractionRecipe | None:
    """The recipe that lies in a folder; None where there is none."""
    path = folder / RECIPE_FILE
    try:
        text = read_regular_text(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return ExtractionRecipe.from_json(text, str(path))
