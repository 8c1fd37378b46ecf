"""The stream in the loaders of torch: worker processes change nothing."""

from __future__ import annotations

import pytest
import torch
from paths import ROOT
from streams import SIZES, places
from torch.utils.data import DataLoader

from data_shards.stream import Stream
from data_shards.torch_data import SampleDataset, StepDataset, loader

pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create"
)  # more workers than cores


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
    made = DataLoader(StepDataset(stream, 0), batch_size=None, num_workers=2)
    assert len(made) == stream.steps(0)
    assert sorted(sum((places(parts) for parts in made), [])) == list(range(sum(SIZES)))


def test_samples_work_in_a_data_loader(shards):
    samples = SampleDataset(Stream(shards, "train", global_batch=4))
    assert len(samples) == sum(SIZES)
    made = DataLoader(samples, batch_size=None, num_workers=2)
    assert [float(sample["label"]) for sample in made] == list(range(sum(SIZES)))
    assert "vision" not in samples[5]
    assert samples[-1]["label"] == sum(SIZES) - 1
    with pytest.raises(IndexError, match="20 samples, there is no sample 20"):
        samples[20]


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
