"""Exported folders that somebody has changed, and a folder that cannot be written."""

from __future__ import annotations

import errno
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import small_options

from core import bundle, files
from core.command import Refused
from core.model import DataSpec
from core.models import MODELS

Config = dict[str, Any]


@pytest.fixture
def exported(tmp_path: Path, spec: DataSpec) -> Path:
    folder = tmp_path / "exported"
    save(folder, spec)
    return folder


def save(folder: Path, spec: DataSpec) -> None:
    options = small_options("baseline")
    model = MODELS["baseline"](options, spec)
    bundle.save(folder, "baseline", options, model, spec, "# card\n", {"recipe": "baseline/demo"})


def setting(*path: str, to: Any) -> Callable[[Config], Config]:
    """The configuration with another value at a place."""

    def change(config: Config) -> Config:
        *folders, last = path
        node = config
        for name in folders:
            node = node[name]
        node[last] = to
        return config

    return change


def without(name: str) -> Callable[[Config], Config]:
    return lambda config: {key: value for key, value in config.items() if key != name}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda config: [config], "holds a list"),
        (lambda config: {}, "names no format"),
        (without("model"), "of None, which this code cannot read"),
        (setting("model", to=["baseline"]), "which this code cannot read"),
        (setting("model", to="mclea"), "mclea is no model of sentiment data"),
        (setting("version", to=2), "which this code cannot read"),
        (without("options"), "config.json has no 'options'"),
        (without("data"), "config.json has no 'data'"),
        (setting("options", to=3), "config.json: options=3"),
        (setting("options", "hidden", to="wide"), "options.hidden='wide'"),
        (setting("data", to=[]), "config.json: data=[]"),
        (setting("data", "features", to={"text": -1}), "data.features.text=-1"),
        (setting("data", "features", to={"text": 2**40}), "data.features.text="),
        (setting("data", "features", to="text"), "data.features='text'"),
        (setting("data", "features", to={}), "describes no model that can be b"),
        (setting("data", "vocab_size", to=1e300), "data.vocab_size=1e+300"),
        (setting("data", "vocab_size", to=7), "does not fit the model of config.json"),
        (setting("data", "label_range", to=[1]), "data.label_range"),
        (setting("data", "moments", to={"audio": [[1], [2]]}), "exported"),
        (setting("data", "task", to="alignment"), "is no model of alignment data"),
        # far more than fits into memory, seen before any is taken
        (setting("options", "hidden", to=10**12), "does not fit the model of config.json"),
        (setting("options", "text", "width", to=2**20), "does not fit the model of config.json"),
        (setting("data", "vocab_size", to=10**9), "does not fit the model of config.json"),
        (setting("options", "text", "width", to=2**40), "describes no model that can be built"),
        (setting("options", "text", "layers", to=10**7), "and far fewer are stored beside it"),
    ],
)
def test_an_odd_configuration_is_refused_in_one_line(
    exported: Path, change: Callable[[Config], Any], reason: str
):
    path = exported / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(Refused) as refusal:
        bundle.load(exported)
    assert reason in str(refusal.value)
    assert str(exported) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_odd_tensors_are_refused(exported: Path):
    path = exported / "model.safetensors"
    tensors = load_file(path)
    name = next(key for key, value in tensors.items() if value.is_floating_point())
    for odd in (
        {**tensors, "more": torch.zeros(1)},
        {key: value for key, value in tensors.items() if key != name},
        {**tensors, name: tensors[name].flatten()[:1]},
        {**tensors, name: tensors[name].double()},
    ):
        save_file(odd, path)
        with pytest.raises(Refused, match="does not fit the model of config.json"):
            bundle.load(exported)
    path.write_bytes(b"\xff" * 8 + b"{}")
    with pytest.raises(Refused, match="model.safetensors"):
        bundle.load(exported)
    path.unlink()
    with pytest.raises(Refused, match="model.safetensors"):
        bundle.load(exported)


def test_an_unchanged_folder_is_loaded(exported: Path, spec: DataSpec):
    model, data = bundle.load(exported)
    assert not model.training
    assert data.features == spec.features
    assert sorted(path.name for path in exported.parent.iterdir()) == ["exported"]


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_full_disk_leaves_no_part_of_a_folder(
    tmp_path: Path, spec: DataSpec, monkeypatch: pytest.MonkeyPatch, written: int
):
    real, calls = files.os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 2 * written:  # a file, and the folder that it is in
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as lack:
        save(tmp_path / "exported", spec)
    assert lack.value.filename == str(tmp_path / "exported")
    assert list(tmp_path.iterdir()) == []


def test_a_model_too_large_for_the_limit_leaves_nothing(tmp_path: Path, spec: DataSpec):
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, unlimited[1]))
    try:
        with pytest.raises(OSError, match="exported") as lack:
            save(tmp_path / "exported", spec)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert lack.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []
