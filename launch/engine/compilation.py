"""A model as graphs of ``torch.compile``: how it is compiled, and what the log says of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from core.model import Model, Output, OutputType
from launch.config import Run

TensorFunction = Callable[[Tensor], Tensor]


def compile_model(model: Model, run: Run) -> None:
    """Have ``model`` compiled when it is first called, in place; with ``run.cuda_graphs`` shapes
    that come again are played back as CUDA graphs."""
    allow_compiled_rnn()
    if not run.cuda_graphs:
        model.compile()
        return
    model.compile(mode="reduce-overhead")
    play_back: Any = model._compiled_call_impl

    def call(*inputs: Any, **options: Any) -> Output:
        # what a graph gives lies in memory that its next call writes to, before the loop has read
        # all of it: rows of a memory bank, predictions of an evaluation
        torch.compiler.cudagraph_mark_step_begin()
        return map_output(play_back(*inputs, **options), torch.clone)

    model._compiled_call_impl = call


def allow_compiled_rnn() -> None:
    """Have models with recurrent layers compiled whole. Torch leaves them out unless told, and the
    model would be compiled in pieces around them; here they are one operator."""
    torch._dynamo.config.allow_rnn = True


def map_output(output: OutputType, change: TensorFunction) -> OutputType:
    """The same output with ``change`` applied to every tensor."""
    changed = {field.name: _map(getattr(output, field.name), change) for field in fields(output)}
    return replace(output, **changed)


def _map(value: Any, change: TensorFunction) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _map(item, change) for key, item in value.items()}
    return value


@contextmanager
def saying_what_compiles(run: Run, say: Callable[[str], None]) -> Iterator[None]:
    """Within this block ``say`` hears of every graph that is compiled, and how long it took."""
    if not run.compile:
        yield
        return
    say(
        "compile=true: the model is compiled when it first meets a length, so the first steps and "
        "the first evaluation take longer"
    )
    from torch._dynamo.callback import callback_handler  # takes a second to import

    began = 0.0
    number = 0
    total = 0.0

    def begin(arguments: Any) -> None:
        nonlocal began
        began = time.perf_counter()

    def end(arguments: Any) -> None:
        nonlocal number, total
        seconds = time.perf_counter() - began
        number += 1
        total += seconds
        kind = arguments.callback_trigger.name.lower().replace("_", " ")
        say(f"compiled graph {number} ({kind}) in {seconds:.1f} s, {total:.1f} s in all")

    callback_handler.register_start_callback(begin)
    callback_handler.register_end_callback(end)
    try:
        yield
    finally:
        callback_handler.remove_start_callback(begin)
        callback_handler.remove_end_callback(end)
