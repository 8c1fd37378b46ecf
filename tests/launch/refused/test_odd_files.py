"""Files that a run reads and somebody may have changed: settings, records, checkpoints. One line
each."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import small_options, small_run
from torch import nn

from core.files import sha256_of_file
from launch.checkpoints.progress import Progress
from launch.checkpoints.store import Checkpoints, read_state
from launch.checkpoints.tensors import load_generators, load_weights
from launch.command_line import changes_of_file
from launch.config import ConfigError, Run, load_recipe, override
from launch.engine.deepspeed_config import deepspeed_config
from launch.engine.deepspeed_engine import _refuse_odd_settings
from launch.evaluate import read_run
from launch.run_directory import find_run, record_run
from launch.session import refuse_lone_sample
from launch.tasks.build import build_model, build_task


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "it holds a list"),
        ('["epochs=3"]', "it holds a list"),
        ('"epochs=3"', "it holds a word"),
        ("{", "is no usable JSON"),
        ('{"epochs": 3, "epochs": 4}', "the key 'epochs' is there twice"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("epochs", "line 1: cannot read 'epochs'"),
        ("# three\nepochs=3\n\nbatch_size 4", "line 4: cannot read 'batch_size 4'"),
        ("3", "line 1: cannot read '3'"),
        ("null", "line 1: cannot read 'null'"),
        ("@other", "line 1: cannot read '@other'"),
    ],
)
def test_settings_of_a_file_that_are_none(tmp_path: Path, content: str, reason: str):
    path = tmp_path / "settings"
    path.write_text(content)
    with pytest.raises(ConfigError) as refusal:
        changes_of_file(path)
    assert reason in str(refusal.value)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize("content", ["seed=3\nepochs=2\n", '{"seed": 3, "epochs": 2}'])
def test_a_byte_order_mark_is_no_part_of_a_setting(tmp_path: Path, content: str):
    path = tmp_path / "settings"
    path.write_text(content, encoding="utf-8-sig")
    assert changes_of_file(path) == ["seed=3", "epochs=2"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ('{"model": ["hscl"]}', "no model ['hscl']"),
        ('{"model": {}}', "no model {}"),
        ('{"options": 3}', "options=3"),
        ('{"options": null}', "options=None"),
        ('{"optim": []}', "optim"),
        ('{"epochs": {"a": 1}}', "epochs={'a': 1}"),
        ('{"task_options": [1]}', "task_options=[1]"),
        ('{"run_dir": "a\\u0000b"}', r"run_dir='a\x00b': a zero byte"),
        ('{"cache": "a\\ud800"}', r"cache='a\ud800': a zero byte or half of a character"),
        ('{"missing": {"modalities": ["\\u0000"]}}', "missing.modalities="),
        ('{"": 1}', "line"),
    ],
)
def test_settings_of_a_wrong_kind(tmp_path: Path, settings: str, reason: str):
    path = tmp_path / "settings.json"
    path.write_text(settings)
    if reason == "line":
        with pytest.raises(ConfigError, match="no option ''"):
            override(load_recipe("hscl/demo"), changes_of_file(path))
        return
    with pytest.raises(ConfigError) as refusal:
        override(load_recipe("hscl/demo"), changes_of_file(path))
    assert reason in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "it is empty"),
        ("{}", "it has no object called 'run'"),
        ("[]", "holds a list"),
        ("null", "holds null"),
        ('{"run": []}', "it has no object called 'run'"),
        ('{"run": null}', "it has no object called 'run'"),
        ('{"run": {}}', "its data= is no name"),
        ('{"run": {"data": 3}}', "its data= is no name"),
        ("{" * 100_000, "is no usable JSON"),
    ],
)
@pytest.mark.parametrize("door", ["going on", "scoring"])
def test_an_odd_record_of_a_run(tmp_path: Path, content: str, reason: str, door: str):
    run = replace(load_recipe("hscl/demo"), data="shards", run_dir=str(tmp_path))
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError) as refusal:
        find_run(run) if door == "going on" else read_run(tmp_path)
    assert reason in str(refusal.value)
    assert str(tmp_path / "config.json") in str(refusal.value)


@pytest.mark.parametrize(
    "settings",
    [{"model": "none"}, {"model": 3}, {"options": None}, {"epochs": "many"}, {"optim": 1}],
)
def test_settings_of_a_run_that_cannot_be(tmp_path: Path, settings: dict[str, Any]):
    run = replace(load_recipe("hscl/demo"), data="shards", run_dir=str(tmp_path))
    record_run(run, tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    content["run"] |= settings
    path.write_text(json.dumps(content))
    for door in (lambda: read_run(tmp_path), lambda: find_run(run)):
        with pytest.raises(ConfigError, match=f"{path} cannot be read"):
            door()


RUN = Run(model="hscl", options=None, batch_size=30, zero_stage=1)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "holds a list"),
        ("", "it is empty"),
        ("3", "holds a number"),
        ('{"fp16": true}', "says fp16 = true, which must be an object"),
        ('{"bf16": "yes"}', 'says bf16 = "yes", which must be an object'),
        ('{"fp16": {"enabled": "yes"}}', "fp16.enabled"),
        ('{"fp16": {"enabled": 1}}', "fp16.enabled = 1, which must be true or false"),
        ('{"zero_optimization": 2}', "zero_optimization = 2, which must be an object"),
        ('{"zero_optimization": [1]}', "which must be an object"),
        ('{"zero_optimization": {"stage": "1"}}', 'stage = "1", which must be a number'),
        ('{"zero_optimization": {"stage": true}}', "stage = true, which must be a number"),
        ('{"zero_optimization": {"stage": null}}', "stage = null, which must be a number"),
        ('{"zero_optimization": {"overlap_comm": 1}}', "which must be true or false"),
        ('{"zero_optimization": {"reduce_bucket_size": "big"}}', "which must be a number"),
        ('{"gradient_clipping": [1]}', "gradient_clipping = [1], which must be a number"),
        ('{"train_batch_size": "30"}', 'train_batch_size = "30", which must be a number'),
        ('{"torch_autocast": null}', "torch_autocast = null, which must be an object"),
        ('{"fp16": {"enabled": true}}', "set precision=fp16"),
        ('{"steps_per_print": {}}', "steps_per_print"),
    ],
)
def test_a_deepspeed_file_of_odd_kinds(tmp_path: Path, content: str, reason: str):
    path = tmp_path / "ds.json"
    path.write_text(content)
    with pytest.raises(ConfigError) as refusal:
        deepspeed_config(replace(RUN, deepspeed=str(path)), 1000)
    assert reason in str(refusal.value)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize("content", ['{"fp16": "auto"}', '{"fp16": {}}', '{"new_key": [3]}', "{}"])
def test_a_deepspeed_file_that_may_be(tmp_path: Path, content: str):
    path = tmp_path / "ds.json"
    path.write_text(content)
    assert deepspeed_config(replace(RUN, deepspeed=str(path)), 1000)["fp16"] == {"enabled": False}


@pytest.mark.parametrize(
    "odd",
    [
        {"zero_optimization": {"stage": 1, "allgather_bucket_size": -5}},
        {"flops_profiler": 3},
        {"comms_logger": [1]},
        {"tensorboard": {"enabled": "perhaps"}},
        {"activation_checkpointing": 5},
    ],
)
def test_what_deepspeed_itself_cannot_use_names_the_file(odd: dict[str, Any]):
    _refuse_odd_settings("ds.json", deepspeed_config(RUN, 1000))
    with pytest.raises(ConfigError, match="deepspeed=ds.json: DeepSpeed cannot use it"):
        _refuse_odd_settings("ds.json", deepspeed_config(RUN, 1000) | odd)


class Engine:
    """What ``save`` asks of an engine, at stage 0 with one process."""

    def __init__(self) -> None:
        self.module = nn.Module()
        self.module.model = nn.BatchNorm1d(3)
        self.optimizer = torch.optim.Adam(self.module.model.parameters())
        self.torch_autocast_z0_gradscaler = None

    def zero_optimization_stage(self) -> int:
        return 0


class Nothing:
    def state_dict(self) -> dict[str, Any]:
        return {}


def saved(folder: Path) -> Path:
    progress = Progress(step=1, epoch_steps=1)
    return Checkpoints(folder, progress).save(Engine(), Nothing(), "last", "best")


def vouch_for(folder: Path) -> None:
    """Make a checkpoint's hashes those of its files as they are now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        path = folder / name
        facts = {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
        manifest["files"][name] = facts
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "named",
    ["../..", "..", ".", "/etc", "../checkpoints/step-00000001", "step-00000001/..", "step-x", "",
     "step-00000001\nstep-00000002", "manifest.json", "\0"],
)  # fmt: skip
@pytest.mark.parametrize("pointer", ["last", "best"])
def test_a_pointer_that_leads_elsewhere(tmp_path: Path, named: str, pointer: str):
    folder = saved(tmp_path / "run")
    (tmp_path / "run/checkpoints" / pointer).write_text(named)
    checkpoints = Checkpoints(tmp_path / "run", Progress())
    found, complaints = checkpoints.find(pointer)
    assert found == (folder if pointer == "last" else None)
    assert len(complaints) == 1
    assert f"checkpoints/{pointer} names" in complaints[0]
    saved(tmp_path / "run")
    again, complaints = checkpoints.find(pointer)
    assert again is not None
    assert again.name.startswith("step-00000001" if pointer == "last" else "best-00000001")
    assert not complaints


