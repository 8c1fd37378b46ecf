"""Arrays are what was written, padded; shards are opened when needed, and memory is used again."""

from __future__ import annotations

import shutil
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from streams import SIZES

from data_shards.batches import utterances
from data_shards.reading.buffer_pool import BufferPool
from data_shards.shards.manifest import DataError, Manifest
from data_shards.stream import Stream


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


def test_chosen_fields_are_the_only_ones(shards):
    (part,) = next(Stream(shards, "train", global_batch=2, fields=["text", "label"]).epoch(0))
    assert list(part.arrays) == ["text", "label"]
    with pytest.raises(DataError, match="no field 'speech'; it has audio"):
        Stream(shards, "train", global_batch=2, fields=["speech"])


def test_views_are_read_only_and_need_no_copy(shards):
    reader = Stream(shards, "train", global_batch=2).reader
    views = list(reader.iter_views(2, range(7)))
    assert [float(view["label"]) for view in views] == [6, 7, 8, 9, 10, 11, 12]
    with pytest.raises(ValueError, match="read-only"):
        views[1]["audio"][0, 0] = 1
    reader.close()
    assert views[0]["audio"].sum() == views[0]["audio"].sum()  # still mapped


def test_opening_ten_thousand_shards_opens_only_the_first_window(make_shards, tmp_path):
    """One real shard under ten thousand names, which is all that a stream could see of them before
    they are used."""
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
    assert 0 < len(stream.reader.open_shards) <= 8
    for _ in range(20):
        next(steps)
        assert len(stream.reader.open_shards) <= 8
    steps.close()  # type: ignore[attr-defined]
    state = stream.state_dict() | {"samples": 16_000}
    other = Stream(tmp_path, "train", global_batch=8, window=4, prefetch=0)
    other.load_state_dict(state)
    next(other.epoch(0))
    assert len(other.reader.open_shards) <= 8  # nothing before the position was touched
    assert len(other.reader.open_shards.checked) <= 8


def test_a_shard_is_compared_with_its_checksum_once(shards):
    stream = Stream(shards, "train", global_batch=4, window=1, prefetch=0)
    list(stream.epoch(0))
    assert len(stream.reader.open_shards.checked) == len(SIZES)
    opened = stream.reader.open_shards
    opened.shards = tuple(replace(shard, sha256="0" * 64) for shard in opened.shards)
    assert (
        len(list(stream.epoch(1))) == 5
    )  # with checksums that cannot match: they are not computed again


def test_utterances_have_masks_ids_and_unimodal_labels(shards):
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
    assert torch.isnan(batch.unimodal_labels["audio"]).nonzero().flatten().tolist() == list(
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
