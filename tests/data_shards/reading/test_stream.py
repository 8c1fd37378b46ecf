"""The stream: every sample once, in step on all ranks, and resumable anywhere."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streams import SIZES, global_batches, places

from data_shards import torch_data
from data_shards.reading.reader import Arrays
from data_shards.shards.manifest import DataError
from data_shards.stream import Stream
from data_shards.torch_data import StepDataset

COUNTS = st.lists(st.integers(1, 7), min_size=1, max_size=6)  # samples per shard
relaxed = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def library(make_shards, tmp_path_factory):
    """Folders by the sizes of their shards, each made once."""
    made: dict[tuple[int, ...], Path] = {}

    def folder(sizes: Sequence[int]) -> Path:
        key = tuple(sizes)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("library")
            make_shards(made[key], key)
        return made[key]

    return folder


@relaxed
@given(
    COUNTS,
    st.integers(1, 7),
    st.integers(1, 25),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_every_sample_once_and_the_same_batches_for_any_number_of_ranks(
    library, sizes, ranks, size, micro_batches, prefetch, window, bucket
):
    options = {"global_batch": size, "window": window, "bucket": bucket, "seed": 3}
    found = global_batches(
        library(sizes),
        1,
        ranks,
        micro_batches=micro_batches,
        prefetch=prefetch,
        fields=["label"],
        **options,
    )
    assert sorted(sum(found, [])) == list(range(sum(sizes)))
    assert found == global_batches(library(sizes), 1, prefetch=0, fields=["label"], **options)
    assert len(found) == Stream(library(sizes), "train", **options).steps(1)


@relaxed
@given(
    COUNTS,
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(0, 4),
    st.integers(1, 9),
    st.integers(0, 3),
    st.data(),
)
def test_a_run_continues_where_it_stopped_with_other_ranks_and_workers(
    library, sizes, before, after, workers, size, bucket, data
):
    """Workers take steps in turn, as DataLoader's would, one after the other in this process; 0 is
    the stream's own."""
    shards = library(sizes)
    options = {"global_batch": size, "window": 2, "bucket": bucket, "seed": 5, "fields": ["label"]}
    whole = global_batches(shards, 2, **options)
    stop = data.draw(st.integers(0, len(whole)))
    states = []
    for rank in range(before):
        stream = Stream(shards, "train", rank=rank, ranks=before, **options)
        steps = stream.epoch(2)
        for _ in range(stop):
            next(steps)
            stream.mark_consumed()
        states.append(stream.state_dict())
        steps.close()  # type: ignore[attr-defined]
        stream.close()
    assert all(state == states[0] for state in states)
    state = json.loads(json.dumps(states[0]))
    rest: list[list[list[int]]] = []
    for rank in range(after):
        stream = Stream(shards, "train", rank=rank, ranks=after, **options)
        stream.load_state_dict(
            state if stop else state | {"epoch": 2}
        )  # before its first step it is in no epoch
        rest.append(
            [
                places(parts)
                for parts in (through(stream, 2, workers) if workers else stream.epoch(2))
            ]
        )
        stream.close()
    assert [sorted(sum(step, [])) for step in zip(*rest, strict=True)] == whole[stop:]


def through(stream: Stream, epoch: int, workers: int) -> list[list[Arrays]]:
    """The steps that ``workers`` make of an epoch, in the order in which DataLoader hands them
    on."""
    made: list[list[list[Arrays]]] = []
    for worker in range(workers):
        info = SimpleNamespace(id=worker, num_workers=workers)
        with patch.object(torch_data, "get_worker_info", return_value=info):
            made.append(list(StepDataset(stream, epoch)))
    return [made[step % workers][step // workers] for step in range(sum(map(len, made)))]


def test_a_stream_can_be_sent_to_another_process(shards):
    stream = Stream(shards, "train", global_batch=3)
    steps = stream.epoch(0)
    next(steps)
    stream.mark_consumed()
    other = pickle.loads(pickle.dumps(stream))
    assert other.state_dict() == stream.state_dict()
    assert [places(parts) for parts in other.epoch(0)] == [places(parts) for parts in steps]


def test_only_consumed_steps_count(shards):
    stream = Stream(shards, "train", global_batch=3, prefetch=4)
    steps = stream.epoch(0)
    next(steps)
    assert stream.state_dict()["samples"] == 0  # at work
    next(steps)
    assert stream.state_dict()["samples"] == 3  # asking for the next says that the first is done
    stream.mark_consumed()
    stream.mark_consumed()
    assert stream.state_dict()["samples"] == 6
    for _ in steps:
        pass
    assert stream.state_dict()["samples"] == sum(SIZES)
    assert list(stream.epoch(0)) == []
    assert len(list(stream.epoch(1))) == stream.steps(1)


def test_leaving_an_epoch_early_starts_it_again_at_the_step_that_was_left(shards):
    stream = Stream(shards, "train", global_batch=3)
    left = next(stream.epoch(0))
    assert places(next(stream.epoch(0))) == places(left)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"global_batch": 4}, "global_batch was 3 and is 4"),
        ({"window": 3}, "window"),
        ({"bucket": 2}, "bucket"),
        ({"shuffle": False}, "shuffle"),
    ],
)
def test_a_position_in_another_order_is_refused(shards, change, reason):
    state = Stream(shards, "train", global_batch=3).state_dict()
    with pytest.raises(DataError, match=reason):
        Stream(shards, "train", **({"global_batch": 3} | change)).load_state_dict(state)


