"""The whole configuration of DeepSpeed, with nothing left to a default, and what cannot be
combined.

DeepSpeed's own defaults change between versions (gradient clipping did), so each one that matters
is written out.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from core import distributed
from core.command import Refused
from core.file_access.json_files import kind_of, read_json_object
from launch.config import ConfigError, Run

_LARGEST_BUCKET = 500_000_000  # elements
_ALIGNMENT = 128  # elements, of which DeepSpeed wants an even number
_SHARE_OF_STATE = 0.3  # of a GPU's memory; the rest is for activations


def num_micro_batches(run: Run) -> int:
    """In how many micro-batches a rank takes its samples of the global batch."""
    local = math.ceil(run.batch_size / distributed.world_size())
    return math.ceil(local / run.max_micro_batch) if run.max_micro_batch else 1


def _largest_micro_batch(run: Run) -> int:
    return math.ceil(run.batch_size / (distributed.world_size() * num_micro_batches(run)))


def refuse_impossible(
    run: Run,
    *,
    gpu: bool,
    frozen: bool = False,
    batch_norm: bool = False,
    both_ways: bool = False,
    dora: bool = False,
) -> None:
    """Raise for what cannot be done together, with the reason. ``docs/scaling.md`` has this as a
    table.

    Args:
        frozen: some of the model's parameters are not trained.
        batch_norm: the model has a BatchNorm, which torch cannot synchronise on every device, nor
            over micro-batches.
        both_ways: the model has recurrent layers of two directions.
        dora: an encoder of the model has the matrices of DoRA.
    """
    if dora and run.zero_stage == 3:
        raise ConfigError(
            "train=dora does not work with zero_stage=3: peft reads the frozen layers' own weights, "
            "which are cut up there; use train=lora, or zero_stage=1 or 2"
        )
    if batch_norm and (distributed.world_size() > 1 or num_micro_batches(run) > 1):
        raise ConfigError(
            f"model {run.model!r} with these options normalises over the samples that one process "
            "sees at a time (BatchNorm), so its result would depend on the number of processes "
            "and micro-batches; use one process and max_micro_batch=0, or the model's other norm "
            "(options.norm=layer)"
        )
    if both_ways and not gpu and run.zero_stage == 2 and distributed.world_size() > 1:
        raise ConfigError(
            f"model {run.model!r} does not train on a CPU with zero_stage=2 and several processes: "
            "that stage sums gradients in the order in which they come, and those of recurrent "
            "layers of two directions come in an order that depends on the lengths, which differ "
            "between processes; use zero_stage=1 or 3"
        )
    if run.precision == "fp16" and not gpu:
        raise ConfigError("precision=fp16 needs a GPU; use precision=bf16 or precision=fp32 here")
    if run.precision == "fp16" and run.zero_stage != 0:
        raise ConfigError(
            f"precision=fp16 does not work with zero_stage={run.zero_stage}: DeepSpeed clips the "
            "gradients before it takes the loss scale off, never lowers the scale after an "
            "overflow, and each rank keeps a scale of its own; use zero_stage=0, or "
            "precision=bf16 with any stage"
        )
    if run.offload and run.zero_stage == 0:
        raise ConfigError(
            "offload=true needs zero_stage=1, 2 or 3: stage 0 keeps the optimiser with the "
            "parameters"
        )
    if run.compile and run.zero_stage == 3:
        raise ConfigError(
            "compile=true does not work with zero_stage=3: it collects each layer's parameters in "
            "hooks, which break the graph at every layer; use zero_stage=2"
        )
    if run.cuda_graphs and not gpu:
        raise ConfigError("cuda_graphs=true needs a GPU; leave it out here")
    if run.cuda_graphs and not run.compile:
        raise ConfigError("cuda_graphs=true plays back what compile=true makes; give that too")
    if run.recompute and run.zero_stage == 3 and frozen:
        raise ConfigError(
            "recompute=true does not work with zero_stage=3 and a frozen encoder: its parameters "
            "are let go between the two forwards and have no elements in the second; use "
            "zero_stage=2"
        )


def with_stage(run: Run, parameters: int, *, frozen: bool = False) -> Run:
    """The run with its ``zero_stage`` chosen where it is not given: what the DeepSpeed file says,
    or the least that ranks can share.

    A stage more is a collective more: one process shares nothing, several share only when weights,
    gradients and moments, 16 bytes a parameter, would fill their part of the GPU's memory. On a CPU
    it is 1, as it always was: stage 0 rounds otherwise.

    Args:
        parameters: of the model.
        frozen: some of them are not trained.
    """
    if run.zero_stage != "auto":
        return run
    stage = _stage_of_file(run)
    if stage is None:
        stage = _least_stage(run, parameters, frozen=frozen)
    return replace(run, zero_stage=stage)  # type: ignore[arg-type]


def _stage_of_file(run: Run) -> int | None:
    """What the user's DeepSpeed file says, as far as it can be read; ``_read`` complains."""
    if not run.deepspeed:
        return None
    try:
        stage = read_json_object(Path(run.deepspeed))["zero_optimization"]["stage"]
    except (OSError, Refused, LookupError, TypeError):
        return None
    return stage if stage in (0, 1, 2, 3) and not isinstance(stage, bool) else None


