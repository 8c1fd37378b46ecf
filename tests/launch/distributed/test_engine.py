"""The engine: its configuration, what it refuses, learning rates, contrast in two passes."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from rank_trainings import partitioned, train_all, train_one
from ranks import run_ranks
from small_models import BOTH_WAYS, SENTIMENT, small_options, small_run
from torch import nn

from core import distributed
from core.losses.supcon import SupCon
from core.losses.uncertainty import Uncertainty
from core.model import DataSpec
from core.models import MODELS
from core.models.hscl import HSCL
from launch.config import ConfigError, Run
from launch.engine import processes
from launch.engine.deepspeed_config import (
    deepspeed_config,
    num_micro_batches,
    refuse_impossible,
    with_stage,
)
from launch.engine.optimizer import learning_rate_factor
from launch.engine.processes import refuse_stale_build_lock

RUN = Run(model="hscl", options=None, batch_size=30, zero_stage=1)
PARAMETERS = 1000  # of a model


@pytest.fixture(scope="module")
def data(coded_shards: Path) -> Path:
    return coded_shards


@pytest.mark.parametrize(
    ("changes", "gpu", "frozen", "reason"),
    [
        ({"precision": "fp16"}, False, False, "needs a GPU"),
        ({"precision": "fp16", "zero_stage": 2}, True, False, "never lowers the scale"),
        ({"offload": True, "zero_stage": 0}, True, False, "needs zero_stage=1, 2 or 3"),
        ({"compile": True, "zero_stage": 3}, True, False, "break the graph"),
        ({"compile": True, "cuda_graphs": True}, False, False, "cuda_graphs=true needs a GPU"),
        ({"cuda_graphs": True}, True, False, "what compile=true makes"),
        ({"recompute": True, "zero_stage": 3}, True, True, "frozen"),
    ],
)
def test_what_cannot_be_combined_is_refused_with_the_reason(
    changes: dict[str, Any], gpu: bool, frozen: bool, reason: str
):
    with pytest.raises(ConfigError, match=reason):
        refuse_impossible(replace(RUN, **changes), gpu=gpu, frozen=frozen)


def test_batch_norm_is_refused_where_it_would_see_a_part_of_the_batch():
    refuse_impossible(RUN, gpu=False, batch_norm=True)
    with pytest.raises(ConfigError, match="number of processes and micro-batches"):
        refuse_impossible(replace(RUN, max_micro_batch=8), gpu=False, batch_norm=True)


def test_recurrence_both_ways_is_refused_where_gradients_come_in_another_order(
    monkeypatch: pytest.MonkeyPatch,
):
    run = replace(RUN, zero_stage=2)
    refuse_impossible(run, gpu=False, both_ways=True)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(ConfigError, match=r"an order that depends on the lengths.*zero_stage=1"):
        refuse_impossible(run, gpu=False, both_ways=True)
    refuse_impossible(run, gpu=True, both_ways=True)
    refuse_impossible(replace(run, zero_stage=3), gpu=False, both_ways=True)


def test_the_models_with_recurrence_both_ways_are_known(spec: DataSpec):
    found = set()
    for name in SENTIMENT:
        model = MODELS[name](small_options(name), spec)
        layers = [module for module in model.modules() if isinstance(module, nn.RNNBase)]
        if any(layer.bidirectional for layer in layers):
            found.add(name)
    assert found == BOTH_WAYS


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_stage_runs_in_both_precisions(stage: int, precision: str):
    refuse_impossible(
        replace(RUN, zero_stage=stage, precision=precision), gpu=False, frozen=stage < 3
    )  # type: ignore[arg-type]


def test_the_configuration_leaves_no_default_that_matters():
    config = deepspeed_config(
        replace(RUN, max_micro_batch=8, zero_stage=3, offload=True), PARAMETERS
    )
    assert config["train_micro_batch_size_per_gpu"] == 8
    assert config["gradient_accumulation_steps"] == 4
    assert config["gradient_clipping"] == 0.0
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    zero = config["zero_optimization"]
    assert zero["stage"] == 3
    assert zero["offload_optimizer"]["device"] == "cpu"
    assert isinstance(zero["overlap_comm"], bool)
    assert config["timers"] == {"throughput": {"enabled": False}}  # they would wait for a GPU


@pytest.mark.parametrize(
    ("parameters", "bucket"), [(1, 128), (265_001, 265_088), (10**9, 500_000_000)]
)
def test_buffers_hold_no_more_than_the_model(parameters: int, bucket: int):
    zero = deepspeed_config(RUN, parameters)["zero_optimization"]
    assert zero["reduce_bucket_size"] == zero["allgather_bucket_size"] == bucket


@pytest.mark.parametrize(
    ("gpu", "ranks", "parameters", "changes", "stage"),
    [
        (False, 1, 10**6, {}, 1),
        (False, 4, 10**10, {}, 1),
        (True, 1, 10**6, {}, 0),
        (True, 1, 10**10, {}, 0),  # there is nobody to share with
        (True, 1, 10**6, {"offload": True}, 1),
        (True, 8, 10**8, {}, 0),
        (True, 8, 2 * 10**9, {}, 1),
        (True, 8, 35 * 10**8, {}, 2),
        (True, 8, 10**10, {}, 3),
        (True, 8, 10**10, {"compile": True}, 2),
        (True, 8, 10**10, {"precision": "fp16"}, 0),
        (True, 8, 10**10, {"zero_stage": 1}, 1),
    ],
)
def test_the_stage_follows_from_ranks_and_parameters_unless_given(
    monkeypatch: pytest.MonkeyPatch,
    gpu: bool,
    ranks: int,
    parameters: int,
    changes: dict[str, Any],
    stage: int,
):
    device = SimpleNamespace(total_memory=80 * 10**9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: device)
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    run = replace(RUN, **{"zero_stage": "auto"} | changes)
    assert with_stage(run, parameters).zero_stage == stage


def test_the_stage_of_a_file_counts_where_the_run_names_none(tmp_path: Path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    run = with_stage(replace(RUN, zero_stage="auto", deepspeed=str(path)), PARAMETERS)
    assert deepspeed_config(run, PARAMETERS)["zero_optimization"]["stage"] == 2


@pytest.mark.parametrize(("most", "parts"), [(0, 1), (30, 1), (29, 2), (8, 4), (1, 30)])
def test_micro_batches_follow_from_the_largest_one(most: int, parts: int):
    assert num_micro_batches(replace(RUN, max_micro_batch=most)) == parts


def with_file(tmp_path: Path, body: dict[str, Any]) -> dict[str, Any]:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(body))
    return deepspeed_config(replace(RUN, deepspeed=str(path)), PARAMETERS)


def test_a_file_is_laid_over_and_auto_leaves_ours(tmp_path: Path):
    config = with_file(
        tmp_path,
        {
            "zero_optimization": {"overlap_comm": True, "stage": "auto"},
            "train_batch_size": 30,
            "x": 1,
        },
    )
    assert config["zero_optimization"]["overlap_comm"] is True
    assert config["zero_optimization"]["stage"] == 1
    assert config["x"] == 1
    assert "train_batch_size" not in config


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"optimizer": {}}, "optim.algorithm"),
        ({"train_batch_size": 31}, "makes it 30"),
        ({"gradient_clipping": 1.0}, "makes it 0.0"),
        ({"zero_optimization": {"stage": 2}}, "set zero_stage=2"),
        ({"fp16": {"enabled": True}}, "precision=fp16"),
        ({"activation_checkpointing": {}}, "recompute"),
    ],
)
def test_a_file_that_contradicts_the_run_is_refused(
    tmp_path: Path, body: dict[str, Any], reason: str
):
    with pytest.raises(ConfigError, match=reason):
        with_file(tmp_path, body)


@pytest.mark.parametrize("schedule", ["constant", "step", "linear", "cosine"])
def test_schedules_warm_up_and_then_take_their_course(schedule: str):
    optim = replace(RUN.optim, schedule=schedule, warmup=0.1, step_epochs=2, gamma=0.5)  # type: ignore[arg-type]
    run = replace(RUN, optim=optim)
    factors = [learning_rate_factor(run, step, 100, step // 25) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    last = {
        "constant": 1.0,
        "step": 0.5,
        "linear": 1 - 89 / 90,
        "cosine": 0.5 * (1 + torch.cos(torch.tensor(torch.pi * 89 / 90)).item()),
    }
    assert factors[-1] == pytest.approx(last[schedule], abs=1e-6)
    assert all(a >= b for a, b in zip(factors[10:], factors[11:], strict=False))


def test_a_stale_lock_of_the_operator_builder_is_named_and_a_fresh_one_is_not(tmp_path: Path):
    lock = tmp_path / "deepspeed_shm_comm/lock"
    lock.parent.mkdir()
    refuse_stale_build_lock(tmp_path)
    lock.touch()
    refuse_stale_build_lock(tmp_path)
    old = time.time() - 400
    os.utime(lock, (old, old))
    with pytest.raises(ConfigError, match=f"rm {lock}"):
        refuse_stale_build_lock(tmp_path)


def test_a_build_that_is_killed_while_others_wait_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
):
    lock = tmp_path / "deepspeed_shm_comm/lock"
    lock.parent.mkdir()
    lock.touch()
    old = time.time() - 400
    os.utime(lock, (old, old))
    left, codes = threading.Event(), []
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(psutil, "process_iter", lambda names: iter(()))  # nobody compiles

    def leave(code: int) -> None:
        codes.append(code)
        left.set()

    monkeypatch.setattr(processes.os, "_exit", leave)
    with processes._build_lock_watched(0.05):
        assert left.wait(120)
    assert codes[0] == 2
    assert f"rm {lock}" in capfd.readouterr().err


def test_contrast_in_two_passes_changes_nothing(data: Path, tmp_path: Path):
    base = small_run("hscl", data, zero_stage=0)
    runs = [replace(base, max_micro_batch=most) for most in (0, 3)]
    whole, parts = run_ranks(1, tmp_path / "one", train_all, runs, 6)[0]
    assert parts["losses"] == pytest.approx(whole["losses"], rel=1e-5)
    assert parts["norms"] == pytest.approx(whole["norms"], rel=1e-4)
    local = replace(base, max_micro_batch=3, cache_contrast=False)
    (alone,) = run_ranks(1, tmp_path / "local", train_all, [local], 6)[0]
    assert alone["losses"] != pytest.approx(
        whole["losses"], rel=1e-3
    )  # each part against itself only


class Learnt(nn.Module):
    """A contrast whose temperature and weight are learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = SupCon(0.4, resolution=0.2, learnable=True)
        self.weigh = Uncertainty(["contrast"])

    def forward(
        self, rows: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        return self.weigh({"contrast": self.loss(rows, labels, weight)})["contrast"]


def train_learnt(runs: list[Run], steps: int) -> list[dict[str, Any]]:
    """On a rank: ``train_one`` for each run of HSCL with ``Learnt``, and what has become of its two
    parameters."""
    from launch.engine.deepspeed_engine import gathered
    from launch.engine.processes import init_processes, shutdown_processes

    init_processes()
    made, before = [], HSCL.__init__

    def init(self: HSCL, *arguments: Any) -> None:
        before(self, *arguments)
        self.draw = Learnt()
        made.append(self)

    HSCL.__init__ = init  # type: ignore[method-assign]
    results = []
    for run in runs:
        found = train_one(run, steps)
        parameters = list(made[-1].draw.parameters())
        with gathered(parameters):
            results.append({**found, "learnt": [parameter.item() for parameter in parameters]})
    shutdown_processes()
    return results


@pytest.mark.parametrize("ranks", [1, 2])
def test_contrast_in_two_passes_moves_what_the_losses_learn(ranks: int, data: Path, tmp_path: Path):
    base = small_run("hscl", data, zero_stage=0)
    rates = {
        name: replace(group, lr=0.1, weight_decay=0.0) for name, group in base.optim.groups.items()
    }
    # with such an eps Adam's steps tell how large a gradient is, not only which way it points
    base = replace(base, optim=replace(base.optim, groups=rates, clip=0.0, eps=1.0, warmup=0.0))
    cases = [(0, 0), (0, 3), (2, 3), (3, 0), (3, 3)]
    runs = [
        replace(base, zero_stage=stage, max_micro_batch=most, deepspeed=partitioned(tmp_path))
        for stage, most in cases
    ]
    whole, *others = run_ranks(ranks, tmp_path / "ranks", train_learnt, runs, 4)[0]
    start = [math.log(0.4), 0.0]
    assert all(abs(a - b) > 1e-2 for a, b in zip(whole["learnt"], start, strict=True))  # they moved
    for case, found in zip(cases[1:], others, strict=True):
        assert found["learnt"] == pytest.approx(whole["learnt"], rel=1e-5, abs=1e-6), case
        assert found["losses"] == pytest.approx(whole["losses"], rel=1e-5), case
        assert found["norms"] == pytest.approx(whole["norms"], rel=1e-4), case
