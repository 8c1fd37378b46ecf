"""DeepSpeed, and nowhere else: processes, the wrapped model, and a configuration that leaves nothing to a default."""

from __future__ import annotations

import json
import math
import os
import socket
import time
import warnings
from collections.abc import Mapping
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core import distributed
from core.batch import Batch
from core.dropout import number_dropouts, sample_masks
from core.model import Model, Output
from launch.config import ConfigError, Run

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
_SHARED_MEMORY_OP = "deepspeed_shm_comm_op"


class TrainStep(nn.Module):
    """A model and its losses as one forward, so that every parameter is used inside the engine.

    Losses are computed in float32 whatever precision the layers run in.
    """

    model: Model

    def __init__(self, model: Model, seed: int):
        super().__init__()
        self.model = model
        number_dropouts(model)
        self.seed = seed

    def forward(
        self, batch: Batch, step: int, cotangents: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Named losses of this part of the global batch, and what the model wants to remember of it.

        Args:
            step: optimiser step since the start of the run, which keys the dropout masks.
            cotangents: gradients of the contrastive losses with respect to ``model.embeddings``, where a first pass
                over all parts has found them; they stand in for ``model.contrast``.
        """
        output = self.run(batch, step)
        with torch.autocast(batch.index.device.type, enabled=False):
            losses = self.model.losses(output, batch)
            embeddings = self.model.embeddings(output)
            if cotangents is None:
                losses |= self.model.contrast(embeddings, batch.target, batch.weight)
            else:
                losses["contrast"] = torch.stack(
                    [(embeddings[name] * gradient).sum() for name, gradient in cotangents.items()]
                ).sum()
            return losses, self.model.records(output, batch)

    def run(self, batch: Batch, step: int) -> Output:
        """The model's output in float32, with this step's dropout masks."""
        with sample_masks(self.seed, step, batch.index):
            return _float32(self.model(batch))


def _float32(output: Output) -> Output:
    def widen(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.float()
        return {key: widen(item) for key, item in value.items()} if isinstance(value, dict) else value

    return replace(output, **{f.name: widen(getattr(output, f.name)) for f in fields(output)})


def init_processes() -> None:
    """Join the processes that a launcher started (``deepspeed``, ``torchrun``), or be the only one."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise DeepSpeed warns that it found no GPU
    warnings.filterwarnings(
        "ignore", message=".*is deprecated. Please use.*", category=FutureWarning
    )  # DeepSpeed's own
    import deepspeed

    if "RANK" not in os.environ:
        with socket.socket() as probe:  # several runs may share a machine: take a port that is free now
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if int(os.environ["WORLD_SIZE"]) > 1:
        _refuse_stale_build_lock()
    deepspeed.init_distributed(timeout=COLLECTIVE_TIMEOUT, verbose=False)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def _refuse_stale_build_lock() -> None:
    """A process killed while DeepSpeed compiled its operator leaves a lock that later runs would wait on forever."""
    from torch.utils.cpp_extension import _get_build_directory

    lock = Path(_get_build_directory(_SHARED_MEMORY_OP, verbose=False)) / "lock"
    try:
        age = time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return
    if age > 600:
        raise ConfigError(
            f"{lock} was left {age / 60:.0f} minutes ago by an interrupted build of a DeepSpeed operator, and every "
            f"run would wait for it forever; if nothing is compiling now, remove it: rm {lock}"
        )


def shutdown_processes() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def micro_batches(run: Run) -> int:
    """Parts in which a rank takes its share of the global batch."""
    share = math.ceil(run.batch_size / distributed.world_size())
    return math.ceil(share / run.max_micro_batch) if run.max_micro_batch else 1


def parameter_groups(model: Model, run: Run) -> list[dict[str, Any]]:
    """The optimiser's groups: the model names them, the recipe gives each its rate."""
    groups, seen = [], set()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, parameters in model.param_groups().items():
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if not trained:
            continue
        if name not in run.optim.groups:
            raise ConfigError(
                f"model {run.model!r} has a parameter group {name!r}, but optim.groups of recipe "
                f"{run.recipe!r} only names {', '.join(run.optim.groups)}"
            )
        seen |= {id(parameter) for parameter in trained}
        setting = run.optim.groups[name]
        groups.append({"params": trained, "lr": setting.lr, "weight_decay": setting.weight_decay, "name": name})
    forgotten = [name for key, name in names.items() if key not in seen]
    forgotten = [name for name in forgotten if model.get_parameter(name).requires_grad]
    if forgotten:
        raise ConfigError(f"model {run.model!r} puts these parameters into no group: {', '.join(forgotten[:5])}")
    scalars = [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
    if scalars:
        raise ConfigError(f"DeepSpeed needs parameters of at least one dimension; shape (1,) for: {', '.join(scalars)}")
    return groups


def optimizer_for(model: Model, run: Run) -> torch.optim.Optimizer:
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[run.optim.algorithm]
    return kind(parameter_groups(model, run), betas=run.optim.betas, eps=run.optim.eps)


def deepspeed_config(run: Run) -> dict[str, Any]:
    """The complete DeepSpeed configuration: the recipe's, with what ``deepspeed=FILE`` says laid over it.

    DeepSpeed's own defaults change between versions (gradient clipping did), so each one that matters is written out.
    """
    parts = micro_batches(run)
    micro = math.ceil(run.batch_size / (distributed.world_size() * parts))
    ours: dict[str, Any] = {
        # DeepSpeed uses these only for arithmetic; the stream deals out the true global batch
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": parts,
        "gradient_clipping": run.optim.clip,
        "prescale_gradients": False,
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": run.zero_stage,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "round_robin_gradients": False,
            "reduce_bucket_size": 5e8,
            "allgather_bucket_size": 5e8,
            "allgather_partitions": True,
            "reduce_scatter": True,
        },
        "fp16": {"enabled": False},
        "bf16": {"enabled": False},
        "torch_autocast": {"enabled": run.precision == "bf16", "dtype": "bfloat16"},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
        "memory_breakdown": False,
        "dump_state": False,
    }
    if run.precision == "fp16":
        if not torch.cuda.is_available():
            raise ConfigError("precision=fp16 needs a GPU; use precision=bf16 or precision=fp32 here")
        ours["torch_autocast"] = {"enabled": True, "dtype": "float16"}
    if run.offload:
        ours["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return _merge(ours, _read_config(run.deepspeed, run), "") if run.deepspeed else ours


_SET_ELSEWHERE = {
    "optimizer": "optim.algorithm, optim.groups.<name>.lr, ...",
    "scheduler": "optim.schedule, optim.warmup",
}


def _read_config(path: str, run: Run) -> dict[str, Any]:
    try:
        theirs = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"deepspeed={path}: {error}") from None
    for section, instead in _SET_ELSEWHERE.items():
        if section in theirs:
            raise ConfigError(f"{path} has a section {section!r}, but the recipe decides that; set {instead}")
    world, parts = distributed.world_size(), micro_batches(run)
    expected = {
        "train_batch_size": run.batch_size,
        "train_micro_batch_size_per_gpu": math.ceil(run.batch_size / (world * parts)),
        "gradient_accumulation_steps": parts,
    }
    for key, value in expected.items():
        if theirs.get(key, "auto") not in ("auto", value):
            raise ConfigError(
                f"{path} says {key} = {theirs[key]}, but batch_size={run.batch_size} on {world} process(es) with "
                f"max_micro_batch={run.max_micro_batch} makes it {value}; leave it out of the file, or change the run"
            )
        theirs.pop(key, None)
    for key, precision in (("fp16", "fp16"), ("bf16", "bf16")):
        if theirs.get(key, {}).get("enabled"):
            raise ConfigError(
                f"{path} enables {key}, which would train the weights themselves in it; set precision={precision}"
            )
    return theirs


def _merge(base: dict[str, Any], over: dict[str, Any], where: str) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            merged[key] = _merge(base[key], value, f"{where}{key}.")
        elif value != "auto":
            merged[key] = value
    return merged


def start(model: Model, run: Run) -> Any:
    """The DeepSpeed engine around ``TrainStep(model)``."""
    import deepspeed

    step = TrainStep(model, run.seed)
    if run.compile:
        model.compile()
    engine, *_ = deepspeed.initialize(
        model=step, optimizer=optimizer_for(model, run), config=deepspeed_config(run), dist_init_required=False
    )
    return engine


def learning_rate_factor(run: Run, step: int, steps: int, epoch: int) -> float:
    """What every group's rate is multiplied by at ``step`` of ``steps``: a function, so that nothing needs saving."""
    optim = run.optim
    warm = math.ceil(optim.warmup * steps)
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    if optim.schedule == "linear":
        return max(0.0, 1.0 - done)
    if optim.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    if optim.schedule == "step":
        return float(optim.gamma ** (epoch // optim.step_epochs))
    return 1.0


def set_learning_rates(engine: Any, run: Run, factor: float) -> dict[str, float]:
    """Give every group its rate for the coming step; the rates by group name."""
    rates = {}
    for group in engine.optimizer.param_groups:
        rates[group["name"]] = group["lr"] = run.optim.groups[group["name"]].lr * factor
    return rates
