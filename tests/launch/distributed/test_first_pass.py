"""Micro-batches are run twice only where a loss needs the whole global batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from small_models import small_options, small_run

from core.models import MODELS
from core.models.hscl import HSCL
from launch.config import Run

WITH_GLOBAL_BATCH_LOSSES = {
    "eva",
    "gcn_align",
    "hscl",
    "kecg",
    "mclea",
    "meaformer",
    "mfm",
    "misa",
    "mmim",
}


@pytest.fixture(scope="module")
def data(coded_shards: Path) -> Path:
    return coded_shards


def forwards_of_a_step(runs: list[Run]) -> list[list[int]]:
    """On a rank: for each run, the forwards of its first step, and its micro-batches."""
    from launch.engine.deepspeed_engine import start
    from launch.engine.processes import init_processes, shutdown_processes
    from launch.loop import train_step
    from launch.monitor.health import Clock
    from launch.session import unrecorded
    from launch.tasks.build import build_model, build_task

    init_processes()
    counts = []
    for run in runs:
        torch.manual_seed(run.seed)
        task = build_task(run)
        model = build_model(run, task.data)
        engine = start(model, run)
        calls: list[Any] = []
        model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        engine.train()
        micro_batches = next(iter(task.batches(0)))
        train_step(unrecorded(run, task, engine, Path(".")), micro_batches, Clock())
        counts.append([len(calls), len(micro_batches)])
    shutdown_processes()
    return counts


def test_only_models_with_such_losses_run_twice(data: Path, tmp_path: Path):
    names = ["self_mm", "tfr_net", "hscl"]
    runs = [small_run(name, data, zero_stage=0, max_micro_batch=4) for name in names]
    ((self_mm, tfr_net, hscl),) = run_ranks(1, tmp_path / "rank", forwards_of_a_step, runs)
    assert self_mm[1] > 1
    assert self_mm[0] == self_mm[1]
    assert tfr_net[0] == tfr_net[1]
    assert hscl[0] == 2 * hscl[1]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_model_says_whether_it_has_such_losses(name: str, spec: Any, make_graph: Any):
    kind = MODELS[name]
    model = kind(small_options(name), make_graph()[0] if kind.task == "alignment" else spec)
    assert model.has_global_batch_losses == (name in WITH_GLOBAL_BATCH_LOSSES)


def test_hscl_without_its_contrasts_has_none(spec: Any):
    model = HSCL(small_options("hscl", unimodal=False, bimodal=False), spec)
    assert not model.has_global_batch_losses
