"""Models that nobody has trained, exported as trained ones are: what tests of scoring need."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from small_models import small_options

from core import bundle
from core.model import DataSpec
from core.models import MODELS
from data_shards.shards.manifest import Field, Labels
from data_shards.synthetic import vocabulary, write_tokenizer
from launch.bundles.tokenizer_files import tokenizer_files
from launch.tasks.data_record import DataRecord


def untrained_bundle(
    folder: Path,
    model: str = "baseline",
    *,
    widths: dict[str, int] | None = None,
    names: tuple[str, ...] = (),
    with_tokenizer: bool = True,
    extraction: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """A bundle of random weights that reads the made-up words and frames of some widths.

    Args:
        names: of classes; none for scores from -3 to 3.
    """
    widths = {"audio": 5, "vision": 20} if widths is None else widths
    words = vocabulary()
    fields = {"text": Field("int32", (None,))}
    fields |= {name: Field("float32", (None, width)) for name, width in widths.items()}
    labels = Labels(kind="classes", names=names) if names else Labels()
    fields["class" if names else "label"] = Field("int64" if names else "float32", ())
    data = DataSpec(
        task="sentiment",
        features={"text": 0, **widths},
        max_length={"text": 20} | dict.fromkeys(widths, 60),
        num_classes=len(names),
        num_train=8,
        vocab_size=len(words),
        unknown_id=words.index("[UNK]"),
        moments={name: ([0.1] * width, [1.5] * width) for name, width in widths.items()},
    )
    torch.manual_seed(0)
    settings = small_options(model, modalities=("text", *widths), **options)
    built = MODELS[model](settings, data)
    tokenizer = folder.with_name(f"{folder.name}-tokenizer")
    write_tokenizer(tokenizer)
    facts = json.loads(json.dumps(_facts(tokenizer)))
    record = DataRecord(
        "sentiment", "made up", fields, labels, facts, "0" * 64, tuple(data.features)
    )
    about = {
        "recipe": f"{model}/demo",
        "schema": asdict(record) | {"synthetic": True, "moments": data.moments},
        "roles": {name: name for name in data.features},
        "facts": {"bounds": dict.fromkeys(widths, 2.0), "constant": {}},
        "extraction": extraction,
    }
    files = tokenizer_files(tokenizer) if with_tokenizer else {}
    bundle.save(folder, model, settings, built, data, "# card\n", about, files)
    return folder


def _facts(tokenizer: Path) -> dict[str, Any]:
    from data_shards.sources.tokens import Tokenizer

    return Tokenizer(str(tokenizer)).facts


def changed_config(folder: Path, **changes: Any) -> None:
    """Change entries of a bundle's ``config.json``; None takes one away."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    kept = {key: value for key, value in config.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")
