"""Groups of shards: the same promises, and each rank needs the shards of its groups only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import global_batches, places

from data_shards.reading.sampler import WHOLE, Epoch, Part, Sampler
from data_shards.shards.manifest import DataError
from data_shards.stream import Stream
from launch.config import from_dict, load_recipe, to_dict

UNEVEN = st.lists(st.integers(0, 9), min_size=4, max_size=60).filter(sum)
EVEN = (8,) * 64
Pairs = list[tuple[int, int]]


def lengths(shard: int) -> np.ndarray:
    return np.random.default_rng(shard).integers(1, 100, 600)


def pairs(epoch: Epoch, step: int, part: Part = WHOLE) -> Pairs:
    shard, row = epoch.batch(step, part)
    return list(zip(shard.tolist(), row.tolist(), strict=True))


def parts_of(number: int) -> list[Part]:
    return [Part(one, number) for one in range(number)]


def shards_needed(sampler: Sampler, part: Part) -> set[int]:
    epoch = sampler.epoch(0, lengths)
    return {shard for step in range(sampler.steps) for shard, _ in pairs(epoch, step, part)}


def largest_share_needed(sampler: Sampler, nodes: int) -> float:
    """The largest share of all shards that a node needs in an epoch."""
    needed = [len(shards_needed(sampler, part)) for part in parts_of(nodes)]
    return max(needed) / len(sampler.samples)


@settings(max_examples=150, deadline=None)
@given(
    UNEVEN,
    st.sampled_from([1, 4, 6, 12, 16]),
    st.integers(2, 20),
    st.integers(1, 40),
    st.integers(0, 3),
    st.booleans(),
    st.integers(1, 9),
)
def test_every_sample_comes_once_and_parts_are_even_slices_of_the_batch(
    counts, size, groups, window, bucket, drop_last, ranks
):
    sampler = Sampler(
        tuple(counts), size, 7, window=window, bucket=bucket, drop_last=drop_last, groups=groups
    )
    epoch = sampler.epoch(2, lengths)
    batches = [pairs(epoch, step) for step in range(sampler.steps)]
    taken = sum(batches, [])
    assert len(taken) == len(set(taken)) == sampler.total
    if not drop_last:
        expected = [(shard, row) for shard, count in enumerate(counts) for row in range(count)]
        assert sorted(taken) == expected
    assert [len(batch) for batch in batches] == [
        sampler.batch_samples(step) for step in range(sampler.steps)
    ]
    for step in {0, sampler.steps // 2, sampler.steps - 1} & set(range(sampler.steps)):
        shares = [pairs(epoch, step, part) for part in parts_of(ranks)]
        assert sum(shares, []) == batches[step]
        if len(batches[step]) == size and size % ranks == 0 and sampler.num_groups % ranks == 0:
            assert {len(share) for share in shares} == {size // ranks}
        for part in parts_of(ranks):
            assert len(epoch.upcoming_shards(step, part)) <= sampler.shards_in_use(part)
            (some,) = zip(*epoch.first_of(step, part), strict=True)
            assert (int(some[0]), int(some[1])) in batches[step]


@pytest.mark.parametrize(
    ("shards", "size", "wanted", "made"),
    [
        (64, 64, 128, 16),  # four shards a group
        (1000, 64, 128, 64),
        (1000, 96, 64, 48),  # equally many samples of each
        (1000, 97, 64, 1),
        (1000, 97, 128, 97),
        (7, 32, 128, 1),
        (1000, 64, 1, 1),
    ],
)
def test_the_number_of_groups_depends_on_data_and_batch_only(shards, size, wanted, made):
    assert Sampler((3,) * shards, size, groups=wanted).num_groups == made
    assert Sampler((3,) * shards, size, groups=wanted, shuffle=False).num_groups == 1


def test_with_one_group_the_order_is_the_one_without_groups():
    assert Sampler((5,) * 7, 10, groups=64) != Sampler((5,) * 7, 10)
    for bucket in (0, 2):
        plain = Sampler((5,) * 7, 10, seed=3, window=2, bucket=bucket).epoch(1, lengths)
        grouped = Sampler((5,) * 7, 10, seed=3, window=2, bucket=bucket, groups=64)
        assert grouped.num_groups == 1
        epoch = grouped.epoch(1, lengths)
        for step in range(grouped.steps):
            assert pairs(epoch, step) == pairs(plain, step)


def test_a_node_needs_its_share_of_the_shards():
    sampler = Sampler(EVEN, 64, groups=16)
    for nodes in (1, 2, 4, 8, 16):
        assert largest_share_needed(sampler, nodes) == 1 / nodes
    for nodes in (3, 5, 6, 7):
        assert largest_share_needed(sampler, nodes) <= 2 / nodes
    assert largest_share_needed(Sampler(EVEN, 64), 8) > 0.7


@pytest.mark.parametrize("nodes", [1, 3, 4])
@pytest.mark.parametrize("bucket", [0, 2])
def test_the_shards_of_a_part_are_opened_before_it_needs_them(nodes, bucket):
    sampler = Sampler((40,) * 64, 64, groups=8, bucket=bucket)
    epoch = sampler.epoch(0, lengths)
    for part in parts_of(nodes):
        for step in range(0, sampler.steps, bucket or 1):
            needed = {shard for shard, _ in pairs(epoch, step, part)}
            assert needed <= set(epoch.upcoming_shards(step, part))


def test_shards_of_unlike_sizes_cost_little_more():
    counts = tuple(np.random.default_rng(0).integers(20, 40, 640).tolist())
    assert largest_share_needed(Sampler(counts, 64, groups=64), 8) <= 1.1 / 8


def test_the_default_keeps_any_number_of_nodes_below_twice_their_share():
    sampler = Sampler((2,) * 512, 128, groups=128)
    assert sampler.num_groups == 128
    for nodes in range(1, 65):
        most = max(len(sampler.groups_of(part)) for part in parts_of(nodes)) / 128
        assert most <= (1 if 128 % nodes == 0 else 2) / nodes


def test_few_samples_of_a_batch_share_a_shard():
    def same_shard_pairs(groups: int) -> float:
        sampler = Sampler((128,) * 256, 64, groups=groups)
        epoch = sampler.epoch(0, lengths)
        same = 0
        for step in range(0, sampler.steps, 8):
            _, count = np.unique(epoch.batch(step).shard, return_counts=True)
            same += int((count * (count - 1)).sum())
        return same / (len(range(0, sampler.steps, 8)) * 64 * 63)

    assert same_shard_pairs(64) <= 0.005 < 0.05 < same_shard_pairs(1)


def test_buckets_hold_like_lengths_over_all_groups():
    def waste(bucket: int) -> float:
        sampler = Sampler((40,) * 32, 32, bucket=bucket, groups=8)
        assert sampler.num_groups == 8
        epoch = sampler.epoch(0, lengths)
        longest = total = 0
        for step in range(sampler.steps):
            found = [lengths(shard)[row] for shard, row in pairs(epoch, step)]
            total += sum(found)
            longest += max(found) * len(found)
        return float(1 - total / longest)

    assert waste(8) < 0.6 * waste(0)


@pytest.fixture(scope="module")
def folder(make_shards, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("groups")
    make_shards(made, [3, 2, 4, 1, 3, 5, 2, 3, 4, 1, 2, 3])
    return made


@pytest.mark.parametrize("bucket", [0, 2])
@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_a_stream_gives_the_same_batches_to_any_number_of_ranks(folder, ranks, bucket):
    options = {"global_batch": 6, "groups": 3, "window": 2, "bucket": bucket, "fields": ["label"]}
    alone = global_batches(folder, 1, **options)
    assert sorted(sum(alone, [])) == list(range(33))
    assert global_batches(folder, 1, ranks, micro_batches=2, **options) == alone
    assert global_batches(folder, 1, ranks, on_corrupt="skip", **options) == alone


def test_a_stream_goes_on_with_other_ranks_and_not_with_other_groups(folder):
    options = {"global_batch": 6, "window": 2, "fields": ["label"]}
    whole = global_batches(folder, 0, groups=3, **options)
    first = Stream(folder, "train", groups=3, **options)
    steps = first.epoch(0)
    next(steps)
    first.mark_consumed()
    state = json.loads(json.dumps(first.state_dict()))
    assert state["groups"] == 3
    steps.close()  # type: ignore[attr-defined]
    rest: list[list[list[int]]] = []
    for rank in range(3):
        stream = Stream(folder, "train", rank=rank, ranks=3, groups=3, **options)
        stream.load_state_dict(state)
        rest.append([places(step) for step in stream.epoch(0)])
    merged = [sorted(sum(parts, [])) for parts in zip(*rest, strict=True)]
    assert merged == whole[1:]
    with pytest.raises(DataError, match="groups was 3 and is None"):
        Stream(folder, "train", **options).load_state_dict(state)


def test_a_rank_opens_the_shards_of_its_groups_only(folder):
    stream = Stream(folder, "train", global_batch=6, rank=1, ranks=3, groups=3, window=1)
    for _ in stream.epoch(0):
        pass
    assert len(stream.reader.open_shards.checked) <= 6  # of 12, with two borders inside shards


def test_a_run_saved_before_there_were_groups_keeps_its_order():
    saved = to_dict(load_recipe("baseline/demo"))
    assert saved["loading"].pop("groups") == 128
    assert from_dict(saved).loading.groups == 1