def test_a_pointer_that_is_a_folder(tmp_path: Path):
    folder = saved(tmp_path / "run")
    (tmp_path / "run/checkpoints/last").unlink()
    (tmp_path / "run/checkpoints/last").mkdir()
    found, complaints = Checkpoints(tmp_path / "run", Progress()).find("last")
    assert found == folder
    assert "only plain files are read" in complaints[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: [], "holds a list"),
        (lambda state: {}, "Field required"),
        (lambda state: {**state, "version": 1}, "this code reads"),
        (lambda state: {**state, "ranks": 0}, "ranks=0"),
        (lambda state: {**state, "ranks": "two"}, "ranks=two"),
        (lambda state: {**state, "adam_step": -1}, "adam_step=-1"),
        (lambda state: {**state, "adam_step": math.nan}, "adam_step=nan"),
        (lambda state: {**state, "task": []}, "task=[]"),
        (lambda state: {**state, "shapes": {"weight": [-3]}}, "shapes.weight.0=-3"),
        (lambda state: {**state, "progress": {"epoch": -1}}, "progress.epoch=-1"),
        (lambda state: {**state, "progress": {"step": "x"}}, "progress.step=x"),
        (lambda state: {**state, "progress": None}, "progress=None"),
        (lambda state: {**state, "loss_scale": {"scale": "big"}}, "loss_scale.scale=big"),
    ],
)
def test_a_state_that_is_none_although_its_hash_is_right(
    tmp_path: Path, change: Callable[[Any], Any], reason: str
):
    folder = saved(tmp_path)
    path = folder / "state.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    vouch_for(folder)
    assert Checkpoints(tmp_path, Progress()).find("last") == (folder, [])
    with pytest.raises(ConfigError) as refusal:
        read_state(folder)
    assert reason in str(refusal.value)
    assert str(path) in str(refusal.value)


