"""A trained model as one folder, in the layout of a model hub, that needs neither DeepSpeed nor the training data.

``config.json`` names the model and holds its options and what it must know of its data, ``model.safetensors`` all
parameters and buffers, ``codebooks.safetensors`` the codebooks if there are any, ``text/config.json`` the architecture
of a pretrained text encoder (its weights are with the others), ``README.md`` is the model card.

    from core.bundle import load
    model, data = load("exported")
    scores = model(batch).score
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from core.encoders.text import TextEncoder
from core.model import DataSpec, Model
from core.models import MODELS

FORMAT, VERSION = "concord-model", 1


def save(
    folder: Path,
    name: str,
    options: Any,
    model: Model,
    data: DataSpec,
    card: str,
    about: Mapping[str, Any],
) -> None:
    """Write a new folder; it appears when it is complete.

    Args:
        name: of the model, a key of ``MODELS``.
        about: plain JSON to keep with it: schema of the data, scores, versions.

    Raises:
        ValueError: the folder is there already.
    """
    if folder.exists():
        raise ValueError(f"{folder} is there already; remove it, or give another folder")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    spec = {f.name: getattr(data, f.name) for f in fields(data) if f.name != "codebooks"}
    config = {
        "format": FORMAT,
        "version": VERSION,
        "model": name,
        "options": asdict(options),
        "data": spec,
        **about,
    }
    _write_json(partial / "config.json", config)
    tensors = {}
    for key, value in model.state_dict().items():
        tensors[key] = value.detach().cpu().clone().contiguous()
    save_file(tensors, partial / "model.safetensors")
    if data.codebooks:
        codebooks = {m: np.ascontiguousarray(centres) for m, centres in data.codebooks.items()}
        save_arrays(codebooks, partial / "codebooks.safetensors")
    encoder = getattr(model, "text", None)
    architecture = encoder.architecture() if isinstance(encoder, TextEncoder) else None
    if architecture is not None:
        (partial / "text").mkdir()
        _write_json(partial / "text/config.json", architecture)
    (partial / "README.md").write_text(card, encoding="utf-8")
    os.replace(partial, folder)


def load(folder: str | Path) -> tuple[Model, DataSpec]:
    """The model in evaluation mode, and what it knows of its data.

    Raises:
        ValueError: the folder is no such folder, or its parts do not belong together.
    """
    folder = Path(folder)
    config = read_config(folder)
    kind = MODELS[config["model"]]
    try:
        options: Any = TypeAdapter(kind.Config).validate_python(config["options"])
        data = TypeAdapter(DataSpec).validate_python(config["data"])
        codebooks = folder / "codebooks.safetensors"
        if codebooks.is_file():
            data = replace(data, codebooks=load_arrays(codebooks))
        if (folder / "text").is_dir():
            options = replace(options, text=replace(options.text, source=str(folder / "text")))
        model = kind(options, data)
        tensors = load_file(folder / "model.safetensors")
    except (ValidationError, SafetensorError, OSError) as error:
        raise ValueError(f"{folder} cannot be loaded: {error}") from None
    wanted = {key: value.shape for key, value in model.state_dict().items()}
    stored = {key: value.shape for key, value in tensors.items()}
    wrong = sorted(
        key for key in wanted.keys() | stored.keys() if wanted.get(key) != stored.get(key)
    )
    if wrong:
        raise ValueError(
            f"{folder}/model.safetensors does not fit the model of config.json: {', '.join(wrong[:5])}"
        )
    model.load_state_dict(tensors)
    return model.eval(), data


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json``, refused where it is not of an exported model that this code reads."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        found = (config["format"], config["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} holds no exported model: {error!r}; make one with python -m launch.export"
        ) from None
    if found != (FORMAT, VERSION) or config.get("model") not in MODELS:
        raise ValueError(
            f"{folder} holds a {found[0]} {found[1]} of {config.get('model')!r}, which this code cannot read"
        )
    return config


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
