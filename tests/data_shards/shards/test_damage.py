"""Damaged shards, indexes and manifests are read right or refused by name: never a crash, a hang or
a silent loss."""

from __future__ import annotations

import hashlib
import logging
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_shards.indexing.folder_indexer import index_folder
from data_shards.shards.index_table import CRC, END, START, Index
from data_shards.shards.manifest import DataError, Manifest
from data_shards.stream import Stream

NAME = "train-000001.tar"


@pytest.fixture
def folder(make_shards, tmp_path) -> Path:
    make_shards(tmp_path, (6, 6, 6))
    return tmp_path


def read_all(folder: Path, **options) -> dict[int, dict[str, bytes]]:
    """Every sample's arrays, by its place."""
    stream = Stream(folder, "train", global_batch=8, prefetch=0, **options)
    found = {}
    for (part,) in stream.epoch(0):
        assert (part.weight == 1).all()
        for at in part.index.tolist():
            number, row = divmod(at, 6)
            found[at] = {
                name: array.tobytes() for name, array in stream.reader.views(number, row).items()
            }
    stream.close()
    return found


def change(path: Path, what: Callable[[bytearray], bytes | bytearray]) -> None:
    path.write_bytes(what(bytearray(path.read_bytes())))


def flip(body: bytearray, at: int) -> bytearray:
    body[at] ^= 0x10
    return body


def middle(folder: Path) -> tuple[int, int]:
    """Start and end of the fourth sample of the damaged shard."""
    index = Index.from_bytes((folder / NAME).with_suffix(".idx").read_bytes(), "x")
    return int(index.table[3, START]), int(index.table[3, END])


