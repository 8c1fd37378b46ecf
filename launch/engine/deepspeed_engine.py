"""The engine around a model and its losses. DeepSpeed is imported here and nowhere else."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import cache, partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from core.batch import Batch
from core.dropout import number_dropouts, sample_masks
from core.kernels.supcr.grouping import RowError
from core.model import GlobalBatchRows, Model, Output
from core.recompute import recompute_layers
from core.weight_casts import WeightCasts
from launch.config import ConfigError, Run
from launch.engine.compilation import compile_model, map_output
from launch.engine.deepspeed_config import deepspeed_config, refuse_impossible, with_stage
from launch.engine.optimizer import is_fused, optimizer_for

# From the embeddings of a micro-batch's global-batch rows to a scalar with the gradient that the
# losses of the whole batch have there.
Surrogate = Callable[[Mapping[str, Tensor]], Tensor]
SURROGATE = "surrogate of the global-batch losses"  # its name among the losses of a micro-batch


class TrainStep(nn.Module):
    """A model and its losses as one forward, so that every parameter is used inside the engine.

    Losses are computed in float32 whatever precision the layers run in.
    """

    model: Model

    def __init__(self, model: Model, seed: int, *, cast_together: bool = False):
        """
        Args:
            cast_together: where autocast is on, weights are cast by few operators: in a forward
                that is neither compiled nor computed again, of weights that are whole.
        """
        super().__init__()
        self.model = model
        number_dropouts(model)
        self.seed = seed
        self.casts = WeightCasts(model) if cast_together else None

    def forward(
        self, batch: Batch, step: int, surrogate: Surrogate | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Named losses of this part of the global batch, and the rows of it for the model's memory
        bank.

        Args:
            step: optimiser step since the start of the run, which keys the dropout masks.
            surrogate: what stands in for ``model.global_batch_losses``, with the same gradient,
                where a first pass over all micro-batches has found it.
        """
        output = self.run(batch, step)
        with torch.autocast(batch.index.device.type, enabled=False):
            losses = self.model.losses(output, batch)
            rows = self.model.global_batch_rows(output)
            if surrogate is None:
                losses |= self.global_batch_losses(rows, batch.target, batch.weight)
            else:
                losses[SURROGATE] = surrogate(rows.embeddings)
            return losses, self.model.memory_bank_rows(output, batch)

    def global_batch_losses(
        self, rows: GlobalBatchRows, target: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        """``model.global_batch_losses``; its losses are nan where it refuses rows, which all ranks
        then do together, so that the run ends with the report that any other loss ends with that is
        not finite."""
        try:
            return self.model.global_batch_losses(rows, target, weight)
        except RowError:
            embeddings = rows.embeddings
            zeros = {name: torch.zeros_like(value) for name, value in embeddings.items()}
            names = self.model.global_batch_losses(rows.with_embeddings(zeros), target, weight)
            sums = [value.sum() for value in embeddings.values()]
            nan = torch.stack(sums).sum() * math.nan  # with a path back to the rows, for backward
            return dict.fromkeys(names, nan)

    def run(self, batch: Batch, step: int) -> Output:
        """The model's output in float32, with this step's dropout masks."""
        casts = nullcontext() if self.casts is None else self.casts.made(batch.index.device)
        with casts, sample_masks(self.seed, step, batch.index):
            return _float32(self.model(batch))


def _float32(output: Output) -> Output:
    return map_output(output, lambda value: value.float() if value.is_floating_point() else value)


class Engine(Protocol):
    """What is used of a DeepSpeed engine. It averages gradients over ranks and over
    micro-batches."""

    module: TrainStep
    device: torch.device
    optimizer: Any  # torch's at stage 0; DeepSpeed's own around it at stages 1 to 3
    torch_autocast_z0_gradscaler: torch.amp.GradScaler | None  # of fp16 at stage 0

    def __call__(
        self, batch: Batch, step: int, surrogate: Surrogate | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``TrainStep.forward`` in the engine's precision."""
        ...

    def train(self) -> Any: ...

    def backward(self, loss: Tensor) -> Any:
        """Add the gradient of one micro-batch's loss; with the last one, exchange gradients between
        ranks."""
        ...

    def step(self) -> None:
        """Once for each micro-batch; the optimiser moves with the last one of a step."""
        ...

    def zero_optimization_stage(self) -> int: ...

    def get_global_grad_norm(self) -> float: ...

    def torch_autocast_enabled(self) -> bool: ...

    def torch_autocast_dtype(self) -> torch.dtype: ...


def start(model: Model, run: Run) -> Engine:
    """The DeepSpeed engine around ``TrainStep(model)``."""
    import deepspeed

    frozen = any(not parameter.requires_grad for parameter in model.parameters())
    batch_norm = any(isinstance(module, _BatchNorm) for module in model.modules())
    recurrent = [module for module in model.modules() if isinstance(module, nn.RNNBase)]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    run = with_stage(run, parameters, frozen=frozen)
    refuse_impossible(
        run,
        gpu=torch.cuda.is_available(),
        frozen=frozen,
        batch_norm=batch_norm,
        both_ways=any(module.bidirectional for module in recurrent),
        dora=any("lora_magnitude_vector" in name for name, _ in model.named_parameters()),
    )
    is_plain = run.zero_stage == 0 and not run.recompute and not run.compile
    step = TrainStep(model, run.seed, cast_together=is_plain and run.precision != "fp32")
    if run.recompute and not recompute_layers(model):
        raise ConfigError(
            f"recompute=true has no effect: model {run.model!r} has no layers in a ModuleList"
        )
    if run.compile:
        compile_model(model, run)
    config = deepspeed_config(run, parameters)
    if run.deepspeed:
        _refuse_odd_settings(run.deepspeed, config)
    engine: Engine
    engine, *_ = deepspeed.initialize(
        model=step,
        optimizer=optimizer_for(model, run),
        config=config,
        dist_init_required=False,
    )
    return engine


def _refuse_odd_settings(path: str, config: dict[str, Any]) -> None:
    """Have DeepSpeed read the user's settings before anything is built from them.

    Raises:
        ConfigError: it cannot.
    """
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        DeepSpeedConfig(copy.deepcopy(config))
    except Exception as error:  # its checks are asserts, lookups and pydantic's
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"deepspeed={path}: DeepSpeed cannot use it ({reason[:300]})") from None


def init_deepspeed(patience: timedelta) -> None:
    """Join torch's process group through DeepSpeed, which compiles an operator for it the first
    time."""
    import deepspeed

    if torch.cuda.is_available():
        # before the group is made, which then knows whose device is which
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    deepspeed.init_distributed(timeout=patience, verbose=False)


def device_guards_step(engine: Engine, run: Run) -> bool:
    """Whether the optimiser itself stays where it is when the device finds something that is not
    finite, so that the host need not look before each step.

    Torch's fused optimisers can. Stages 1 to 3 look at every step inside DeepSpeed, and so does the
    loss scale of fp16.
    """
    is_plain = engine.zero_optimization_stage() == 0 and run.precision != "fp16"
    return is_plain and is_fused(engine.optimizer)


def optimizer_step(engine: Engine, run: Run, losses: Tensor) -> Tensor:
    """Let the optimiser move if losses and global gradient are finite; (1,) the gradient's norm
    before clipping, else inf or nan.

    Stages 1 to 3 compute the norm and clip themselves, and stay where they are when it is not
    finite; stage 0 would go on.

    Args:
        losses: (losses,) of this step; looked at where ``device_guards_step``.
    """
    if engine.zero_optimization_stage() > 0:
        engine.step()
        if engine.optimizer.overflow:
            return torch.tensor([math.inf], dtype=torch.float64)
        return torch.tensor([float(engine.get_global_grad_norm())], dtype=torch.float64)
    scaler = engine.torch_autocast_z0_gradscaler
    if scaler is not None:
        scaler.unscale_(engine.optimizer)
    parameters = [p for p in engine.module.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if run.optim.clip:
        nn.utils.clip_grads_with_norm_(parameters, run.optim.clip, norm)
    if device_guards_step(engine, run):
        _hold_from_now_on(engine.optimizer, losses, norm)
        engine.step()
    elif scaler is not None or math.isfinite(norm):  # a scaler skips the step itself
        engine.step()
    return norm.reshape(1)


def _hold_from_now_on(optimizer: Any, losses: Tensor, norm: Tensor) -> None:
    """Keep a fused optimiser from moving, in this step and all that follow, if one of these numbers
    is not finite. Nothing is read from the device.

    ``found_inf`` is where torch's own loss scale tells it so.
    """
    is_bad = ~(losses.isfinite().all() & norm.isfinite())
    before = getattr(optimizer, "found_inf", None)
    found = is_bad.float()
    optimizer.found_inf = found if before is None else torch.maximum(before, found)


def engine_batches(engine: Engine, micro_batches: list[Batch]) -> list[Batch]:
    """The micro-batches on the engine's device.

    On a GPU they are copied by a stream of their own, while the device still computes what it was
    asked before.
    """
    device = torch.device(engine.device)
    if device.type != "cuda":
        return [batch.to(device) for batch in micro_batches]
    compute, copies = torch.cuda.current_stream(), _copy_stream(device)
    with torch.cuda.stream(copies):
        moved = [batch.to(device) for batch in micro_batches]
    compute.wait_stream(copies)
    for batch in moved:
        batch.map(partial(_used_by, compute))
    return moved


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _used_by(stream: torch.cuda.Stream, tensor: Tensor) -> Tensor:
    """Have the memory of a tensor of another stream kept until ``stream`` is done with it."""
    if tensor.is_cuda:
        tensor.record_stream(stream)
    return tensor


def engine_autocast(engine: Engine) -> AbstractContextManager[Any]:
    """The precision that the engine's own forward runs in."""
    device_type = torch.device(engine.device).type
    return torch.autocast(
        device_type,
        dtype=engine.torch_autocast_dtype(),
        enabled=engine.torch_autocast_enabled(),
    )


def grad_scaler_state(engine: Engine) -> dict[str, float]:
    """The state of fp16's loss scale; empty in other precisions."""
    scaler = engine.torch_autocast_z0_gradscaler
    return {} if scaler is None else scaler.state_dict()


def load_grad_scaler(engine: Engine, state: dict[str, float]) -> None:
    if engine.torch_autocast_z0_gradscaler is not None and state:
        engine.torch_autocast_z0_gradscaler.load_state_dict(state)


def gathered(parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
    """Within this block every rank sees the parameters whole, for reading; all ranks must enter
    it."""
    if not any(hasattr(parameter, "ds_tensor") for parameter in parameters):
        return nullcontext()
    import deepspeed

    gather: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(parameters)
    return gather
