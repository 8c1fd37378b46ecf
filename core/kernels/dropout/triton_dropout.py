# mypy: ignore-errors
"""Dropout on a GPU: one kernel that draws a bit, multiplies and scales, for tensors of any shape."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from core.kernels.dropout.formula import AXES, keep_bits, least_kept, mix_states, positions_of
from core.kernels.dropout.triton_bits import AXIS_0, AXIS_1, AXIS_2, AXIS_3, keeps, layer_state

MOST_PLACES = 1024  # of a sample that one program takes
FEWEST_PLACES = 32  # one for each thread of a warp


@triton.jit(do_not_specialize=["layer", "bound"])
def drop_kernel(
    x,
    out,
    states,
    layer,
    bound,
    scale,
    places,
    blocks,
    size_1,
    size_2,
    size_3,
    BLOCK: tl.constexpr,
):
    """BLOCK places of one sample. A place within a sample has an index on each of four axes, of
    which the last three have these sizes."""
    program = tl.program_id(0)
    sample = program // blocks
    place = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = place < places
    index_3 = place % size_3
    above = place // size_3
    index_2 = above % size_2
    above = above // size_2
    index_1 = above % size_1
    index_0 = above // size_1
    position = index_0.to(tl.uint32) * AXIS_0
    position += index_1.to(tl.uint32) * AXIS_1
    position += index_2.to(tl.uint32) * AXIS_2
    position += index_3.to(tl.uint32) * AXIS_3
    low, high = layer_state(states, sample + tl.zeros((BLOCK,), tl.int32), layer)
    first = sample.to(tl.int64) * places
    values = tl.load(x + first + place, mask=inside, other=0.0)
    # a product, so that what is not finite stays seen
    kept = values * keeps(low, high, position, bound).to(values.dtype)
    if out.dtype.element_ty != tl.float64:
        kept = kept.to(tl.float32) * scale
    tl.store(out + first + place, kept.to(out.dtype.element_ty), mask=inside)


def drop(x: Tensor, states: Tensor, layer: int, p: float) -> Tensor:
    """``dropout_op.drop`` of a contiguous ``x``, bit for bit."""
    places = x[0].numel() if len(x) else 0
    out = torch.empty_like(x)
    if places == 0:
        return out
    sizes = list(x.shape[1:])
    scale = 1 / (1 - p)
    if len(sizes) > len(AXES):  # no model has so many
        position = positions_of(x.shape[1:], x.device)
        kept = keep_bits(x.shape, mix_states(states + layer), position, least_kept(p))
        return (x * kept).mul_(scale)
    sizes += [1] * (len(AXES) - len(sizes))
    block = min(MOST_PLACES, max(FEWEST_PLACES, triton.next_power_of_2(places)))
    blocks = math.ceil(places / block)
    drop_kernel[(len(x) * blocks,)](
        x=x,
        out=out,
        states=states,
        layer=layer,
        bound=least_kept(p),
        scale=scale,
        places=places,
        blocks=blocks,
        size_1=sizes[1],
        size_2=sizes[2],
        size_3=sizes[3],
        BLOCK=block,
        num_warps=4,
    )
    # a kernel's arguments have no more digits than float32
    return out.mul_(scale) if x.dtype == torch.float64 else out