# The kinds of damage after which stock readers lose half a shard without a word, or read wrong
# values.
KINDS: dict[str, Callable[[bytearray, int, int], bytes | bytearray]] = {
    "flipped byte in a member header": lambda body, start, end: flip(body, start + 3),
    "truncated at a member boundary": lambda body, start, end: body[:start],
    "truncated inside a header": lambda body, start, end: body[: start + 100],
    "hole of zeros": lambda body, start, end: body[:start] + bytes(1024) + body[start + 1024 :],
    "truncated inside a payload": lambda body, start, end: body[: start + 512 + 130],
    "flipped bit in a payload": lambda body, start, end: flip(body, start + 512 + 130),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefetch", [0, 2])
def test_damage_is_caught_before_a_sample_of_the_shard_is_used(folder, kind, prefetch):
    start, end = middle(folder)
    change(folder / NAME, lambda body: KINDS[kind](body, start, end))
    used: list[int] = []

    def walk() -> None:
        stream = Stream(folder, "train", global_batch=1, window=1, prefetch=prefetch)
        used.extend(part.index.item() for (part,) in stream.epoch(0))

    message = refusal(walk)
    assert not set(used) & set(range(6, 12))
    for expected in (
        NAME,
        "'train_00000009'",
        f"bytes {start} to {end}",
        "python -m data_shards.verify",
    ):
        assert expected in message


@pytest.mark.parametrize("kind", KINDS)
def test_skipping_leaves_out_the_shard_on_every_rank_alike(folder, kind, caplog):
    start, end = middle(folder)
    change(folder / NAME, lambda body: KINDS[kind](body, start, end))
    options = {"global_batch": 4, "on_corrupt": "skip", "max_skipped_fraction": 0.5, "window": 2}
    alone = Stream(folder, "train", **options)
    with caplog.at_level(logging.WARNING):
        whole = [sorted(part.index.tolist()) for (part,) in alone.epoch(3)]
    assert sorted(sum(whole, [])) == [*range(6), *range(12, 18)]
    assert (alone.skipped, list(alone.skipped_shards.reasons)) == (6, [1])
    assert "skipping 6 samples" in caplog.text
    assert NAME in caplog.text
    steps = []
    for rank in range(3):
        stream = Stream(folder, "train", rank=rank, ranks=3, **options)
        steps.append(
            [[part.index[part.weight > 0].tolist() for part in parts] for parts in stream.epoch(3)]
        )
    assert [
        sorted(sum((sum(parts, []) for parts in step), [])) for step in zip(*steps, strict=True)
    ] == whole


def test_a_batch_that_lacks_samples_has_its_true_weight(folder):
    change(folder / NAME, lambda body: flip(body, 1000))
    total = 0.0
    stream = Stream(folder, "train", global_batch=9, on_corrupt="skip", max_skipped_fraction=0.5)
    for (part,) in stream.epoch(0):
        assert part.loss_scale == pytest.approx(1 / len(part.index))
        total += len(part.index)
    assert total == 12


def test_a_batch_of_nothing_but_damage_is_no_step(folder):
    change(folder / NAME, lambda body: flip(body, 1000))
    stream = Stream(
        folder, "train", global_batch=3, shuffle=False, on_corrupt="skip", max_skipped_fraction=0.5
    )
    assert [part.index.tolist() for (part,) in stream.epoch(0)] == [
        [0, 1, 2],
        [3, 4, 5],
        [12, 13, 14],
        [15, 16, 17],
    ]
    assert stream.state_dict()["samples"] == 18


@pytest.mark.parametrize("bucket", [0, 3])
def test_a_position_means_the_same_after_a_shard_was_lost(folder, bucket):
    options = {
        "global_batch": 4,
        "on_corrupt": "skip",
        "max_skipped_fraction": 0.5,
        "bucket": bucket,
    }
    stream = Stream(folder, "train", **options)
    whole = [part.index.tolist() for (part,) in stream.epoch(0)]
    other = Stream(folder, "train", **options)
    steps = other.epoch(0)
    next(steps)
    next(steps)
    other.mark_consumed()
    change(folder / NAME, lambda body: flip(body, 1000))
    resumed = Stream(folder, "train", **options)
    resumed.load_state_dict(other.state_dict())
    rest = [part.index.tolist() for (part,) in resumed.epoch(0)]
    assert rest == [[i for i in batch if not 6 <= i < 12] for batch in whole[2:]]


def test_more_damage_than_the_budget_fails_all_the_same(folder):
    change(folder / NAME, lambda body: flip(body, 1000))
    with pytest.raises(DataError, match=r"6 of 18 train samples.*budget of 0.2.*train-000001"):
        list(
            Stream(
                folder, "train", global_batch=4, on_corrupt="skip", max_skipped_fraction=0.2
            ).epoch(0)
        )


@pytest.mark.parametrize("suffix", [".tar", ".idx"])
def test_a_missing_file_is_named(folder, suffix):
    (folder / NAME).with_suffix(suffix).unlink()
    with pytest.raises(DataError, match=rf"train-000001\{suffix} is missing"):
        read_all(folder)
    assert len(read_all(folder, on_corrupt="skip", max_skipped_fraction=0.5)) == 12


def test_a_shard_that_is_cut_while_in_use_is_an_error_too(folder):
    stream = Stream(folder, "train", global_batch=1, prefetch=0)
    steps = stream.epoch(0)
    next(steps)
    change(folder / NAME, lambda body: body[:1024])
    with pytest.raises(DataError, match="could not be read whole; was the file changed in use"):
        list(steps)


def test_damage_outside_all_samples_is_located_too(folder):
    change(folder / NAME, lambda body: flip(body, len(body) - 1))
    with pytest.raises(
        DataError, match="all 6 samples are whole; the damage is outside them, from byte"
    ):
        read_all(folder)


def refusal(work: Callable[[], object]) -> str:
    """What a DataError of ``work`` says; empty when it did what it should."""
    try:
        work()
    except DataError as error:
        return str(error) or "refused without a word"
    return ""


def check(right: bool) -> None:
    assert right


def mutate(body: bytes, random: np.random.Generator) -> bytes:
    """One random accident of a file."""
    size = len(body)
    at, other = sorted(int(place) for place in random.integers(0, size, 2))
    span = int(random.integers(1, 1500))
    noise = random.bytes(span)
    kind = random.integers(0, 10)
    if kind == 0:
        return bytes(flip(bytearray(body), at))
    if kind == 1:
        return body[:at] + noise[:1] + body[at + 1 :]
    if kind == 2:
        return body[:at]
    if kind == 3:
        return body[: at // 512 * 512]
    if kind == 4:
        return body[:at] + bytes(min(span, size - at)) + body[at + span :]
    if kind == 5:
        return body[:at] + body[at + span :]
    if kind == 6:
        return body[:at] + noise + body[at:]
    if kind == 7:
        return body[:at] + body[other : other + span] + body[at + span :]
    if kind == 8:
        return body + noise
    return noise if at % 2 else bytes(size)


def test_thousands_of_mutated_files_are_read_right_or_refused_by_name(folder):
    """Shards, indexes and manifests, 2400 in all; the mutations are the same in every run."""
    right = read_all(folder)
    random = np.random.Generator(np.random.Philox(2024))
    refused = 0
    for name in ("train-000001.tar", "train-000001.idx", "manifest.json"):
        path = folder / name
        whole = path.read_bytes()
        for _ in range(800):
            path.write_bytes(mutate(whole, random))
            message = refusal(lambda: check(read_all(folder) == right))
            refused += bool(message)
            check(not message or name in message)
        path.write_bytes(whole)
    assert refused > 2300  # a mutation may change nothing, such as a block copied onto its like
    assert read_all(folder) == right


def test_mutated_indexes_with_a_right_checksum_never_lead_outside(folder):
    """An index that somebody made, not chance: refused, or its offsets stay inside the shard."""
    path = folder / "train-000001.idx"
    whole = path.read_bytes()
    manifest = Manifest.from_json((folder / "manifest.json").read_text(), "m")
    first, second, third = manifest.splits["train"]
    random = np.random.Generator(np.random.Philox(7))
    read = 0
    for turn in range(500):
        body = mutate(whole, random)
        if turn % 2:  # whole but for one number of the table
            table = Index.from_bytes(whole, "x").table
            at = whole.index(table.tobytes())
            number = int(random.integers(0, table.size))
            value = np.int64(random.choice([-1, 0, 511, 10240, 2**40, 2**62, -(2**62)]))
            body = whole[: at + 8 * number] + value.tobytes() + whole[at + 8 * number + 8 :]
        path.write_bytes(body)
        changed = replace(second, index_sha256=hashlib.sha256(body).hexdigest())
        (folder / "manifest.json").write_text(
            replace(manifest, splits={"train": (first, changed, third)}).to_json()
        )
        message = refusal(lambda: read_all(folder))
        read += not message
        check(not message or "train-000001" in message)
    assert 0 < read < 400


def foreign(folder: Path) -> Path:
    folder.mkdir()
    path = folder / "data-000.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("some/clip é.audio.npy", "some/clip é.json", "b.jpg", "b.cls"):
            file = folder / "member"
            if name.endswith("npy"):
                with file.open("wb") as out:
                    np.save(out, np.arange(6, dtype=np.float32).reshape(2, 3))
            else:
                file.write_bytes(b'{"id": 1}')
            tar.add(file, name)
            file.unlink()
    return path


def test_mutated_foreign_tars_are_indexed_or_refused_by_name(tmp_path):
    path = foreign(tmp_path / "foreign")
    whole = path.read_bytes()
    random = np.random.Generator(np.random.Philox(5))
    refused = 0
    for _ in range(400):
        path.write_bytes(mutate(whole, random))
        (path.parent / "manifest.json").unlink(missing_ok=True)
        message = refusal(lambda: index_and_read(path.parent))
        refused += bool(message)
        check(not message or "data-000" in message)
    assert refused > 200


def index_and_read(folder: Path) -> None:
    index_folder(folder)
    found = [part for (part,) in Stream(folder, "data", global_batch=8, prefetch=0).epoch(0)]
    check(
        sum(len(part.index) for part in found) >= 1
    )  # a PAX header has no checksum: names may differ


def test_checksums_of_samples_cover_the_tar_without_gaps(folder):
    index = Index.from_bytes((folder / NAME).with_suffix(".idx").read_bytes(), "x")
    assert index.table[0, START] == 0
    np.testing.assert_array_equal(index.table[1:, START], index.table[:-1, END])
    assert not any((folder / NAME).read_bytes()[int(index.table[-1, END]) :])
    assert len(set(index.table[:, CRC].tolist())) == 6