def _least_stage(run: Run, parameters: int, *, frozen: bool) -> int:
    if run.precision == "fp16":
        return 0
    if not torch.cuda.is_available():
        return 1
    least = 1 if run.offload else 0
    most = 2 if run.compile or (run.recompute and frozen) else 3
    ranks = distributed.world_size()
    if ranks == 1:
        return least
    room = _SHARE_OF_STATE * torch.cuda.get_device_properties(0).total_memory
    needs = [  # bytes of a rank
        16 * parameters,
        (8 + 8 / ranks) * parameters,
        (4 + 12 / ranks) * parameters,
        16 / ranks * parameters,
    ]
    fitting = [stage for stage in range(least, most) if needs[stage] <= room]
    return fitting[0] if fitting else most


def deepspeed_config(run: Run, parameters: int) -> dict[str, Any]:
    """The complete configuration: the recipe's, with what ``deepspeed=FILE`` says laid over it.

    Args:
        run: with a ``zero_stage``, ``with_stage``.
        parameters: of the model, which DeepSpeed's buffers need not exceed.
    """
    config: dict[str, Any] = {
        # DeepSpeed uses these only for arithmetic; the stream deals out the true global batch
        "train_micro_batch_size_per_gpu": _largest_micro_batch(run),
        "gradient_accumulation_steps": num_micro_batches(run),
        # at stage 0 ``optimizer_step`` clips, with few kernels and no number from the host
        "gradient_clipping": run.optim.clip if run.zero_stage else 0.0,
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": _zero(run, parameters),
        "fp16": {"enabled": False},
        "bf16": {"enabled": False},
        "torch_autocast": {
            "enabled": run.precision != "fp32",
            "dtype": "float16" if run.precision == "fp16" else "bfloat16",
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # it waits for the GPU in every step
        "memory_breakdown": False,
        "dump_state": False,
    }
    return _merge(config, _read(run.deepspeed, run, config)) if run.deepspeed else config


def _zero(run: Run, parameters: int) -> dict[str, Any]:
    whole = math.ceil(parameters / _ALIGNMENT) * _ALIGNMENT
    bucket = max(_ALIGNMENT, min(whole, _LARGEST_BUCKET))
    section: dict[str, Any] = {
        "stage": run.zero_stage,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "round_robin_gradients": False,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "allgather_partitions": True,
        "reduce_scatter": True,
        "compute_grad_norm": True,
        "ignore_unused_parameters": True,
        "sub_group_size": 1_000_000_000,
        "stage3_prefetch_bucket_size": 50_000_000,
        "stage3_param_persistence_threshold": 100_000,
        "stage3_max_live_parameters": 1_000_000_000,
        "stage3_max_reuse_distance": 1_000_000_000,
    }
    if run.offload:
        section["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return section


_SET_ELSEWHERE = {
    "optimizer": "optim.algorithm, optim.groups.<name>.lr, ...",
    "scheduler": "optim.schedule, optim.warmup",
    "activation_checkpointing": "recompute",
}


def _read(path: str, run: Run, known: dict[str, Any]) -> dict[str, Any]:
    """The user's file, without what agrees with the run; ``known`` is what it is laid over.

    Raises:
        ConfigError: it cannot be read, or says something else than the run.
    """
    try:
        settings = read_json_object(Path(path))
    except (OSError, Refused) as error:
        raise ConfigError(f"deepspeed={path}: {error}") from None
    _refuse_other_kinds(path, settings, known | {"train_batch_size": run.batch_size})
    for section, instead in _SET_ELSEWHERE.items():
        if section in settings:
            raise ConfigError(
                f"{path} has a section {section!r}, but the recipe decides that; set {instead}"
            )
    _refuse_other_sizes(path, settings, run)
    stage = _section(settings, "zero_optimization").get("stage", run.zero_stage)
    if stage not in ("auto", run.zero_stage):
        raise ConfigError(
            f"{path} says stage {stage}, the run zero_stage={run.zero_stage}; set "
            f"zero_stage={stage}"
        )
    for key in ("fp16", "bf16"):
        if _section(settings, key).get("enabled") not in (None, False, "auto"):
            raise ConfigError(
                f"{path} enables {key}, which would train the weights themselves in it; set "
                f"precision={key}"
            )
    return settings


def _section(settings: dict[str, Any], key: str) -> dict[str, Any]:
    section: Any = settings.get(key, {})
    return {} if section == "auto" else section


def _refuse_other_kinds(
    path: str, settings: dict[str, Any], known: dict[str, Any], prefix: str = ""
) -> None:
    """Refuse values of another kind than those that the run itself would give DeepSpeed."""
    for key, value in settings.items():
        if key not in known or value == "auto":
            continue
        wanted, name = known[key], prefix + key
        if isinstance(wanted, dict):
            if not isinstance(value, dict):
                example = json.dumps(dict(list(wanted.items())[:1]))
                raise ConfigError(
                    f"{path} says {name} = {json.dumps(value)[:80]}, which must be an object such "
                    f"as {example}"
                )
            _refuse_other_kinds(path, value, wanted, f"{name}.")
        elif kind_of(value) not in _kinds_like(wanted):
            raise ConfigError(
                f"{path} says {name} = {json.dumps(value)[:80]}, which must be "
                f"{' or '.join(_kinds_like(wanted))}"
            )


def _kinds_like(value: Any) -> tuple[str, ...]:
    return ("true", "false") if isinstance(value, bool) else (kind_of(value),)


def _refuse_other_sizes(path: str, settings: dict[str, Any], run: Run) -> None:
    """Take the sizes that follow from the run out of ``settings``, which must agree where it names
    them."""
    expected = {
        "train_batch_size": run.batch_size,
        "train_micro_batch_size_per_gpu": _largest_micro_batch(run),
        "gradient_accumulation_steps": num_micro_batches(run),
        "gradient_clipping": run.optim.clip,
    }
    for key, value in expected.items():
        found = settings.pop(key, "auto")
        if found not in ("auto", value):
            raise ConfigError(
                f"{path} says {key} = {found}, but batch_size={run.batch_size} on "
                f"{distributed.world_size()} process(es) with "
                f"max_micro_batch={run.max_micro_batch} and "
                f"optim.clip={run.optim.clip:g} makes it {value}; leave it out of the file, or "
                "change the run"
            )


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``base`` with what ``over`` says; "auto" leaves it as it is."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            merged[key] = _merge(base[key], value)
        elif value != "auto":
            merged[key] = value
    return merged
