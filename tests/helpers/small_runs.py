"""Small runs for tests with several ranks: data, a run for any registered model, and functions that ranks execute."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from core.batch import Batch
from core.encoders.text import TextConfig
from core.models import MODELS
from launch.config import Group, Optim, Run

SENTIMENT = [name for name, kind in MODELS.items() if kind.task == "sentiment"]
ALIGNMENT = [name for name, kind in MODELS.items() if kind.task == "alignment"]
# Less of what only costs time; and of TATE's width, with which rounding grows under Adam: at 300 the losses of two runs
# that begin 1e-7 apart differ by 6e-4 after 20 steps, at 24 by 3e-7.
LESS: dict[str, dict[str, Any]] = {
    "tate": {"width": 24},
    "tfr_net": {"layers": 1, "cross_layers": 1, "gru_layers": 1},
}


def sentiment_data(folder: Path, samples: int = 120) -> Path:
    """Shards of made-up clips with codebooks, as a user makes them."""
    from data_shards.codebook import main as codebook
    from data_shards.convert import main as convert
    from data_shards.synthetic import main as synthetic

    assert not synthetic([str(folder / "small.pkl"), "--samples", str(samples)])
    assert not convert(
        [str(folder / "small.pkl"), "--out", str(folder / "shards"), "--shard-size", "16"]
    )
    assert not codebook([str(folder / "shards"), "--clusters", "8"])
    return folder / "shards"


def alignment_data(folder: Path) -> Path:
    """Shards of two small graphs."""
    from folders import write_folder

    from data_shards.convert import convert
    from data_shards.sources.base import Options
    from data_shards.sources.knowledge_graphs import EntityOptions

    raw = write_folder(folder / "raw")
    convert(raw, folder / "graphs", Options(entities=EntityOptions(train_ratio=0.5)), shard_size=32)
    return folder / "graphs"


def small_run(model: str, data: Path | str, **changes: Any) -> Run:
    """A run of ``model`` with its default options but for ``LESS``, a tiny text encoder, and a rate for every group."""
    from launch.tasks.build import build_model, build_task

    options = MODELS[model].Config(**LESS.get(model, {}))
    if any(field.name == "text" for field in fields(options)):
        options = replace(options, text=TextConfig(source="small", width=16, layers=2, heads=2))
    graphs = MODELS[model].task == "alignment"
    run = Run(
        model=model,
        recipe=f"{model}/small",
        options=options,
        data=str(data),
        batch_size=10 if graphs else 13,  # no number of ranks but 1 divides it
        eval_batch_size=16,
        epochs=3,
        select="MRR" if graphs else "MAE",
        goal="max" if graphs else "min",
        metrics="alignment" if graphs else "mosi",
    )
    names = build_model(run, build_task(run).data).param_groups()
    groups = {
        name: Group(lr=2e-4 * (place + 1), weight_decay=0.01) for place, name in enumerate(names)
    }
    return replace(
        run, **{"optim": Optim(groups=groups, clip=1.0, schedule="cosine", warmup=0.1), **changes}
    )


def partitioned(folder: Path) -> str:
    """A DeepSpeed file that makes stage 3 cut up every parameter, the small ones of tests too."""
    path = folder / "partitioned.json"
    path.write_text(json.dumps({"zero_optimization": {"stage3_param_persistence_threshold": 0}}))
    return str(path)


def without_second_half(parts: list[Batch], rank: int, ranks: int, modality: str) -> list[Batch]:
    """The parts without ``modality`` in the second half of the global batch: with two ranks, all that rank 1 has."""
    from data_shards.reading.sampler import even_split

    if ranks == 2 and rank == 0:
        return parts
    (part,) = parts
    keep = torch.arange(len(part)) < (0 if ranks == 2 else even_split(len(part), 2)[0].stop)
    mask = {**part.mask, modality: part.mask[modality] & keep[:, None]}  # type: ignore[attr-defined]
    present = {**part.present, modality: part.present[modality] & keep[:, None]}  # type: ignore[attr-defined]
    return [replace(part, mask=mask, present=present)]  # type: ignore[call-arg]


def train_all(runs: list[Run], steps: int, absent: str = "") -> list[dict[str, Any]]:
    """Train each run for ``steps`` on the ranks there are; losses, rates by group and validation scores.

    Args:
        absent: a modality that half of each global batch lacks.
    """
    from launch.engine.processes import init_processes, shutdown_processes

    init_processes()
    results = [train_one(run, steps, absent) for run in runs]
    shutdown_processes()
    return results


def first_steps(runs: list[Run], folder: Path) -> None:
    """On a rank: take the first step of each run, and save it below ``folder`` under the run's place in the list."""
    from launch.engine.processes import init_processes, shutdown_processes

    init_processes()
    for place, run in enumerate(runs):
        train_one(run, 1, save_to=folder / str(place))
    shutdown_processes()


def stored_tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    """All of the last checkpoint, put together: "param NAME", "exp_avg NAME", "exp_avg_sq NAME", "buffer NAME"."""
    from launch.checkpoints.progress import Progress
    from launch.checkpoints.store import Checkpoints, read_state
    from launch.checkpoints.tensors import StoredTensors

    folder, _ = Checkpoints(run_dir, Progress()).find("last")
    assert folder is not None
    stored, whole = StoredTensors(folder), {}
    for name, shape in read_state(folder).shapes.items():
        for kind in ("param", "exp_avg", "exp_avg_sq"):
            whole[f"{kind} {name}"] = torch.empty(torch.Size(shape).numel())
            stored.fill(kind, name, 0, whole[f"{kind} {name}"])
    return whole | {
        f"buffer {name}": stored.whole("buffer", name) for name in stored.names("buffer")
    }


def train_one(
    run: Run, steps: int, absent: str = "", save_to: Path | None = None
) -> dict[str, Any]:
    from core import distributed
    from launch.engine.deepspeed_engine import start
    from launch.engine.optimizer import learning_rate_factor, set_learning_rates
    from launch.loop import train_step
    from launch.monitor.health import Clock
    from launch.session import unrecorded
    from launch.tasks.build import build_model, build_task

    torch.manual_seed(run.seed)
    task = build_task(run)
    model = build_model(run, task.data)
    engine = start(model, run)
    session = unrecorded(run, task, engine, save_to or Path("."))
    progress, losses, norms, rates = session.progress, [], [], {}
    for epoch in range(1000):
        task.begin_epoch(epoch, model)
        model.begin_epoch(epoch)
        engine.train()
        for parts in task.batches(epoch):
            if absent:
                parts = without_second_half(
                    parts, distributed.rank(), distributed.world_size(), absent
                )
            rates = set_learning_rates(
                engine.optimizer, run, learning_rate_factor(run, progress.step, steps, epoch)
            )
            result = train_step(session, parts, Clock())
            progress.step += 1
            losses.append(sum(result.losses.values()))
            norms.append(result.grad_norm)
            if progress.step == steps:
                if save_to is not None:
                    session.save("last")
                scores = task.evaluate(model, "valid", engine.device)
                return {"losses": losses, "norms": norms, "rates": rates, "scores": scores}
    raise AssertionError("an epoch has no steps")
