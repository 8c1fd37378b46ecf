# mypy: disable-error-code="untyped-decorator"
"""LSTM and GRU layers as one operator, ``concord::recurrence``, where a model is compiled.

Traced, they do not become part of a graph: sequences that are packed by their lengths cannot be
traced at all, GRUs become one operator or more per frame, and the layer of oneDNN that a CPU runs
LSTMs with has an output that does not exist, which torch's compiler refuses. So a graph sees one
node each way. Its gradient computes the layer again, in float32, instead of keeping what the
libraries below would keep.

Where nothing is compiled, torch's own modules run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


def recur(layer: nn.Module, frames: Tensor, length: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """States (B, T, directions * hidden), and what each layer and direction ends with (layers *
    directions, B, hidden).

    Args:
        layer: an LSTM or GRU, ``batch_first``, with biases, without dropout.
        frames: (B, T, D).
        length: (B,) frames of each sample, 1 or more, behind which nothing is read; states are zero
            there. None: all are read.
    """
    assert isinstance(layer, nn.RNNBase)
    if becomes_compiled():
        weights = [weight for group in layer.all_weights for weight in group]
        states, ends = recurrence(
            frames.float(),
            length,
            weights,
            layer.mode,
            layer.hidden_size,
            layer.num_layers,
            layer.bidirectional,
        )
        return states, ends
    if length is None:
        states, ends = layer(frames)
    else:
        packed = pack_padded_sequence(frames, length.cpu(), batch_first=True, enforce_sorted=False)
        packed_states, ends = layer(packed)
        states, _ = pad_packed_sequence(
            packed_states, batch_first=True, total_length=frames.shape[1]
        )
    return states, ends[0] if isinstance(ends, tuple) else ends


def becomes_compiled() -> bool:
    """Whether the compiler traces this; an exported graph is made of torch's own operators."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


@torch.library.custom_op(
    "concord::recurrence",
    mutates_args=(),
    tags=torch.Tag.cudagraph_unsafe,  # it may look at the lengths
)
def recurrence(
    frames: Tensor,
    length: Tensor | None,
    weights: list[Tensor],
    mode: str,
    hidden: int,
    layers: int,
    both_ways: bool,
) -> tuple[Tensor, Tensor]:
    """``recur`` of weights in the order of ``all_weights``; ``mode`` is "LSTM" or "GRU"."""
    return _compute(frames, length, weights, mode, hidden, layers, both_ways)


@recurrence.register_fake
def _(
    frames: Tensor,
    length: Tensor | None,
    weights: list[Tensor],
    mode: str,
    hidden: int,
    layers: int,
    both_ways: bool,
) -> tuple[Tensor, Tensor]:
    samples, steps, _ = frames.shape
    directions = 2 if both_ways else 1
    states = frames.new_empty((samples, steps, directions * hidden))
    return states, frames.new_empty((layers * directions, samples, hidden))


@torch.library.custom_op(
    "concord::recurrence_backward", mutates_args=(), tags=torch.Tag.cudagraph_unsafe
)
def recurrence_backward(
    of_states: Tensor,
    of_ends: Tensor,
    frames: Tensor,
    length: Tensor | None,
    weights: list[Tensor],
    mode: str,
    hidden: int,
    layers: int,
    both_ways: bool,
) -> list[Tensor]:
    """Gradients of the frames and of each weight."""
    with _recording():
        leaves = [tensor.detach().requires_grad_() for tensor in (frames, *weights)]
        outputs = _compute(leaves[0], length, leaves[1:], mode, hidden, layers, both_ways)
        gradients = torch.autograd.grad(outputs, leaves, (of_states, of_ends))
    return [gradient.contiguous() for gradient in gradients]


@recurrence_backward.register_fake
def _(
    of_states: Tensor,
    of_ends: Tensor,
    frames: Tensor,
    length: Tensor | None,
    weights: list[Tensor],
    mode: str,
    hidden: int,
    layers: int,
    both_ways: bool,
) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in (frames, *weights)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    frames, length, weights, *ctx.sizes = inputs
    ctx.save_for_backward(frames, length, *weights)


def _backward(ctx: Any, of_states: Tensor, of_ends: Tensor) -> tuple[Any, ...]:
    frames, length, *weights = ctx.saved_tensors
    of_frames, *of_weights = recurrence_backward(
        of_states.contiguous(), of_ends.contiguous(), frames, length, weights, *ctx.sizes
    )
    return of_frames, None, of_weights, None, None, None, None


recurrence.register_autograd(_backward, setup_context=_save)


def _compute(
    frames: Tensor,
    length: Tensor | None,
    weights: list[Tensor],
    mode: str,
    hidden: int,
    layers: int,
    both_ways: bool,
) -> tuple[Tensor, Tensor]:
    """By the functions that torch's modules call."""
    start = frames.new_zeros((layers * (2 if both_ways else 1), len(frames), hidden))
    function: Any = torch.lstm if mode == "LSTM" else torch.gru
    before = (start, start) if mode == "LSTM" else start
    learns = torch.is_grad_enabled()
    if length is None:
        states, ends, *_ = function(
            frames, before, weights, True, layers, 0.0, learns, both_ways, True
        )
        return states.contiguous(), ends.contiguous()
    packed = pack_padded_sequence(frames, length.cpu(), batch_first=True, enforce_sorted=False)
    states, ends, *_ = function(
        packed.data, packed.batch_sizes, before, weights, True, layers, 0.0, learns, both_ways
    )
    padded, _ = pad_packed_sequence(
        PackedSequence(states, *packed[1:]), batch_first=True, total_length=frames.shape[1]
    )
    assert packed.unsorted_indices is not None
    return padded.contiguous(), ends.index_select(1, packed.unsorted_indices)


@contextmanager
def _recording() -> Iterator[None]:
    """Within this block operators are recorded for their gradients, as they are outside of an
    operator's own code."""
    key = torch._C.DispatchKey.AutogradFunctionality
    was_excluded = torch._C._dispatch_tls_is_dispatch_key_excluded(key)
    torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
    try:
        with torch.enable_grad():
            yield
    finally:
        torch._C._dispatch_tls_set_dispatch_key_excluded(key, was_excluded)
