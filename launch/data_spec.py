"""What a model must know of a shard folder, from its manifest."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from core.model import DataSpec
from data_shards.schema import DataError, Manifest
from data_shards.utterances import LABELS

CODEBOOK = "codebook.npz"


def sentiment_spec(manifest: Manifest, folder: Path | None) -> DataSpec:
    """Of sentiment shards. ``folder`` is where the codebook lies, if the folder has one; None for remote shards."""
    modalities = {name: spec for name, spec in manifest.fields.items() if name not in LABELS}
    floats = {name: spec.dtype.startswith("float") for name, spec in modalities.items()}
    tokenizer = manifest.tokenizer or {}
    return DataSpec(
        task="sentiment",
        features={name: int(spec.shape[-1] or 0) if floats[name] else 0 for name, spec in modalities.items()},
        max_length={name: manifest.max_length.get(name, 0) for name in modalities},
        label_range=(manifest.labels.low, manifest.labels.high),
        label_resolution=manifest.labels.resolution,
        num_classes=len(manifest.labels.names) if manifest.labels.kind == "classes" else 0,
        num_train=manifest.samples("train"),
        vocab_size=int(tokenizer.get("vocab_size", 0)),
        unknown_id=int(tokenizer.get("special", {}).get("unk") or 0),
        moments={name: moments for name, moments in manifest.moments.items() if name in modalities},
        codebooks=_codebooks(manifest, folder),
    )


def _codebooks(manifest: Manifest, folder: Path | None) -> dict[str, np.ndarray]:
    said = manifest.extras.get(CODEBOOK)
    if said is None or folder is None:
        return {}
    path = folder / CODEBOOK
    again = f"make it again with: python -m data_shards.codebook {folder}"
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != said:
        raise DataError(f"{path} is not the one that the manifest vouches for; {again}")
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