Tensors = dict[str, torch.Tensor]


def take_up(folder: Path) -> None:
    load_weights(folder, read_state(folder).shapes, nn.BatchNorm1d(3))
    load_generators(folder, 1, (1, 2))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda found: {}, "is of another model: buffer"),
        (
            lambda found: {key: found[key] for key in found if key != "param/weight@0"},
            "holds 0 of the 3 elements of param 'weight'",
        ),
        (lambda found: {**found, "weight": torch.zeros(3)}, "has a tensor 'weight'"),
        (lambda found: {**found, "param/weight@x": torch.zeros(3)}, "'param/weight@x'"),
        (lambda found: {**found, "param/weight@-3": torch.zeros(3)}, "'param/weight@-3'"),
        (lambda found: {**found, "code/weight@0": torch.zeros(3)}, "'code/weight@0'"),
        (lambda found: {**found, "param/weight@0": torch.zeros(2)}, "holds 2 of the 3 elements"),
        (lambda found: {**found, "param/weight@0": torch.zeros(())}, "of shape []"),
        (lambda found: {**found, "param/weight@0": torch.zeros(3, 1)}, "of shape [3, 1]"),
        (lambda found: {**found, "param/weight@0": torch.zeros(3).int()}, "is I32"),
        (lambda found: {**found, "param/weight@0": torch.zeros(3).half()}, "is F16"),
        (
            lambda found: {
                **found,
                "param/weight@0": torch.zeros(2),
                "param/weight@1": torch.zeros(1),
            },
            "holds 2 of the 3 elements",
        ),
        (lambda found: {**found, "buffer/running_mean@0": torch.zeros(4)}, "running_mean is"),
        (lambda found: {**found, "buffer/running_mean@0": torch.zeros(3).half()}, "float16"),
        (lambda found: {**found, "buffer/more@0": torch.zeros(4)}, "buffer more"),
        (lambda found: {**found, "rng/cpu-0@0": torch.zeros(4)}, "no usable random state"),
        (
            lambda found: {**found, "rng/cpu-0@0": torch.zeros(4, dtype=torch.uint8)},
            "no usable random state",
        ),
    ],
)
def test_tensors_that_are_odd_although_their_hash_is_right(
    tmp_path: Path, change: Callable[[Tensors], Tensors], reason: str
):
    folder = saved(tmp_path)
    take_up(folder)
    path = folder / "rank-00000.safetensors"
    save_file(change(load_file(path)), path)
    vouch_for(folder)
    assert Checkpoints(tmp_path, Progress()).find("last") == (folder, [])
    with pytest.raises(ConfigError) as refusal:
        take_up(folder)
    assert reason in str(refusal.value)
    assert str(folder) in str(refusal.value)


