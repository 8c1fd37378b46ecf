"""The stream: every sample once, in step on all ranks, resumable anywhere, and copied right."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paths import ROOT
from torch.utils.data import DataLoader

from data_shards import torch_data
from data_shards.batches import utterances
from data_shards.reading.buffer_pool import BufferPool
from data_shards.reading.reader import Arrays
from data_shards.shards.manifest import DataError, Manifest
from data_shards.stream import Stream
from data_shards.torch_data import Samples, Steps, loader

pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create"
)  # more workers than cores
SIZES = (5, 1, 7, 3, 4)
COUNTS = st.lists(st.integers(1, 7), min_size=1, max_size=6)  # samples per shard
relaxed = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def shards(make_shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    make_shards(folder, SIZES)
    return folder


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


def places(parts: Sequence[Arrays]) -> list[int]:
    """The samples of one rank's step, without rows that only fill a part."""
    return [
        int(i)
        for part in parts
        for i, weight in zip(part.index, part.weight, strict=True)
        if weight
    ]


def global_batches(folder: Path, epoch: int = 0, ranks: int = 1, **options) -> list[list[int]]:
    """The samples of each step over all ranks, sorted; ranks must agree on their number."""
    streams = [Stream(folder, "train", rank=rank, ranks=ranks, **options) for rank in range(ranks)]
    steps = [[places(parts) for parts in stream.epoch(epoch)] for stream in streams]
    for stream in streams:
        stream.close()
    return [sorted(sum(step, [])) for step in zip(*steps, strict=True)]


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
    """Workers take steps in turn, as DataLoader's would, one after the other in this process; 0 is the stream's own."""
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
    """The steps that ``workers`` make of an epoch, in the order in which DataLoader hands them on."""
    made: list[list[list[Arrays]]] = []
    for worker in range(workers):
        info = SimpleNamespace(id=worker, num_workers=workers)
        with patch.object(torch_data, "get_worker_info", return_value=info):
            made.append(list(Steps(stream, epoch)))
    return [made[step % workers][step // workers] for step in range(sum(map(len, made)))]


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_worker_processes_change_nothing(shards, workers):
    stream = Stream(shards, "train", global_batch=3, window=2)
    expected = list(stream.epoch(1))
    again = Stream(shards, "train", global_batch=3, window=2)
    found = list(loader(again, 1, workers))
    assert [places(parts) for parts in found] == [places(parts) for parts in expected]
    for ours, theirs in zip(expected, found, strict=True):
        torch.testing.assert_close(ours[0].arrays["audio"], theirs[0].arrays["audio"])
    assert again.state_dict() == stream.state_dict()


def test_steps_through_workers_are_resumed_and_counted_too(shards):
    stream = Stream(shards, "train", global_batch=3)
    whole = [places(parts) for parts in Stream(shards, "train", global_batch=3).epoch(0)]
    some = loader(stream, 0, 2)
    first = [places(next(some)) for _ in range(3)]
    stream.mark_consumed()
    del some
    assert stream.state_dict()["samples"] == 9
    assert first + [places(parts) for parts in loader(stream, 0, 2)] == whole


def test_the_stream_works_in_a_data_loader(shards):
    stream = Stream(shards, "train", global_batch=4)
    made = DataLoader(Steps(stream, 0), batch_size=None, num_workers=2)
    assert len(made) == stream.steps(0)
    assert sorted(sum((places(parts) for parts in made), [])) == list(range(sum(SIZES)))


def test_samples_work_in_a_data_loader(shards):
    samples = Samples(Stream(shards, "train", global_batch=4))
    assert len(samples) == sum(SIZES)
    made = DataLoader(samples, batch_size=None, num_workers=2)
    assert [float(sample["label"]) for sample in made] == list(range(sum(SIZES)))
    assert "vision" not in samples[5]
    assert samples[-1]["label"] == sum(SIZES) - 1
    with pytest.raises(IndexError, match="20 samples, there is no sample 20"):
        samples[20]


def test_a_stream_can_be_sent_to_another_process(shards):
    stream = Stream(shards, "train", global_batch=3)
    steps = stream.epoch(0)
    next(steps)
    stream.mark_consumed()
    other = pickle.loads(pickle.dumps(stream))
    assert other.state_dict() == stream.state_dict()
    assert [places(parts) for parts in other.epoch(0)] == [places(parts) for parts in steps]


def test_the_examples_of_the_documentation_run(shards):
    text = (ROOT / "docs" / "streaming.md").read_text(encoding="utf-8")
    examples = [part.partition("```")[0] for part in text.split("```python\n")[1:]]
    assert len(examples) == 2
    names = {}
    for example in examples:
        exec(example.replace("shards/mosi", str(shards)), names)
    assert names["stream"].state_dict()["samples"] == sum(SIZES)
    assert names["state"]["epoch"] == 1
    assert names["audio"].ndim == 3


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


def test_arrays_are_what_was_written_padded_with_zeros(shards):
    stream = Stream(shards, "train", global_batch=6)
    for (part,) in stream.epoch(0):
        for row, at in enumerate(part.index.tolist()):
            shard, inside = divmod_place(at)
            views = stream.reader.views(shard, inside)
            assert part.arrays["label"][row] == at
            for name, axis in (("audio", 0), ("vision", 0), ("text", 1)):
                length = int(part.lengths[name][row])
                array = part.arrays[name][row].numpy()
                used, rest = np.split(array, [length], axis=axis)
                if name in views:
                    np.testing.assert_array_equal(used, views[name])
                else:
                    assert (name, length, at % 5) == ("vision", 0, 0)
                assert not rest.any()
            label = part.arrays["label_audio"][row]
            assert torch.isnan(label) if at % 3 == 0 else label == at / 2
            assert part.arrays["flag"][row, 0] == (at % 2 if at % 7 else -1)
        for name, axis in (("audio", 1), ("text", 2)):
            assert part.arrays[name].shape[axis] == part.lengths[name].max()


def divmod_place(at: int) -> tuple[int, int]:
    starts = np.cumsum((0, *SIZES))
    shard = int(np.searchsorted(starts, at, side="right")) - 1
    return shard, at - int(starts[shard])


def test_a_part_that_lacks_a_field_altogether_still_has_one_frame(shards):
    (parts,) = Stream(shards, "train", global_batch=1, shuffle=False).epoch(0).__next__()
    assert parts.index.item() == 0
    assert parts.arrays["vision"].shape == (1, 1, 2)
    assert parts.lengths["vision"].item() == 0
    assert not parts.arrays["vision"].any()


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


def test_chosen_fields_are_the_only_ones(shards):
    (part,) = next(Stream(shards, "train", global_batch=2, fields=["text", "label"]).epoch(0))
    assert list(part.arrays) == ["text", "label"]
    with pytest.raises(DataError, match="no field 'speech'; it has audio"):
        Stream(shards, "train", global_batch=2, fields=["speech"])


def test_views_are_read_only_and_need_no_copy(shards):
    reader = Stream(shards, "train", global_batch=2).reader
    views = list(reader.walk(2, range(7)))
    assert [float(view["label"]) for view in views] == [6, 7, 8, 9, 10, 11, 12]
    with pytest.raises(ValueError, match="read-only"):
        views[1]["audio"][0, 0] = 1
    reader.close()
    assert views[0]["audio"].sum() == views[0]["audio"].sum()  # still mapped


def test_opening_ten_thousand_shards_opens_only_the_first_window(make_shards, tmp_path):
    """One real shard under ten thousand names, which is all that a stream could see of them before they are used."""
    few = make_shards(tmp_path, [2])
    (shard,) = few.splits["train"]
    many = tuple(replace(shard, name=f"train-{i:06d}.tar") for i in range(10_000))
    (tmp_path / "manifest.json").write_text(replace(few, splits={"train": many}).to_json())
    for one in many[1:]:
        for suffix in (".tar", ".idx"):
            path = tmp_path / one.name.replace(".tar", suffix)
            path.hardlink_to(tmp_path / f"train-000000{suffix}")
    stream = Stream(tmp_path, "train", global_batch=8, window=4)
    steps = stream.epoch(0)
    next(steps)
    assert 0 < len(stream.reader._open) <= 8
    for _ in range(20):
        next(steps)
        assert len(stream.reader._open) <= 8
    steps.close()  # type: ignore[attr-defined]
    state = stream.state_dict() | {"samples": 16_000}
    other = Stream(tmp_path, "train", global_batch=8, window=4, prefetch=0)
    other.load_state_dict(state)
    next(other.epoch(0))
    assert len(other.reader._open) <= 8  # nothing before the position was touched
    assert len(other.reader._checked) <= 8


def test_a_shard_is_compared_with_its_checksum_once(shards):
    stream = Stream(shards, "train", global_batch=4, window=1, prefetch=0)
    list(stream.epoch(0))
    assert len(stream.reader._checked) == len(SIZES)
    stream.reader.shards = tuple(replace(shard, sha256="0" * 64) for shard in stream.reader.shards)
    assert (
        len(list(stream.epoch(1))) == 5
    )  # with checksums that cannot match: they are not computed again


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


def test_utterances_have_masks_ids_and_view_labels(shards):
    (part,) = next(Stream(shards, "train", global_batch=20, shuffle=False, fields=FIELDS).epoch(0))
    batch = utterances(part)
    assert batch.label.tolist() == list(range(20))
    assert batch.loss_scale == pytest.approx(1 / 20)
    assert set(batch.frames) == {"audio", "vision", "text"}
    assert batch.frames["text"].dtype == torch.int64
    torch.testing.assert_close(batch.frames["text"], part.arrays["text"][:, 0].long())
    for name, mask in batch.mask.items():
        assert mask.sum(1).tolist() == part.lengths[name].tolist()
        assert mask.shape == batch.frames[name].shape[:2]
        assert not batch.frames[name][~mask].any()
    assert not batch.mask["vision"][[0, 5, 10, 15]].any()
    assert torch.isnan(batch.view_labels["audio"]).nonzero().flatten().tolist() == list(
        range(0, 20, 3)
    )


FIELDS = ["audio", "vision", "text", "label", "label_audio"]


def test_arrays_that_are_no_utterances_say_why(shards):
    (part,) = next(Stream(shards, "train", global_batch=2).epoch(0))
    with pytest.raises(DataError, match="'flag' has no time axis"):
        utterances(part)
    with pytest.raises(DataError, match="need a field 'label'"):
        utterances(replace(part, arrays={"audio": part.arrays["audio"]}))


def test_a_manifest_that_counts_wrong_is_caught_on_first_use(shards, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(shards, folder)
    whole = Manifest.from_json((folder / "manifest.json").read_text(), "m")
    first, *rest = whole.splits["train"]
    changed = replace(whole, splits={"train": (replace(first, samples=6), *rest)})
    (folder / "manifest.json").write_text(changed.to_json())
    with pytest.raises(DataError, match=r"train-000000\.idx is of 5 samples.*the manifest says 6"):
        list(Stream(folder, "train", global_batch=4).epoch(0))


def test_memory_of_a_batch_is_used_again_only_when_nobody_holds_it():
    memory = BufferPool()
    first = memory.tensor((300, 100), torch.float32)
    address, part = first.data_ptr(), first[7:9]
    part.fill_(3)
    del first
    other = memory.tensor((300, 100), torch.float32)
    other.zero_()
    assert other.data_ptr() != address  # a view of the first is held
    assert part.eq(3).all()
    del part
    third = memory.tensor((305, 100), torch.int32)  # a like size will do
    assert third.data_ptr() == address
    assert memory.tensor((3,), torch.float32).shape == (3,)


def test_batches_that_are_kept_do_not_change(make_shards, tmp_path):
    make_shards(tmp_path, (9, 9))
    with patch("data_shards.reading.buffer_pool.LARGE", 1):
        kept = [part for (part,) in Stream(tmp_path, "train", global_batch=2, prefetch=2).epoch(0)]
    again = [part for (part,) in Stream(tmp_path, "train", global_batch=2, prefetch=0).epoch(0)]
    for one, other in zip(kept, again, strict=True):
        for name, array in one.arrays.items():
            torch.testing.assert_close(array, other.arrays[name], equal_nan=True)
