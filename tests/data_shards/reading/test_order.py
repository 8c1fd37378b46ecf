"""The order of an epoch is exact, stable, and the same for everyone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.reading.sampler import Epoch, Sampler, even_split, locate

GOLDEN = [
    [(3, 2), (2, 1), (1, 0), (0, 2), (1, 1)],
    [(0, 1), (1, 2), (2, 0), (0, 0), (1, 3)],
    [(3, 1), (3, 4), (3, 3), (3, 0)],
]
COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(sum)


def lengths(shard: int) -> np.ndarray:
    return np.random.default_rng(shard).integers(1, 100, 9)


def walk(epoch: Epoch) -> list[list[tuple[int, int]]]:
    """Every global batch as (shard, row) pairs."""
    batches = (epoch.batch(step) for step in range(epoch.sampler.steps))
    return [list(zip(shard.tolist(), row.tolist(), strict=True)) for shard, row in batches]


@settings(max_examples=150, deadline=None)
@given(
    COUNTS,
    st.integers(1, 20),
    st.integers(1, 5),
    st.integers(0, 4),
    st.booleans(),
    st.integers(0, 3),
)
def test_every_sample_comes_once_and_every_batch_but_the_last_is_full(
    counts, size, window, bucket, shuffle, epoch
):
    order = Sampler(
        tuple(counts), size, seed=7, shuffle=shuffle, window=window, bucket=bucket if shuffle else 0
    )
    batches = walk(order.epoch(epoch, lengths))
    everything = [(shard, row) for shard, count in enumerate(counts) for row in range(count)]
    assert sorted(sum(batches, [])) == everything
    assert [len(batch) for batch in batches[:-1]] == [size] * (order.steps - 1)
    assert len(batches[-1]) == (sum(counts) - 1) % size + 1
    if not shuffle:
        assert sum(batches, []) == everything


@settings(max_examples=50, deadline=None)
@given(COUNTS, st.integers(1, 20), st.integers(0, 4))
def test_dropping_the_last_batch_drops_nothing_else(counts, size, bucket):
    kept = Sampler(tuple(counts), size, bucket=bucket, drop_last=True)
    batches = walk(kept.epoch(0, lengths))
    assert all(len(batch) == size for batch in batches)
    assert len(batches) == sum(counts) // size == kept.steps
    assert len(set(sum(batches, []))) == len(batches) * size == kept.total


@settings(max_examples=50, deadline=None)
@given(COUNTS, st.integers(1, 20), st.integers(0, 3), st.randoms())
def test_batches_can_be_asked_for_in_any_order(counts, size, bucket, random):
    order = Sampler(tuple(counts), size, window=2, bucket=bucket)
    expected = walk(order.epoch(3, lengths))
    epoch, steps = order.epoch(3, lengths), list(range(order.steps))
    random.shuffle(steps)
    for step in steps:
        shard, row = epoch.batch(step)
        assert list(zip(shard.tolist(), row.tolist(), strict=True)) == expected[step]


def test_a_batch_touches_only_its_windows():
    order = Sampler((10,) * 40, 16, window=4)
    epoch = order.epoch(0, lengths)
    for step in range(order.steps):
        shard, _ = epoch.batch(step)
        windows = {epoch.shards.tolist().index(one) // 4 for one in shard.tolist()}
        assert len(windows) <= 2
        assert set(shard.tolist()) <= set(epoch.upcoming_shards(step))
        assert len(epoch.upcoming_shards(step)) <= 8


def test_epochs_and_seeds_differ_and_repeat():
    def first(seed: int, epoch: int) -> list[list[tuple[int, int]]]:
        return walk(Sampler((9,) * 6, 8, seed=seed).epoch(epoch, lengths))

    assert first(0, 0) == first(0, 0)
    assert first(0, 0) != first(0, 1)
    assert first(0, 0) != first(1, 0)


def test_the_order_never_changes_between_versions():
    """Saved positions depend on it. The numbers were made once from Philox' raw stream and must
    stay."""
    order = Sampler((3, 4, 2, 5), 5, seed=11, window=2, bucket=2)
    assert walk(order.epoch(1, lengths)) == GOLDEN


def test_the_order_is_its_definition():
    """Restated without windows, caches or slices."""
    counts, seed, epoch, window = (3, 4, 2, 5, 6), 5, 2, 2

    def permutation(count: int, purpose: int, number: int) -> list[int]:
        stream = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(epoch, purpose, number)))
        drawn = [int(stream.random_raw()) for _ in range(count)]
        return sorted(range(count), key=lambda i: drawn[i])

    shards = permutation(5, 0, 0)
    expected: list[tuple[int, int]] = []
    for number in range(3):
        inside = [
            (shard, row)
            for shard in shards[2 * number : 2 * number + 2]
            for row in range(counts[shard])
        ]
        expected += [inside[i] for i in permutation(len(inside), 1, number)]
    assert (
        sum(walk(Sampler(counts, 4, seed=seed, window=window).epoch(epoch, lengths)), [])
        == expected
    )


def of_many_lengths(shard: int) -> np.ndarray:
    return np.random.default_rng(shard).integers(1, 500, 200)


def test_buckets_hold_like_lengths_and_so_does_each_rank():
    order = Sampler((200,) * 10, 20, window=5)
    bucketed = Sampler((200,) * 10, 20, window=5, bucket=16)

    def batches(order: Sampler) -> list[list[int]]:
        return [
            [of_many_lengths(shard)[row] for shard, row in batch]
            for batch in walk(order.epoch(0, of_many_lengths))
        ]

    def waste(order: Sampler) -> float:
        return 1 - sum(map(sum, batches(order))) / sum(
            max(batch) * len(batch) for batch in batches(order)
        )

    def unlike(order: Sampler, ranks: int) -> float:
        """By how much the longest samples of the ranks differ, mean over batches."""
        longest = [
            [max(batch[part]) for part in even_split(len(batch), ranks)] for batch in batches(order)
        ]
        return float(np.mean([max(of_ranks) - min(of_ranks) for of_ranks in longest]))

    assert waste(bucketed) < 0.4 * waste(order)
    for ranks in (2, 3, 4):
        assert unlike(bucketed, ranks) < 0.5 * unlike(order, ranks)


@pytest.mark.parametrize("count", [0, 1, 5, 12])
@pytest.mark.parametrize("parts", [1, 3, 7])
def test_dealing_is_even_and_complete(count, parts):
    dealt = even_split(count, parts)
    sizes = [part.stop - part.start for part in dealt]
    assert sum((list(range(count))[part] for part in dealt), []) == list(range(count))
    assert max(sizes) - min(sizes) <= 1


def test_places_in_a_split_are_found_again():
    shard, row = locate([0, 3, 7], np.array([0, 2, 3, 6, 7, 9]))
    assert shard.tolist() == [0, 0, 1, 1, 2, 2]
    assert row.tolist() == [0, 2, 0, 3, 0, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"global_batch": 0},
        {"window": 0},
        {"seed": -1},
        {"bucket": -1},
        {"bucket": 2, "shuffle": False},
    ],
)
def test_settings_without_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampler(**({"samples": (3,), "global_batch": 2} | wrong))


def test_there_is_no_step_past_the_end():
    with pytest.raises(IndexError, match="3 steps, there is no step 3"):
        Sampler((5,), 2).epoch(0, lengths).batch(3)
    with pytest.raises(ValueError, match="negative"):
        Sampler((5,), 2).epoch(-1, lengths)
