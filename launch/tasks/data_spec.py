"""What a model must know of a shard folder, from its manifest."""

from __future__ import annotations

from pathlib import Path

from core.model import DataSpec
from data_shards.codebook import load_codebooks
from data_shards.shards.manifest import Manifest
from data_shards.shards.sentiment_schema import are_token_ids, is_label


def sentiment_spec(manifest: Manifest, folder: Path | None) -> DataSpec:
    """Of sentiment shards. ``folder`` is where the codebook lies, if the folder has one; None for
    remote shards."""
    modalities = {name: spec for name, spec in manifest.fields.items() if not is_label(name)}
    widths = {}
    for name, spec in modalities.items():
        widths[name] = 0 if are_token_ids(name, spec.dtype) else int(spec.shape[-1] or 0)
    tokenizer = manifest.tokenizer or {}
    return DataSpec(
        task="sentiment",
        features=widths,
        max_length={name: manifest.max_length.get(name, 0) for name in modalities},
        label_range=(manifest.labels.low, manifest.labels.high),
        label_resolution=manifest.labels.resolution,
        num_classes=len(manifest.labels.names) if manifest.labels.kind == "classes" else 0,
        num_train=manifest.samples("train"),
        vocab_size=int(tokenizer.get("vocab_size", 0)),
        unknown_id=int(tokenizer.get("special", {}).get("unk") or 0),
        moments={name: moments for name, moments in manifest.moments.items() if name in modalities},
        codebooks=load_codebooks(folder, manifest) if folder else {},
    )
