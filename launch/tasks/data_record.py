"""What a run was trained on, in ``data.json`` of its directory, and whether other data are like it.

A model reads numbers; it cannot tell that its third feature is another one, that token 17 is
another word, or that 3 was the end of another scale. So the data that it is scored with must agree
in all that its inputs and outputs mean. A run of an earlier version has no record: of its data only
the shapes are compared, with those of the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from core.command import Refused
from core.file_access.json_files import read_json_object
from core.files import sha256_of_bytes, write_atomically
from data_shards.media.media_kinds import Media
from data_shards.shards.manifest import Field, Labels, Manifest, plain_fields
from data_shards.shards.sentiment_schema import is_label
from launch.config import ConfigError
from launch.tasks.task import Task

FORMAT, VERSION = "concord-data", 1
NAME = "data.json"


@dataclass(frozen=True)
class DataRecord:
    """The data that a model was made for."""

    task: str
    dataset: str
    fields: dict[str, Field]
    labels: Labels | None  # None for alignment
    tokenizer: dict[str, Any] | None
    content: str  # SHA-256 of the shards' own
    views: tuple[str, ...] = field(default=())  # modalities or views that the model reads

    def facts(self) -> dict[str, str]:
        """What must agree, by name, in words that can be compared and shown."""
        facts = {"task": self.task}
        for name in sorted(set(self.fields) & set(self.views)):
            facts[name] = _width(self.fields[name])
        if self.task == "alignment":  # such a model knows its entities by number
            facts["shards"] = f"SHA-256 {self.content[:16]}"
            return facts
        if self.tokenizer is not None and facts.get("text") == TOKENS:
            words = str(self.tokenizer.get("sha256", "unknown"))[:16]
            facts["vocabulary"] = f"{self.tokenizer.get('vocab_size')} tokens, SHA-256 {words}"
        if self.labels is not None:
            facts["labels"] = _meaning(self.labels)
        return facts


TOKENS = "token ids"


def _width(found: Field) -> str:
    if found.media is not None:
        return _media(found.media)
    if not found.dtype.startswith("float"):
        return TOKENS if None in found.shape else f"{found.shape[-1]} counts"
    return f"{found.shape[-1]} features"


def _media(media: Media) -> str:
    if media.kind == "sound":
        return f"sound of {media.rate:g} samples a second"
    return f"{media.rate:g} pictures a second of {media.side} pixels a side"


def _meaning(labels: Labels) -> str:
    if labels.kind == "classes":
        return f"classes {', '.join(labels.names)}"
    of = f" of {', '.join(labels.names)}" if labels.names else ""
    return f"scores from {labels.low:g} to {labels.high:g}{of}"


def record_of(task: Task) -> DataRecord:
    """The record of the data that a task has open."""
    views = tuple(name for name in task.data.features if not is_label(name))
    return record_of_manifest(task.manifest, views)


def record_of_manifest(manifest: Manifest, views: Iterable[str]) -> DataRecord:
    """The record of shards of which ``views`` are read."""
    return DataRecord(
        task=manifest.task,
        dataset=manifest.name,
        fields=manifest.fields,
        labels=manifest.labels if manifest.task == "sentiment" else None,
        tokenizer=manifest.tokenizer,
        content=_content(manifest),
        views=tuple(views),
    )


def _content(manifest: Manifest) -> str:
    names = []
    for split, shards in sorted(manifest.splits.items()):
        names += [f"{split} {shard.sha256}" for shard in shards]
    return sha256_of_bytes("\n".join(names).encode())


def write_record(run_dir: Path, task: Task) -> None:
    """Write ``data.json``, unless it is there."""
    path = run_dir / NAME
    if not path.exists():
        body = {"format": FORMAT, "version": VERSION, **plain_record(record_of(task))}
        write_atomically(path, json.dumps(body, indent=1, ensure_ascii=False) + "\n")


def plain_record(record: DataRecord) -> dict[str, Any]:
    """As plain JSON."""
    return asdict(record) | {"fields": plain_fields(record.fields)}


def read_record(run_dir: Path) -> DataRecord | None:
    """What ``data.json`` says; None where an earlier version has written none.

    Raises:
        ConfigError: it is no such record.
    """
    path = run_dir / NAME
    if not path.exists():
        return None
    try:
        content = read_json_object(path)
        found = (content.pop("format", None), content.pop("version", None))
        if found != (FORMAT, VERSION):
            raise Refused(f"{path} is {found[0]} {found[1]}, this code reads {FORMAT} {VERSION}")
        return TypeAdapter(DataRecord).validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path} is no record of data: {key}: {first['msg']}") from None
    except Refused as error:
        raise ConfigError(str(error)) from None


def refuse_other_data(run_dir: Path, task: Task, source: str) -> None:
    """Refuse data from ``source`` that the run in ``run_dir`` was not made for.

    Raises:
        ConfigError: with what the run was trained on and what there is, side by side.
    """
    recorded = read_record(run_dir)
    if recorded is None:
        return
    trained, here = recorded.facts(), record_of(task).facts()
    differ = [
        name for name in dict.fromkeys([*trained, *here]) if trained.get(name) != here.get(name)
    ]
    if not differ:
        return
    raise ConfigError(
        f"{run_dir} was trained on data of another kind than {source} holds ({', '.join(differ)} "
        "differ); give data=DIR of that kind, or train on these",
        side_by_side((f"{run_dir} was trained on", f"{source} holds"), trained, here, differ),
    )


def side_by_side(
    titles: tuple[str, str],
    trained: Mapping[str, str],
    here: Mapping[str, str],
    differ: Collection[str],
) -> list[str]:
    """Two sets of facts as lines of a table, a star before each that differs."""
    rows = [("", *titles)]
    for name in dict.fromkeys([*trained, *here]):
        mark = "*" if name in differ else " "
        rows.append((f"{mark} {name}", trained.get(name, "none"), here.get(name, "none")))
    return _columns(rows)


def _columns(rows: list[tuple[str, str, str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines
