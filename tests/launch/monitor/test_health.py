"""What a run says about itself, and that it stops before it learns from nonsense."""

from __future__ import annotations

import io
import json
import math
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from small_models import small_run

from launch.config import Run
from launch.monitor import health
from launch.monitor.health import Clock, Utilisation, padding_share


@pytest.fixture(scope="module")
def data(coded_shards: Path) -> Path:
    return coded_shards


def test_padding_is_the_share_of_frames_that_only_fill_up(make_utterances: Any):
    batch = make_utterances(4)
    mask = {
        "text": torch.tensor([[True, True, False, False]] * 4),
        "audio": torch.ones(4, 8, dtype=torch.bool),
    }
    assert padding_share([replace(batch, mask=mask)]) == pytest.approx(8 / 48)
    assert padding_share([SimpleNamespace()]) == 0.0  # type: ignore[list-item]


def test_the_parts_of_a_step_add_up(monkeypatch: pytest.MonkeyPatch):
    times = iter([0.0, 1.0, 3.0, 6.0, 7.0])
    monkeypatch.setattr(health.time, "perf_counter", lambda: next(times))
    clock = Clock()
    clock.start()
    clock.lap("data")
    clock.lap("forward")
    clock.lap("data")
    assert clock.seconds == {"data": 3.0, "forward": 3.0}
    assert clock.total == 6.0


def test_utilisation_is_counted_work_over_the_peak_and_silent_on_a_cpu():
    run = Run(model="hscl", options=None)
    idle = Utilisation(run)
    with idle.counting(8, first=True):
        torch.randn(4, 5) @ torch.randn(5, 6)
    assert idle.report(100.0) == {}
    busy = Utilisation(run)
    busy.peak = 1e4
    weight = torch.randn(5, 6, requires_grad=True)
    with busy.counting(8, first=True):
        (torch.randn(4, 5) @ weight).sum().backward()
    found = busy.report(100.0)
    flops = 2 * (2 * 4 * 5 * 6)  # the product, and its gradient by the weight
    assert found["flops_per_sample"] == pytest.approx(flops / 8)
    assert found["mfu"] == pytest.approx(flops / 8 * 100 / 1e4)
    with busy.counting(8, first=False):
        torch.randn(400, 5) @ weight
    assert busy.report(100.0)["mfu"] == found["mfu"]


def poisoned(run: Run, run_dir: Path, what: str) -> dict[str, Any]:
    """On a rank: train; in the third step a loss, or only its gradient, becomes not finite on rank
    1 alone."""
    from core import distributed
    from core.models.baseline import Baseline
    from launch.engine.processes import init_processes, shutdown_processes
    from launch.loop import fit
    from launch.session import TrainingStopped, prepare

    init_processes()
    real, count = Baseline.losses, [0]

    class Spoilt(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * math.inf

    def losses(self: Any, output: Any, batch: Any) -> dict[str, torch.Tensor]:
        found = real(self, output, batch)
        if self.training:
            count[0] += 1
            if count[0] == 3 and distributed.rank() == distributed.world_size() - 1:
                found["task"] = (
                    found["task"] * math.nan if what == "loss" else Spoilt.apply(found["task"])
                )
        return found

    Baseline.losses = losses  # type: ignore[method-assign]
    said, moved = "", False
    with prepare(replace(run, run_dir=str(run_dir)), quiet=True) as session:
        model, engine = session.model, session.engine
        try:
            from launch.engine.deepspeed_engine import gathered

            real_report = session.task.sample_ids
            before: list[torch.Tensor] = []

            def note(parts: Any) -> list[str]:
                with gathered(list(model.parameters())):
                    before.extend(value.detach().clone() for value in model.parameters())
                return real_report(parts)

            session.task.sample_ids = note  # called between the check and the stop
            next(fit(session))
        except TrainingStopped as error:
            said = str(error)
        with gathered(list(model.parameters())):
            moved = any(
                not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)
            )
            finite = all(bool(torch.isfinite(value).all()) for value in model.parameters())
    assert engine is not None
    shutdown_processes()
    return {"said": said, "moved": moved, "finite": finite}


@pytest.mark.parametrize(
    ("what", "stage", "ranks"),
    [("loss", 2, 2), ("gradient", 0, 2), ("gradient", 1, 2), ("gradient", 3, 2)],
)
def test_a_loss_or_gradient_that_is_not_finite_stops_before_the_optimiser_moves(
    data: Path, tmp_path: Path, what: str, stage: int, ranks: int
):
    run = small_run("baseline", data, zero_stage=stage, batch_size=12)  # of 36 samples
    for answer in run_ranks(ranks, tmp_path / "ranks", poisoned, run, tmp_path / "run", what):
        assert "in epoch 0 at step 2 (task" in answer["said"]
        assert (
            "loss became nan"
            if what == "loss"
            else "the gradient is not finite although the loss is"
        ) in answer["said"]
        assert answer["finite"]
        assert not answer["moved"]
    samples = set()
    for rank in range(ranks):
        body = json.loads((tmp_path / f"run/bad_batch_rank{rank}.json").read_text())
        assert (body["epoch"], body["step"]) == (0, 2)
        assert "task" in body["losses"]
        samples |= set(body["samples"])
    assert len(samples) == run.batch_size


def spoilt_embedding(run: Run, run_dir: Path) -> dict[str, Any]:
    """On a rank: train; in the third step one embedding of one sample of the last rank becomes not
    finite, from which the fused contrast can make no loss."""
    from core import distributed
    from launch.engine.deepspeed_engine import TrainStep
    from launch.engine.processes import init_processes
    from launch.loop import fit
    from launch.monitor.rank_command import run_rank
    from launch.session import prepare

    real, spoilt, said = TrainStep.run, [], io.StringIO()

    def spoil(self: Any, batch: Any, step: int) -> Any:
        output: Any = real(self, batch, step)
        if step == 2 and distributed.rank() == distributed.world_size() - 1:
            sample = spoilt[0] if spoilt else int(batch.index[-1])
            spoilt[:] = [sample]
            factor = torch.where(batch.index == sample, math.nan, 1.0)
            output.projected["text_audio"] = output.projected["text_audio"] * factor[:, None]
        return output

    def work() -> None:
        init_processes()
        with prepare(replace(run, run_dir=str(run_dir)), quiet=True) as session:
            names.append(session.task)
            next(fit(session))

    TrainStep.run = spoil  # type: ignore[method-assign]
    names: list[Any] = []
    with redirect_stderr(said):
        code = run_rank(work)
    return {
        "code": code,
        "said": said.getvalue(),
        "spoilt": names[0].train.ids(np.array(spoilt)) if spoilt else [],
    }


@pytest.mark.parametrize(("ranks", "stage", "most"), [(1, 0, 0), (2, 2, 4), (2, 3, 0)])
def test_an_embedding_that_is_not_finite_ends_the_run_like_any_other_loss(
    data: Path, tmp_path: Path, ranks: int, stage: int, most: int
):
    run = small_run("hscl", data, zero_stage=stage, max_micro_batch=most, batch_size=12)
    answers = run_ranks(ranks, tmp_path / "ranks", spoilt_embedding, run, tmp_path / "run")
    assert [answer["code"] for answer in answers] == [3] * ranks
    (sample,) = answers[-1]["spoilt"]
    assert "error: loss became nan in epoch 0 at step 2 (task " in answers[0]["said"]
    assert (
        f"bimodal nan; embedding text_audio of sample {sample} is not finite)" in answers[0]["said"]
    )
    bodies = [
        json.loads((tmp_path / f"run/bad_batch_rank{rank}.json").read_text())
        for rank in range(ranks)
    ]
    for body in bodies:
        assert (body["epoch"], body["step"]) == (0, 2)
        assert set(body["losses"]) == {"task", "similarity", "unimodal", "bimodal"}
        assert math.isfinite(float(body["losses"]["task"]))
        assert body["losses"]["bimodal"] == "nan"
    assert [body["not_finite"] for body in bodies] == [{}] * (ranks - 1) + [
        {"text_audio": [sample]}
    ]
    assert sample in bodies[-1]["samples"]
    assert len({each for body in bodies for each in body["samples"]}) == run.batch_size


def drifted(run: Run, run_dir: Path, drift: bool) -> str:
    """On a rank: train; after the second step one weight of rank 1 changes by itself."""
    from core import distributed
    from launch import loop
    from launch.engine.processes import init_processes, shutdown_processes
    from launch.session import TrainingStopped, prepare

    init_processes()
    real = loop.train_step

    def step(session: Any, *others: Any) -> Any:
        result = real(session, *others)
        if drift and distributed.rank() == 1 and session.progress.step == 1:
            next(iter(session.model.parameters())).data.view(-1)[0] += 1e-7
        return result

    loop.train_step = step
    said = ""
    with prepare(replace(run, run_dir=str(run_dir), check_every=1), quiet=True) as session:
        try:
            next(loop.fit(session))
        except TrainingStopped as error:
            said = str(error)
        name = next(name for name, _ in session.engine.module.model.named_parameters())
    shutdown_processes()
    return said.replace(name, "the first parameter")


def test_ranks_whose_parameters_differ_are_named(data: Path, tmp_path: Path):
    run = small_run("baseline", data, zero_stage=2)
    assert run_ranks(2, tmp_path / "fine", drifted, run, tmp_path / "run", False) == ["", ""]
    for said in run_ranks(2, tmp_path / "drifted", drifted, run, tmp_path / "other", True):
        assert said.startswith(
            "after step 2 the ranks hold different parameters: rank 1 has other values than rank 0 in"
        )
        assert "the first parameter" in said


def one_epoch(run: Run) -> None:
    """On a rank: train the first epoch."""
    from launch.engine.processes import init_processes, shutdown_processes
    from launch.loop import fit
    from launch.session import prepare

    init_processes()
    with prepare(run, quiet=True) as session:
        next(fit(session))
    shutdown_processes()


def test_the_log_tells_where_the_time_goes(data: Path, tmp_path: Path):
    run = small_run("self_mm", data, run_dir=str(tmp_path / "run"), max_micro_batch=4)
    run_ranks(1, tmp_path / "ranks", one_epoch, run)
    events = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    step = next(event for event in events if event["kind"] == "train")
    for name in (
        "loss",
        "grad_norm",
        "samples_per_second",
        "lr_audio",
        "lr_main",
        "padding",
        "loss_task",
    ):
        assert math.isfinite(step[name]), name
    parts = {name.removeprefix("seconds_") for name in step if name.startswith("seconds_")}
    assert (
        {"data", "forward", "backward", "exchange", "optimiser"} <= parts <= {*parts, "first_pass"}
    )
    assert "mfu" not in step
    assert next(event for event in events if event["kind"] == "epoch")["memory_gb"] > 0