def test_a_position_in_other_data_is_refused(shards, make_shards, tmp_path):
    state = Stream(shards, "train", global_batch=3).state_dict()
    make_shards(tmp_path, SIZES, seed=1)
    with pytest.raises(DataError, match="manifest was"):
        Stream(tmp_path, "train", global_batch=3).load_state_dict(state)


@pytest.mark.parametrize(
    "change", [{"samples": 4}, {"samples": 99}, {"samples": -3}, {"epoch": 1.5}, {"more": 1}]
)
def test_a_position_that_does_not_exist_is_refused(shards, change):
    stream = Stream(shards, "train", global_batch=3)
    with pytest.raises(DataError, match=r"no such position|no state of a stream"):
        stream.load_state_dict(stream.state_dict() | change)


def test_every_rank_and_part_has_a_row_and_the_shares_add_up(shards):
    """20 samples in batches of 9: the last has two samples for six parts."""
    whole = torch.zeros(3)
    means = torch.zeros(3)
    for rank in range(3):
        stream = Stream(shards, "train", global_batch=9, rank=rank, ranks=3, micro_batches=2)
        for step, parts in enumerate(stream.epoch(0)):
            assert len(parts) == 2
            for part in parts:
                assert len(part.index) >= 1
                assert part.weight.sum() in (0, len(part.index))
                whole[step] += part.weight.sum()
                means[step] += (
                    (part.arrays["label"] * part.weight).sum() * part.loss_scale / 6
                )  # the engine's average
    assert whole.tolist() == [9, 9, 2]
    batches = global_batches(shards, global_batch=9)
    torch.testing.assert_close(means, torch.tensor([float(np.mean(batch)) for batch in batches]))


def test_without_shuffling_the_order_is_that_of_the_files(shards):
    stream = Stream(shards, "train", global_batch=6, shuffle=False)
    assert sum((places(parts) for parts in stream.epoch(4)), []) == list(range(sum(SIZES)))


def test_ids_texts_and_records_are_found_by_place(shards):
    stream = Stream(shards, "train", global_batch=6)
    assert stream.ids([7, 0, 19, 7]) == ["id-7", "id-0", "id-19", "id-7"]
    assert stream.ids(torch.tensor([3])) == ["id-3"]
    assert stream.records([6]) == [{"id": "id-6", "place": 6, "text": "text 6"}]
    assert stream.ids([]) == []
    for wrong in ([-1], [20]):
        with pytest.raises(IndexError, match="20 samples"):
            stream.ids(wrong)


def test_the_share_of_time_waited_is_reported(shards):
    stream = Stream(shards, "train", global_batch=4)
    assert stream.wait_share == 0
    for _ in stream.epoch(0):
        sum(range(10_000))
    assert 0 < stream.wait_share < 1
    assert 0 < stream.wait_seconds < stream.seconds


def test_an_error_in_the_background_reaches_the_loop(shards, monkeypatch):
    stream = Stream(shards, "train", global_batch=4, prefetch=3)
    steps = stream.epoch(0)
    next(steps)
    monkeypatch.setattr(stream.reader, "collate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(steps)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank": 2, "ranks": 2}, "rank must be in 0 to 1"),
        ({"micro_batches": 0}, "micro_batches"),
        ({"prefetch": -1}, "prefetch"),
        ({"on_corrupt": "ignore"}, "on_corrupt"),
    ],
)
def test_settings_without_sense_are_refused(shards, wrong, message):
    with pytest.raises(ValueError, match=message):
        Stream(shards, "train", **({"global_batch": 4} | wrong))


def test_an_unknown_split_is_named_with_the_known_ones(shards):
    with pytest.raises(DataError, match="no split 'dev'; it has train"):
        Stream(shards, "dev", global_batch=4)
