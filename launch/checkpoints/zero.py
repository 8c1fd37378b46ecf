"""Where DeepSpeed keeps what it trains: views of this rank's pieces of parameters and moments, by
parameter name.

Each ZeRO stage lays its state out differently. A piece says which flat range of which parameter it
is, so that a checkpoint made of pieces can be put together for any stage and any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from launch.engine.deepspeed_engine import Engine
from launch.engine.optimizer import is_fused

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Piece:
    """A flat range of one trained parameter that this rank owns; the tensors are views into the
    optimiser."""

    name: str
    start: int
    values: Tensor  # (n,) float32
    # of MOMENTS -> (n,) float32; made as zeros where the optimiser has none yet
    moments: dict[str, Tensor]
    state: dict[str, Any]  # the optimiser's own record that holds "step"


def pieces(engine: Engine, model: nn.Module) -> Iterator[Piece]:
    """This rank's pieces. Over all ranks each element of each trained parameter comes exactly once
    for stages 1 to 3, and on every rank for stage 0."""
    piece_of = PIECE_OF_STAGE[engine.zero_optimization_stage()]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            piece = piece_of(engine.optimizer, name, parameter)
            if piece is not None:
                yield piece


def owned_elements(engine: Engine, model: nn.Module) -> int:
    """Elements of all pieces of this rank; their moments are not made for it."""
    stage = engine.zero_optimization_stage()
    elements = 0
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if stage == 0:
            elements += parameter.numel()
        elif stage == 3:
            elements += _range_of_share(engine.optimizer, parameter)[1]
        else:
            mapping = parameter._hp_mapping  # type: ignore[attr-defined]
            elements += 0 if mapping is None else mapping.hp_fragment.numel()
    return elements


def _whole(optimizer: Any, name: str, parameter: nn.Parameter) -> Piece:
    """Stage 0: every rank has everything."""
    state = _state(optimizer, parameter)
    moments = {key: state[key].view(-1) for key in MOMENTS}
    return Piece(name, 0, parameter.data.view(-1), moments, state)


def _fragment(optimizer: Any, name: str, parameter: nn.Parameter) -> Piece | None:
    """Stages 1 and 2: a group is one flat tensor, cut without regard to where parameters begin."""
    mapping = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:  # other ranks own all of it
        return None
    flat = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
    state = _state(optimizer.optimizer, flat)
    address = mapping.hp_fragment_address
    moments = {key: state[key].narrow(0, address.start, address.numel) for key in MOMENTS}
    return Piece(name, mapping.lp_fragment_address.start, mapping.hp_fragment, moments, state)


def _share(optimizer: Any, name: str, parameter: nn.Parameter) -> Piece | None:
    """Stage 3: each parameter is cut into equal shares, the last ones filled up or empty."""
    start, count = _range_of_share(optimizer, parameter)
    if count == 0:
        return None
    group, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
    flat = optimizer.fp32_partitioned_groups_flat[group]
    state = _state(optimizer.optimizer, flat)
    moments = {key: state[key].narrow(0, offset, count) for key in MOMENTS}
    return Piece(name, start, flat.detach().narrow(0, offset, count), moments, state)


def _range_of_share(optimizer: Any, parameter: nn.Parameter) -> tuple[int, int]:
    """Where this rank's share of a parameter begins at stage 3, and its elements."""
    _, _, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = torch.distributed.get_rank() * size
    return start, max(0, min(size, parameter.ds_numel - start))  # type: ignore[attr-defined]


PIECE_OF_STAGE = {0: _whole, 1: _fragment, 2: _fragment, 3: _share}


def _state(optimizer: torch.optim.Optimizer, owner: Tensor) -> dict[str, Any]:
    """The optimiser's record for ``owner``, made as Adam makes it where no step was taken yet."""
    state = optimizer.state[owner]
    if not state:
        where = owner.device if is_fused(optimizer) else torch.device("cpu")
        state["step"] = torch.zeros((), dtype=torch.float32, device=where)
        for key in MOMENTS:
            state[key] = torch.zeros_like(owner, memory_format=torch.preserve_format)
    return state


def shape(parameter: Tensor) -> list[int]:
    """The shape of a parameter, also of one that stage 3 has cut up."""
    return list(getattr(parameter, "ds_shape", parameter.shape))
