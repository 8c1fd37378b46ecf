"""DeepSpeed, and nowhere else: processes, the wrapped model, its optimiser and learning rates."""

from __future__ import annotations

import math
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from core.batch import Batch
from core.dropout import number_dropouts, sample_masks
from core.kernels.supcr.grouping import RowError
from core.model import GlobalBatchRows, Model, Output
from core.recompute import recompute_layers
from launch.config import ConfigError, Run
from launch.deepspeed_config import deepspeed_config, refuse_impossible
from launch.monitor import control_plane, watchdog

Surrogate = Callable[[Mapping[str, Tensor]], Tensor]  # from the embeddings of one part to a scalar


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
        self, batch: Batch, step: int, surrogate: Surrogate | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Named losses of this part of the global batch, and what the model wants to remember of it.

        Args:
            step: optimiser step since the start of the run, which keys the dropout masks.
            surrogate: what stands in for ``model.global_batch_losses``, with the same gradient, where a first pass over
                all parts has found it.
        """
        output = self.run(batch, step)
        with torch.autocast(batch.index.device.type, enabled=False):
            losses = self.model.losses(output, batch)
            rows = self.model.global_batch_rows(output)
            if surrogate is None:
                losses |= self.global_batch_losses(rows, batch.target, batch.weight)
            else:
                losses["contrast"] = surrogate(rows.embeddings)
            return losses, self.model.memory_bank_rows(output, batch)

    def global_batch_losses(
        self, rows: GlobalBatchRows, target: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        """``model.global_batch_losses``; its losses are nan where it refuses rows, which all ranks then do together, so
        that the run ends with the report that any other loss ends with that is not finite."""
        try:
            return self.model.global_batch_losses(rows, target, weight)
        except RowError:
            embeddings = rows.embeddings
            zeros = {name: torch.zeros_like(values) for name, values in embeddings.items()}
            names = self.model.global_batch_losses(rows.with_embeddings(zeros), target, weight)
            spoilt = torch.stack([values.sum() for values in embeddings.values()]).sum() * math.nan
            return dict.fromkeys(names, spoilt)

    def run(self, batch: Batch, step: int) -> Output:
        """The model's output in float32, with this step's dropout masks."""
        with sample_masks(self.seed, step, batch.index):
            return _float32(self.model(batch))


def _float32(output: Output) -> Output:
    def widen(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.float()
        return (
            {key: widen(item) for key, item in value.items()} if isinstance(value, dict) else value
        )

    return replace(output, **{f.name: widen(getattr(output, f.name)) for f in fields(output)})


def init_processes(timeout: float = 1800.0, lost_after: float = watchdog.LOST_AFTER) -> None:
    """Join the processes that a launcher started (``deepspeed``, ``torchrun``), or be the only one.

    Args:
        timeout: seconds that the ranks may wait for one of them.
        lost_after: seconds of silence after which a rank counts as gone.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault(
            "DS_ACCELERATOR", "cpu"
        )  # otherwise DeepSpeed warns that it found no GPU
    warnings.filterwarnings(
        "ignore", message=".*is deprecated. Please use.*", category=FutureWarning
    )  # DeepSpeed's own
    _use_own_ninja()
    import deepspeed

    if "RANK" not in os.environ:
        with (
            socket.socket() as probe
        ):  # several runs may share a machine: take a port that is free now
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(
            RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
        )
    refuse_stale_build_lock()
    # the watch names the rank that is missing and should be first; the collectives' own time-out is the second net
    patience = timedelta(seconds=timeout + 60)
    with _build_lock_watched():
        deepspeed.init_distributed(timeout=patience, verbose=False)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    control_plane.open_group(patience)
    watchdog.begin(timeout, lost_after)


def _use_own_ninja() -> None:
    """Put the ninja of this Python first: one of another version cannot read its records, takes DeepSpeed's operator
    for outdated, and compiles it again for two minutes while all other runs on the machine wait."""
    own = Path(sys.executable).parent
    if (own / "ninja").is_file() and os.environ.get("PATH", "").split(os.pathsep)[0] != str(own):
        os.environ["PATH"] = f"{own}{os.pathsep}{os.environ.get('PATH', '')}"


