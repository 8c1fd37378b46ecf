"""Where DeepSpeed keeps what it trains: views of this rank's pieces of parameters and moments, by parameter name.

Each ZeRO stage lays its state out differently. A piece says which flat range of which parameter it is, so that a
checkpoint made of pieces can be put together for any stage and any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Piece:
    """A flat range of one trained parameter that this rank owns; the tensors are views into the optimiser."""

    name: str
    start: int
    values: Tensor  # (n,) float32
    moments: dict[str, Tensor]  # of MOMENTS -> (n,) float32; made as zeros where the optimiser has none yet
    state: dict[str, Any]  # the optimiser's own record that holds "step"


def pieces(engine: Any, model: nn.Module) -> Iterator[Piece]:
    """This rank's pieces. Over all ranks each element of each trained parameter comes exactly once for stages 1 and 2,
    and on every rank for stage 0."""
    stage = engine.zero_optimization_stage()
    optimizer = engine.optimizer
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if stage == 0:
            owner = getattr(optimizer, "optimizer", optimizer)
            state = _state(owner, parameter)
            yield Piece(name, 0, parameter.data.view(-1), {key: state[key].view(-1) for key in MOMENTS}, state)
            continue
        mapping = getattr(parameter, "_hp_mapping", None)
        if mapping is None:  # another rank owns all of it
            continue
        flat = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
        state = _state(optimizer.optimizer, flat)
        place = mapping.hp_fragment_address
        moments = {key: state[key].narrow(0, place.start, place.numel) for key in MOMENTS}
        yield Piece(name, mapping.lp_fragment_address.start, mapping.hp_fragment, moments, state)


def _state(optimizer: torch.optim.Optimizer, owner: Tensor) -> dict[str, Any]:
    """The optimiser's record for ``owner``, made as Adam makes it where no step was taken yet."""
    state = optimizer.state[owner]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32)
        for key in MOMENTS:
            state[key] = torch.zeros_like(owner, memory_format=torch.preserve_format)
    return state
