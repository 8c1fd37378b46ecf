"""What a model must know of a shard folder, from its manifest; under the names by which it reads
the fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

from core.batch import Utterances
from core.model import DataSpec
from core.names import refusal
from data_shards.codebook import load_codebooks
from data_shards.shards.manifest import Manifest
from data_shards.shards.sentiment_schema import VIEW, are_token_ids, is_label
from launch.config import ConfigError, Roles

Value = TypeVar("Value")


def names_by_field(fields: Iterable[str], roles: Roles) -> dict[str, str]:
    """Field of the data -> the name by which models read it; a field whose name another one takes
    is left out.

    Raises:
        ConfigError: a role of a field that the data do not have, or of one that has another role.
    """
    modalities = [field for field in fields if not is_label(field)]
    given = {}  # role -> field, where they differ
    for role, field in asdict(roles).items():
        if field != role:
            given[role] = field
    refused = refusal("roles", given.values(), modalities, "the data has")
    if refused:
        raise ConfigError(refused)
    names: dict[str, str] = {}
    for role, field in given.items():
        if field in names:
            raise ConfigError(f"roles.{names[field]} and roles.{role} are both {field!r}")
        names[field] = role
    for field in modalities:
        if field not in names and field not in given:
            names[field] = field
    return {field: names[field] for field in modalities if field in names}


def renamed(values: Mapping[str, Value], names: Mapping[str, str]) -> dict[str, Value]:
    """Values by field as values by the models' names; those of fields that are left out are
    dropped."""
    return {names[field]: value for field, value in values.items() if field in names}


def in_roles(batch: Utterances, names: Mapping[str, str]) -> Utterances:
    """The batch under the names of ``names_by_field``."""
    if all(field == name for field, name in names.items()):
        return batch
    return replace(
        batch,
        frames=renamed(batch.frames, names),
        mask=renamed(batch.mask, names),
        present=renamed(batch.present, names),
        unimodal_labels=renamed(batch.unimodal_labels, names),
    )


def sentiment_spec(manifest: Manifest, folder: Path | None, names: Mapping[str, str]) -> DataSpec:
    """Of sentiment shards.

    Args:
        folder: where the codebook lies, if the folder has one; None for remote shards.
        names: of ``names_by_field``.
    """
    widths, longest, media = {}, {}, {}
    for field in names:
        spec = manifest.fields[field]
        widths[field] = 0 if are_token_ids(field, spec.dtype) else int(spec.shape[-1] or 0)
        if spec.media is not None:
            widths[field] = spec.media.width
            media[field] = spec.media.kind
        longest[field] = manifest.max_length.get(field, 0)
    tokenizer = manifest.tokenizer or {}
    return DataSpec(
        task="sentiment",
        features=renamed(widths, names),
        max_length=renamed(longest, names),
        label_range=(manifest.labels.low, manifest.labels.high),
        label_resolution=manifest.labels.resolution,
        num_classes=len(manifest.labels.names) if manifest.labels.kind == "classes" else 0,
        target_names=manifest.labels.names if manifest.labels.kind == "regression" else (),
        unimodal_labels=_with_human_labels(manifest, names),
        num_train=manifest.samples("train"),
        vocab_size=int(tokenizer.get("vocab_size", 0)),
        unknown_id=int(tokenizer.get("special", {}).get("unk") or 0),
        moments=renamed(manifest.moments, names),
        codebooks=renamed(load_codebooks(folder, manifest), names) if folder else {},
        media=renamed(media, names),
    )


def _with_human_labels(manifest: Manifest, names: Mapping[str, str]) -> tuple[str, ...]:
    """The modalities that have a field of labels of their own."""
    labelled = []
    for field in manifest.fields:
        modality = field.removeprefix(VIEW)
        if field.startswith(VIEW) and modality in names:
            labelled.append(names[modality])
    return tuple(labelled)