@contextmanager
def _build_lock_watched(period: float = 30.0) -> Iterator[None]:
    """End this process, with the lock's name, when the build that it waits for was killed meanwhile."""
    done = threading.Event()

    def look() -> None:
        while not done.wait(period):
            try:
                refuse_stale_build_lock(idle=300, busy=math.inf)
            except ConfigError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
                os._exit(2)

    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def refuse_stale_build_lock(
    root: Path | None = None, *, idle: float = 5, busy: float = 300
) -> None:
    """Name the lock that a process leaves when it is killed while it compiles an operator of DeepSpeed: every later
    run would wait for it, forever and without a word.

    Args:
        idle: seconds after which a lock is stale when no compiler runs on this machine.
        busy: the same when one does; a build takes two minutes.

    Raises:
        ConfigError: with the command that removes it.
    """
    import psutil
    from torch.utils.cpp_extension import get_default_build_root

    root = root or Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    compilers = {"ninja", "c++", "g++", "clang++", "cc1plus", "nvcc", "cicc"}
    for lock in [*root.glob("*/lock"), *root.glob("*/*/lock")]:
        try:
            age = time.time() - lock.stat().st_mtime
        except FileNotFoundError:
            continue
        if age > busy or (
            age > idle
            and not any(p.info["name"] in compilers for p in psutil.process_iter(["name"]))
        ):
            raise ConfigError(
                f"{lock} was left {age:.0f} s ago by an interrupted build of a DeepSpeed operator, and every run "
                f"would wait for it forever; if no machine is compiling there now, remove it: rm {lock}"
            )


def shutdown_processes() -> None:
    """Leave together, at the end of the work."""
    if torch.distributed.is_initialized():
        control_plane.any_rank(False)
        watchdog.leave()
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


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
        groups.append(
            {
                "params": trained,
                "lr": setting.lr,
                "weight_decay": setting.weight_decay,
                "name": name,
            }
        )
    forgotten = [name for key, name in names.items() if key not in seen]
    forgotten = [name for name in forgotten if model.get_parameter(name).requires_grad]
    if forgotten:
        raise ConfigError(
            f"model {run.model!r} puts these parameters into no group: {', '.join(forgotten[:5])}"
        )
    scalars = [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
    if scalars:
        raise ConfigError(
            f"DeepSpeed needs parameters of at least one dimension; shape (1,) for: {', '.join(scalars)}"
        )
    return groups


def optimizer_for(model: Model, run: Run) -> torch.optim.Optimizer:
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[run.optim.algorithm]
    return kind(parameter_groups(model, run), betas=run.optim.betas, eps=run.optim.eps)


def start(model: Model, run: Run) -> Any:
    """The DeepSpeed engine around ``TrainStep(model)``."""
    import deepspeed

    frozen = any(not parameter.requires_grad for parameter in model.parameters())
    batch_norm = any(isinstance(module, _BatchNorm) for module in model.modules())
    refuse_impossible(run, gpu=torch.cuda.is_available(), frozen=frozen, batch_norm=batch_norm)
    step = TrainStep(model, run.seed)
    if run.recompute and not recompute_layers(model):
        raise ConfigError(
            f"recompute=true has no effect: model {run.model!r} has no layers in a ModuleList"
        )
    if run.compile:
        model.compile()
    engine, *_ = deepspeed.initialize(
        model=step,
        optimizer=optimizer_for(model, run),
        config=deepspeed_config(run),
        dist_init_required=False,
    )
    return engine


def optimizer_step(engine: Any) -> float:
    """Let the optimiser move if the global gradient is finite; the gradient's norm before clipping, else inf or nan.

    Stages 1 to 3 compute the norm themselves and stay where they are when it is not finite; stage 0 would go on.
    """
    scaler = engine.torch_autocast_z0_gradscaler
    if engine.zero_optimization_stage() > 0:
        engine.step()
        return math.inf if engine.optimizer.overflow else float(engine.get_global_grad_norm())
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    norm = float(nn.utils.get_total_norm(gradients)) / (
        scaler.get_scale() if scaler is not None else 1.0
    )
    if math.isfinite(norm) or scaler is not None:
        engine.step()
    return norm


def grad_scaler_state(engine: Any) -> dict[str, float]:
    """The state of fp16's loss scale; empty in other precisions."""
    scaler = engine.torch_autocast_z0_gradscaler
    return {} if scaler is None else scaler.state_dict()


def load_grad_scaler(engine: Any, state: dict[str, float]) -> None:
    if engine.torch_autocast_z0_gradscaler is not None and state:
        engine.torch_autocast_z0_gradscaler.load_state_dict(state)


def gathered(parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
    """Within this block every rank sees the parameters whole, for reading; all ranks must enter it."""
    if not any(hasattr(parameter, "ds_tensor") for parameter in parameters):
        return nullcontext()
    import deepspeed

    gather: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(parameters)
    return gather


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
