"""One reader of ``streaming.py``, in a process of its own.

    python benchmarks/streaming_readers.py READER write|views|batches SHAPE COUNT FOLDER

Every reader has three parts: write the samples in its own format, give samples with their arrays ready to use, and give
shuffled, padded batches of 64. What a reader needs is imported where it is used, so that this file runs with any
interpreter that has the peer. The last line of output is JSON.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
BATCH = 64
SHARD = 512
EPOCHS = 5  # after one to warm up; the fastest counts
# field -> the shape of its shortest and its longest sample
SHAPES = {
    "mosi": {
        "text": ((3, 8), (3, 50)),
        "audio": ((40, 5), (375, 5)),
        "vision": ((50, 20), (500, 20)),
    },
    "scale": {"text": ((3, 4), (3, 9)), "audio": ((4, 5), (9, 5)), "vision": ((4, 20), (9, 20))},
    "sims": {
        "text": ((3, 39), (3, 39)),
        "audio": ((400, 33), (400, 33)),
        "vision": ((55, 709), (55, 709)),
    },
}
Sample = dict[str, np.ndarray]
Epoch = Callable[[], Iterable[Any]]


def sample(shape: str, place: int) -> Sample:
    """The same for every reader."""
    rng = np.random.default_rng(place)
    arrays = {"label": np.array([rng.uniform(-3, 3)], np.float32)}
    for field, (shortest, longest) in SHAPES[shape].items():
        size = tuple(int(rng.integers(a, b + 1)) for a, b in zip(shortest, longest))  # noqa: B905
        if field == "text":
            arrays[field] = rng.integers(0, 30_000, size, np.int32)
        else:
            arrays[field] = rng.standard_normal(size, np.float32)
    return arrays


def samples(shape: str, count: int) -> Iterator[Sample]:
    return (sample(shape, place) for place in range(count))


def pad(rows: list[Any]) -> dict[str, Any]:
    """What every peer collates with: one zeroed array per field, each sample copied in, as tensors."""
    import torch

    batch = {}
    for field, axis in (("label", 0), ("text", 1), ("audio", 0), ("vision", 0)):
        arrays = [np.asarray(row[field] if field in row else row[f"{field}.npy"]) for row in rows]
        shape = [len(arrays), *arrays[0].shape]
        if field != "label":
            shape[axis + 1] = max(array.shape[axis] for array in arrays)
        out = np.zeros(shape, arrays[0].dtype)
        for row, array in enumerate(arrays):
            out[(row, *map(slice, array.shape))] = array
        batch[field] = torch.from_numpy(out)
    return batch


class Concord:
    """This project."""

    package = "numba"

    def __init__(self, folder: Path):
        sys.path.insert(0, str(ROOT))
        self.folder = folder

    def write(self, shape: str, count: int) -> None:
        from data_shards.shards.manifest import Field, Manifest, Sample
        from data_shards.shards.writer import write_shard

        shards = []
        for start in range(0, count, SHARD):
            places = range(start, min(start + SHARD, count))
            made = ((f"train_{i:08d}", Sample(f"clip {i}", sample(shape, i))) for i in places)
            shards.append(write_shard(self.folder, f"train-{start // SHARD:06d}.tar", made))
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
        numbers = range(len(reader.shards))
        return {
            "": lambda: (
                one
                for n in numbers
                for one in reader.iter_views(n, range(reader.shards[n].samples))
            )
        }

    def batches(self) -> dict[str, Epoch]:
        streams = {"": self._stream(prefetch=0), "background thread": self._stream(prefetch=2)}
        streams["buckets"] = self._stream(prefetch=0, bucket=True)
        return {name: partial(self._walk, stream, [0]) for name, stream in streams.items()} | {
            "first epoch, with checksums": lambda: self._walk(self._stream(prefetch=0), [0])
        }

    def _walk(self, stream: Any, epoch: list[int]) -> Iterator[Any]:
        epoch[0] += 1
        return (parts[0].arrays for parts in stream.epoch(epoch[0]))


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
    """No reader: the bytes of the arrays, read in pieces of a batch, and each piece copied into new memory."""

    package = "numpy"

    def __init__(self, folder: Path):
        self.tars = sorted((folder.parent / "concord").glob("*.tar"))

    def write(self, shape: str, count: int) -> None:
        self.tars[0].parent.joinpath("payload").write_text(
            str(sum(array.nbytes for one in samples(shape, count) for array in one.values()))
        )

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
    if (
        isinstance(item, dict)
        and "label" in item
        and hasattr(item["label"], "ndim")
        and item["label"].ndim == 2
    ):
        return len(item["label"])
    return 1


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
    sys.path[:] = [
        path for path in sys.path if Path(path).resolve() != ROOT / "benchmarks"
    ]  # hides a peer's name
    name, what, shape, count, folder = (
        *sys.argv[1:4],
        int(sys.argv[4]),
        Path(sys.argv[5]) / sys.argv[3] / sys.argv[1],
    )
    reader = READERS[name](folder)
    reader.count = count
    found: dict[str, Any] = {"version": version(reader.package)}
    done = folder.with_suffix(".written")  # a run that is repeated writes nothing anew
    if what == "write" and (not done.exists() or done.read_text() != str(count)):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        reader.write(shape, count)
        done.write_text(str(count))
    elif what == "write":
        pass
    else:
        epochs = reader.views() if what == "views" else reader.batches()
        found["settings"] = {setting: measure(epoch, count) for setting, epoch in epochs.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
