"""A trained model as one folder, in the layout of a model hub, that needs neither DeepSpeed nor the
training data.

``config.json`` names the model and holds its options and what it must know of its data,
``model.safetensors`` all parameters and buffers, ``codebooks.safetensors`` the codebooks if there
are any, ``text/config.json`` the architecture of a pretrained text encoder (its weights are with
the others), ``audio/`` and ``vision/`` architecture and preparation of encoders of sound and
pictures, ``tokenizer/`` the tokenizer, where the model reads tokens, ``README.md`` is the model
card. How the features were made, how far training data lie apart and the like stand in
``config.json`` for those who score new samples (``launch.predicting``).

    from core.bundle import load
    model, data = load("exported")
    scores = model(batch).score
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file

from core.building import build_model
from core.command import Refused
from core.encoders.backbones.media_encoders import ENCODED
from core.encoders.text import TextEncoder
from core.file_access.json_files import read_json_object
from core.file_access.regular_files import check_regular_file
from core.file_access.targets import check_new_folder
from core.files import partial_path, sync_folder, write_atomically
from core.model import DataSpec, Model
from core.models import MODELS
from core.sketch import sketch

FORMAT, VERSION = "concord-model", 1


def save(
    folder: Path,
    name: str,
    options: Any,
    model: Model,
    data: DataSpec,
    card: str,
    about: Mapping[str, Any],
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a new folder; it appears when it is complete.

    Args:
        name: of the model, a key of ``MODELS``.
        about: plain JSON to keep with it: schema of the data, scores, versions.
        files: name -> content of further files, such as those of the tokenizer.

    Raises:
        ValueError: the folder is there already, or cannot be made.
        OSError: there is no room; nothing of the folder is left.
    """
    tensors = {}
    for key, value in model.state_dict().items():
        tensors[key] = value.detach().cpu().clone().contiguous()
    check_new_folder(folder, sum(value.nbytes for value in tensors.values()))
    config = {
        "format": FORMAT,
        "version": VERSION,
        "model": name,
        "options": asdict(options),
        "data": data.plain(),
        **about,
    }
    contents = {
        "config.json": _json(config),
        "model.safetensors": safetensors.torch.save(tensors),
        "README.md": card.encode("utf-8"),
    }
    if data.codebooks:
        codebooks = {m: np.ascontiguousarray(centres) for m, centres in data.codebooks.items()}
        contents["codebooks.safetensors"] = safetensors.numpy.save(codebooks)
    encoder = getattr(model, "text", None)
    architecture = encoder.architecture() if isinstance(encoder, TextEncoder) else None
    if architecture is not None:
        contents["text/config.json"] = _json(architecture)
    encoders: Any = getattr(model, "media_encoders", {})
    for role, media_encoder in encoders.items():
        for file, content in media_encoder.files().items():
            contents[f"{role}/{file}"] = _json(content)
    contents |= files or {}
    _write_folder(folder, contents)


def _write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """All files, or nothing: no part of the folder stays when one of them cannot be written."""
    partial = partial_path(folder)
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    try:
        partial.mkdir(parents=True)
        for name, content in contents.items():
            path = partial / name
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, content)
        os.replace(partial, folder)
    except OSError as error:
        error.filename = str(folder)  # the name that was asked for
        error.filename2 = None
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync_folder(folder.parent)


def load(folder: str | Path) -> tuple[Model, DataSpec]:
    """The model in evaluation mode, and what it knows of its data.

    Raises:
        ValueError: the folder is no such folder, or its parts do not belong together.
    """
    folder = Path(folder)
    config = read_config(folder)
    try:
        return _build(folder, config)
    except Refused:
        raise
    except Exception as error:  # whatever an odd config.json makes a model stumble over
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise Refused(
            f"{folder}/config.json describes no model that can be built: {reason[:500]}; "
            "export the run again"
        ) from None


def _build(folder: Path, config: Mapping[str, Any]) -> tuple[Model, DataSpec]:
    name = config["model"]
    kind = MODELS[name]
    options: Any = _validated(kind.Config, config, "options", folder)
    data: DataSpec = _validated(DataSpec, config, "data", folder)
    if data.task != kind.task:
        raise Refused(f"{folder}/config.json: {config['model']} is no model of {data.task} data")
    codebooks = folder / "codebooks.safetensors"
    if codebooks.exists():
        data = replace(data, codebooks=_read_tensors(codebooks, load_arrays))
    if (folder / "text").is_dir():
        options = replace(options, text=replace(options.text, source=str(folder / "text")))
    for role in ENCODED:
        if (folder / role).is_dir():
            encoder = replace(getattr(options.inputs, role), source=str(folder / role))
            options = replace(options, inputs=replace(options.inputs, **{role: encoder}))
    tensors = _read_tensors(folder / "model.safetensors", load_file)
    # before any memory is taken for what config.json asks for
    build = partial(build_model, name, options, data)
    shapes_only = sketch(build, len(tensors), f"{folder}/config.json")
    if shapes_only is not None:
        _check_fits(folder, tensors, shapes_only)
    model = build()
    _check_fits(folder, tensors, model)
    model.load_state_dict(tensors)
    return model.eval(), data


def _check_fits(folder: Path, tensors: Mapping[str, Any], model: Model) -> None:
    """Refused unless the tensors are those of the model."""
    wanted = {key: (value.shape, value.dtype) for key, value in model.state_dict().items()}
    stored = {key: (value.shape, value.dtype) for key, value in tensors.items()}
    wrong = sorted(
        key for key in wanted.keys() | stored.keys() if wanted.get(key) != stored.get(key)
    )
    if wrong:
        raise Refused(
            f"{folder}/model.safetensors does not fit the model of config.json: {', '.join(wrong[:5])}"
        )


def _read_tensors(path: Path, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """What a safetensors file holds; Refused, with its name, where it is missing or none."""
    try:
        check_regular_file(path)
        return read(path)
    except (SafetensorError, OSError) as error:
        raise Refused(f"{path} cannot be read: {error}; export the run again") from None


def _validated(kind: type, config: Mapping[str, Any], key: str, folder: Path) -> Any:
    """``config[key]`` as the declared type."""
    try:
        return TypeAdapter(kind).validate_python(config[key])
    except KeyError:
        raise Refused(f"{folder}/config.json has no {key!r}; export the run again") from None
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in (key, *first["loc"]))
        value = repr(first["input"])[:80]
        raise Refused(f"{folder}/config.json: {name}={value}: {first['msg']}") from None


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json``, refused where it is not of an exported model that this code reads."""
    path = folder / "config.json"
    again = "make one with python -m launch.export"
    try:
        config = read_json_object(path)
    except OSError as error:
        raise Refused(f"{folder} holds no exported model: {error}; {again}") from None
    if not {"format", "version"} <= config.keys():
        raise Refused(f"{folder} holds no exported model: {path} names no format; {again}")
    found = (config["format"], config["version"])
    name = config.get("model")
    if found != (FORMAT, VERSION) or not isinstance(name, str) or name not in MODELS:
        raise Refused(
            f"{path} is of a {found[0]!s:.80} {found[1]!s:.80} of {name!r:.80}, "
            "which this code cannot read"
        )
    return config


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8")
