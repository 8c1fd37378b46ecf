"""Batches for a compiled model come in few lengths, and hold the same samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import small_run

from core.batch import Utterances
from core.dropout import number_dropouts, sample_masks
from launch.engine.deepspeed_engine import allow_compiled_rnn
from launch.tasks.build import build_model, build_task
from launch.tasks.length_buckets import bucket_length, with_bucket_lengths


def test_there_are_two_lengths_to_a_doubling():
    lengths = sorted({bucket_length(size) for size in range(1, 513)})
    assert lengths == [8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    assert all(bucket_length(size) >= size for size in range(1, 513))


def test_padding_adds_frames_that_do_not_exist(make_utterances: Callable[..., Utterances]):
    batch = make_utterances()
    padded = with_bucket_lengths(batch, {"text": 11})
    sizes = {name: values.shape[1] for name, values in padded.frames.items()}
    # the longest text of the data has 11 words
    assert sizes == {"text": 11, "audio": 16, "vision": 16}
    for name, values in batch.frames.items():
        size = values.shape[1]
        assert torch.equal(padded.frames[name][:, :size], values)
        assert torch.equal(padded.mask[name][:, :size], batch.mask[name])
        assert not padded.mask[name][:, size:].any()
        assert not padded.present[name][:, size:].any()
        assert not padded.frames[name][:, size:].any()


@pytest.mark.slow  # the compiler's first part takes its time
@pytest.mark.parametrize("model", ["baseline", "self_mm"])
def test_a_model_is_one_graph(coded_shards: Path, model: str):
    run = small_run(model, coded_shards, compile=True)
    task = build_task(run)
    built = number_dropouts(build_model(run, task.data)).train()
    graphs: list[Any] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    allow_compiled_rnn()
    compiled = torch.compile(built, backend=count, fullgraph=True)  # which refuses a break
    steps = 0
    for (batch,) in task.batches(0):
        plain = batch
        with sample_masks(1, steps, batch.index):
            found = compiled(batch).score
            expected = built(plain).score
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        steps += 1
    assert len(graphs) < steps + 2
