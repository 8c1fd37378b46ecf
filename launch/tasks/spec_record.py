"""What a model must know of its data, kept in its run's directory: ``data_spec.json`` and, where
there are codebooks, ``codebooks.safetensors``.

With them a run can be exported, and new samples scored, where its shards are no more.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from core.command import Refused
from core.file_access.json_files import read_json_object
from core.file_access.regular_files import read_regular_file
from core.files import write_atomically
from core.model import DataSpec
from launch.config import ConfigError
from launch.tasks.task import Task

FORMAT, VERSION = "concord-data-spec", 1
NAME, CODEBOOKS = "data_spec.json", "codebooks.safetensors"


@dataclass(frozen=True)
class SpecRecord:
    """A data set as its models know it."""

    data: DataSpec
    # field of the data -> the name by which models read it
    names: dict[str, str]
    synthetic: bool = False
    # at which texts were cut when they became token ids; None: the tokenizer's own limit
    max_tokens: int | None = None
    # how features were made from clips, as the manifest has it; None: not by this project
    extraction: dict[str, Any] | None = None


def spec_of(task: Task) -> SpecRecord:
    """The record of the data that a task has open."""
    manifest = task.manifest
    names = getattr(task, "names", None)  # of sentiment; views of entities have no roles
    extraction = getattr(manifest, "extraction", None)
    return SpecRecord(
        data=task.data,
        names=dict(names) if names else {name: name for name in task.data.features},
        synthetic=manifest.synthetic,
        max_tokens=manifest.source.get("options", {}).get("max_tokens"),
        extraction=asdict(extraction) if extraction is not None else None,
    )


def write_spec(run_dir: Path, task: Task) -> None:
    """Write the record, unless it is there. The JSON file comes last: it vouches for the other."""
    if (run_dir / NAME).exists():
        return
    record = spec_of(task)
    codebooks = record.data.codebooks
    if codebooks:
        stored = {name: np.ascontiguousarray(centres) for name, centres in codebooks.items()}
        write_atomically(run_dir / CODEBOOKS, safetensors.numpy.save(stored))
    body = {
        "format": FORMAT,
        "version": VERSION,
        "data": plain_spec(record.data),
        "codebooks": sorted(codebooks),
        "names": record.names,
        "synthetic": record.synthetic,
        "max_tokens": record.max_tokens,
        "extraction": record.extraction,
    }
    write_atomically(run_dir / NAME, json.dumps(body, indent=1, ensure_ascii=False) + "\n")


def plain_spec(data: DataSpec) -> dict[str, Any]:
    """All but the codebooks, as plain JSON."""
    return data.plain()


def read_spec(run_dir: Path) -> SpecRecord | None:
    """What was written; None where an earlier version has written none.

    Raises:
        ConfigError: it is no such record, or its codebooks are not there.
    """
    path = run_dir / NAME
    if not path.exists():
        return None
    try:
        content = read_json_object(path)
        found = (content.pop("format", None), content.pop("version", None))
        if found != (FORMAT, VERSION):
            raise Refused(f"{path} is {found[0]} {found[1]}, this code reads {FORMAT} {VERSION}")
        wanted = content.pop("codebooks", [])
        record = TypeAdapter(SpecRecord).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path} is no record of data: {key}: {first['msg']}") from None
    except Refused as error:
        raise ConfigError(str(error)) from None
    if not wanted:
        return record
    codebooks = _read_codebooks(run_dir / CODEBOOKS)
    if sorted(codebooks) != wanted:
        raise ConfigError(f"{run_dir / CODEBOOKS} holds {sorted(codebooks)}, {path} wants {wanted}")
    return replace(record, data=replace(record.data, codebooks=codebooks))


def _read_codebooks(path: Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load(read_regular_file(path))
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}; give the shards of the run as data=DIR"
        ) from None
