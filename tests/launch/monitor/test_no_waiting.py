"""A step asks the device for no number: its losses and norm are read once in a while, in time for
every checkpoint, and a loss that is not finite holds the optimiser until then."""

from __future__ import annotations

import json
import math
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ROOT
from ranks import run_ranks
from small_models import small_run
from torch.utils._python_dispatch import TorchDispatchMode

from launch.config import Run

MODELS = ("baseline", "hscl", "self_mm")
# what waits for a GPU: a number for Python, or a shape that depends on values
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2")
BAD_STEP, READ_EVERY = 2, 4


# SupCR refuses rows that are not finite, leaves out rows of weight 0 (in the backward pass too, which
# the loop asks for), and sorts labels into groups whose number it must know
LABELS = ("core/losses/", "core/kernels/", "launch/loop.py: index_put")
# numbers that never were on a GPU: the hash of seed and step, whether a batch on the CPU has padding
# (which is not asked of a GPU), which frames it has (for the loops that run there in place of an
# LSTM), and whether the stream has filled it up with rows of no sample
HOST = (
    "core/dropout.py",
    "core/encoders/backbones/registered_attention.py",
    "core/encoders/sequence.py: index",
    "launch/engine/global_batch.py",
)


class Waits(TorchDispatchMode):
    """Counts operators that would wait for a GPU, by the project's file that asks for them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, inputs: Any = (), options: Any = None):
        name = function.overloadpacket.__name__
        by_mask = name.startswith("index") and torch.bool in _types_of_indices(inputs)
        if name in WAITING or by_mask:
            self.found[f"{_asking_file()}: {name}"] += 1
        return function(*inputs, **(options or {}))


def _types_of_indices(inputs: Any) -> set[torch.dtype]:
    """Of the indices of an operator: how many rows a bool one selects is such a number, too."""
    indices = inputs[1] if len(inputs) > 1 and isinstance(inputs[1], list | tuple) else []
    return {index.dtype for index in indices if index is not None}


def _asking_file() -> str:
    """The innermost file of the project on the stack, outside of the tests."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        is_own = path.is_relative_to(ROOT) and "site-packages" not in path.parts
        if is_own and not path.is_relative_to(ROOT / "tests"):
            return path.relative_to(ROOT).as_posix()
    return "elsewhere"


def look(runs: dict[str, Run], folder: Path) -> dict[str, Any]:
    """On a rank: what each run waits for in its fourth step; then one trained with every step read
    and with four read at a time; then one with a loss that is not finite."""
    from launch.engine.processes import init_processes, shutdown_processes

    init_processes()
    found: dict[str, Any] = {"waits": {name: _waits(run) for name, run in runs.items()}}
    for every in (1, READ_EVERY):
        _train(replace(runs["baseline"], run_dir=str(folder / f"every-{every}"), log_every=every))
    found["held"] = _spoil(runs["baseline"], folder / "spoilt")
    shutdown_processes()
    return found


def _waits(run: Run) -> dict[str, int]:
    from launch.engine.deepspeed_engine import start
    from launch.loop import train_step
    from launch.monitor.health import Clock
    from launch.session import unrecorded
    from launch.tasks.build import build_model, build_task

    torch.manual_seed(run.seed)
    task = build_task(run)
    engine = start(build_model(run, task.data), run)
    session = unrecorded(run, task, engine, Path("."))
    engine.train()
    asked = Waits()
    tolist, asks = torch.Tensor.tolist, []  # which no dispatch mode sees
    torch.Tensor.tolist = lambda self: asks.append(_asking_file()) or tolist(self)  # type: ignore
    for step, micro_batches in enumerate(task.batches(0)):
        if step == 1:
            asks.clear()
            with asked:
                train_step(session, micro_batches, Clock())
            break
        train_step(session, micro_batches, Clock())
        session.progress.step += 1
    torch.Tensor.tolist = tolist  # type: ignore[method-assign]
    return dict(asked.found) | {f"{place}: tolist": 1 for place in asks}


def _train(run: Run) -> None:
    from launch.loop import fit
    from launch.session import prepare

    with prepare(run, quiet=True) as session:
        next(fit(session))


def _spoil(run: Run, folder: Path) -> dict[str, Any]:
    """Train with a loss that becomes nan in one step, between two readings."""
    from launch import loop
    from launch.engine.deepspeed_engine import TrainStep
    from launch.session import TrainingStopped, prepare

    run = replace(run, run_dir=str(folder), log_every=READ_EVERY, batch_size=6, save_every=3)
    real = TrainStep.forward
    before: list[torch.Tensor] = []

    def forward(self: Any, batch: Any, step: int, surrogate: Any = None) -> Any:
        losses, rows = real(self, batch, step, surrogate)
        if step == BAD_STEP:
            before.extend(value.detach().clone() for value in self.parameters())
            losses["task"] = losses["task"] * math.nan
        return losses, rows

    TrainStep.forward = forward  # type: ignore[method-assign]
    said, steps = "", 0
    with prepare(run, quiet=True) as session:
        try:
            next(loop.fit(session))
        except TrainingStopped as error:
            said, steps = str(error), session.progress.step
        same = map(torch.equal, before, session.engine.module.parameters())
        held = all(same)
    TrainStep.forward = real  # type: ignore[method-assign]
    return {"said": said, "steps": steps, "held": held}


@pytest.fixture(scope="module")
def seen(coded_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("no_waiting")
    runs = {}
    for name in MODELS:
        run = small_run(name, coded_shards, zero_stage=0)
        # as on a GPU: one kernel, which the device can hold
        runs[name] = replace(run, optim=replace(run.optim, fused=True))
    return folder, run_ranks(1, folder / "ranks", look, runs, folder)[0]


@pytest.mark.parametrize("model", MODELS)
def test_a_step_waits_for_no_number(seen: tuple[Path, Any], model: str):
    accepted = HOST + LABELS if model == "hscl" else HOST
    found = seen[1]["waits"][model]
    assert [place for place in found if not place.startswith(accepted)] == []


def test_the_log_is_the_same_however_often_it_is_read(seen: tuple[Path, Any]):
    logs = []
    for every in (1, READ_EVERY):
        lines = (seen[0] / f"every-{every}/log.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        names = ("step", "loss", "grad_norm", "loss_task", "lr_main")
        logs.append([[e[name] for name in names] for e in events if e["kind"] == "train"])
        assert [e["kind"] for e in events][-1] == "epoch"
    assert logs[0] == logs[1]
    assert [step for step, *_ in logs[0]] == [1, 2, 3]


def test_a_loss_that_is_not_finite_holds_the_optimiser_until_it_is_read(seen: tuple[Path, Any]):
    held = seen[1]["held"]
    assert f"loss became nan in epoch 0 at step {BAD_STEP} (task nan" in held["said"]
    assert held["held"]  # in the bad step and in those after it
    folder = seen[0] / "spoilt"
    body = json.loads((folder / "bad_batch_rank0.json").read_text())
    assert body["step"] == BAD_STEP
    assert len(body["samples"]) == 6
    assert held["steps"] == 3  # read before the checkpoint that would follow
    assert not list(folder.glob("checkpoints/step-*"))