@pytest.mark.parametrize(
    ("samples", "changes", "is_refused"),
    [
        (72, {"batch_size": 71}, True),
        (72, {"batch_size": 1}, True),
        (72, {"batch_size": 1, "drop": True}, True),
        (72, {"batch_size": 71, "drop": True}, False),
        (72, {"batch_size": 70}, False),
        (72, {"batch_size": 72}, False),
        (72, {"batch_size": 71, "norm": "layer"}, False),
    ],
)
def test_a_last_batch_of_one_sample_before_a_batch_norm(
    coded_shards: Path,
    samples: int,
    changes: dict[str, Any],
    is_refused: bool,
    monkeypatch: pytest.MonkeyPatch,
):
    norm, drop = changes.pop("norm", "batch"), changes.pop("drop", False)
    run = small_run("tfr_net", coded_shards, **changes)
    run = replace(run, loading=replace(run.loading, drop_last=drop))
    run = replace(run, options=small_options("tfr_net", norm=norm))
    task = build_task(run)
    monkeypatch.setattr(task, "train_samples", lambda: samples)
    model = build_model(run, task.data)
    if is_refused:
        with pytest.raises(ConfigError, match="for the last batch.*options.norm=layer"):
            refuse_lone_sample(run, model, task)
    else:
        refuse_lone_sample(run, model, task)


def test_a_checkpoint_of_one_file_less_is_named(tmp_path: Path):
    folder = saved(tmp_path)
    shutil.move(folder / "state.json", tmp_path / "elsewhere")
    found, complaints = Checkpoints(tmp_path, Progress()).find("last")
    assert found is None
    assert complaints == [f"checkpoint {folder} lacks state.json"]


@pytest.mark.parametrize("size", ["1e999", "NaN", '"many"', "null"])
def test_a_checkpoint_of_no_size_is_named(tmp_path: Path, size: str):
    path = saved(tmp_path) / "manifest.json"
    path.write_text(re.sub(r'"bytes": \d+', f'"bytes": {size}', path.read_text()))
    found, (complaint,) = Checkpoints(tmp_path, Progress()).find("last")
    assert found is None
    assert complaint.startswith(f"checkpoint {path.parent} has no readable manifest.json")
