"""A split is scored in batches of like length where training's are so: fewer padded frames, the same
answers in the same places."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import small_run

from launch.config import Loading
from launch.tasks.build import build_model, build_task
from launch.tasks.sentiment import SentimentTask


@pytest.mark.parametrize("model", ["baseline", "self_mm"])
def test_order_of_evaluation_changes_no_answer(model: str, small_shards: Path) -> None:
    run = replace(small_run(model, small_shards), eval_batch_size=8)
    found = {}
    for bucket in (False, True):
        task = build_task(replace(run, loading=Loading(bucket=bucket)))
        assert isinstance(task, SentimentTask)
        torch.manual_seed(0)
        network = build_model(run, task.data)
        found[bucket] = task.predict(network, "test", torch.device("cpu"))
    in_order, by_length = found[False], found[True]
    np.testing.assert_array_equal(by_length.index, np.arange(len(in_order.index)))
    np.testing.assert_array_equal(by_length.label, in_order.label)
    np.testing.assert_allclose(by_length.prediction, in_order.prediction, rtol=1e-4, atol=1e-5)


def test_batches_of_like_length_have_less_padding(small_shards: Path) -> None:
    run = replace(small_run("baseline", small_shards), eval_batch_size=8)
    task = build_task(run)
    assert isinstance(task, SentimentTask)
    padded = {}
    for by_length in (False, True):
        batches = task._arrays("test", by_length=by_length)
        padded[by_length] = sum(batch.arrays["vision"].shape[1] for batch in batches)
    assert padded[True] < padded[False]
