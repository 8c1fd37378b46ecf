"""One reader of ``streaming.py``, in a process of its own.

    python benchmarks/streaming_readers.py READER write|views|batches SHAPE COUNT FOLDER

Every reader has three parts: write the samples in its own format, give samples with their arrays
ready to use, and give shuffled, padded batches of 64. What a reader needs is imported where it is
used, so that this file runs with any interpreter that has the peer. The last line of output is
JSON.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.streaming_samples import BATCH, SHAPES, pad, sample, samples  # noqa: E402

SHARD = 512
EPOCHS = 5  # after one to warm up; the fastest counts
Epoch = Callable[[], Iterable[Any]]


class Concord:
    """This project."""

    package = "numba"

    def __init__(self, folder: Path):
        self.folder = folder

    def write(self, shape: str, count: int) -> None:
        from data_shards.shards.manifest import Field, Manifest, Sample
        from data_shards.shards.writer import write_shard

        shards = []
        for start in range(0, count, SHARD):
            indices = range(start, min(start + SHARD, count))
            keyed = ((f"train_{i:08d}", Sample(f"clip {i}", sample(shape, i))) for i in indices)
            shards.append(write_shard(self.folder, f"train-{start // SHARD:06d}.tar", keyed))
        fields = {"label": Field("float32", (1,)), "text": Field("int32", (3, None))}
        for field in ("audio", "vision"):
            fields[field] = Field("float32", (None, SHAPES[shape][field][0][1]))
        manifest = Manifest(shape, "sentiment", fields, {"train": tuple(shards)}, synthetic=True)
        (self.folder / "manifest.json").write_text(manifest.to_json())

    def _stream(self, **options: Any) -> Any:
        from data_shards.stream import Stream

        return Stream(self.folder, "train", global_batch=BATCH, **options)

    def views(self) -> dict[str, Epoch]:
        reader = self._stream(prefetch=0).reader

        def epoch() -> Iterator[Any]:
            for number, shard in enumerate(reader.shards):
                yield from reader.iter_views(number, range(shard.samples))

        return {"": epoch}

    def batches(self) -> dict[str, Epoch]:
        return {
            "": self._repeated(self._stream(prefetch=0)),
            "background thread": self._repeated(self._stream(prefetch=2)),
            "buckets": self._repeated(self._stream(prefetch=0, bucket=True)),
            "first epoch, with checksums": self._first_epoch,
        }

    def _first_epoch(self) -> Iterator[Any]:
        return self._arrays(self._stream(prefetch=0), 1)

    def _repeated(self, stream: Any) -> Epoch:
        """One epoch of the stream after the other."""
        numbers = itertools.count(1)
        return lambda: self._arrays(stream, next(numbers))

    def _arrays(self, stream: Any, epoch: int) -> Iterator[Any]:
        for micro_batches in stream.epoch(epoch):
            yield micro_batches[0].arrays


class WebDataset:
    """Stock webdataset on the same tars."""

    package = "webdataset"

    def __init__(self, folder: Path):
        self.tars = sorted(str(path) for path in (folder.parent / "concord").glob("*.tar"))

    def write(self, shape: str, count: int) -> None:
        pass

    def views(self) -> dict[str, Epoch]:
        import webdataset as wds

        return {"": lambda: wds.WebDataset(self.tars, shardshuffle=False).decode()}

    def batches(self) -> dict[str, Epoch]:
        import webdataset as wds
        from torch.utils.data import DataLoader

        def epoch() -> Iterable[Any]:
            data = wds.WebDataset(self.tars, shardshuffle=100).shuffle(1000).decode()
            return DataLoader(data.batched(BATCH, collation_fn=pad, partial=True), batch_size=None)

        return {"": epoch}


class LitData:
    """litdata, with each of its ways to decode."""

    package = "litdata"

    def __init__(self, folder: Path):
        self.folder = str(folder)

    def write(self, shape: str, count: int) -> None:
        import litdata

        litdata.optimize(
            partial(sample, shape),
            list(range(count)),
            self.folder,
            chunk_bytes="64MB",
            num_workers=1,
            verbose=False,
        )

    def views(self) -> dict[str, Epoch]:
        import litdata

        settings = ("auto", False, BATCH)
        return {
            f"batch_decode={one}": partial(litdata.StreamingDataset, self.folder, batch_decode=one)
            for one in settings
        }

    def batches(self) -> dict[str, Epoch]:
        import litdata

        def epoch(setting: Any) -> Iterable[Any]:
            data = litdata.StreamingDataset(self.folder, shuffle=True, batch_decode=setting)
            return litdata.StreamingDataLoader(
                data, batch_size=BATCH, collate_fn=pad, num_workers=0
            )

        return {f"batch_decode={one}": partial(epoch, one) for one in ("auto", False, BATCH)}


class Mosaic:
    """mosaicml-streaming."""

    package = "mosaicml-streaming"

    def __init__(self, folder: Path):
        self.folder = str(folder)

    def write(self, shape: str, count: int) -> None:
        from streaming import MDSWriter

        columns = {
            "text": "ndarray:int32",
            **dict.fromkeys(("label", "audio", "vision"), "ndarray:float32"),
        }
        with MDSWriter(out=self.folder, columns=columns) as out:
            for one in samples(shape, count):
                out.write(one)

    def _data(self, shuffle: bool) -> Any:
        from streaming import StreamingDataset

        return StreamingDataset(local=self.folder, shuffle=shuffle, batch_size=BATCH)

    def views(self) -> dict[str, Epoch]:
        data = self._data(False)
        return {"": lambda: data}

    def batches(self) -> dict[str, Epoch]:
        from torch.utils.data import DataLoader

        data = self._data(True)
        return {"": lambda: DataLoader(data, batch_size=BATCH, collate_fn=pad)}


class Energon:
    """NVIDIA Megatron-Energon on the same tars."""

    package = "megatron-energon"

    def __init__(self, folder: Path):
        self.folder = folder

    def write(self, shape: str, count: int) -> None:
        from megatron.energon import CrudeWebdataset
        from megatron.energon.epathlib import EPath

        for path in (self.folder.parent / "concord").glob("*.tar"):
            (self.folder / path.name).hardlink_to(path)
        CrudeWebdataset.prepare_dataset(
            EPath(self.folder),
            sorted(path.name for path in self.folder.glob("*.tar")),
            split_parts_ratio=[("train", 1)],
        )
        (self.folder / ".nv-meta" / "dataset.yaml").write_text(
            "__module__: megatron.energon\n__class__: CrudeWebdataset\n"
        )

    def _loader(self, shuffle: bool) -> Iterable[Any]:
        from megatron.energon import (
            Cooker,
            DefaultTaskEncoder,
            Sample,
            WorkerConfig,
            basic_sample_keys,
            edataclass,
            get_loader,
            get_train_dataset,
            get_val_dataset,
            stateless,
        )

        @edataclass
        class Utterance(Sample):
            arrays: dict[str, Any]

        @stateless
        def cook(row: dict[str, Any]) -> Utterance:
            arrays = {name[:-4]: array for name, array in row.items() if name.endswith(".npy")}
            return Utterance(**basic_sample_keys(row), arrays=arrays)

        class Encoder(DefaultTaskEncoder):
            cookers = [Cooker(cook)]

            @stateless
            def batch(self, rows: list[Any]) -> Any:
                return pad([row.arrays for row in rows])

            @stateless
            def encode_batch(self, batch: Any) -> Any:
                return batch

        options = {
            "worker_config": WorkerConfig(rank=0, world_size=1, num_workers=0),
            "task_encoder": Encoder(),
        }
        if not shuffle:
            return get_loader(
                get_val_dataset(self.folder, split_part="train", batch_size=None, **options)
            )
        data = get_train_dataset(
            self.folder,
            batch_size=BATCH,
            shuffle_buffer_size=1000,
            max_samples_per_sequence=100,
            repeat=False,
            **options,
        )
        return get_loader(data)

    def views(self) -> dict[str, Epoch]:
        return {"": lambda: self._loader(False)}

    def batches(self) -> dict[str, Epoch]:
        return {"": lambda: self._loader(True)}


class ReadAndCopy:
    """No reader: the bytes of the arrays, read in pieces of a batch, and each piece copied into new
    memory."""

    package = "numpy"

    def __init__(self, folder: Path):
        self.tars = sorted((folder.parent / "concord").glob("*.tar"))

    def write(self, shape: str, count: int) -> None:
        payload = 0
        for arrays in samples(shape, count):
            payload += sum(array.nbytes for array in arrays.values())
        self.tars[0].parent.joinpath("payload").write_text(str(payload))

    def views(self) -> dict[str, Epoch]:
        return {}

    def batches(self) -> dict[str, Epoch]:
        payload = int(self.tars[0].parent.joinpath("payload").read_text())
        whole = sum(path.stat().st_size for path in self.tars)
        piece = bytearray(max(BATCH * payload // self.count, 1))

        def epoch() -> Iterator[int]:
            import torch

            left = payload
            source = torch.frombuffer(piece, dtype=torch.uint8)
            for path in self.tars:
                share = path.stat().st_size * payload // whole + 1
                with path.open("rb", buffering=0) as file:
                    while share > 0 and left > 0:
                        got = file.readinto(memoryview(piece)[: min(share, left)])
                        copy = torch.empty(got, dtype=torch.uint8)
                        copy.copy_(source[:got])
                        share, left = share - got, left - got
                        yield got

        return {"": epoch}

    count = 0


READERS = {
    "concord": Concord,
    "webdataset": WebDataset,
    "litdata": LitData,
    "mosaicml-streaming": Mosaic,
    "megatron-energon": Energon,
    "read + memcpy": ReadAndCopy,
}


def rows_of(item: Any) -> int:
    """How many samples one item of an epoch holds."""
    label = item.get("label") if isinstance(item, dict) else None
    is_batch = getattr(label, "ndim", 0) == 2
    return len(label) if is_batch else 1


def measure(epoch: Epoch, count: int, seconds: float = 20.0) -> dict[str, float]:
    """The fastest of several epochs; fewer when they are slow."""
    times, started = [], time.perf_counter()
    seen = 0
    for _ in range(EPOCHS + 1):
        cpu, wall = time.process_time(), time.perf_counter()
        seen = sum(rows_of(item) for item in epoch())
        times.append((time.process_time() - cpu, time.perf_counter() - wall))
        if len(times) > 1 and time.perf_counter() - started > seconds:
            break
    best = min(times[1:])
    return {"samples": seen, "per_cpu_second": count / best[0], "per_second": count / best[1]}


def main() -> None:
    # The peer mosaicml-streaming is imported as ``streaming``, which a file beside this one hides.
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != ROOT / "benchmarks"]
    name, what, shape, words, work = sys.argv[1:]
    count = int(words)
    folder = Path(work) / shape / name
    reader = READERS[name](folder)
    reader.count = count
    found: dict[str, Any] = {"version": version(reader.package)}
    if what == "write":
        write(reader, folder, shape, count)
    else:
        epochs = reader.views() if what == "views" else reader.batches()
        found["settings"] = {setting: measure(epoch, count) for setting, epoch in epochs.items()}
    print(json.dumps(found))


def write(reader: Any, folder: Path, shape: str, count: int) -> None:
    """Write the samples, unless an earlier run did."""
    done = folder.with_suffix(".written")
    if done.exists() and done.read_text() == str(count):
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    reader.write(shape, count)
    done.write_text(str(count))


if __name__ == "__main__":
    main()
