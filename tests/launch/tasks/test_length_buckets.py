"""Batches for a compiled model come in few lengths, and hold the same samples."""

from __future__ import annotations

from collections.abc import Callable

import torch

from core.batch import Utterances
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
